# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mmseg_mile.apis.library_model import set_pretrained

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


@pytest.fixture
def weights(tmp_path: Path) -> str:
    path = tmp_path / 'weights.pth'
    path.write_bytes(b'')
    return str(path)


def pretrained(**backbone: Any) -> dict[str, Any]:
    return dict(
        type='ResNet',
        init_cfg=dict(type='Pretrained', checkpoint='old'),
        **backbone)


def test_weights_of_a_plain_backbone(weights: str) -> None:
    cfg = Config(dict(model=dict(backbone=pretrained())))
    set_pretrained(cfg, weights)
    assert cfg.model.backbone.init_cfg == dict(
        type='Pretrained', checkpoint=weights)


@pytest.mark.parametrize('depth', [1, 2])
def test_weights_of_a_wrapped_backbone(weights: str, depth: int) -> None:
    backbone = pretrained()
    for _ in range(depth):
        backbone = dict(type='Wrapper', backbone=backbone)
    cfg = Config(dict(model=dict(backbone=backbone)))
    set_pretrained(cfg, weights)
    inner = cfg.model.backbone
    for _ in range(depth):
        inner = inner.backbone
    assert inner.init_cfg.checkpoint == weights
    assert 'init_cfg' not in cfg.model.backbone


def test_address_is_taken_as_it_is() -> None:
    cfg = Config(dict(model=dict(backbone=pretrained())))
    set_pretrained(cfg, 'mmcls://mobilenet_v2')
    assert cfg.model.backbone.init_cfg.checkpoint == 'mmcls://mobilenet_v2'


def test_missing_file_is_refused() -> None:
    cfg = Config(dict(model=dict(backbone=pretrained())))
    with pytest.raises(ValueError, match="'absent.pth' do not exist"):
        set_pretrained(cfg, 'absent.pth')


@pytest.mark.parametrize('model, where', [
    (None, 'model'), (dict(type='X'), 'model'),
    (dict(backbone=dict(type='ResNet')), 'model.backbone'),
    (dict(backbone=dict(backbone=dict(type='ResNet', init_cfg=None))),
     'model.backbone.backbone'),
    (dict(backbone=dict(init_cfg=[dict(type='Kaiming')])),
     'model.backbone')])  # yapf: disable
def test_backbone_without_weights_is_refused(weights: str, model: Any,
                                             where: str) -> None:
    with pytest.raises(ValueError, match=f'^{where}.init_cfg must name'):
        set_pretrained(Config(dict(model=model)), weights)


@pytest.mark.parametrize('name', [
    'mile/mobilenet_v2_camvid_idd.py',
    'baselines/fine_tune_mobilenet_v2_camvid_idd.py'])  # yapf: disable
def test_configs_of_the_project_take_weights(weights: str, name: str) -> None:
    cfg = Config.fromfile(CONFIGS / name)
    set_pretrained(cfg, weights)
    assert weights in str(cfg.model)
