# SPDX-License-Identifier: Apache-2.0
"""Sequential fine-tuning: one network, one head that grows."""
from __future__ import annotations

import copy
import json
from functools import partial

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.structures import PixelData
from tiny import AUXILIARY_HEAD, TINY_MODEL

from mmseg.structures import SegDataSample
from mmseg_mile.methods.baselines.fine_tune_segmentor import FineTuneSegmentor
from mmseg_mile.structures import Task

DAY = Task('day', ('sky', 'road'), ((1, 1, 1), (2, 2, 2)), {}, {})
NIGHT = Task('night', ('lamp', 'road'), ((3, 3, 3), (9, 9, 9)), {}, {})


def model_config(**changes):
    model = copy.deepcopy(TINY_MODEL)
    for key in ('embedder', 'gate'):
        del model[key]
    model['backbone'] = model['backbone']['backbone']
    return dict(model, type='FineTuneSegmentor', **changes)


@pytest.fixture
def model():
    config = model_config()
    del config['type']
    return FineTuneSegmentor(**config)


def sample_of(label, **metainfo):
    return SegDataSample(
        gt_sem_seg=PixelData(data=label),
        metainfo=dict(img_shape=(32, 32), ori_shape=(32, 32), **metainfo))


def test_head_speaks_the_union_of_the_classes(model):
    model.begin_task(DAY, [])
    model.begin_task(NIGHT, [])
    assert model.classes == ('sky', 'road', 'lamp')
    assert model.palette == ((1, 1, 1), (2, 2, 2), (3, 3, 3))
    assert model.decode_head.conv_seg.out_channels == model.num_classes == 3


def test_grown_head_keeps_the_rows_of_known_classes(model):
    model.begin_task(DAY, [])
    before = copy.deepcopy(model.decode_head.state_dict())
    model.begin_task(NIGHT, [])
    for key, value in model.decode_head.state_dict().items():
        kept = value[:2] if key.startswith('conv_seg') else value
        torch.testing.assert_close(kept, before[key], rtol=0, atol=0)


def test_task_without_new_classes_keeps_the_head(model):
    model.begin_task(NIGHT, [])
    head = model.decode_head
    model.begin_task(Task('dusk', ('road', ), ((9, 9, 9), ), {}, {}), [])
    assert model.decode_head is head


def test_labels_are_mapped_into_the_union_by_name(model, monkeypatch):
    model.begin_task(DAY, [])
    model.begin_task(NIGHT, [])
    seen = []
    monkeypatch.setattr(
        'mmseg.models.EncoderDecoder.loss', lambda self, inputs, samples: seen.
        append(samples[0].gt_sem_seg.data.tolist()))
    model.loss(
        torch.zeros(1, 3, 32, 32),
        [sample_of(torch.tensor([[[0, 1, 255]]], dtype=torch.uint8))])
    # lamp, road, ignored
    assert seen == [[[[2, 1, 255]]]]


def labels_learned(model, monkeypatch, *samples):
    """The labels that mmseg's loss gets, as lists."""
    seen = []
    monkeypatch.setattr(
        'mmseg.models.EncoderDecoder.loss', lambda self, inputs, samples: seen.
        extend(s.gt_sem_seg.data.flatten().tolist() for s in samples))
    model.loss(torch.zeros(len(samples), 3, 1, 3), list(samples))
    return seen


def test_each_image_is_labelled_in_the_classes_of_its_task(model, monkeypatch):
    model.begin_task(DAY, [])
    model.begin_task(NIGHT, [])
    label = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    samples = [
        sample_of(label.clone(), **task)
        for task in (dict(task='day'), dict(task='night'), dict())
    ]
    # sky, road; lamp, road; and, of the task that is trained, lamp, road
    assert labels_learned(model, monkeypatch, *samples) == [[0, 1, 255],
                                                            [2, 1, 255],
                                                            [2, 1, 255]]


def test_loaded_model_knows_the_labels_of_earlier_tasks(
        model, monkeypatch, tmp_path):
    model.begin_task(DAY, [])
    model.end_task(DAY, [])
    model.save_task(DAY, tmp_path, {})
    config = model_config()
    del config['type']
    other = FineTuneSegmentor(**config)
    other.check_stream([DAY, NIGHT])
    other.load_tasks([DAY], tmp_path)
    other.begin_task(NIGHT, [])
    sample = sample_of(
        torch.tensor([[[0, 1, 255]]], dtype=torch.uint8), task='day')
    assert labels_learned(other, monkeypatch, sample) == [[0, 1, 255]]


def test_weights_for_another_number_of_classes_are_refused():
    config = model_config()
    del config['type']
    config['decode_head']['loss_decode']['class_weight'] = [1.0, 2.0]
    model = FineTuneSegmentor(**config)
    model.check_stream([DAY])
    # each task has two classes, both together have three
    with pytest.raises(ValueError, match='has 2 values, .* 3 classes'):
        model.check_stream([DAY, NIGHT])


def test_loss_has_a_gradient_for_the_whole_network(model):
    model.begin_task(DAY, [])
    model.begin_task(NIGHT, [])
    losses = model.loss(
        torch.randn(2, 3, 32, 32),
        [sample_of(torch.randint(0, 2, (1, 32, 32))) for _ in range(2)])
    losses['decode.loss_ce'].backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert not without


def test_nothing_can_be_forced(model):
    assert model.expert_names == ()
    with pytest.raises(ValueError, match="has no expert 'day'"):
        with model.forced('day'):
            pass


