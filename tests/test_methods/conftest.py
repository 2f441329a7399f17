# SPDX-License-Identifier: Apache-2.0
"""A tiny model and three tasks of coloured halves."""
from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData

import mmseg.models  # noqa: F401
import mmseg_mile  # noqa: F401
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg_mile.structures import Task

HEAD = dict(
    type='FCNHead',
    in_channels=8,
    in_index=1,
    channels=8,
    num_convs=1,
    concat_input=False,
    norm_cfg=dict(type='BN'),
    align_corners=False,
    num_classes=19,
    loss_decode=dict(type='CrossEntropyLoss'))
MODEL = dict(
    type='ExpertSegmentor',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[127.5] * 3,
        std=[64.0] * 3,
        seg_pad_val=255,
        size_divisor=1),
    backbone=dict(
        type='LoRAExpertBackbone',
        backbone=dict(
            type='ResNetV1c',
            depth=18,
            stem_channels=4,
            base_channels=4,
            num_stages=2,
            strides=(1, 1),
            dilations=(1, 1),
            out_indices=(0, 1),
            norm_cfg=dict(type='SyncBN')),
        lora=dict(r=2, lora_alpha=4),
        train_norm=True),
    decode_head=HEAD,
    auxiliary_head=dict(HEAD, in_channels=4, in_index=0),
    embedder=dict(type='FeatureStatisticsEmbedder', stages=(0, )),
    gate=dict(type='PrototypeGate', metric='euclidean'),
    init_from='base',
    keep_logits=True,
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
CLASSES = dict(
    day=('road', 'sky'),
    night=('sky', 'road', 'lamp'),
    fog=('road', 'mist', 'lamp'))
STREAM = tuple(CLASSES)
# Grey levels of the upper and the lower half.
LEVELS = dict(day=(220, 130), night=(10, 60), fog=(200, 170))


def make_task(name: str, **fields: Any) -> Task:
    """Describe a task of the stream."""
    classes = fields.pop('classes', CLASSES[name])
    palette = tuple((40 * i, len(name), 9) for i in range(len(classes)))
    return Task(name, classes, palette, {}, {}, **fields)


def make_sample(name: str, seed: int) -> tuple[torch.Tensor, SegDataSample]:
    """Draw an image; the upper half is class 1, the lower class 0."""
    noise = torch.Generator().manual_seed(seed)
    upper, lower = LEVELS[name]
    image = torch.full((3, 32, 32), float(lower))
    image[:, :16] = upper
    image += 8 * torch.randn(image.shape, generator=noise)
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    labels[:, :16] = 1
    meta = dict(img_shape=(32, 32), ori_shape=(32, 32), task=name)
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=meta)
    return image.clamp(0, 255).byte(), sample


def make_batch(*names: str, seed: int = 100) -> dict[str, list]:
    """Collate one image of each named task."""
    pairs = [make_sample(name, seed + i) for i, name in enumerate(names)]
    images, samples = zip(*pairs)
    return dict(inputs=list(images), data_samples=list(samples))


def make_loader(name: str) -> list[dict[str, list]]:
    """Give the eight training images of a task, one at a time."""
    return [make_batch(name, seed=seed) for seed in range(8)]


def build_model(**changes: Any) -> Any:
    """Build the tiny model; the same base every time."""
    init_default_scope('mmseg')
    torch.manual_seed(7)
    return MODELS.build(copy.deepcopy(ConfigDict({**MODEL, **changes})))


def train(model: Any, name: str, num_steps: int = 3) -> dict:
    """Take a few optimizer steps; return the last losses."""
    model.train()
    wrapper = OptimWrapper(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad],
                        lr=0.05))
    for step in range(num_steps):
        losses = model.train_step(make_batch(name, name, seed=step), wrapper)
    return losses


def learn(model: Any, name: str, **fields: Any) -> None:
    """Learn one task from beginning to end."""
    task, loader = make_task(name, **fields), make_loader(name)
    model.begin_task(task, loader)
    train(model, name)
    model.eval()
    model.end_task(task, loader)


def predict(model: Any, *names: str) -> list[SegDataSample]:
    """Predict an image of each named task in one batch."""
    model.eval()
    return model.test_step(make_batch(*names))


@pytest.fixture(autouse=True)
def mmseg_scope() -> None:
    """Heads ask mmengine's registries for classes of mmseg."""
    init_default_scope('mmseg')


@pytest.fixture(scope='session')
def toys() -> SimpleNamespace:
    """The functions of this file, for tests that build their own."""
    return SimpleNamespace(
        task=make_task,
        batch=make_batch,
        loader=make_loader,
        model=build_model,
        train=train,
        learn=learn,
        predict=predict,
        config=MODEL)


@pytest.fixture(scope='session')
def learned_once() -> Any:
    """A model that learned three tasks; never changed."""
    model = build_model()
    for name in STREAM:
        learn(model, name)
    return model


@pytest.fixture
def learned(learned_once: Any) -> Any:
    """A copy of it that a test may change."""
    return copy.deepcopy(learned_once)


@pytest.fixture
def heads_only() -> Callable[[], Any]:
    """``heads_only()``: a model whose experts adapt no layer."""
    backbone = dict(MODEL['backbone'], lora=None, train_norm=False)
    return lambda: build_model(backbone=backbone)


@pytest.fixture
def fresh() -> Any:
    """A model that has learned nothing."""
    return build_model()
