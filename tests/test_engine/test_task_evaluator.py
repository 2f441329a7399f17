# SPDX-License-Identifier: Apache-2.0
"""Scoring tasks with a model whose predictions are known."""
from __future__ import annotations

import contextlib
import copy
import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from torch import nn

from mmseg.structures import SegDataSample
from mmseg_mile.engine import task_evaluator, work_dir
from mmseg_mile.engine.task_evaluator import (ImageLog, TaskScore, count_macs,
                                              cross_expert_scores,
                                              evaluate_forced, evaluate_task,
                                              record_cost, record_row,
                                              setting_of)
from mmseg_mile.engine.work_dir import RowCache
from mmseg_mile.evaluation import (DomainIoU, RoutedImage, read_routing_log,
                                   write_routing_log)
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.structures import Task

# Two experts whose label spaces share 'car' only.
CLASSES = dict(day=('road', 'car'), night=('cold', 'hot', 'car'))
DAY = Task('day', CLASSES['day'], ((0, 0, 0), ) * 2, {},
           dict(type='CamVidDataset'))


class KnownModel:
    """Predicts class 1, or the image's number, with the expert it is told."""

    def __init__(self, *routing, expert_names=('day', 'night')):
        self.routing = list(routing)
        self.expert_names = tuple(expert_names)
        self.batches, self.counted = [], 7
        self._forced = None

    def eval(self):
        return self

    def routing_stats(self):
        counted, self.counted = self.counted, 0
        return dict(images=counted)

    @contextlib.contextmanager
    def forced(self, expert):
        self._forced = expert
        yield
        self._forced = None

    def test_step(self, batch):
        self.batches.append((self._forced, len(batch['inputs'])))
        self.counted += len(batch['inputs'])
        outputs = []
        for pixels, sample in zip(batch['inputs'], batch['data_samples']):
            assert 'expert' not in sample, 'the sample was predicted before'
            # An image holds the position of its routing.
            number = int(pixels[0, 0, 0])
            mixture = self._forced or self.routing[number]
            if isinstance(mixture, str):
                mixture = {mixture: 1.0}
            expert = max(mixture, key=mixture.get)
            sample.set_metainfo(
                dict(expert=expert, mixture=mixture, classes=CLASSES[expert]))
            found = 0 if len(mixture) > 1 else number % 2 if number > 9 else 1
            sample.pred_sem_seg = PixelData(data=torch.full((1, 2, 2), found))
            outputs.append(sample)
        return outputs


def loader_of(*numbers, batch_size=2):
    batches = []
    for start in range(0, len(numbers), batch_size):
        part = numbers[start:start + batch_size]
        batches.append(
            dict(
                inputs=[torch.full((3, 2, 2), i) for i in part],
                data_samples=[
                    SegDataSample(
                        gt_sem_seg=PixelData(data=torch.ones(1, 2, 2).long()),
                        metainfo=dict(img_path=f'/data/day/{i}.png'))
                    for i in part
                ]))
    return batches


@pytest.fixture
def runner():
    seen = []
    return SimpleNamespace(
        seen=seen,
        call_hook=lambda name, **kwargs: seen.append((name, kwargs)))


@pytest.fixture
def evaluate(runner):

    def run(model, loader):
        return evaluate_task(runner, model, DAY, loader, '/data', 'night')

    return run


def test_only_images_routed_wrong_are_predicted_again(evaluate):
    model = KnownModel('night', 'day', 'night', 'night', 'day')
    score = evaluate(model, loader_of(0, 1, 2, 3, 4))
    assert model.batches == [(None, 2), ('day', 1), (None, 2), ('day', 2),
                             (None, 1)]
    assert score.chosen == {'night': 3, 'day': 2}


def test_routed_score_has_the_predictions_of_the_chosen_experts(evaluate):
    # Expert night says class 1, 'hot', which the task lacks.
    score = evaluate(KnownModel('night', 'day'), loader_of(0, 1))
    assert (score.routed.miou(), score.oracle.miou()) == (50, 100)


def test_blend_with_the_own_expert_ahead_is_no_oracle(evaluate):
    model = KnownModel(dict(day=0.6, night=0.4))
    score = evaluate(model, loader_of(0))
    assert model.batches == [(None, 1), ('day', 1)]
    assert (score.routed.miou(), score.oracle.miou()) == (0, 100)


class SilentModel(KnownModel):
    """Gives no prediction unless an expert is forced."""

    def test_step(self, batch):
        outputs = super().test_step(batch)
        for output in outputs if self._forced is None else ():
            output.set_metainfo(dict(expert=None, mixture={}))
            output.pred_sem_seg.data.fill_(255)
        return outputs


