# SPDX-License-Identifier: Apache-2.0
"""Configs in a library are values, never programs."""
from __future__ import annotations

import json
from pathlib import Path

import mmcv.transforms
import pytest
from mmengine.config import Config
from torch import nn

from mmseg.datasets import transforms
from mmseg.registry import MODELS
from mmseg_mile.library.stored_config import (check_types, from_json,
                                              load_config, name_classes,
                                              to_json)

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


def through_a_file(value):
    return json.loads(json.dumps(to_json(value), allow_nan=False))


@pytest.mark.parametrize('path', [
    'mile/demo.py', 'mile/mobilenet_v2_five_sensors.py',
    'mile/segformer_b2_modality_inc.py'
])
def test_config_of_a_run_comes_back_as_mmengine_reads_it(path):
    cfg = Config.fromfile(CONFIGS / path)
    found = load_config(through_a_file(cfg.to_dict()), 'expert.json')
    # tuples and lists are told apart: some modules take only one of them
    assert repr(found._cfg_dict) == repr(cfg._cfg_dict)


def test_values_that_json_lacks_come_back():
    value = dict(a=[-1, (2.5, None)], b={0: (1, )}, c=float('inf'), d='e.f')
    assert repr(from_json(through_a_file(value))) == repr(value)


def test_class_becomes_its_registered_name():
    assert to_json(dict(type=MODELS.get('FCNHead'))) == dict(type='FCNHead')


@pytest.mark.parametrize(
    'kind, name',
    [
        (transforms.LoadAnnotations, 'LoadAnnotations'),
        ('mmseg.datasets.transforms.LoadAnnotations', 'LoadAnnotations'),
        (nn.GELU, 'GELU'),
        ('mmseg.FCNHead', 'mmseg.FCNHead'),
        ('not.installed.Here', 'not.installed.Here'),
        # mmseg has a class of its own by that name
        (mmcv.transforms.LoadAnnotations, mmcv.transforms.LoadAnnotations),
        (Path, Path),
    ])
def test_registered_class_goes_by_its_name(kind, name):
    config = dict(model=dict(steps=[(dict(type=kind), )], size=(2, 1)))
    found = name_classes(config)
    assert found == dict(model=dict(steps=[(dict(type=name), )], size=(2, 1)))
    assert config['model']['steps'][0][0]['type'] is kind


@pytest.mark.parametrize('values', [
    'import os', 7, [1], {'__tuple__': 5}, {'__dict__': [1]},
    dict(a={'__float__': 'x'})
])  # yapf: disable
def test_what_is_no_config_is_refused(values):
    with pytest.raises(
            ValueError, match='expert.json holds no config .*trust'):
        load_config(values, 'expert.json')


@pytest.mark.parametrize('config', [
    dict(type='subprocess.Popen', args=['true']),
    dict(type='mmengine.load', file='x.pkl'),
    dict(type='mmseg.apis.init_model'),
    dict(type='antigravity'),
    dict(type=7),
    dict(type='FCNHead', loss_decode=dict(type='os.system')),
    dict(type='FCNHead', loss_decode=[dict(type='os.system')]),
    dict(type='FCNHead', loss_decode=(dict(type='os.system'), )),
    dict(type='FCNHead', sampler=dict(a=[dict(type='mmdet.apis.x')])),
    dict(type='FCNHead', _scope_='somewhere'),
])
def test_type_outside_the_registries_is_refused(config):
    # a registry would import the name and call it
    with pytest.raises(ValueError, match='expert.json names the type'):
        check_types(config, 'expert.json')
    with pytest.raises(ValueError, match='expert.json names the type'):
        load_config(through_a_file(dict(model=config)), 'expert.json')


@pytest.mark.parametrize('config', [
    dict(type='FCNHead', norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU')),
    dict(type='mmseg.FCNHead', sampler=dict(type='OHEMPixelSampler')),
    dict(type='FCNHead', init_cfg=dict(type='Normal', std=0.01)),
    dict(type='FCNHead', loss_cls=dict(type='mmdet.CrossEntropyLoss')),
    dict(type='mmpretrain.ConvNeXt', _scope_='mmseg'),
])
def test_registered_types_are_accepted(config):
    check_types(config, 'expert.json')


def test_modules_of_the_config_are_imported(tmp_path, monkeypatch):
    (tmp_path / 'methods_of_mine.py').write_text(
        'from mmseg.registry import MODELS\n'
        '@MODELS.register_module()\nclass HeadOfMine:\n    pass\n')
    monkeypatch.syspath_prepend(tmp_path)
    load_config(
        dict(
            custom_imports=dict(imports=['methods_of_mine']),
            model=dict(type='HeadOfMine')), 'expert.json')


def test_module_that_is_missing_is_named():
    custom = dict(imports=['not_installed_here'])
    with pytest.raises(ValueError, match="'not_installed_here'"):
        load_config(dict(custom_imports=custom), 'expert.json')
    load_config(
        dict(custom_imports=dict(custom, allow_failed_imports=True)),
        'expert.json')
