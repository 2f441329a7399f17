# SPDX-License-Identifier: Apache-2.0
"""One full model per task, each from the same pretrained weights."""
from __future__ import annotations

import copy
import json

import pytest
import torch
from mmengine.config import ConfigDict
from tiny import TINY_MODEL

from mmseg.structures import SegDataSample
from mmseg_mile.methods.baselines.single_task_segmentor import \
    SingleTaskSegmentor
from mmseg_mile.structures import Task

DAY = Task('day', ('sky', 'road'), ((1, 1, 1), (2, 2, 2)), {}, {})
NIGHT = Task('night', ('lamp', 'road', 'car'),
             ((3, 3, 3), (2, 2, 2), (4, 4, 4)), {}, {})


def model_config():
    model = copy.deepcopy(TINY_MODEL)
    for key in ('embedder', 'gate', 'type'):
        del model[key]
    model['backbone'] = model['backbone']['backbone']
    return ConfigDict(model, keep_logits=True)


def learn_task(model, task):
    """Stand-in for training: every parameter moves."""
    model.begin_task(task, [])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.end_task(task, [])


@pytest.fixture
def model():
    model = SingleTaskSegmentor(**model_config())
    model.init_weights()
    return model


@pytest.fixture
def learned(model):
    for task in (DAY, NIGHT):
        learn_task(model, task)
    return model.eval()


def samples_of(*tasks):
    size = dict(img_shape=(32, 32), ori_shape=(32, 32), pad_shape=(32, 32))
    return [
        SegDataSample(
            metainfo=dict(size, **(dict(task=task) if task else {})))
        for task in tasks
    ]


def predict(model, images, *tasks):
    with torch.no_grad():
        return model.predict(images, samples_of(*tasks))


def test_each_task_starts_from_the_same_pretrained_weights(model):
    pretrained = copy.deepcopy(model.backbone.state_dict())
    learn_task(model, DAY)
    assert not torch.equal(model.backbone.stem[0].weight,
                           pretrained['stem.0.weight'])
    model.begin_task(NIGHT, [])
    for key, value in model.backbone.state_dict().items():
        torch.testing.assert_close(value, pretrained[key], rtol=0, atol=0)


def test_each_task_gets_a_head_for_its_own_classes(model):
    for task in (DAY, NIGHT):
        model.begin_task(task, [])
        assert model.classes == task.classes
        assert model.decode_head.conv_seg.out_channels == task.num_classes


def test_each_image_is_predicted_by_the_model_of_its_task(learned):
    images = torch.randn(3, 3, 32, 32)
    mixed = predict(learned, images, 'night', 'day', 'night')
    assert [s.expert for s in mixed] == ['night', 'day', 'night']
    assert [s.classes
            for s in mixed] == [NIGHT.classes, DAY.classes, NIGHT.classes]
    for index, task in enumerate(('night', 'day', 'night')):
        alone = predict(learned, images[index:index + 1], task)[0]
        torch.testing.assert_close(mixed[index].seg_logits.data,
                                   alone.seg_logits.data)


def test_models_of_two_tasks_differ(learned):
    image = torch.randn(1, 3, 32, 32)
    day, night = (
        predict(learned, image, t)[0].seg_logits.data
        for t in ('day', 'night'))
    assert day.shape[0] == 2 and night.shape[0] == 3


def test_unseen_task_goes_to_the_newest_model(learned):
    sample, = predict(learned, torch.randn(1, 3, 32, 32), 'fog')
    assert sample.expert == 'night'


def test_image_without_a_task_goes_to_the_newest_model(learned):
    sample, = predict(learned, torch.randn(1, 3, 32, 32), None)
    assert sample.expert == 'night'


def test_forced_model_predicts_all_images(learned):
    images = torch.randn(2, 3, 32, 32)
    with learned.forced('day'):
        forced = predict(learned, images, 'night', 'fog')
    assert [s.expert for s in forced] == ['day', 'day']
    assert predict(learned, images[:1], 'night')[0].expert == 'night'


def test_unknown_model_cannot_be_forced(learned):
    with pytest.raises(ValueError, match="'fog' is no learned task; learned"):
        with learned.forced('fog'):
            pass


def test_saved_models_predict_the_same(learned, tmp_path):
    for task in (DAY, NIGHT):
        learned.save_task(task, tmp_path, dict(seed=0))
    other = SingleTaskSegmentor(**model_config())
    other.load_tasks([DAY, NIGHT], tmp_path)
    assert other.expert_names == ('day', 'night')
    image = torch.randn(1, 3, 32, 32)
    for task in ('day', 'night'):
        mine, theirs = (
            predict(m.eval(), image, task)[0] for m in (learned, other))
        torch.testing.assert_close(
            mine.seg_logits.data, theirs.seg_logits.data, rtol=0, atol=0)
        assert mine.palette == theirs.palette


def test_loaded_models_leave_the_pretrained_weights_for_the_next_task(
        learned, model, tmp_path):
    learned.save_task(DAY, tmp_path, {})
    other = SingleTaskSegmentor(**model_config())
    other.init_weights()
    pretrained = copy.deepcopy(other.backbone.state_dict())
    other.load_tasks([DAY], tmp_path)
    predict(other.eval(), torch.randn(1, 3, 32, 32), 'day')
    other.begin_task(NIGHT, [])
    for key, value in other.backbone.state_dict().items():
        torch.testing.assert_close(value, pretrained[key], rtol=0, atol=0)


@pytest.fixture(scope='module')
def run(learn, tiny_config, tmp_path_factory):
    cfg = tiny_config(
        tmp_path_factory.mktemp('single') / 'run', train_cfg__max_iters=2)
    cfg.model = dict(model_config(), type='SingleTaskSegmentor')
    return learn(cfg)


@pytest.mark.integration
def test_stream_forgets_nothing(run):
    results = json.loads((run.work_dir / 'results.json').read_text())
    assert results['method'] == 'one model per task'
    assert results['scores']['forgetting'] == 0
    assert results['scores']['oracle_gap'] == 0


@pytest.mark.integration
def test_the_true_task_is_known_so_no_image_is_predicted_twice(run):
    assert run.diary.predicted == [9, 9, 9]
    assert all(expert == task for row, task, expert in run.diary.routed
               if task in run.diary.learned[:row + 1])


@pytest.mark.integration
def test_unseen_tasks_are_scored_with_the_newest_model(run):
    unseen = {(row, expert)
              for row, task, expert in run.diary.routed
              if task not in run.diary.learned[:row + 1]}
    assert unseen == {(0, 'day'), (1, 'night')}
