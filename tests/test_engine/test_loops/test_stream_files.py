# SPDX-License-Identifier: Apache-2.0
"""The files of scores that a stream leaves."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

DOMAINS = ['day', 'night', 'infrared']

pytestmark = pytest.mark.integration


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


def test_results_have_exactly_the_agreed_fields(document):
    assert set(document) == {
        'schema', 'stream', 'method', 'setting', 'seed', 'tasks', 'miou',
        'class_iou', 'gate', 'routing_stats', 'scores', 'cost', 'provenance'
    }
    assert set(document['miou']) == {'routed', 'oracle'}
    assert set(document['class_iou']) == {'routed', 'oracle'}
    assert set(
        document['gate']) == {'accuracy', 'confusion', 'prototype_distances'}
    assert set(document['scores']) == {
        'average_miou', 'backward_transfer', 'forward_transfer', 'forgetting',
        'stability', 'plasticity', 'oracle_gap', 'mismatch_drop',
        'harmonic_mean_miou', 'net_score'
    }
    assert set(document['cost']) == {
        'base_params', 'experts', 'train_seconds', 'kept_params', 'kept_bytes',
        'macs'
    }
    assert set(
        document['provenance']) == {'commit', 'versions', 'config', 'device'}


def test_results_name_the_run(document):
    head = {
        key: document[key]
        for key in ('schema', 'stream', 'method', 'seed', 'tasks')
    }
    assert head == {
        'schema': 3,
        'stream': 'tiny',
        'method': 'MILE',
        'seed': 3,
        'tasks': DOMAINS
    }


def test_results_load_and_say_the_same_again(stream_run, document):
    from mmseg_mile.evaluation.results import StreamResults
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
