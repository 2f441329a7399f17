# SPDX-License-Identifier: Apache-2.0
"""Images of made-up domains that a gate can tell apart."""
from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import logging
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Union

import torch
from mmcv.cnn import is_norm
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

import mmseg.models  # noqa: F401
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS, TASK_UTILS
from mmseg_mile.adapters.targets import lora_scaling
from mmseg_mile.apis.export import STOCK_HEADS
from mmseg_mile.apis.library_model import read_config
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.methods.prediction import blank_samples
from mmseg_mile.structures import Expert, Routing, Task
from mmseg_mile.structures.expert import TensorDict
from .harness import Settings

_COPIES = 8


def domain_images(settings: Settings) -> Tensor:
    """A batch in which image i belongs to domain ``i % experts``.

    A domain is a colour and a contrast; the rest is blobs and grain.

    Returns:
        Tensor: (B, 3, H, W) uint8.
    """
    random = torch.Generator().manual_seed(settings.seed)
    size, count = settings.size, settings.experts
    tones = 50 + 150 * torch.rand(count, 3, 1, 1, generator=random)
    contrasts = torch.linspace(15, 60, count).view(-1, 1, 1, 1)
    domain = torch.arange(settings.batch) % count
    blobs = F.interpolate(
        torch.randn(settings.batch, 3, 8, 8, generator=random),
        size=(size, size),
        mode='bilinear')
    grain = torch.randn(settings.batch, 3, size, size, generator=random)
    images = tones[domain] + contrasts[domain] * (blobs + 0.2 * grain)
    return images.clamp(0, 255).byte()


def training_images(images: Tensor, domain: int,
                    settings: Settings) -> List[Dict[str, list]]:
    """Noisy copies of the images of one domain, as a loader gives them.

    Args:
        images (Tensor): (B, 3, H, W) from :func:`domain_images`.
        domain (int): Which domain.
        settings (Settings): That made ``images``.

    Returns:
        list[dict]: Batches of one image.
    """
    random = torch.Generator().manual_seed(settings.seed + 1 + domain)
    batches = []
    for image in images[domain::settings.experts]:
        for _ in range(_COPIES):
            noise = 8 * torch.randn(image.shape, generator=random)
            copy = (image + noise).clamp(0, 255).byte()
            batches.append(
                dict(inputs=[copy], data_samples=blank_samples(copy[None])))
    return batches


_CALIBRATION_PASSES = 2


def load_model_config(path: Union[str, Path],
                      settings: Settings) -> ConfigDict:
    """The ``model`` field of a config, ready to be built without download.

    The base stays as drawn ('first_task' training is left out), a new
    expert starts from the base, and ``test_cfg`` follows the settings.

    Raises:
        ValueError: If the config has no ``ExpertSegmentor``.
    """
    model = read_config(path).get('model')
    if model is None or model.get('type') != 'ExpertSegmentor':
        kind = 'missing' if model is None else repr(model.get('type'))
        raise ValueError(f'{path}: model.type must be \'ExpertSegmentor\', it '
                         f'is {kind}. Name a config of configs/mile/.')
    model = copy.deepcopy(model)
    model.backbone.backbone.pop('init_cfg', None)
    model.backbone.backbone.pop('pretrained', None)
    model.backbone.base_training = 'none'
    model.init_from = 'base'
    model.test_cfg = ConfigDict(settings.test_cfg)
    return model


def build_expert_segmentor(config: ConfigDict,
                           settings: Settings) -> ExpertSegmentor:
    """Our model without experts, base drawn from the seed.

    Args:
        config (ConfigDict): From :func:`load_model_config`.
        settings (Settings): Seed and device.
    """
    model = _drawn(config, settings)
    _draw_norms(model.backbone)
    return model.to(settings.device).eval()


def stock_model_config(config: ConfigDict,
                       auxiliary: bool = False) -> ConfigDict:
    """The config of plain MMSegmentation that matches one of ours.

    Args:
        config (ConfigDict): From :func:`load_model_config`.
        auxiliary (bool): Whether to keep auxiliary heads, which only
            training uses. Defaults to False.
    """
    known = inspect.signature(EncoderDecoder.__init__).parameters
    stock: Dict[str, Any] = {
        k: copy.deepcopy(v)
        for k, v in config.items() if k in known
    }
    if not auxiliary:
        stock.pop('auxiliary_head', None)
    stock['backbone'] = stock['backbone']['backbone']
    head = stock['decode_head']
    head['type'] = STOCK_HEADS.get(head['type'], head['type'])
    return ConfigDict(type='EncoderDecoder', **stock)


def build_stock(config: ConfigDict, settings: Settings) -> EncoderDecoder:
    """Plain MMSegmentation, random weights.

    Args:
        config (ConfigDict): From :func:`stock_model_config`.
        settings (Settings): Seed and device.
    """
    model = _drawn(config, settings)
    return revert_sync_batchnorm(model).to(settings.device).eval()


def _drawn(config: ConfigDict, settings: Settings) -> Any:
    """The model of a config, weights drawn from the seed."""
    init_default_scope('mmseg')
    torch.manual_seed(settings.seed)
    with quiet():
        model = MODELS.build(copy.deepcopy(config))
        model.init_weights()
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Spare the log mmengine's line for every parameter that it draws."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@torch.no_grad()
def calibrate_norms(module: nn.Module, forward: Callable[[], Any]) -> None:
    """Set running statistics to those of the features that pass through.

    Random weights under the initial statistics would let activations
    explode or vanish from layer to layer.

    Args:
        module (nn.Module): Whose batch norms are set; changed in place.
        forward (Callable): Sends images through ``module``.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    before = [(m.momentum, m.training) for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    for _ in range(_CALIBRATION_PASSES if norms else 0):
        forward()
    for norm, (momentum, training) in zip(norms, before):
        norm.momentum = momentum
        norm.train(training)


@torch.no_grad()
def _draw_norms(module: nn.Module) -> None:
    """Affine values as after training: some networks start with zeros."""
    norms: List[Any] = [m for m in module.modules() if is_norm(m)]
    for norm in norms:
        if norm.weight is not None:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.1)


def preprocess(model: EncoderDecoder, images: Tensor) -> Tensor:
    """Normalise (B, 3, H, W) uint8 images as the model does."""
    # test_cfg notes its padding in the samples
    data = dict(inputs=list(images), data_samples=blank_samples(images))
    return model.data_preprocessor(data, False)['inputs']


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
                self._template, name=name, parts=self._parts(name, index))

    def _parts(self, name: str, index: int) -> Dict[str, TensorDict]:
        parts = dict(adapter=self._drawn_lora())
        for part in ('norm', 'head'):
            if part in self._template.parts:
                parts[part] = self._disturbed(self._template.parts[part])
        return dict(parts, prototypes=self._prototypes(name, index))

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
        config = self._template.configs['adapter']
        scale = _ADAPTER_STRENGTH / lora_scaling(config) / config['r']**0.5
        drawn = {}
        for key, value in self._template.parts['adapter'].items():
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
