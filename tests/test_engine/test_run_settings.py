# SPDX-License-Identifier: Apache-2.0
"""Settings that results depend on, and those that they do not."""
from __future__ import annotations

import copy

import pytest
from mmengine.config import Config

from mmseg_mile.engine.work_dir import changes, refuse, settings_of

CONFIG = dict(
    model=dict(type='ExpertSegmentor', backbone=dict(depths=(2, 2))),
    train_dataloader=dict(batch_size=2, num_workers=0),
    train_cfg=dict(
        max_iters=5,
        data_root='here',
        checkpoint_interval=10,
        val_dataloader=dict(batch_size=1, num_workers=0),
        tasks=[dict(name='day'), dict(name='night')]),
    optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
    default_hooks=dict(logger=dict(type='LoggerHook', interval=5)),
    custom_hooks=[dict(type='StreamPicturesHook')],
    env_cfg=dict(cudnn_benchmark=True, mp_cfg=dict(opencv_num_threads=0)),
    visualizer=dict(type='SegLocalVisualizer'),
    randomness=dict(seed=3),
    work_dir='work_dirs/a',
    resume=False,
    lr=0.1)


def changed(options, seed=3):
    old, new = Config(copy.deepcopy(CONFIG)), Config(copy.deepcopy(CONFIG))
    new.merge_from_dict(options)
    return changes(settings_of(old, 3), settings_of(new, seed))


@pytest.mark.parametrize('options', [
    {},
    {'work_dir': 'elsewhere', 'resume': True, 'launcher': 'pytorch'},
    {'train_dataloader.num_workers': 4, 'train_dataloader.pin_memory': True,
     'train_dataloader.persistent_workers': True},
    {'train_cfg.val_dataloader.num_workers': 2},
    {'train_cfg.data_root': 'there', 'train_cfg.checkpoint_interval': 1,
     'train_cfg.num_checked': 0, 'train_cfg.changed_settings': ['model']},
    {'default_hooks.logger.interval': 1, 'default_hooks.checkpoint': None},
    {'custom_hooks': [dict(type='StreamProgressHook', interval=1)]},
    {'custom_hooks': []},
    {'env_cfg.mp_cfg.opencv_num_threads': 2, 'log_level': 'DEBUG'},
    {'visualizer': dict(type='Visualizer'), 'lr': 0.2},
])  # yapf: disable
def test_change_without_effect_is_none(options):
    assert changed(options) == {}


@pytest.mark.parametrize('name, value, old', [
    ('optim_wrapper.optimizer.lr', 0.2, 0.1),
    ('train_cfg.max_iters', 6, 5),
    ('train_dataloader.batch_size', 4, 2),
    ('train_cfg.val_dataloader.batch_size', 4, 1),
    ('env_cfg.cudnn_benchmark', False, True),
    ('model.init_from', 'base', 'absent'),
    ('model.backbone.depths', (2, 3), None),
])
def test_change_with_effect_is_named(name, value, old):
    found = changed({name: value})
    if old is None:
        assert found == {f'{name}.1': (2, 3)}
    else:
        assert found == {name: (old, value)}


def test_tasks_at_the_end_are_no_change():
    tasks = [dict(name=name) for name in ('day', 'night', 'fog')]
    assert changed({'train_cfg.tasks': tasks}) == {}


def test_order_that_is_spelled_out_is_no_change():
    tasks = [dict(name='night'), dict(name='day')]
    assert changed({
        'train_cfg.tasks': tasks,
        'train_cfg.order': ['day', 'night']
    }) == {}
    assert changed({'train_cfg.order': ['day', 'night']}) == {}
    assert changed({'train_cfg.order': None}) == {}


def test_order_that_changed_is_named():
    assert changed({'train_cfg.order': ['night', 'day']}) == {
        'train_cfg.tasks.0.name': ('day', 'night'),
        'train_cfg.tasks.1.name': ('night', 'day')
    }


def test_earlier_task_that_changed_is_named():
    tasks = [dict(name='day', max_iters=9), dict(name='night')]
    assert changed({'train_cfg.tasks': tasks}) == {
        'train_cfg.tasks.0.max_iters': ('absent', 9)
    }


def test_seed_that_was_drawn_counts():
    assert changed({}, seed=7) == {'randomness.seed': (3, 7)}


def test_hook_that_may_change_results_is_named():
    found = changed({'custom_hooks': [dict(type='MyHook')]})
    assert list(found) == ['custom_hooks']


def test_every_change_is_refused_with_both_values():
    found = changed({'optim_wrapper.optimizer.lr': 0.2,
                     'train_cfg.max_iters': 6})  # yapf: disable
    with pytest.raises(ValueError) as caught:
        refuse(found, (), 'work_dirs/a')
    for part in ('work_dirs/a', 'optim_wrapper.optimizer.lr: 0.1 -> 0.2',
                 'train_cfg.max_iters: 5 -> 6', 'changed_settings'):
        assert part in str(caught.value)


@pytest.mark.parametrize('allowed',
                         [['optim_wrapper'], ['optim_wrapper.optimizer.lr']])
def test_announced_change_is_accepted(allowed):
    refuse(changed({'optim_wrapper.optimizer.lr': 0.2}), allowed, 'a')


def test_announcement_of_another_name_does_not_help():
    with pytest.raises(ValueError, match='optimizer.lr'):
        refuse(
            changed({'optim_wrapper.optimizer.lr': 0.2}),
            ['optim', 'optim_wrapper.optimizer.l'], 'a')
