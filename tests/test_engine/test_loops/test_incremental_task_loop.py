# SPDX-License-Identifier: Apache-2.0
"""The tiny stream from its first to its last step."""
from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from safetensors.torch import load_file

DOMAINS = ['day', 'night', 'infrared']
NUM_VAL, NUM_TRAIN = 3, 6

pytestmark = pytest.mark.integration


@pytest.fixture(scope='module')
def document(stream_run):
    return json.loads((stream_run.work_dir / 'results.json').read_text())


@pytest.fixture(scope='module')
def miou(document):
    """Score matrices with NaN for null."""
    return {
        kind: np.array(rows, dtype=float)
        for kind, rows in document['miou'].items()
    }


@pytest.fixture(scope='module')
def cross(stream_run):
    path = stream_run.work_dir / 'cross_expert_miou.json'
    return json.loads(path.read_text())


@pytest.fixture
def loop(stream_run):
    init_default_scope('mmseg')
    return stream_run.runner.train_loop


def forced_miou(loop, task, expert, ious):
    """Mean over the classes of ``task`` of ``ious(predicted, truth, name)``.

    Label maps are handed over as arrays of class names.
    """
    predicted, truth = [], []
    loader = loop.data.val_loader(loop.runner, task, loop.val_dataloader)
    with loop.model.forced(expert.name), torch.no_grad():
        for batch in loader:
            for sample in loop.model.test_step(batch):
                for names, data, kept in ((expert.classes, sample.pred_sem_seg,
                                           predicted),
                                          (task.classes, sample.gt_sem_seg,
                                           truth)):
                    label = data.data.squeeze(0).numpy()
                    kept.append(np.array(names)[label].ravel())
    predicted, truth = np.concatenate(predicted), np.concatenate(truth)
    present = [name for name in task.classes if (truth == name).any()]
    return 100 * np.mean([ious(predicted, truth, name) for name in present])


def iou_by_name(predicted, truth, name):
    both = (predicted == name) & (truth == name)
    return both.sum() / ((predicted == name) | (truth == name)).sum()


def test_tasks_are_learned_in_order(stream_run):
    assert stream_run.diary.learned == DOMAINS


def test_each_task_has_its_own_optimizer(stream_run):
    assert len(set(map(id, stream_run.diary.optimizers))) == 3


def test_each_task_has_its_own_schedulers(stream_run):
    assert len(set(map(id, stream_run.diary.schedulers))) == 3


def test_learning_rate_starts_anew_with_each_task(stream_run):
    first, *later = stream_run.diary.rates
    assert first[0] == 0.01
    assert first == sorted(set(first), reverse=True)
    assert later == [first, first]


@pytest.mark.parametrize('index', range(3))
def test_each_task_has_its_own_checkpoint_folder(stream_run, index):
    folder = stream_run.work_dir / 'tasks' / f'0{index}_{DOMAINS[index]}'
    names = sorted(path.name for path in folder.glob('*.pth'))
    assert names == ['iter_2.pth', 'iter_4.pth', 'iter_6.pth']


def test_no_checkpoint_lies_in_the_work_dir_itself(stream_run):
    assert not list(stream_run.work_dir.glob('*.pth'))


def test_each_task_leaves_an_expert(stream_run):
    library = json.loads(
        (stream_run.work_dir / 'library' / 'library.json').read_text())
    assert library['experts'] == DOMAINS
    assert list(stream_run.runner.model.expert_names) == DOMAINS


def test_experts_differ_in_adapter_norm_and_head(stream_run):
    folders = [stream_run.work_dir / 'library' / d for d in DOMAINS[:2]]
    for name in ('adapter_model', 'norm', 'head'):
        first, second = (
            load_file(folder / f'{name}.safetensors') for folder in folders)
        assert any(not torch.equal(first[key], second[key]) for key in first)


def test_all_experts_belong_to_the_base_that_the_model_ends_with(stream_run):
    mine = stream_run.runner.model.backbone.fingerprint()
    library = stream_run.work_dir / 'library'
    assert mine == json.loads(
        (library / 'library.json').read_text())['base_fingerprint']
    for domain in DOMAINS:
        record = json.loads((library / domain / 'expert.json').read_text())
        assert record['base_fingerprint'] == mine


