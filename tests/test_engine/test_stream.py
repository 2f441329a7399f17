# SPDX-License-Identifier: Apache-2.0
"""The tiny stream from its first to its last step, and what it leaves."""
from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from run_comparison import library_tensors, results_of
from safetensors.torch import load_file

from mmseg_mile.engine.incremental_task_loop import check_schedule
from mmseg_mile.evaluation import read_routing_log, routing_log_path
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.structures import Task

DOMAINS = ['day', 'night', 'infrared']
PARTS = ('adapter_model', 'head', 'norm', 'prototypes')
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


@pytest.fixture(scope='module')
def rows(stream_run):
    """Lines of the routing log of each row."""
    return {
        after: read_routing_log(routing_log_path(stream_run.work_dir, after))
        for after in DOMAINS
    }


@pytest.fixture
def loop(stream_run):
    init_default_scope('mmseg')
    return stream_run.runner.train_loop


def stored(stream_run, name, part):
    return load_file(stream_run.work_dir / 'library' / name /
                     f'{part}.safetensors')


# -- learning -----------------------------------------------------------------


def test_each_task_has_an_optimizer_and_a_schedule_of_its_own(stream_run):
    diary = stream_run.diary
    assert diary.learned == DOMAINS
    assert len(set(map(id, diary.optimizers))) == 3
    assert len(set(map(id, diary.schedulers))) == 3
    first, *later = diary.rates
    assert first[0] == 0.01 and first == sorted(set(first), reverse=True)
    assert later == [first, first]


def test_each_task_has_a_checkpoint_folder_of_its_own(stream_run):
    folders = sorted((stream_run.work_dir / 'tasks').iterdir())
    assert [f.name for f in folders] == ['00_day', '01_night', '02_infrared']
    for folder in folders:
        names = sorted(path.name for path in folder.glob('*.pth'))
        assert names == ['iter_2.pth', 'iter_4.pth', 'iter_6.pth']
    assert not list(stream_run.work_dir.glob('*.pth'))