def test_image_without_a_prediction_counts_as_wrong(evaluate):
    model = SilentModel('day', 'day')
    score = evaluate(model, loader_of(0, 1))
    assert model.batches == [(None, 2), ('day', 2)]
    assert (score.routed.miou(), score.oracle.miou()) == (0, 100)
    assert score.chosen == {} and score.images[0].expert is None
    assert score.images[0].miou == 0


def test_oracle_digest_does_not_depend_on_the_routing(evaluate):
    digests = {
        evaluate(KnownModel(*routing), loader_of(0, 1, 2)).digest
        for routing in (['day'] * 3, ['night'] * 3, ['day', 'night', 'day'])
    }
    assert len(digests) == 1 and len(digests.pop()) == 64


def test_task_without_expert_has_no_oracle(runner, evaluate):
    model = KnownModel('night', 'night', expert_names=['night'])
    score = evaluate(model, loader_of(0, 1))
    assert model.batches == [(None, 2)]
    assert score.oracle is None and score.digest == ''
    assert runner.seen[0][1]['oracle_samples'] is None
    line = score.images[0]
    assert (line.miou, line.oracle_miou) == (0, None)
    again = TaskScore.from_document(DAY, score.to_document())
    assert again.oracle is None


def test_hooks_see_every_batch_once_and_the_own_expert_beside(
        runner, evaluate):
    evaluate(KnownModel('night', 'day', 'night'), loader_of(0, 1, 2))
    assert [name for name, _ in runner.seen] == ['after_stream_val_iter'] * 2
    first = runner.seen[0][1]
    assert first['task'] is DAY
    assert [s.task for s in first['data_samples']] == ['day', 'day']
    assert [s.expert for s in first['data_samples']] == ['night', 'day']
    assert [s.expert for s in first['oracle_samples']] == ['day', 'day']
    assert first['data_samples'][1] is first['oracle_samples'][1]


def test_forced_expert_predicts_all_images():
    model = KnownModel('day', 'day', 'day')
    assert evaluate_forced(model, DAY, loader_of(0, 1, 2), 'night') == 0
    assert model.batches == [('night', 2), ('night', 1)]


def test_score_comes_back_from_its_document(evaluate):
    score = evaluate(KnownModel('night', 'day'), loader_of(0, 1))
    document = json.loads(json.dumps(score.to_document()))
    again = TaskScore.from_document(DAY, document)
    assert again.to_document() == score.to_document()
    assert (again.routed.miou(), again.oracle.miou()) == (50, 100)
    assert again.images == score.images and len(score.images) == 2
    # one of the two was predicted twice; seven earlier ones do not count
    assert again.routing_stats == score.routing_stats == dict(images=3)


# -- several processes --------------------------------------------------------


def test_processes_together_find_what_one_finds(monkeypatch, evaluate):
    numbers, shares = (10, 11, 12), []

    def run(*own, gather):
        monkeypatch.setattr(task_evaluator, 'all_gather_object', gather)
        routing = ['day'] * 10 + ['day', 'night', 'night']
        return evaluate(KnownModel(*routing), loader_of(*own, batch_size=1))

    def send(mine):
        shares.append(copy.deepcopy(mine))
        return [mine]

    alone = run(*numbers, gather=lambda mine: [mine])
    run(11, gather=send)
    both = run(10, 12, gather=lambda mine: [mine, *shares])
    both.routing_stats = alone.routing_stats
    assert both.to_document() == alone.to_document()
    assert [image.file
            for image in both.images] == [f'day/{i}.png' for i in numbers]
    assert run(11, 11, 10, gather=lambda mine: [mine]).digest != alone.digest


# -- lines of the routing log -------------------------------------------------


def counts(prediction, truth=(0, 1)):
    score = DomainIoU(DAY.classes)
    score.update(np.array([prediction]), DAY.classes, np.array([truth]))
    return score


def test_line_says_where_the_image_was_sent_and_what_it_cost(tmp_path):
    sample = SegDataSample(
        metainfo=dict(
            img_path=str(tmp_path / 'city' / 'a.png'),
            expert='night',
            mixture={'night': 1.0},
            distances=dict(day=2.0, night=1.23456789),
            ood=True,
            sequence='city'))
    log = ImageLog(DAY, 'night', str(tmp_path))
    # road: 1 of 2 pixels, car: none
    assert log.entry(sample, counts((0, 0)), counts((0, 1))) == RoutedImage(
        after='night',
        task='day',
        dataset='CamVidDataset',
        file='city/a.png',
        expert='night',
        mixture=dict(night=1.0),
        distances=dict(day=2.0, night=1.23457),
        ood=True,
        miou=25.0,
        oracle_miou=100.0,
        sequence='city',
        areas=dict(road=[1, 1, 2], car=[0, 1, 0]))


