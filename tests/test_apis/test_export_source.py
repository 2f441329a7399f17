# SPDX-License-Identifier: Apache-2.0
"""Experts of a library that are to be exported."""
from __future__ import annotations

import copy
import shutil
from dataclasses import replace

import pytest
import torch
from mmengine.config import Config
from tiny import tiny_task

from mmseg_mile.apis.export import export_expert
from mmseg_mile.apis.export_files import ExportSource
from mmseg_mile.library.edits import merge_experts, rename_expert
from mmseg_mile.library.stored_config import to_json


@pytest.fixture
def cfg(cnn):
    """The config of a stream that left the library behind."""
    tasks = [dict(tiny_task('day'), name=n) for n in ('day', 'night', 'fog')]
    tasks[2] = dict(tiny_task('infrared'), name='fog')
    return Config(dict(model=cnn.config, train_cfg=dict(tasks=tasks)))


@pytest.fixture
def telling(cnn, cfg):
    """A library whose experts say what config they were trained with."""
    for expert in cnn.store.open(cnn.store.names):
        provenance = dict(task=expert.name, config=to_json(cfg.to_dict()))
        cnn.store.save(replace(expert.load(), provenance=provenance))
    return cnn


def steps(source):
    return [step['type'] for step in source.pipeline]


def test_library_alone_is_enough(telling):
    source = ExportSource(telling.store.root, {'day': 3, 'night': 1})
    mixture = {'day': 0.75, 'night': 0.25}
    assert source.mixture == mixture
    assert source.speaker == 'day'
    mine = source.checkpoint()['state_dict']
    theirs = export_expert(telling.model, mixture)['state_dict']
    assert all(torch.equal(value, theirs[key]) for key, value in mine.items())


def test_work_dir_of_a_run_is_a_library_too(telling):
    source = ExportSource(telling.store.root.parent, 'day')
    assert source.mixture == {'day': 1.0}


def test_images_are_loaded_as_by_the_heaviest_expert(telling):
    colour = ['LoadImageFromFile', 'PackSegInputs']
    assert steps(ExportSource(telling.store.root, 'night')) == colour
    thermal = ['LoadSingleChannelImage', 'PackSegInputs']
    assert steps(ExportSource(telling.store.root, 'fog')) == thermal
    source = ExportSource(telling.store.root, {'day': 1, 'fog': 2})
    assert steps(source) == thermal
    assert source.config.test_pipeline == source.pipeline


def test_renamed_expert_is_loaded_as_before(telling):
    rename_expert(telling.store.root, 'fog', 'mist')
    source = ExportSource(telling.store.root, 'mist')
    assert steps(source)[0] == 'LoadSingleChannelImage'


def test_merged_expert_takes_the_config_of_another(telling):
    merge_experts(telling.store.root, ['day', 'night'], 'both')
    source = ExportSource(telling.store.root, 'both')
    # day and night load in another way than fog
    assert source.pipeline is None
    assert 'test_pipeline' not in source.config


def test_other_experts_need_not_be_whole(telling):
    shutil.rmtree(telling.store.root / 'fog')
    ExportSource(telling.store.root, {'day': 1, 'night': 1})


def test_config_can_be_given(cnn, cfg):
    with pytest.raises(ValueError, match='name the config'):
        ExportSource(cnn.store.root, 'day')
    source = ExportSource(cnn.store.root, 'day', cfg)
    assert steps(source) == ['LoadImageFromFile', 'PackSegInputs']


def test_settings_of_routing_play_no_part(cnn, cfg):
    cfg.model.gate = dict(type='PrototypeGate', metric='euclidean')
    cfg.model.embedder = dict(type='CLIPEmbedder', checkpoint='absent.pth')
    cfg.model.ood_policy = 'abstain'
    cfg.model.predict_dtype = 'bfloat16'
    before = copy.deepcopy(cfg.model)
    source = ExportSource(cnn.store.root, 'day', cfg)
    assert source.model.predict_dtype == torch.float32
    assert source.model.ood == 'nearest'
    assert cfg.model == before


def test_unknown_expert_is_named(telling):
    with pytest.raises(ValueError, match="no expert 'noon'; experts: .*day"):
        ExportSource(telling.store.root, {'day': 1, 'noon': 1})


def test_config_without_experts_is_refused(cnn, cfg):
    cfg.model = dict(
        type='FineTuneSegmentor',
        backbone=cfg.model.backbone.backbone,
        decode_head=cfg.model.decode_head)
    with pytest.raises(ValueError, match="model.type is 'FineTuneSegmentor'"):
        ExportSource(cnn.store.root, 'day', cfg)