def test_expert_of_the_base_task_equals_the_trained_base(stream_run):
    backbone = stream_run.runner.model.backbone.eval()
    image = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        with backbone.using('day'):
            expert = backbone(image)
        with backbone.base():
            base = backbone(image)
    for mine, theirs in zip(expert, base):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_base_ends_frozen(stream_run):
    model = stream_run.runner.model
    assert not any(p.requires_grad for p in model.backbone.parameters())


@pytest.mark.parametrize('domain', DOMAINS)
def test_prototypes_are_fitted_on_test_pipeline_images(loop, domain):
    model, task = loop.model, loop.tasks[DOMAINS.index(domain)]
    loader = loop.data.prototype_loader(loop.runner, task, loop.val_dataloader,
                                        1000)
    whole = loader.dataset
    # The training pipeline crops to 32 x 48, the test pipeline does not.
    assert {whole[i]['inputs'].shape
            for i in range(len(whole))} == {(3, 48, 64)}
    embeddings = []
    for index in range(len(whole)):
        batch = model.data_preprocessor(pseudo_collate([whole[index]]), False)
        embeddings.append(model.embedder(model.backbone, batch['inputs']))
    stored = load_file(loop.work_dir / 'library' / domain /
                       'prototypes.safetensors')
    assert stored['counts'].tolist() == [NUM_TRAIN]
    torch.testing.assert_close(stored['centroids'],
                               torch.cat(embeddings).double().mean(0)[None])


def test_every_task_is_evaluated_after_each_task(stream_run):
    diary = stream_run.diary
    assert diary.rows == [0, 1, 2]
    images = Counter((row, task) for row, task, _ in diary.routed)
    assert images == {
        (row, task): NUM_VAL
        for row in range(3)
        for task in DOMAINS
    }


def test_only_wrongly_routed_images_are_predicted_twice(stream_run):
    diary = stream_run.diary
    wrong = Counter(row for row, task, expert in diary.routed
                    if task in DOMAINS[:row + 1] and expert != task)
    assert diary.predicted == [3 * NUM_VAL + wrong[row] for row in range(3)]


def test_gate_tells_the_domains_apart(document):
    assert document['gate'] == {
        'accuracy': 1.0,
        'confusion': (NUM_VAL * np.eye(3, dtype=int)).tolist()
    }


def test_all_tasks_have_a_routed_score_in_every_row(miou):
    assert not np.isnan(miou['routed']).any()


def test_unseen_tasks_have_no_oracle_score(miou):
    unseen = ~np.tri(3, dtype=bool)
    assert (np.isnan(miou['oracle']) == unseen).all()


def test_oracle_scores_of_old_tasks_are_constant(miou):
    for column in range(3):
        learned = miou['oracle'][column:, column]
        assert (learned == learned[0]).all()


def test_oracle_label_maps_of_old_tasks_are_bit_identical(stream_run):
    rows = json.loads(
        (stream_run.work_dir / 'oracle_digests.json').read_text())
    assert list(rows) == DOMAINS
    last = rows['infrared']
    assert list(last) == DOMAINS and len(set(last.values())) == 3
    assert rows['night'] == {name: last[name] for name in DOMAINS[:2]}
    assert rows['day'] == {'day': last['day']}


def test_results_have_exactly_the_agreed_fields(document):
    assert set(document) == {
        'schema', 'stream', 'method', 'seed', 'tasks', 'miou', 'class_iou',
        'gate', 'scores', 'cost', 'provenance'
    }
    assert set(document['miou']) == {'routed', 'oracle'}
    assert set(document['class_iou']) == {'routed', 'oracle'}
    assert set(document['gate']) == {'accuracy', 'confusion'}
    assert set(document['scores']) == {
        'average_miou', 'backward_transfer', 'forward_transfer', 'forgetting',
        'stability', 'plasticity', 'oracle_gap', 'mismatch_drop'
    }
    assert set(document['cost']) == {'base_params', 'experts', 'train_seconds'}
    assert set(
        document['provenance']) == {'commit', 'versions', 'config', 'device'}


def test_results_name_the_run(document):
    head = {
        key: document[key]
        for key in ('schema', 'stream', 'method', 'seed', 'tasks')
    }
    assert head == {
        'schema': 1,
        'stream': 'tiny',
        'method': 'MILE',
        'seed': 3,
        'tasks': DOMAINS
    }


