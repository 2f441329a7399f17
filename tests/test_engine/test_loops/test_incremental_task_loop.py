# SPDX-License-Identifier: Apache-2.0
"""The tiny stream from its first to its last step."""
from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from safetensors.torch import load_file

DOMAINS = ['day', 'night', 'infrared']
NUM_VAL, NUM_TRAIN = 3, 6

pytestmark = pytest.mark.integration


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
    assert document['gate']['accuracy'] == 1.0
    assert document['gate']['confusion'] == (NUM_VAL *
                                             np.eye(3, dtype=int)).tolist()


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


@pytest.mark.parametrize('index', range(3))
def test_each_row_of_the_score_matrix_is_logged(stream_run, index, miou):
    # tools that look at the run leave logs of their own below its folder
    folder = Path(stream_run.runner.log_dir)
    log = next(folder.glob('*.log')).read_text()
    row = log.split(f'after {DOMAINS[index]}:\n', 1)[1]
    row = row.split('mean of seen', 1)[0]
    for task, value in zip(DOMAINS, miou['routed'][index]):
        line = next(line for line in row.splitlines() if f'| {task} ' in line)
        assert f' {value:.1f} ' in line


def test_own_hooks_are_registered_once(stream_run):
    from mmseg_mile.engine.hooks import FiniteLossHook, StreamProgressHook
    kinds = Counter(type(hook) for hook in stream_run.runner.hooks)
    assert kinds[FiniteLossHook] == kinds[StreamProgressHook] == 1
