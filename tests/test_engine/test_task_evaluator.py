# SPDX-License-Identifier: Apache-2.0
"""Scoring a task with a model whose predictions are known."""
from __future__ import annotations

import contextlib
import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData

from mmseg.structures import SegDataSample
from mmseg_mile.engine import task_evaluator
from mmseg_mile.engine.task_evaluator import (TaskScore, evaluate_forced,
                                              evaluate_task)
from mmseg_mile.evaluation import DomainIoU, RoutedImage
from mmseg_mile.structures import Task

# Two experts whose label spaces share 'car' only.
CLASSES = dict(day=('road', 'car'), night=('cold', 'hot', 'car'))


class KnownModel:
    """Predicts class 1 everywhere, with the experts that it is told."""

    def __init__(self, routing, expert_names=('day', 'night')):
        self.routing = list(routing)
        self.expert_names = tuple(expert_names)
        self.batches = []
        self._forced = None

    def eval(self):
        return self

    @contextlib.contextmanager
    def forced(self, expert):
        self._forced = expert
        yield
        self._forced = None

    def test_step(self, batch):
        self.batches.append((self._forced, len(batch['inputs'])))
        outputs = []
        for pixels, sample in zip(batch['inputs'], batch['data_samples']):
            assert 'expert' not in sample, 'the sample was predicted before'
            # An image holds the position of its routing.
            expert = self._forced or self.routing[int(pixels[0, 0, 0])]
            mixture = expert if isinstance(expert, dict) else {expert: 1.0}
            expert = max(mixture, key=mixture.get)
            sample.set_metainfo(
                dict(expert=expert, mixture=mixture, classes=CLASSES[expert]))
            blended = 0 if len(mixture) > 1 else 1
            sample.pred_sem_seg = PixelData(
                data=torch.full((1, 2, 2), blended))
            outputs.append(sample)
        return outputs


def sample_of(index):
    return SegDataSample(
        gt_sem_seg=PixelData(data=torch.ones(1, 2, 2).long()),
        metainfo=dict(img_path=f'/data/day/{index}.png'))


def evaluate(runner, model, task, loader):
    return evaluate_task(runner, model, task, loader, '/data', 'night')


def loader_of(num_images, batch_size=2):
    batches = []
    for start in range(0, num_images, batch_size):
        indices = range(start, min(start + batch_size, num_images))
        batches.append(
            dict(
                inputs=[torch.full((3, 2, 2), i) for i in indices],
                data_samples=[sample_of(i) for i in indices]))
    return batches


@pytest.fixture
def task():
    return Task('day', CLASSES['day'], ((0, 0, 0), ) * 2, {},
                dict(type='CamVidDataset'))


@pytest.fixture
def runner():
    seen = []
    return SimpleNamespace(
        seen=seen,
        call_hook=lambda name, **kwargs: seen.append((name, kwargs)))


def test_images_routed_right_are_predicted_once(runner, task):
    model = KnownModel(['day'] * 3)
    evaluate(runner, model, task, loader_of(3))
    assert model.batches == [(None, 2), (None, 1)]


def test_images_routed_wrong_are_predicted_again_by_their_expert(runner, task):
    model = KnownModel(['night', 'day', 'night', 'night'])
    evaluate(runner, model, task, loader_of(4))
    assert model.batches == [(None, 2), ('day', 1), (None, 2), ('day', 2)]


def test_routed_score_has_the_predictions_of_the_chosen_experts(runner, task):
    # Expert night says class 1, 'hot', which the task lacks.
    score = evaluate(runner, KnownModel(['night', 'day']), task, loader_of(2))
    assert score.routed.miou() == 50
    assert score.oracle.miou() == 100


def test_chosen_experts_are_counted(runner, task):
    score = evaluate(runner, KnownModel(['night', 'day', 'night']), task,
                     loader_of(3))
    assert score.chosen == {'night': 2, 'day': 1}


def test_oracle_digest_does_not_depend_on_the_routing(runner, task):
    digests = {
        evaluate(runner, KnownModel(routing), task, loader_of(3)).digest
        for routing in (['day'] * 3, ['night'] * 3, ['day', 'night', 'day'])
    }
    assert len(digests) == 1 and len(digests.pop()) == 64


def test_blend_with_the_own_expert_ahead_is_no_oracle(runner, task):
    blend = dict(day=0.6, night=0.4)
    model = KnownModel([blend])
    score = evaluate(runner, model, task, loader_of(1))
    assert model.batches == [(None, 1), ('day', 1)]
    assert (score.routed.miou(), score.oracle.miou()) == (0, 100)


def test_task_without_expert_has_no_oracle(runner, task):
    model = KnownModel(['night'] * 2, expert_names=['night'])
    score = evaluate(runner, model, task, loader_of(2))
    assert model.batches == [(None, 2)]
    assert score.oracle is None and score.digest == ''


def test_hooks_see_every_routed_batch_once(runner, task):
    evaluate(runner, KnownModel(['night'] * 3), task, loader_of(3))
    assert [name for name, _ in runner.seen] == ['after_stream_val_iter'] * 2
    assert [[s.expert for s in kwargs['data_samples']]
            for _, kwargs in runner.seen] == [['night', 'night'], ['night']]
    assert all(kwargs['task'] is task for _, kwargs in runner.seen)