def test_each_task_leaves_an_expert_of_the_final_base(stream_run):
    library = stream_run.work_dir / 'library'
    index = json.loads((library / 'library.json').read_text())
    assert list(index['experts']) == DOMAINS
    assert list(stream_run.runner.model.expert_names) == DOMAINS
    backbone = stream_run.runner.model.backbone
    assert not any(p.requires_grad for p in backbone.parameters())
    base = backbone.fingerprint()
    assert base == index['base_fingerprint']
    for domain in DOMAINS:
        record = json.loads((library / domain / 'expert.json').read_text())
        assert record['base_fingerprint'] == base
    for part in PARTS[:3]:
        first, second = (stored(stream_run, d, part) for d in DOMAINS[:2])
        assert any(not torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize('domain', DOMAINS)
def test_prototypes_are_fitted_on_test_pipeline_images(stream_run, loop,
                                                       domain):
    model, task = loop.model, loop.tasks[DOMAINS.index(domain)]
    images = loop.data.prototype_loader(loop.runner, task, loop.val_dataloader,
                                        1000).dataset
    embeddings = []
    for index in range(len(images)):
        batch = model.data_preprocessor(pseudo_collate([images[index]]), False)
        embeddings.append(model.embedder(model.backbone, batch['inputs']))
    prototypes = stored(stream_run, domain, 'prototypes')
    assert prototypes['counts'].tolist() == [NUM_TRAIN]
    torch.testing.assert_close(prototypes['centroids'],
                               torch.cat(embeddings).double().mean(0)[None])


# -- scores -------------------------------------------------------------------


def test_every_task_is_evaluated_after_each_task(stream_run, miou):
    diary = stream_run.diary
    assert diary.rows == [0, 1, 2]
    images = Counter((row, task) for row, task, _ in diary.routed)
    assert images == {(row, t): NUM_VAL for row in range(3) for t in DOMAINS}
    wrong = Counter(row for row, task, expert in diary.routed
                    if task in DOMAINS[:row + 1] and expert != task)
    assert diary.predicted == [3 * NUM_VAL + wrong[row] for row in range(3)]
    assert not np.isnan(miou['routed']).any()


def test_old_tasks_are_predicted_bit_for_bit_as_before(stream_run, miou):
    assert (np.isnan(miou['oracle']) == ~np.tri(3, dtype=bool)).all()
    for column in range(3):
        learned = miou['oracle'][column:, column]
        assert (learned == learned[0]).all()
    digests = json.loads(
        (stream_run.work_dir / 'oracle_digests.json').read_text())
    last = digests['infrared']
    assert list(digests) == list(last) == DOMAINS
    assert len(set(last.values())) == 3
    assert digests['night'] == {name: last[name] for name in DOMAINS[:2]}
    assert digests['day'] == {'day': last['day']}


def test_results_name_the_run_and_load_again(stream_run, document):
    head = ('stream', 'method', 'seed', 'tasks')
    assert [document[key] for key in head] == ['tiny', 'MILE', 3, DOMAINS]
    path = stream_run.work_dir / 'results.json'
    assert StreamResults.load(path).to_document() == document
    assert str(stream_run.work_dir) not in path.read_text()


def test_scores_follow_from_the_matrices(document, miou):
    for kind in ('routed', 'oracle'):
        per_task = document['class_iou'][kind]
        means = [np.mean(list(per_task[task].values())) for task in DOMAINS]
        np.testing.assert_allclose(means, miou[kind][-1], atol=1e-3)
    scores = document['scores']
    assert scores['average_miou'] == pytest.approx(
        miou['routed'][-1].mean(), abs=1e-3)
    # Routed right throughout, so nothing is forgotten.
    assert document['gate']['accuracy'] == 1.0
    assert scores['forgetting'] == scores['backward_transfer'] == 0
    assert scores['oracle_gap'] == 0


def test_costs_count_what_is_on_disk(stream_run, document):
    cost, library = document['cost'], stream_run.work_dir / 'library'
    kept = sum(v.numel()
               for v in load_file(library / 'base.safetensors').values())
    fields = ('lora_params', 'head_params', 'norm_params', 'prototype_values')
    for index, entry in enumerate(cost['experts']):
        assert entry['task'] == DOMAINS[index]
        for field, part in zip(fields, PARTS):
            values = stored(stream_run, entry['task'], part).values()
            assert entry[field] == sum(v.numel() for v in values) > 0
            kept += entry[field]
        assert entry['bytes'] == sum(
            p.stat().st_size for p in (library / entry['task']).iterdir())
        assert cost['kept_params'][index] == kept
    assert np.diff(cost['kept_bytes']).tolist() == [
        entry['bytes'] for entry in cost['experts'][1:]
    ]
    backbone = stream_run.runner.model.backbone.backbone
    assert cost['base_params'] == sum(p.numel() for p in backbone.parameters())
    # The stem alone: 24 x 32 positions, 4 outputs of 3 x 3 x 3 inputs.
    assert cost['macs'] > 24 * 32 * 4 * 27
    assert min(cost['train_seconds']) > 0


def test_tables_are_logged(stream_run, miou):
    # tools that look at the run leave logs of their own below its folder
    log = next(Path(stream_run.runner.log_dir).glob('*.log')).read_text()
    for index, domain in enumerate(DOMAINS):
        row = log.split(f'after {domain}:\n', 1)[1]
        row = row.split('mean of seen', 1)[0]
        for task, value in zip(DOMAINS, miou['routed'][index]):
            line = next(x for x in row.splitlines() if f'| {task} ' in x)
            assert f' {value:.1f} ' in line
    assert 'mismatch drop' in log


# -- other experts ------------------------------------------------------------


def forced_miou(loop, row, column):
    """mIoU by class name, from arrays of names."""
    task, expert = loop.tasks[row], loop.tasks[column]
    found = {'pred_sem_seg': [], 'gt_sem_seg': []}
    loader = loop.data.val_loader(loop.runner, task, loop.val_dataloader)
    with loop.model.forced(expert.name), torch.no_grad():
        for batch in loader:
            for sample in loop.model.test_step(batch):
                for key, kept in found.items():
                    names = expert if key == 'pred_sem_seg' else task
                    label = sample.get(key).data.squeeze(0).numpy()
                    kept.append(np.array(names.classes)[label].ravel())
    predicted, truth = map(np.concatenate, found.values())
    ious = [((predicted == name) & (truth == name)).sum() /
            ((predicted == name) | (truth == name)).sum()
            for name in task.classes if (truth == name).any()]
    return 100 * np.mean(ious)


def test_classes_that_no_label_shows_are_named(learn, tiny_config, tmp_path):
    cfg = tiny_config(tmp_path / 'run', ('day', ), train_cfg__max_iters=1)
    for split in ('train', 'val'):
        cfg.train_cfg.tasks[0][f'{split}_dataset'].metainfo = dict(
            classes=('sky', 'road', 'car', 'bird'))
    run = learn(cfg)
    log = next(Path(run.runner.log_dir).glob('*.log')).read_text()
    assert "mIoU of 'day' is without ['bird'], which no label of" in log


def test_cross_expert_scores_compare_by_class_name(loop, cross, miou,
                                                   document):
    assert cross['tasks'] == DOMAINS
    matrix = np.array(cross['miou'])
    np.testing.assert_allclose(np.diag(matrix), miou['oracle'][-1], atol=1e-4)
    for row, column in ((2, 1), (0, 2), (1, 0)):
        assert matrix[row, column] == pytest.approx(
            forced_miou(loop, row, column), abs=1e-3)
    # else the comparison by name would be one of zeros
    assert max(*matrix[2, :2], *matrix[:2, 2]) > 0
    others = (matrix.sum(1) - np.diag(matrix)) / 2
    assert document['scores']['mismatch_drop'] == pytest.approx(
        (np.diag(matrix) - others).mean(), abs=1e-3)


# -- the routing log ----------------------------------------------------------


def test_each_image_has_one_line_per_row_in_order(stream_run, rows, document):
    files = [(t, f'{t}/img/val/{i}.png') for t in DOMAINS for i in range(3)]
    for index, (after, lines) in enumerate(rows.items()):
        assert [(line.task, line.file) for line in lines] == files
        for line in lines:
            assert (line.after, line.dataset) == (after, 'BaseSegDataset')
            assert list(line.distances) == DOMAINS[:index + 1]
            assert line.expert == min(line.distances, key=line.distances.get)
            assert line.mixture == {line.expert: 1}
            assert line.ood in (True, False) and line.miou is not None
            learned = line.task in DOMAINS[:index + 1]
            assert (line.oracle_miou is not None) == learned
            assert line.expert != line.task or line.routing_cost == 0
    assert stream_run.diary.routed == [
        (DOMAINS.index(line.after), line.task, line.expert)
        for lines in rows.values() for line in lines
    ]
    pairs = Counter((line.task, line.expert) for line in rows['infrared'])
    assert document['gate']['confusion'] == [
        [pairs[task, expert] for expert in DOMAINS] for task in DOMAINS
    ]


# -- another order ------------------------------------------------------------


def test_tasks_are_learned_in_the_order_that_is_asked_for(
        learn, tiny_config, tmp_path, restore):
    """As if they were listed so, and extended at the end of the order."""
    runs = [
        learn(tiny_config(tmp_path / 'listed', ('infrared', 'night'))),
        learn(
            tiny_config(
                tmp_path / 'ordered', ('night', 'infrared'),
                train_cfg__order=['infrared', 'night']))
    ]
    assert runs[1].diary.learned == ['infrared', 'night']
    mine, theirs = (run.work_dir for run in runs)
    assert library_tensors(mine) == library_tensors(theirs)
    for field in ('tasks', 'miou', 'class_iou', 'gate', 'scores'):
        assert results_of(mine)[field] == results_of(theirs)[field]
    order = ['infrared', 'night', 'day']
    longer = tiny_config(mine, resume=True, train_cfg__order=order)
    assert restore(longer) == 2
    with pytest.raises(ValueError, match='only be continued by tasks at its'):
        restore(tiny_config(mine, ('night', 'infrared'), resume=True))


def test_images_are_evaluated_by_as_many_workers_as_train(
        tiny_config, tmp_path, quick):
    cfg = tiny_config(tmp_path, train_dataloader__num_workers=2)
    with quick():
        loop = Runner.from_cfg(cfg).train_loop
        loader = loop._val_loader(loop.tasks[0])
    assert (loader.batch_size, loader.num_workers) == (1, 2)


# -- refused before anything is trained ---------------------------------------

LOADER = dict(batch_size=1, dataset=dict(type='x'))
VAL = dict(
    val_cfg=dict(type='ValLoop'),
    val_dataloader=LOADER,
    val_evaluator=dict(type='IoUMetric'))


@pytest.mark.parametrize('changes, message', [
    (dict(custom_hooks=[dict(type='EMAHook')]), 'EMAHook averages .* remove'),
    (VAL, 'evaluates every task itself: remove val_cfg'),
    (dict(default_hooks__checkpoint__save_best='mIoU'), 'remove .*save_best'),
    (dict(load_from='a.pth'), r"load_from='a.pth'.* init_cfg=.*'a.pth', pre"),
    (dict(train_dataloader__dataset=dict(type='x')),
     'train_dataloader.dataset has no effect'),
    (dict(train_cfg__val_dataloader=LOADER),
     'train_cfg.val_dataloader.dataset has no effect'),
    (dict(train_dataloader__num_workers=0,
          train_dataloader__persistent_workers=True),
     '^train_dataloader makes no loader .* persistent_workers'),
    (dict(train_cfg__val_dataloader=dict(batchsize=1)),
     "^train_cfg.val_dataloader makes no loader .* 'batchsize'"),
    (dict(train_cfg__checkpoint_interval=0), 'interval must be >= 1, got 0'),
    (dict(train_cfg__rehearsal=dict(tasks='seen')), 'is trained without'),
    (dict(train_cfg__order=['day']), r"order must name .*\['day'\]; the"),
    (dict(model__backbone__lora__target_modules=['qkv']),
     "'qkv' matches no layer"),
    (dict(train_cfg__tasks__0__init_from='night'),
     "init_from of task 'day' must be one of .* got 'night'"),
    (dict(train_cfg__tasks__1__init_from='nigth'),
     "init_from of task 'night' must be one of .* got 'nigth'"),
    (dict(train_cfg__order=DOMAINS[::-1], train_cfg__tasks__1__init_from='day'
          ), "init_from of task 'night' must be one of .* got 'day'"),
    (dict(model__gate=dict(type='OracleGate', _delete_=True),
          model__init_from='nearest'), 'OracleGate has not: use Prototype'),
    (dict(model__decode_head__loss_decode__class_weight=[1., 1., 2.]),
     'class_weight has 3 values, the task has 2 classes'),
    (dict(param_scheduler=[dict(type='PolyLR', begin=6, by_epoch=False)]),
     "param_scheduler.0.begin is 6, but task 'day' trains 6 iterations"),
])  # yapf: disable
def test_settings_that_cannot_work_are_refused(tiny_config, tmp_path, quick,
                                               changes, message):
    cfg = tiny_config(tmp_path / 'run', **changes)
    with quick(), pytest.raises(ValueError, match=message):
        Runner.from_cfg(cfg).train_loop


def test_model_that_learns_no_streams_is_refused(tiny_config, tmp_path, quick):
    cfg = tiny_config(tmp_path / 'run')
    cfg.model = dict(
        type='EncoderDecoder',
        backbone=cfg.model.backbone.backbone,
        decode_head=cfg.model.decode_head)
    with quick(), pytest.raises(
            ValueError, match="got model.type 'EncoderDecoder'"):
        Runner.from_cfg(cfg).train_loop


def test_schedule_is_held_against_the_shortest_task():
    tasks = [
        Task(f't{i}', ('a', ), ((0, 0, 0), ), {}, {}, length)
        for i, length in enumerate((9, 6))
    ]
    late = dict(type='PolyLR', by_epoch=False, begin=6)
    check_schedule([dict(late, begin=5), dict(type='LinearLR')], tasks)
    check_schedule(None, tasks)
    for schedulers, index in (([dict(late, begin=5), late], 1), (late, 0)):
        with pytest.raises(
                ValueError, match=rf"scheduler.{index}.begin is 6, .*'t1'"):
            check_schedule(schedulers, tasks)


@pytest.mark.parametrize('spoilt, changes, message', [
    (True, {}, r"val of task 'infrared': label '.*ann/val/2.png' holds \[7\]"),
    (False, dict(model__embedder__stages=(0, 4)), r'stages \[4\] do not'),
])
def test_bad_file_or_embedder_stops_the_run_before_training(
        learn, tiny_config, root, tmp_path, spoilt, changes, message):
    if spoilt:
        path = root / 'infrared' / 'ann' / 'val' / '2.png'
        assert cv2.imwrite(str(path), np.full((48, 64), 7, np.uint8))
    with pytest.raises(ValueError, match=message):
        learn(
            tiny_config(
                tmp_path / 'run', train_cfg__data_root=str(root), **changes))
    assert not (tmp_path / 'run' / 'tasks').exists()
    assert not (tmp_path / 'run' / 'results.json').exists()