def test_image_without_experts_and_truth_leaves_a_line(tmp_path):
    line = ImageLog(DAY, 'day',
                    str(tmp_path)).entry(SegDataSample(),
                                         counts((0, 1), truth=(255, 255)),
                                         None)
    assert line == RoutedImage('day', 'day', 'CamVidDataset', '')


@pytest.mark.parametrize('name, logged', [
    ('data/stra\u00dfe.png', 'stra\u00dfe.png'),
    ('data/nacht\udcff.png', r'nacht\xff.png'),
    ('elsewhere.png', '{tmp_path}/elsewhere.png'),
])
def test_any_file_name_can_be_logged(tmp_path, name, logged):
    sample = SegDataSample(metainfo=dict(img_path=str(tmp_path / name)))
    log = ImageLog(DAY, 'day', str(tmp_path / 'data'))
    write_routing_log(tmp_path / 'log.jsonl',
                      [log.entry(sample, counts((0, 1)), None)])
    line, = read_routing_log(tmp_path / 'log.jsonl')
    assert line.file == logged.format(tmp_path=tmp_path)


# -- a row in progress --------------------------------------------------------


def never(task):
    raise AssertionError(f'{task.name} was evaluated again')


def test_kept_score_is_not_evaluated_again(evaluate, tmp_path):
    score = evaluate(KnownModel('night', 'day'), loader_of(0, 1))
    cache = RowCache(tmp_path / 'row', 'night')
    cache.score(DAY, lambda task: score)
    kept = RowCache(tmp_path / 'row', 'night').score(DAY, never)
    assert kept.to_document() == score.to_document()
    with pytest.raises(AssertionError, match='day was evaluated again'):
        RowCache(tmp_path / 'row', 'fog').score(DAY, never)
    cache.discard()
    assert not (tmp_path / 'row').exists()


def test_slower_process_takes_the_score_that_the_main_one_found(
        evaluate, tmp_path, monkeypatch):
    score = evaluate(KnownModel('night', 'day'), loader_of(0, 1))
    cache = RowCache(tmp_path / 'row', 'night')
    cache.score(DAY, lambda task: score)
    sent: list = []
    monkeypatch.setattr(work_dir, 'broadcast_object_list', sent.extend)
    cache.score(DAY, never)
    # the main process is through with the row
    cache.discard()

    def receive(data):
        data[:] = sent

    monkeypatch.setattr(work_dir, 'broadcast_object_list', receive)
    monkeypatch.setattr(work_dir, 'is_main_process', lambda: False)
    found = cache.score(DAY, never)
    assert found.to_document() == score.to_document()


# -- every expert on every other task -----------------------------------------


def fill(path, tasks=('day', 'night', 'fog'), stop=None, **changed):
    """Ten times the task's place plus the expert's; and the pairs asked."""
    pairs = []

    def forced(task, expert):
        if len(pairs) == stop:
            raise KeyboardInterrupt
        pairs.append((task, expert))
        return 10. * 'dnf'.index(task[0]) + 'dnf'.index(expert[0])

    digests = dict(dict(day='a', night='b', fog='c'), **changed)
    matrix = cross_expert_scores(path, tasks, digests, [90.] * len(tasks),
                                 forced)
    return matrix.tolist(), pairs


def test_interrupted_pass_goes_on_with_the_next_pair(tmp_path):
    path = tmp_path / 'cross.json'
    whole = [[90, 1, 2], [10, 90, 12], [20, 21, 90]]
    with pytest.raises(KeyboardInterrupt):
        fill(path, stop=2)
    assert fill(path) == (whole, [('night', 'day'), ('night', 'fog'),
                                  ('fog', 'day'), ('fog', 'night')])
    assert fill(path) == (whole, [])


def test_new_and_changed_experts_are_evaluated(tmp_path):
    path = tmp_path / 'cross.json'
    fill(path, ('day', 'night'))
    assert set(fill(path)[1]) == {('day', 'fog'), ('night', 'fog'),
                                  ('fog', 'day'), ('fog', 'night')}
    assert set(fill(path, day='z')[1]) == {('day', 'night'), ('day', 'fog'),
                                           ('night', 'day'), ('fog', 'day')}


# -- what is recorded ---------------------------------------------------------

TASKS = [DAY, Task('night', ('road', 'car'), ((0, 0, 0), ) * 2, {}, {})]
NO_GATE = SimpleNamespace(gate=None)


