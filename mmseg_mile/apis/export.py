# SPDX-License-Identifier: Apache-2.0
"""One expert, or a mixture of several, as a model of plain MMSegmentation."""
from __future__ import annotations

import copy
import inspect
import math
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import torch
from mmengine.config import Config
from torch import Tensor

from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS, TRANSFORMS
from mmseg_mile.methods.mile.expert_heads import heaviest
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor

#: The name of an expert, or weights of several.
Experts = Union[str, Mapping[str, float]]

# Fields that only training, or its start, looks at.
_TRAINING_KEYS = ('auxiliary_head', 'pretrained', 'init_cfg')
# Heads of ours and the stock ones with the same weights.
STOCK_HEADS = {'LevelwiseSegformerHead': 'SegformerHead'}


def export_expert(model: ExpertSegmentor, experts: Experts) -> Dict[str, Any]:
    """A checkpoint that stock mmseg loads strictly.

    Adapters are merged into copies of the base's weights, so the exported
    model has none and predicts what the expert, or the mixture, predicts, up
    to rounding. Of a mixture, adapters, norm layers and heads are mixed as
    :class:`RoutedSegmentor` mixes them for an image.

    Args:
        model (ExpertSegmentor): Holds the experts.
        experts (str | Mapping[str, float]): An expert, or weights of several
            as :func:`as_mixture` reads them.

    Returns:
        dict: ``state_dict`` under stock keys, and ``meta`` with the classes
        and palette where ``mmseg.apis.init_model`` looks for them.

    Raises:
        ValueError: If an expert is unknown, a weight is out of range, or the
            mixture is no single model.
    """
    mixture = as_mixture(experts)
    speaker = head_expert(model, mixture)
    labels = model.heads.labels(speaker)
    state: Dict[str, Tensor] = {}
    for key, value in merged_backbone(model, mixture).items():
        state[f'backbone.{key}'] = value.detach().cpu().contiguous()
    for key, value in model.heads.fused_state(mixture).items():
        # of one expert, these are the model's own
        state[f'decode_head.{key}'] = value.detach().cpu().clone()
    meta = dict(
        dataset_meta=dict(
            classes=list(labels.classes),
            palette=[list(c) for c in labels.palette]),
        expert=speaker,
        mixture=mixture,
        base_fingerprint=model.backbone.fingerprint())
    return dict(meta=meta, state_dict=state)


def as_mixture(experts: Experts) -> Dict[str, float]:
    """Weights that sum to 1, as a gate's do.

    Args:
        experts (str | Mapping[str, float]): An expert, or weights above 0,
            which are divided by their sum.

    Raises:
        ValueError: If there is none, or a weight is not above 0.
    """
    weights = {experts: 1.0} if isinstance(experts, str) else dict(experts)
    if not weights or not all(w > 0 and math.isfinite(w)
                              for w in weights.values()):
        raise ValueError('name one expert or more, each with a weight above '
                         f'0, got {weights}')
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def head_expert(model: ExpertSegmentor, mixture: Mapping[str, float]) -> str:
    """The expert whose classes and kind of head a mixture has: the heaviest.

    Raises:
        ValueError: If an expert is unknown, or the mixture cannot be one
            model.
    """
    for name in mixture:
        model.heads.labels(name)
    speaker = heaviest(mixture)
    if len(mixture) > 1 and model.fusion != 'weights':
        raise ValueError(
            f'model.fusion is {model.fusion!r}, by which {list(mixture)} '
            'predict one by one: that is no single model. Export each alone, '
            "or give a config with model.fusion='weights'")
    fusable = model.heads.fusable(mixture)
    others = [name for name in mixture if name not in fusable]
    if others:
        raise ValueError(
            f'the heads of {others} cannot be averaged with that of '
            f'{speaker!r}, the heaviest: they have other classes or are built '
            'in another way. Leave them out, or make one expert of all with '
            '`tools/experts.py merge --head`, which takes the head of one, '
            'and export that')
    return speaker


def merged_backbone(model: ExpertSegmentor,
                    experts: Experts) -> Dict[str, Tensor]:
    """The backbone of a mixture under the stock backbone's keys."""
    backbone = copy.deepcopy(model.backbone.backbone)
    tensors = dict(backbone.named_parameters())
    tensors.update(backbone.named_buffers())
    merged = model.backbone.experts.merged(as_mixture(experts), tensors)
    with torch.no_grad():
        for key, value in merged.items():
            tensors[key].copy_(value)
    return backbone.state_dict()


def stock_config(model_config: Mapping[str, Any],
                 model: ExpertSegmentor,
                 experts: Experts,
                 pipeline: Optional[Sequence[Any]] = None) -> Config:
    """The config of the exported model, for ``mmseg.apis.init_model``.

    Args:
        model_config (Mapping[str, Any]): The ``model`` field that built
            ``model``.
        model (ExpertSegmentor): Holds the experts.
        experts (str | Mapping[str, float]): See :func:`export_expert`.
        pipeline (Sequence[dict], optional): Steps from an image file to what
            the model is given, for ``mmseg.apis.inference_model``. Defaults
            to None: the config has none.

    Returns:
        Config: With ``model``, the default scope and ``test_pipeline``; and
        an import of this package if the pipeline has a step of ours, such as
        :class:`LoadSingleChannelImage`, without which ``init_model`` works
        all the same.

    Raises:
        ValueError: If plain mmseg does not know the backbone or the head.
    """
    known = inspect.signature(EncoderDecoder.__init__).parameters
    stock = {
        key: copy.deepcopy(value)
        for key, value in model_config.items()
        if key in known and key not in _TRAINING_KEYS
    }
    backbone = dict(stock['backbone']['backbone'])
    for key in _TRAINING_KEYS:
        backbone.pop(key, None)
    head = dict(model.heads[heaviest(as_mixture(experts))].config)
    head['type'] = STOCK_HEADS.get(head['type'], head['type'])
    for part in (backbone, head):
        if _is_ours(MODELS, part):
            raise ValueError(
                f'{part["type"]} is a class of mmseg_mile without a stock '
                'counterpart: this model cannot be exported')
    content: Dict[str, Any] = dict(
        default_scope='mmseg',
        model=dict(
            stock, type='EncoderDecoder', backbone=backbone, decode_head=head))
    if pipeline is not None:
        steps: List[Any] = copy.deepcopy(list(pipeline))
        content['test_pipeline'] = steps
        if any(_is_ours(TRANSFORMS, step) for step in steps):
            content['custom_imports'] = dict(
                imports=['mmseg_mile'], allow_failed_imports=True)
    return Config(content)


def _is_ours(registry: Any, part: Mapping[str, Any]) -> bool:
    kind = registry.get(part['type'])
    return kind is not None and kind.__module__.startswith('mmseg_mile.')