def test_saved_weights_predict_the_same(model, tmp_path):
    model.begin_task(DAY, [])
    model.end_task(DAY, [])
    model.save_task(DAY, tmp_path, dict(seed=0))
    config = model_config()
    del config['type']
    other = FineTuneSegmentor(**config)
    other.load_tasks([DAY], tmp_path)
    assert (other.classes, other.palette) == (DAY.classes, DAY.palette)
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        mine, theirs = (m.eval()._forward(image) for m in (model, other))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_last_of_several_tasks_is_loaded(model, tmp_path):
    for task in (DAY, NIGHT):
        model.begin_task(task, [])
        model.end_task(task, [])
        model.save_task(task, tmp_path, {})
    config = model_config()
    del config['type']
    other = FineTuneSegmentor(**config)
    other.load_tasks([DAY, NIGHT], tmp_path)
    assert other.classes == ('sky', 'road', 'lamp')


def test_tampered_weights_are_refused(model, tmp_path):
    model.begin_task(DAY, [])
    model.save_task(DAY, tmp_path, {})
    path = tmp_path / 'day' / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match='day/model.safetensors'):
        model.load_tasks([DAY], tmp_path)


# -- on the tiny stream -------------------------------------------------------


class StopBefore(Hook):
    """Ends the process when a task begins, as Ctrl-C does."""

    def __init__(self, index):
        self.index = index

    def before_stream_task(self, runner, tasks, index):
        if index == self.index:
            raise KeyboardInterrupt


@pytest.fixture(scope='module')
def config(short_stream):
    return partial(
        short_stream,
        model_config(auxiliary_head=AUXILIARY_HEAD),
        train_cfg__max_iters=2)


@pytest.fixture(scope='module')
def run(learn, config, tmp_path_factory):
    return learn(config(tmp_path_factory.mktemp('fine_tune') / 'run'))


@pytest.mark.integration
def test_stream_ends_with_one_head_for_all_classes(run):
    assert run.runner.model.classes == ('sky', 'road', 'car', 'cold')


@pytest.mark.integration
def test_there_is_no_oracle_and_no_gate(run):
    results = json.loads((run.work_dir / 'results.json').read_text())
    assert results['method'] == 'sequential fine-tuning'
    assert results['miou']['oracle'] == [[None] * 3] * 3
    assert results['gate']['accuracy'] is None
    assert results['cost']['experts'] == []
    assert all(None not in row for row in results['miou']['routed'])


@pytest.mark.integration
def test_every_image_is_predicted_once(run):
    assert run.diary.predicted == [9, 9, 9]


@pytest.mark.integration
def test_weights_move_with_every_task(run):
    from safetensors.torch import load_file
    stem = 'backbone.stem.0.weight'
    weights = [
        load_file(run.work_dir / 'library' / task / 'model.safetensors')[stem]
        for task in ('day', 'night', 'infrared')
    ]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


@pytest.mark.integration
def test_auxiliary_heads_are_not_kept(run):
    assert not [
        key for key in run.runner.model.state_dict()
        if key.startswith('auxiliary_head')
    ]


@pytest.mark.integration
def test_resumed_stream_equals_the_uninterrupted_one(run, config,
                                                     stop_and_resume,
                                                     tmp_path):
    resumed = stop_and_resume(config, tmp_path / 'run', StopBefore(2))
    assert resumed.diary.learned == ['infrared']
    matrices = [
        json.loads((work_dir / 'results.json').read_text())['miou']
        for work_dir in (run.work_dir, resumed.work_dir)
    ]
    assert matrices[0] == matrices[1]
    files = [
        (work_dir / 'library' / 'infrared' / 'model.safetensors').read_bytes()
        for work_dir in (run.work_dir, resumed.work_dir)
    ]
    assert files[0] == files[1]


# -- replay -------------------------------------------------------------------


@pytest.fixture(scope='module')
def replay_config(config):

    def make(work_dir, **changes):
        rehearsal = dict(tasks='seen', images_per_task=2)
        return config(work_dir, train_cfg__rehearsal=rehearsal, **changes)

    return make


@pytest.fixture(scope='module')
def replay(learn, replay_config, tmp_path_factory):
    return learn(replay_config(tmp_path_factory.mktemp('replay') / 'run'))


@pytest.mark.integration
def test_replay_changes_nothing_before_the_second_task(run, replay):
    first, second = ([
        (run.work_dir / 'library' / task / 'model.safetensors').read_bytes()
        for task in ('day', 'night')
    ] for run in (run, replay))
    assert first[0] == second[0]
    assert first[1] != second[1]


@pytest.mark.integration
def test_replay_keeps_the_images_as_well(run, replay):
    alone, both = (
        json.loads((run.work_dir / 'results.json').read_text())['cost']
        for run in (run, replay))
    data = replay.runner.train_loop.data
    extra = [b - a for a, b in zip(alone['kept_bytes'], both['kept_bytes'])]
    assert extra == [data.rehearsal.kept_bytes(index) for index in range(3)]
    assert 0 < extra[0] < extra[1] < extra[2]
    assert alone['kept_params'] == both['kept_params']


class StopAfter(Hook):
    """Ends the process after an iteration of a task."""

    def __init__(self, task, iteration):
        self.stop, self.task = (task, iteration), ''

    def before_stream_task(self, runner, tasks, index):
        self.task = tasks[index].name

    def after_train_iter(self, runner, batch_idx, **kwargs):
        if (self.task, batch_idx) == self.stop:
            raise KeyboardInterrupt


@pytest.mark.integration
def test_replay_goes_on_in_the_middle_of_a_task(stop_and_resume, replay_config,
                                                replay, tmp_path):
    config = partial(replay_config, train_cfg__checkpoint_interval=1)
    resumed = stop_and_resume(config, tmp_path / 'run',
                              StopAfter('infrared', 1))
    assert resumed.diary.learned == ['infrared']
    files = [(run.work_dir / 'library' / 'infrared' /
              'model.safetensors').read_bytes() for run in (replay, resumed)]
    assert files[0] == files[1]
