# SPDX-License-Identifier: Apache-2.0
"""Models to be measured: any config, random weights, no download."""
from __future__ import annotations

import contextlib
import copy
import inspect
import logging
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Union

import torch
from mmcv.cnn import is_norm
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmseg.models  # noqa: F401  registers the stock components
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS
from mmseg_mile.apis.export import STOCK_HEADS
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from .settings import Settings

_CALIBRATION_PASSES = 2


def load_model_config(path: Union[str, Path],
                      settings: Settings) -> ConfigDict:
    """The ``model`` field of a config, ready to be built without download.

    The base stays as drawn ('first_task' training is left out), a new
    expert starts from the base, and ``test_cfg`` follows the settings.

    Raises:
        ValueError: If the config has no ``ExpertSegmentor``.
    """
    model = Config.fromfile(path).get('model')
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
    data = dict(inputs=list(images))
    return model.data_preprocessor(data, False)['inputs']