def score_of(hits, oracle_hits=None, **chosen):
    """A road of ten pixels, of which ``hits`` are right, and no car.

    Images that went to no expert are counted as ``nobody``.
    """

    def iou(right):
        return DomainIoU.from_confusion(('road', 'car'),
                                        [[right, 10 - right, 0], [0, 0, 0]])

    images = [None] * sum(chosen.values())
    chosen.pop('nobody', None)
    return TaskScore(
        iou(hits), None if oracle_hits is None else iou(oracle_hits),
        Counter(chosen), 'abc', images)


@pytest.fixture
def results():
    return StreamResults.new('s', 'm', 0, ['day', 'night'])


def test_row_is_recorded_with_zero_shot_scores(results):
    scores = [score_of(8, 9, day=4), score_of(3, day=4)]
    digests = record_row(results, 0, TASKS, scores, NO_GATE)
    assert results.miou['routed'][0].tolist() == [80, 30]
    assert results.miou['oracle'][0, 0] == 90
    assert np.isnan(results.miou['oracle'][0, 1])
    assert results.gate_confusion[0, 0] == 4
    assert list(results.class_iou['routed']) == ['day']
    assert digests == {'day': 'abc', 'night': 'abc'}
    assert results.routing_stats == [None, None]
    scores[1].routing_stats = dict(layer_1=[0.2, 0.8])
    record_row(results, 0, TASKS, scores, NO_GATE)
    assert results.routing_stats[0]['night'] == dict(layer_1=[0.2, 0.8])


@pytest.mark.parametrize('lost, confusion', [('night', [[3, 1], [0, 4]]),
                                             ('nobody', [[3, 0], [0, 4]])])
def test_image_that_got_another_or_no_expert_was_routed_wrong(
        results, lost, confusion):
    scores = [score_of(8, 8, **{'day': 3, lost: 1}), score_of(8, 8, night=4)]
    record_row(results, 1, TASKS, scores, NO_GATE)
    assert results.gate_confusion.tolist() == confusion
    assert results.gate_accuracy == 7 / 8


def test_prototype_distances_follow_the_order_of_the_tasks(results):
    gate = SimpleNamespace(
        expert_names=('night', 'day'),
        prototype_distances=lambda: torch.tensor([[0., 5.], [3., 0.]]))
    record_row(results, 1, TASKS,
               [score_of(8, 8), score_of(8, 8)], SimpleNamespace(gate=gate))
    assert results.prototype_distances.tolist() == [[0, 3], [5, 0]]


@pytest.mark.parametrize('rehearsal, old_images', [
    (None, 'none'),
    (dict(tasks='seen', images_per_task=8), 'buffer'),
    (dict(tasks='seen'), 'all'),
    (dict(tasks='all', images_per_task=8), 'all'),
])
@pytest.mark.parametrize('of_method, of_gate', [(False, False), (True, False),
                                                (False, True)])
def test_setting_says_which_help_the_method_gets(rehearsal, old_images,
                                                 of_method, of_gate):
    model = SimpleNamespace(
        needs_task_label=of_method,
        gate=SimpleNamespace(needs_task_label=of_gate))
    assert setting_of(model, rehearsal) == dict(
        task_label_at_test=of_method or of_gate, old_images=old_images)


def test_cost_counts_kept_images_too(results, tmp_path):
    model = SimpleNamespace(
        backbone=nn.Linear(3, 2),
        kept_cost=lambda experts: dict(params=10, bytes=40),
        expert_costs=lambda folder: [])
    record_cost(results, 1, 2.5, model, tmp_path, image_bytes=7)
    cost = results.cost
    assert (cost.base_params, cost.train_seconds[1]) == (8, 2.5)
    assert (cost.kept_params[1], cost.kept_bytes[1]) == (10, 47)


class Convolution(nn.Module):
    """Merges weights in its first prediction, as an expert's are."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1)
        self.merged = None

    def test_step(self, batch):
        assert [s.task for s in batch['data_samples']] == ['day']
        if self.merged is None:
            self.merged = torch.ones(8, 8) @ torch.ones(8, 8)
        return self.layer(batch['inputs'][0][None])


def test_macs_are_those_of_one_image_without_the_merge():
    model = Convolution()
    batch = dict(
        inputs=[torch.zeros(3, 5, 6)] * 2,
        data_samples=[SegDataSample(), SegDataSample()])
    # 5 x 6 positions, 4 outputs of 3 x 3 x 3 inputs
    assert count_macs(model, DAY, [batch, batch]) == 30 * 4 * 27
    assert not model.training
    assert count_macs(model, DAY, []) is None
