# SPDX-License-Identifier: Apache-2.0
"""Experts whose values are drawn instead of trained."""
from __future__ import annotations

import copy
import dataclasses
from typing import Any, Dict, Iterator

import torch
from mmengine.config import ConfigDict
from torch import Tensor

from mmseg.registry import TASK_UTILS
from mmseg_mile.adapters.targets import lora_scaling
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.structures import Expert, Routing, Task
from .benchmark_models import calibrate_norms, preprocess, quiet
from .domain_images import domain_images, training_images
from .settings import Settings

# Of the rms of what they change: strong enough to move label maps.
_ADAPTER_STRENGTH = 0.25
_HEAD_STRENGTH = 0.1
_VARIED = 4
_SHARED_INPUT = ('.k_proj.lora_A.weight', '.v_proj.lora_A.weight')


class ExpertDrawer:
    """Draws experts of one base; the first ones know the batch's domains.

    Query, key and value of an attention share their ``lora_A``: PEFT's
    layer for ``nn.MultiheadAttention`` has one for all three, so that the
    same experts fit it.

    Args:
        model (ExpertSegmentor): Without experts; its base's batch norms are
            calibrated, else it stays as it is.
        config (ConfigDict): That built ``model``.
        images (Tensor): (B, 3, H, W) uint8 from ``domain_images``.
        settings (Settings): That made ``images``.
    """

    def __init__(self, model: ExpertSegmentor, config: ConfigDict,
                 images: Tensor, settings: Settings) -> None:
        if not model.gate.needs_embeddings:
            raise ValueError(
                f'model.gate is a {type(model.gate).__name__}, which looks '
                'at no image: measure a config with a PrototypeGate.')
        self._gate_config = config.gate
        self._settings = settings
        self._random = torch.Generator().manual_seed(settings.seed)
        # several images of several domains, however small the batch is
        varied = dataclasses.replace(settings, batch=_VARIED, experts=_VARIED)
        with torch.no_grad():
            inputs = preprocess(model,
                                domain_images(varied).to(settings.device))
            calibrate_norms(model.backbone, lambda: model.backbone(inputs))
        self._model = copy.deepcopy(model)
        self._embeddings = [
            model.embed_images(training_images(images, i, settings))
            for i in range(settings.experts)
        ]
        with quiet():
            self._template = self._learn(inputs)

    def draw(self, count: int) -> Iterator[Expert]:
        """Expert i knows domain i, those after the last domain a far one."""
        for index in range(count):
            name = f'expert_{index}'
            yield dataclasses.replace(
                self._template,
                name=name,
                lora=self._drawn_lora(),
                norm=self._disturbed(self._template.norm),
                head=self._disturbed(self._template.head),
                prototypes=self._prototypes(name, index))

    def _learn(self, inputs: Tensor) -> Expert:
        """A task of no training, for names, shapes and a sane head."""
        model = self._model
        classes = int(model.head_template['num_classes'])
        names = tuple(f'class {i}' for i in range(classes))
        task = Task('template', names, ((0, 0, 0), ) * classes, {}, {})
        model.begin_task(task, [])
        with torch.no_grad(), model.backbone.base():
            features = model.backbone(inputs)
            head: Any = model.decode_head.eval()
            calibrate_norms(head, lambda: head(features))
            head.conv_seg.weight.normal_(0, head.conv_seg.in_channels**-0.5)
            # no class may win everywhere, or label maps would say little
            head.conv_seg.bias -= head(features).mean((0, 2, 3))
        with model.gated(TASK_UTILS.build(dict(type='OracleGate'))):
            model.end_task(task, [])
            return model.export_expert(task.name)

    def _prototypes(self, name: str, index: int) -> Dict[str, Tensor]:
        known = len(self._embeddings)
        embeddings = self._embeddings[index % known]
        if index >= known:
            # of all looks alike
            mean = embeddings.flatten(0, -2).mean(0)
            offset = torch.randn(mean.shape, generator=self._random)
            embeddings = embeddings + 100 * mean.abs().mean() * offset
        gate = TASK_UTILS.build(copy.deepcopy(self._gate_config))
        gate.fit(name, embeddings)
        return gate.state(name)

    def _drawn_lora(self) -> Dict[str, Tensor]:
        """A keeps the scale of its input, B A adds a share of it."""
        config = self._template.lora_config
        scale = _ADAPTER_STRENGTH / lora_scaling(config) / config['r']**0.5
        drawn = {}
        for key, value in self._template.lora.items():
            std = scale if '.lora_B' in key else value[0].numel()**-0.5
            drawn[key] = std * self._normal(value)
        for key in drawn:
            for suffix in _SHARED_INPUT:
                if key.endswith(suffix):
                    query = key[:-len(suffix)] + '.q_proj.lora_A.weight'
                    drawn[key] = drawn.get(query, drawn[key])
        return drawn

    def _disturbed(self, state: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Each tensor moved by a share of its rms; variances stay > 0."""
        moved = {}
        for key, value in state.items():
            if not value.is_floating_point():
                moved[key] = value.clone()
            elif key.endswith('running_var'):
                moved[key] = value * (_HEAD_STRENGTH *
                                      self._normal(value)).exp()
            else:
                rms = value.square().mean().sqrt()
                moved[key] = value + _HEAD_STRENGTH * rms * self._normal(value)
        return moved

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._random).to(like)


def check_mixing(routing: Routing, experts: int) -> None:
    """Raise unless image i is routed to expert ``i % experts``.

    Raises:
        AssertionError: Naming the routing that was found instead.
    """
    chosen = [routing.top_expert(i) for i in range(len(routing))]
    wanted = [f'expert_{i % experts}' for i in range(len(routing))]
    if chosen != wanted:
        raise AssertionError(f'the batch must mix {experts} experts as '
                             f'{wanted}, the gate chose {chosen}: this would '
                             'measure something else')