def test_samples_carry_their_task(runner, task):
    evaluate(runner, KnownModel(['day']), task, loader_of(1))
    assert runner.seen[0][1]['data_samples'][0].task == 'day'


def test_hooks_see_the_own_expert_beside_the_chosen_one(runner, task):
    evaluate(runner, KnownModel(['night', 'day']), task, loader_of(2))
    _, seen = runner.seen[0]
    assert [s.expert for s in seen['oracle_samples']] == ['day', 'day']
    wrong, right = zip(seen['data_samples'], seen['oracle_samples'])
    assert wrong[0] is not wrong[1]
    assert right[0] is right[1]


def test_hooks_see_no_oracle_of_a_task_without_expert(runner, task):
    model = KnownModel(['night'], expert_names=['night'])
    evaluate(runner, model, task, loader_of(1))
    assert runner.seen[0][1]['oracle_samples'] is None


def test_every_image_has_a_line_in_order(runner, task):
    images = evaluate(runner, KnownModel(['night', 'day', 'night']), task,
                      loader_of(3)).images
    line = dict(after='night', task='day', dataset='CamVidDataset')
    # Expert night says class 1, 'hot', which the task lacks.
    assert images == [
        RoutedImage(
            **line,
            file=f'day/{index}.png',
            expert=expert,
            mixture={expert: 1.0},
            miou=miou,
            oracle_miou=100.0)
        for index, (expert, miou) in enumerate((('night', 0.0), ('day', 100.0),
                                                ('night', 0.0)))
    ]


def test_lines_of_a_task_without_expert_have_no_oracle(runner, task):
    model = KnownModel(['night'], expert_names=['night'])
    line, = evaluate(runner, model, task, loader_of(1)).images
    assert (line.miou, line.oracle_miou) == (0, None)


def test_lines_of_several_processes_come_in_the_order_of_the_dataset(
        monkeypatch, runner, task):
    model = KnownModel(['day', 'night', 'day'])
    batches = loader_of(3, batch_size=1)
    whole = evaluate(runner, model, task, batches).images
    shares = []

    def gather(mine):
        shares.append(copy.deepcopy(mine))
        return [mine] if len(shares) == 1 else [mine, shares[0]]

    monkeypatch.setattr(task_evaluator, 'all_gather_object', gather)
    evaluate(runner, model, task, loader_of(3, batch_size=1)[1:2])
    both = evaluate(runner, model, task, loader_of(3, batch_size=1)[::2])
    assert [image.file
            for image in both.images] == [f'day/{i}.png' for i in range(3)]
    assert both.images == whole


def test_forced_expert_predicts_all_images(task):
    model = KnownModel(['day'] * 3)
    assert evaluate_forced(model, task, loader_of(3), 'night') == 0
    assert model.batches == [('night', 2), ('night', 1)]


def test_score_comes_back_from_its_document(runner, task):
    score = evaluate(runner, KnownModel(['night', 'day']), task, loader_of(2))
    document = json.loads(json.dumps(score.to_document()))
    again = TaskScore.from_document(task, document)
    assert again.to_document() == score.to_document()
    assert (again.routed.miou(), again.oracle.miou()) == (50, 100)
    assert again.chosen['never chosen'] == 0
    assert again.images == score.images and len(score.images) == 2


def test_document_of_a_task_without_expert_has_no_oracle(runner, task):
    model = KnownModel(['night'], expert_names=['night'])
    document = evaluate(runner, model, task, loader_of(1)).to_document()
    assert TaskScore.from_document(task, document).oracle is None


def score_of(truth):
    both = []
    for _ in range(2):
        counts = DomainIoU(('road', 'car'))
        counts.update(np.ones((1, 2), int), ('road', 'car'), truth)
        both.append(counts)
    return TaskScore(*both, {'day': 1})


def test_scores_of_several_processes_are_added(monkeypatch, runner, task):
    other = score_of(np.zeros((1, 2), int))
    other.chosen = task_evaluator.Counter(day=1, night=4)
    monkeypatch.setattr(task_evaluator, 'all_gather_object',
                        lambda mine: [mine, (copy.deepcopy(other), [b''])])
    score = evaluate(runner, KnownModel(['day']), task, loader_of(1))
    assert score.routed.confusion.tolist() == [[0, 2, 0], [0, 4, 0]]
    assert score.oracle.confusion.tolist() == [[0, 2, 0], [0, 4, 0]]
    assert score.chosen == {'day': 2, 'night': 4}


class NumberedModel(KnownModel):
    """Predicts the position of each image in the dataset."""

    def test_step(self, batch):
        outputs = super().test_step(batch)
        for pixels, output in zip(batch['inputs'], outputs):
            output.pred_sem_seg.data.fill_(int(pixels[0, 0, 0]) % 2)
        return outputs


def test_digest_does_not_depend_on_the_number_of_processes(
        monkeypatch, runner, task):

    def digest(images, gather=None):
        gather = gather or (lambda mine: [mine])
        monkeypatch.setattr(task_evaluator, 'all_gather_object', gather)
        loader = [
            batch for image, batch in enumerate(loader_of(3, batch_size=1))
            if image in images
        ]
        return evaluate(runner, NumberedModel(['day'] * 3), task,
                        loader).digest

    shares = []
    digest([1], lambda mine: shares.append(mine) or [mine])
    alone = digest([0, 1, 2])
    assert digest([0, 2], lambda mine: [mine, *shares]) == alone
    assert digest([0, 1, 0]) != alone
