# SPDX-License-Identifier: Apache-2.0
"""Decode heads that come and go with tasks."""
from __future__ import annotations

import copy
from typing import Any, Dict, Sequence

import torch
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from mmseg.registry import MODELS


def head_config(template: Dict[str, Any], num_classes: int) -> Dict[str, Any]:
    """The config of a head with a task's own number of classes.

    Raises:
        ValueError: If the template fixes class weights of another length.
    """
    config = copy.deepcopy(dict(template))
    config['num_classes'] = num_classes
    losses = config.get('loss_decode', {})
    for loss in losses if isinstance(losses, (list, tuple)) else [losses]:
        weights = loss.get('class_weight')
        if weights is not None and len(weights) != num_classes:
            raise ValueError(
                f'decode_head.loss_decode.class_weight has {len(weights)} '
                f'values, the task has {num_classes} classes: give one per '
                'class, or leave it out.')
    return config


def build_head(config: Dict[str, Any], device: torch.device) -> nn.Module:
    """Build and initialise a head, see :func:`trainable_norms`."""
    head = MODELS.build(config)
    head.init_weights()
    return trainable_norms(head).to(device)


def trainable_norms(module: nn.Module) -> nn.Module:
    """SyncBN becomes BN in a single process and on CPUs.

    It needs a group of processes with a GPU each; its values fit BN as they
    are.
    """
    if is_distributed() and get_device() != 'cpu':
        return module
    return revert_sync_batchnorm(module)


def copy_matching(head: nn.Module, source: Dict[str, Tensor],
                  classes: Sequence[str],
                  source_classes: Sequence[str]) -> None:
    """Start a head from another one's values.

    Tensors of equal shape are copied; in those that have one row per class,
    the rows of classes that both label spaces name.

    Args:
        head (nn.Module): Changed in place.
        source (dict[str, Tensor]): State dict of the other head.
        classes (Sequence[str]): Label space of ``head``.
        source_classes (Sequence[str]): Label space of the other head.
    """
    same = tuple(classes) == tuple(source_classes)
    shared = [(classes.index(c), source_classes.index(c)) for c in classes
              if c in source_classes]
    classifier = {
        id(p)
        for p in getattr(head, 'conv_seg', nn.Identity()).parameters()
    }
    values = head.state_dict(keep_vars=True)
    with torch.no_grad():
        for key, value in values.items():
            other = source.get(key)
            if other is None or other.shape[1:] != value.shape[1:]:
                continue
            if id(value) not in classifier or same:
                if other.shape == value.shape:
                    value.copy_(other)
                continue
            for mine, theirs in shared:
                value[mine].copy_(other[theirs])
