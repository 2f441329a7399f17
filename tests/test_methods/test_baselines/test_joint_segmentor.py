# SPDX-License-Identifier: Apache-2.0
"""Joint training: one network for all tasks at once."""
from __future__ import annotations

import copy
import json

import pytest
import torch
from mmengine.hooks import Hook
from tiny import TINY_MODEL

from mmseg_mile.methods.baselines.fine_tune_segmentor import JointSegmentor
from mmseg_mile.structures import Task

DAY = Task('day', ('sky', 'road'), ((1, 1, 1), (2, 2, 2)), {}, {})
NIGHT = Task('night', ('lamp', 'road'), ((3, 3, 3), (9, 9, 9)), {}, {})
JOINT = dict(tasks='all', share=None)


def model_config(**changes):
    model = copy.deepcopy(TINY_MODEL)
    for key in ('embedder', 'gate', 'type'):
        del model[key]
    model['backbone'] = model['backbone']['backbone']
    return dict(model, **changes)


@pytest.fixture
def model():
    model = JointSegmentor(**model_config())
    model.check_stream([DAY, NIGHT])
    return model


def test_head_speaks_the_classes_of_the_stream_from_the_start(model):
    model.begin_task(DAY, [])
    assert model.classes == ('sky', 'road', 'lamp')
    assert model.palette == ((1, 1, 1), (2, 2, 2), (3, 3, 3))
    assert model.decode_head.conv_seg.out_channels == model.num_classes == 3


def test_later_tasks_change_no_weight(model):
    model.begin_task(DAY, [])
    before = copy.deepcopy(model.state_dict())
    model.begin_task(NIGHT, [])
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_weights_for_another_number_of_classes_are_refused():
    config = model_config()
    config['decode_head']['loss_decode']['class_weight'] = [1.0, 2.0]
    with pytest.raises(ValueError, match='has 2 values, .* 3 classes'):
        JointSegmentor(**config).check_stream([DAY, NIGHT])


# -- on the tiny stream -------------------------------------------------------


class Watch(Hook):
    """Notes the task of every image; may stop in the middle of a task."""

    def __init__(self, stop=None):
        self.stop, self.seen = stop, []

    def before_stream_task(self, runner, tasks, index):
        self.seen.append([])

    def after_train_iter(self, runner, batch_idx, data_batch, outputs=None):
        self.seen[-1] += [s.task for s in data_batch['data_samples']]
        if (len(self.seen), batch_idx) == self.stop:
            raise KeyboardInterrupt


@pytest.fixture(scope='module')
def config(tiny_config):

    def make(work_dir, rehearsal=JOINT, **changes):
        cfg = tiny_config(
            work_dir,
            train_cfg__max_iters=3,
            train_cfg__checkpoint_interval=1,
            **changes)
        cfg.train_dataloader.batch_size = 6
        if rehearsal:
            cfg.train_cfg.rehearsal = rehearsal
        cfg.model = model_config(type='JointSegmentor')
        return cfg

    return make


@pytest.fixture(scope='module')
def run(learn, config, tmp_path_factory):
    watch = Watch()
    run = learn(config(tmp_path_factory.mktemp('joint') / 'run'), watch)
    return run, watch


@pytest.mark.integration
def test_every_part_of_the_budget_trains_all_tasks_alike(run):
    # 3 iterations of 6 images are one pass over 3 x 6 images
    for part in run[1].seen:
        assert sorted(part) == sorted(['day', 'night', 'infrared'] * 6)


@pytest.mark.integration
def test_score_matrix_is_full(run):
    results = json.loads((run[0].work_dir / 'results.json').read_text())
    assert results['method'] == 'joint training'
    assert all(None not in row for row in results['miou']['routed'])
    assert len(set(results['cost']['kept_bytes'])) == 1


@pytest.mark.integration
def test_resumed_stream_equals_the_uninterrupted_one(run, config,
                                                     stop_and_resume,
                                                     tmp_path):
    resumed = stop_and_resume(config, tmp_path / 'run', Watch(stop=(2, 1)))
    assert resumed.diary.learned == ['night', 'infrared']
    files = [
        (folder / 'library' / 'infrared' / 'model.safetensors').read_bytes()
        for folder in (run[0].work_dir, resumed.work_dir)
    ]
    assert files[0] == files[1]


@pytest.mark.integration
@pytest.mark.parametrize('rehearsal', [None, dict(tasks='seen')])
def test_other_rehearsal_is_refused(learn, config, tmp_path, rehearsal):
    with pytest.raises(ValueError, match="is trained with .*tasks='all'"):
        learn(config(tmp_path / 'run', rehearsal=rehearsal))


@pytest.mark.integration
def test_stream_cannot_be_extended(learn, config, tmp_path):
    learn(config(tmp_path / 'run', domains=('day', )))
    longer = config(tmp_path / 'run', domains=('day', 'night'), resume=True)
    with pytest.raises(ValueError, match=r"the tasks \['night'\] would have"):
        learn(longer)
