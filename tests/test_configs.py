# SPDX-License-Identifier: Apache-2.0
"""Every config that a user can name."""
from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from mmseg.registry import DATASETS, HOOKS, MODELS, PARAM_SCHEDULERS
from mmseg_mile.engine.incremental_task_loop import check_schedule
from mmseg_mile.methods.continual_segmentor import ContinualSegmentor
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.structures import Task

ROOT = Path(__file__).resolve().parents[1] / 'configs'
LEAVES = sorted(
    path for path in ROOT.rglob('*.py')
    if not {'_base_', 'tuning'} & {*path.parts})
STREAMS = sorted((ROOT / '_base_' / 'streams').glob('*.py'))

by_leaf = pytest.mark.parametrize(
    'path', LEAVES, ids=[str(path.relative_to(ROOT)) for path in LEAVES])


@lru_cache(maxsize=None)
def load(path):
    return Config.fromfile(path)


def without_init_cfg(config):
    """No pretrained weights, which would be downloaded."""
    if isinstance(config, dict):
        return {
            key: without_init_cfg(value)
            for key, value in config.items() if key != 'init_cfg'
        }
    return config


@lru_cache(maxsize=None)
def model_of(path):
    """The model; configs that differ in their stream only share one."""
    same = next(
        leaf for leaf in LEAVES if load(leaf).model == load(path).model)
    if same != path:
        return model_of(same)
    init_default_scope('mmseg')
    return MODELS.build(without_init_cfg(load(path).model))


def tasks_of(path):
    cfg = load(path)
    init_default_scope('mmseg')
    tasks = []
    for config in cfg.train_cfg.tasks:
        labels = lazy(config['val_dataset']).metainfo
        tasks.append(
            Task(
                config['name'],
                tuple(labels['classes']),
                tuple(map(tuple, labels['palette'])), {}, {},
                config.get('max_iters', cfg.train_cfg.max_iters),
                sensors=tuple(config.get('sensors', ()))))
    return tasks


def lazy(config):
    """The dataset without a look at the disk."""
    return DATASETS.build(dict(config, lazy_init=True))


def test_configs_are_found():
    assert len(LEAVES) > 10 and len(STREAMS) > 3


@by_leaf
def test_stock_tools_can_import_the_components(path):
    cfg = load(path)
    assert cfg.custom_imports.imports == ['mmseg_mile']
    assert cfg.default_scope == 'mmseg'
    assert cfg.train_cfg.type == 'IncrementalTaskLoop'


@by_leaf
def test_model_builds(path):
    model = model_of(path)
    assert isinstance(model, ContinualSegmentor)
    # a baseline may be other experts, or another gate over them
    assert isinstance(model, ExpertSegmentor) or path.parent.name != 'mile'


@by_leaf
def test_model_can_learn_the_stream(path):
    tasks = tasks_of(path)
    names = [task.name for task in tasks]
    # a stream of sensors may begin with one task, to which others are added
    assert len(names) == len(set(names)) > ('mle_sam' not in path.parts)
    model = deepcopy(model_of(path))
    if load(path).train_cfg.get('experts_from'):
        model.reuses_experts = True
    model.check_stream(tasks)


@by_leaf
def test_datasets_agree_on_their_classes(path):
    init_default_scope('mmseg')
    for task in load(path).train_cfg.tasks:
        train, val = (
            lazy(task[f'{split}_dataset']).metainfo
            for split in ('train', 'val'))
        assert train['classes'] == val['classes']
        assert len(val['palette']) == len(val['classes']) > 1


@by_leaf
def test_pipelines_build(path):
    init_default_scope('mmseg')
    for task in load(path).train_cfg.tasks:
        for split in ('train', 'val'):
            steps = [
                type(step).__name__ for step in Compose(
                    task[f'{split}_dataset'].pipeline).transforms
            ]
            assert steps[0].startswith('Load')
            assert 'LoadAnnotations' in steps
            assert steps[-1] in ('PackSegInputs', 'PackSensorInputs')


@by_leaf
def test_data_is_looked_for_below_one_root(path):
    for task in load(path).train_cfg.tasks:
        for split in ('train', 'val'):
            root = task[f'{split}_dataset'].data_root
            assert not Path(root).is_absolute() and root


@by_leaf
def test_schedule_fits_every_task(path):
    cfg = load(path)
    check_schedule(cfg.param_scheduler, tasks_of(path))
    parameter = torch.nn.Parameter(torch.zeros(1))
    for task in tasks_of(path):
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        for config in cfg.param_scheduler:
            scheduler = PARAM_SCHEDULERS.build(
                dict(
                    config,
                    optimizer=optimizer,
                    end=config.get('end', task.max_iters)))
            scheduler.step()


@by_leaf
def test_optimizer_builds(path):
    wrapper = build_optim_wrapper(model_of(path), load(path).optim_wrapper)
    assert wrapper.param_groups


@by_leaf
def test_hooks_build(path):
    cfg = load(path)
    init_default_scope('mmseg')
    for hook in (*cfg.default_hooks.values(), *cfg.custom_hooks):
        HOOKS.build(hook)


@pytest.mark.parametrize('path', STREAMS, ids=[p.stem for p in STREAMS])
def test_every_stream_is_used_by_a_leaf(path):
    names = {load(leaf).train_cfg.stream for leaf in LEAVES}
    assert load(path).train_cfg.stream in names
