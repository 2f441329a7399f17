# SPDX-License-Identifier: Apache-2.0
"""A library of experts over a tiny backbone, in a folder."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from tiny_stream import TINY_MODEL
from torch import Tensor, nn

from mmseg.registry import MODELS
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.structures import Task

CLASSES = ('sky', 'road', 'car')
PALETTE = ((70, 130, 180), (128, 64, 128), (0, 0, 142))
TINY_MIT = dict(
    type='MixVisionTransformer',
    embed_dims=8,
    num_layers=[1, 1, 1, 1],
    num_heads=[1, 2, 2, 4],
    sr_ratios=[4, 2, 1, 1])


class TinyLibrary(NamedTuple):
    """A library, and what it was made of.

    Args:
        store (ExpertStore): Experts 'day', 'night' and 'fog'.
        config (dict): Of the model.
        model (ExpertSegmentor): That has the experts in memory.
    """

    store: ExpertStore
    config: dict[str, Any]
    model: ExpertSegmentor

    def stock_backbone(self) -> nn.Module:
        """The backbone as plain mmseg builds it, with the base's weights."""
        backbone = MODELS.build(
            copy.deepcopy(self.config['backbone'])['backbone'])
        backbone.load_state_dict(self.store.load_base()[0], strict=True)
        # mmseg's CNNs return None from eval()
        backbone.eval()
        return backbone

    def build(self) -> ExpertSegmentor:
        """Build the model anew, without experts."""
        return MODELS.build(copy.deepcopy(self.config)).eval()

    def loaded(self) -> ExpertSegmentor:
        """Build the model with the experts that the folder holds now."""
        model = self.build()
        model.backbone.load_base(*self.store.load_base())
        model.import_experts(self.store.open(self.store.names))
        return model


def model_config(kind: str) -> dict[str, Any]:
    """A CNN whose experts own norm layers, or a transformer."""
    config = copy.deepcopy(TINY_MODEL)
    config['backbone'].update(base_training='none')
    config['init_from'] = 'base'
    if kind == 'mit':
        config['backbone'].update(
            backbone=dict(TINY_MIT), train_norm=False, executor='merged')
        config['decode_head']['in_channels'] = [8, 16, 16, 32]
    return Config(dict(model=config)).model


def make_library(kind: str, root: Path) -> TinyLibrary:
    """Draw three experts and save them."""
    torch.manual_seed(0)
    init_default_scope('mmseg')
    config = model_config(kind)
    model = MODELS.build(copy.deepcopy(config)).eval()
    # as it is drawn, the last stages would see almost nothing
    for value in model.backbone.backbone.parameters():
        value.data += 0.05 * torch.randn_like(value)
    for index, name in enumerate(('day', 'night', 'fog')):
        task = Task(name, CLASSES, PALETTE, dict(data_root=name), {})
        model.begin_task(task, batches(index))
        model.end_task(task, batches(index))
        adapter = model.backbone.experts[name]
        for tensors in (adapter.lora, adapter.norm, model.heads[name].state):
            disturb(tensors)
        model.save_task(
            task, root,
            dict(seed=index, train_dataset=str(task.train_dataset)))
    return TinyLibrary(ExpertStore(root), config, model)


def batches(index: int) -> list[dict[str, Any]]:
    """Eight images of a brightness of their own."""
    generator = torch.Generator().manual_seed(index)
    return [
        dict(inputs=[(
            60 * index +
            40 * torch.rand(3, 32, 48, generator=generator)).to(torch.uint8)])
        for _ in range(8)
    ]


def disturb(tensors: dict[str, Tensor]) -> None:
    """Move every value that training would, and keep variances positive."""
    for value in tensors.values():
        if value.is_floating_point():
            value += 0.1 * torch.rand_like(value)


def features(backbone: nn.Module, image: Tensor) -> list[Tensor]:
    """All outputs of a backbone."""
    with torch.no_grad():
        return list(backbone(image))


def assert_close(mine: list[Tensor],
                 theirs: list[Tensor],
                 atol: float = 1e-5) -> None:
    """Compare outputs stage by stage, relative to their size."""
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs):
        scale = float(b.abs().max())
        assert scale > 1e-3
        torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=atol)