def test_results_load_and_say_the_same_again(stream_run, document):
    from mmseg_mile.evaluation import StreamResults
    path = stream_run.work_dir / 'results.json'
    assert StreamResults.load(path).to_document() == document


@pytest.mark.parametrize('kind', ['routed', 'oracle'])
def test_class_scores_average_to_the_last_row(document, kind):
    per_task = document['class_iou'][kind]
    assert list(per_task) == DOMAINS
    means = [np.mean(list(per_task[task].values())) for task in DOMAINS]
    np.testing.assert_allclose(means, document['miou'][kind][-1], atol=1e-3)


def test_scores_follow_from_the_matrices(document, miou):
    scores = document['scores']
    assert scores['average_miou'] == pytest.approx(
        miou['routed'][-1].mean(), abs=1e-3)
    # Routed right throughout, so nothing is forgotten.
    assert scores['forgetting'] == scores['backward_transfer'] == 0
    assert scores['oracle_gap'] == 0


def test_costs_count_what_is_on_disk(stream_run, document):
    fields = dict(
        lora_params='adapter_model',
        head_params='head',
        norm_params='norm',
        prototype_values='prototypes')
    entries = document['cost']['experts']
    assert [entry['task'] for entry in entries] == DOMAINS
    for entry in entries:
        folder = stream_run.work_dir / 'library' / entry['task']
        for field, name in fields.items():
            stored = load_file(folder / f'{name}.safetensors').values()
            assert entry[field] == sum(value.numel() for value in stored) > 0
        assert entry['bytes'] == sum(p.stat().st_size
                                     for p in folder.iterdir())


def test_base_params_are_those_of_the_inner_backbone(stream_run, document):
    backbone = stream_run.runner.model.backbone.backbone
    assert document['cost']['base_params'] == sum(
        p.numel() for p in backbone.parameters())


def test_training_time_of_each_task_is_noted(document):
    assert len(document['cost']['train_seconds']) == 3
    assert min(document['cost']['train_seconds']) > 0


def test_cross_expert_scores_hold_the_oracle_on_the_diagonal(cross, miou):
    assert cross['tasks'] == DOMAINS
    np.testing.assert_allclose(
        np.diag(cross['miou']), miou['oracle'][-1], atol=1e-4)


def test_mismatch_drop_follows_from_the_cross_expert_scores(cross, document):
    matrix = np.array(cross['miou'])
    others = (matrix.sum(1) - np.diag(matrix)) / 2
    assert document['scores']['mismatch_drop'] == pytest.approx(
        (np.diag(matrix) - others).mean(), abs=1e-3)


@pytest.mark.parametrize('task, expert', [('infrared', 'night'),
                                          ('day', 'infrared'),
                                          ('night', 'day')])
def test_other_experts_are_compared_by_class_name(loop, cross, task, expert):
    row, column = DOMAINS.index(task), DOMAINS.index(expert)
    by_name = forced_miou(loop, loop.tasks[row], loop.tasks[column],
                          iou_by_name)
    assert cross['miou'][row][column] == pytest.approx(by_name, abs=1e-3)


def test_some_expert_says_car_in_another_label_space(cross):
    # Else the comparison by name above would be one of zeros.
    foreign = [cross['miou'][0][2], cross['miou'][1][2], *cross['miou'][2][:2]]
    assert max(foreign) > 0


@pytest.mark.parametrize('index', range(3))
def test_each_row_of_the_score_matrix_is_logged(stream_run, index, miou):
    log = next(stream_run.work_dir.rglob('*.log')).read_text()
    row = log.split(f'after {DOMAINS[index]}:\n', 1)[1]
    row = row.split('mean of seen', 1)[0]
    for task, value in zip(DOMAINS, miou['routed'][index]):
        line = next(line for line in row.splitlines() if f'| {task} ' in line)
        assert f' {value:.1f} ' in line


def test_own_hooks_are_registered_once(stream_run):
    from mmseg_mile.engine import FiniteLossHook, StreamProgressHook
    kinds = Counter(type(hook) for hook in stream_run.runner.hooks)
    assert kinds[FiniteLossHook] == kinds[StreamProgressHook] == 1
