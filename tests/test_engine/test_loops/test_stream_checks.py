# SPDX-License-Identifier: Apache-2.0
"""What the loop refuses before any task is trained."""
from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest
from mmengine.runner import Runner

from mmseg_mile.engine.incremental_task_loop import check_schedule
from mmseg_mile.structures import Task

pytestmark = pytest.mark.integration


@pytest.fixture
def refuse(tiny_config, tmp_path, quick):
    """``refuse(message, **changes)``: the loop is not built."""

    def run(message, **changes):
        with quick(), pytest.raises(ValueError, match=message):
            Runner.from_cfg(tiny_config(tmp_path / 'run',
                                        **changes)).train_loop

    return run


@pytest.fixture
def own_data(tiny_data, tmp_path):
    """A copy of the images that a test may spoil."""
    return shutil.copytree(tiny_data, tmp_path / 'data')


def test_model_that_learns_no_streams_is_refused(tiny_config, tmp_path, quick):
    cfg = tiny_config(tmp_path / 'run')
    cfg.model = dict(
        type='EncoderDecoder',
        backbone=cfg.model.backbone.backbone,
        decode_head=cfg.model.decode_head)
    with quick(), pytest.raises(
            ValueError,
            match='trains a ContinualSegmentor .* got model.type '
            "'EncoderDecoder'"):
        Runner.from_cfg(cfg).train_loop


def test_ema_hook_is_refused(refuse):
    refuse(
        'EMAHook averages .* remove it', custom_hooks=[dict(type='EMAHook')])


def test_validation_loop_beside_the_stream_is_refused(refuse):
    refuse(
        'evaluates every task itself: remove val_cfg',
        val_cfg=dict(type='ValLoop'),
        val_dataloader=dict(batch_size=1, dataset=dict(type='x')),
        val_evaluator=dict(type='IoUMetric'))


def test_best_checkpoint_is_refused(refuse):
    refuse(
        'save_best needs validation',
        default_hooks__checkpoint__save_best='mIoU')


def test_dataset_outside_the_tasks_is_refused(refuse):
    refuse(
        'train_dataloader.dataset has no effect',
        train_dataloader__dataset=dict(type='BaseSegDataset'))


def test_val_dataset_outside_the_tasks_is_refused(refuse):
    refuse(
        'train_cfg.val_dataloader.dataset has no effect',
        train_cfg__val_dataloader=dict(
            batch_size=1, dataset=dict(type='BaseSegDataset')))


def test_lora_target_that_matches_nothing_is_refused(refuse):
    refuse(
        "'qkv' matches no layer",
        model__backbone__lora__target_modules=['qkv'])


@pytest.mark.parametrize('index, start', [(0, 'night'), (1, 'nigth'),
                                          (1, 'infrared'), (2, 'infrared')])
def test_start_that_is_no_earlier_task_is_refused(refuse, index, start):
    domain = ('day', 'night', 'infrared')[index]
    refuse(f"init_from of task '{domain}' must be one of .* got '{start}'",
           **{f'train_cfg__tasks__{index}__init_from': start})


def test_nearest_start_without_distances_is_refused(refuse):
    refuse(
        'OracleGate has not: use PrototypeGate',
        model__gate=dict(type='OracleGate', _delete_=True))


def test_class_weights_of_another_length_are_refused(refuse):
    refuse(
        'class_weight has 3 values, the task has 2 classes',
        model__decode_head__loss_decode__class_weight=[1., 1., 2.])


def test_schedule_that_begins_after_the_task_is_refused(refuse):
    refuse(
        "param_scheduler.0.begin is 6, but task 'day' trains 6 iterations",
        param_scheduler=[dict(type='PolyLR', begin=6, by_epoch=False)])


def tasks_of(*lengths):
    return [
        Task(f't{i}', ('a', ), ((0, 0, 0), ), {}, {}, length)
        for i, length in enumerate(lengths)
    ]


def test_schedule_is_held_against_the_shortest_task():
    schedulers = [
        dict(type='LinearLR', by_epoch=False, end=5),
        dict(type='PolyLR', by_epoch=False, begin=5)
    ]
    check_schedule(schedulers, tasks_of(6, 9))
    with pytest.raises(ValueError, match=r"scheduler.1.begin is 5, .*'t1'"):
        check_schedule(schedulers, tasks_of(9, 5))


def test_single_scheduler_need_not_be_a_list():
    scheduler = dict(type='PolyLR', by_epoch=False, begin=5)
    check_schedule(scheduler, tasks_of(6))
    with pytest.raises(ValueError, match='begin is 5'):
        check_schedule(scheduler, tasks_of(5))


def test_stream_without_schedule_is_fine():
    check_schedule(None, tasks_of(1))


def test_bad_label_of_a_late_task_stops_the_run_before_training(
        learn, tiny_config, own_data, tmp_path):
    path = own_data / 'infrared' / 'ann' / 'val' / '2.png'
    assert cv2.imwrite(str(path), np.full((48, 64), 7, np.uint8))
    cfg = tiny_config(tmp_path / 'run', train_cfg__data_root=str(own_data))
    with pytest.raises(
            ValueError,
            match=r"val of task 'infrared': label '.*ann/val/2.png' holds "
            r'\[7\], but the task has 2 classes'):
        learn(cfg)
    assert not (tmp_path / 'run' / 'tasks').exists()
    assert not (tmp_path / 'run' / 'results.json').exists()


def test_embedder_that_does_not_fit_stops_the_run_before_training(
        learn, tiny_config, tmp_path):
    cfg = tiny_config(tmp_path / 'run', model__embedder__stages=(0, 4))
    with pytest.raises(ValueError, match=r'embedder.stages \[4\] do not'):
        learn(cfg)
    assert not (tmp_path / 'run' / 'tasks').exists()
