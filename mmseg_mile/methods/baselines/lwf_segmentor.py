# SPDX-License-Identifier: Apache-2.0
"""Learning without forgetting: the old network's answers are kept alive."""
from __future__ import annotations

import copy
from typing import Any, Dict, Iterable, List, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmseg.models import EncoderDecoder
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from mmseg.utils import add_prefix
from mmseg_mile.structures import Task
from .fine_tune_segmentor import DefendedSegmentor

# Shape legend: B images, C classes, h x w grid of the logits

_STOCK_CONSTRUCTORS = ('DefaultOptimWrapperConstructor', None)


@MODELS.register_module()
class LwFSegmentor(DefendedSegmentor):
    """Learning without Forgetting (Li & Hoiem, ECCV 2016, 1606.09282).

    From the second task on, the new task's images are also shown to a frozen
    copy of the network from before the task, and
    ``loss + lwf_weight * T^2 KL(old answer || present answer)`` is trained,
    at temperature T over the classes known before the task, for every pixel
    of the head's grid, labelled or not. No old image is needed and nothing
    is kept but the weights. Where we depart from the paper:

    - One head for the union of all classes, where the paper has a head per
      task. In a domain-incremental stream all classes are old: the very
      outputs that learn the new labels are held to the old answers, mistakes
      that the old network makes in the new domain included. So the weight
      trades plasticity for stability. With new classes, their pixels are
      still asked for the old classes' shares among themselves.
    - A KL divergence instead of the cross-entropy with soft targets of
      eq. 2: the same gradient, and zero where nothing was forgotten. Times
      T^2, so that the weight means the same at any temperature.
    - No warm-up in which only the new head trains.

    With ``shared_lr_mult=0.01`` it has the two learning rates of MDIL (Garg
    et al., WACV 2022, 2110.12205): 5e-6 for what domains share, 5e-4 for the
    rest. MDIL's rest is norm layers, adapters and a decoder per domain; here
    it is the head. MDIL's public code gives probabilities where its loss
    wants their logarithms, so that term is no KL divergence; ours is.

    Args:
        lwf_weight (float): Strength of the defence. Defaults to 1.0, the
            paper's.
        temperature (float): T. Defaults to 2.0, the paper's.
        shared_lr_mult (float): Learning rate of the backbone from the second
            task on, as a multiple of what ``optim_wrapper`` gives it.
            Defaults to 1.0.
        *args, **kwargs: As in :class:`DefendedSegmentor`.

    Raises:
        ValueError: If a number is out of its range, or the head computes its
            loss from other things than one map of logits.
    """

    METHOD = 'LwF'

    def __init__(self,
                 *args: Any,
                 lwf_weight: float = 1.0,
                 temperature: float = 2.0,
                 shared_lr_mult: float = 1.0,
                 **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_distillation(
            self, lwf_weight=lwf_weight, shared_lr_mult=shared_lr_mult)
        if temperature <= 0:
            raise ValueError('model.temperature must be > 0 (the paper has '
                             f'2), got {temperature}')
        self.lwf_weight = lwf_weight
        self.temperature = temperature
        self.shared_lr_mult = shared_lr_mult
        # in a tuple, so that it is no part of the model
        self._teacher: Tuple[EncoderDecoder, ...] = ()
        self._wanted: Optional[Tensor] = None

    def begin_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Copy the network as it is, then grow the head."""
        self._teacher, self._wanted = (), None
        if self.classes:
            teacher = copy.deepcopy(self).requires_grad_(False).eval()
            teacher.zero_grad()
            self._teacher = (teacher, )
        super().begin_task(task, loader)

    def end_task(self, task: Task, loader: Iterable[dict]) -> None:
        """The copy has done its work."""
        super().end_task(task, loader)
        self._teacher, self._wanted = (), None

    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """Fine-tuning's loss, and ``loss_lwf`` from the second task on."""
        for teacher in self._teacher:
            with torch.no_grad():
                self._wanted = teacher(inputs, mode='tensor')
        return super().loss(inputs, data_samples)

    def optim_wrapper_config(self, config: Dict[str, Any]) -> Dict[str, Any]:
        """See :meth:`ContinualSegmentor.optim_wrapper_config`.

        Raises:
            ValueError: See :func:`scale_lr`; for the first task already.
        """
        if self.shared_lr_mult == 1:
            return config
        names = [n for n, _ in self.backbone.named_parameters('backbone')]
        slower = scale_lr(names, self.shared_lr_mult, config)
        return slower if self._teacher else config

    def _decode_head_forward_train(self, inputs: List[Tensor],
                                   data_samples: list) -> dict:
        """mmseg's loss of the decode head, which is decoded once."""
        head: Any = self.decode_head
        logits = head(inputs)
        losses = add_prefix(head.loss_by_feat(logits, data_samples), 'decode')
        if self._wanted is not None:
            losses['loss_lwf'] = self.lwf_weight * distillation_loss(
                logits, self._wanted, self.temperature)
        return losses


def distillation_loss(logits: Tensor, wanted: Tensor,
                      temperature: float) -> Tensor:
    """``T^2 KL(softmax(wanted / T) || softmax(logits / T))`` per pixel.

    Zero only where both distributions are equal. T^2 keeps the size of the
    gradient whatever the temperature (Hinton et al. 2015, 1503.02531, sec. 2).

    Args:
        logits (Tensor): (B, C', h, w); the first C of them are compared.
        wanted (Tensor): (B, C, h, w), logits of the teacher.
        temperature (float): T, above 1 to look at unlikely classes as well.

    Returns:
        Tensor: Scalar, the mean over all pixels.
    """
    ours = F.log_softmax(logits[:, :wanted.shape[1]].float() / temperature, 1)
    theirs = F.log_softmax(wanted.float() / temperature, 1)
    divergence = (theirs.exp() * (theirs - ours)).sum(dim=1)
    return temperature**2 * divergence.mean()


def check_distillation(model: Any, **weights: float) -> None:
    """Refuse what a method that distils logits cannot work with.

    Args:
        model (EncoderDecoder): Of the method.
        **weights (float): Fields of the model that must not be negative.

    Raises:
        ValueError: If one is, or the head's loss is not that of one map of
            logits, or it has a single output.
    """
    for name, value in weights.items():
        if value < 0:
            raise ValueError(f'model.{name} must be >= 0, got {value}')
    head: Any = type(model.decode_head)
    # a head that decodes to several maps needs a loss for them
    if any(
            getattr(head, name, None) is not getattr(BaseDecodeHead, name)
            for name in ('loss', 'loss_by_feat')):
        raise ValueError(
            f'{type(model).__name__} distils one map of logits, but '
            f'decode_head.type {head.__name__!r} computes its loss in its own '
            'way: use a head with the loss of BaseDecodeHead, such as '
            'SegformerHead.')
    if model.out_channels == 1:
        raise ValueError(
            f'{type(model).__name__} distils the shares of classes, but '
            'decode_head.out_channels=1 gives one output, whose share is 1 '
            'whatever it says: leave out_channels out.')


def scale_lr(names: Iterable[str], factor: float,
             config: Dict[str, Any]) -> Dict[str, Any]:
    """Multiply the learning rate of the parameters of these names.

    What ``paramwise_cfg.custom_keys`` says of them holds as before: mmengine
    follows the longest key that occurs in a name, so each name becomes a key
    with the settings of the key that it has followed so far.

    Args:
        names (Iterable[str]): Full names in the model.
        factor (float): On top of an ``lr_mult`` that they may have.
        config (dict): An ``optim_wrapper``; left as it is.

    Returns:
        dict: The changed config.

    Raises:
        ValueError: If the config sets rates in another way than by
            ``custom_keys``, which would be lost.
    """
    paramwise = dict(config.get('paramwise_cfg') or {})
    others = sorted(set(paramwise) - {'custom_keys', 'bypass_duplicate'})
    if config.get('constructor') not in _STOCK_CONSTRUCTORS or others:
        raise ValueError(
            'model.shared_lr_mult multiplies rates of optim_wrapper.'
            'paramwise_cfg.custom_keys, and optim_wrapper has '
            f'constructor={config.get("constructor")!r} and paramwise_cfg.'
            f'{others or "custom_keys"}: say the same in custom_keys, or set '
            'model.shared_lr_mult=1.')
    known = dict(paramwise.get('custom_keys') or {})
    keys = dict(known)
    for name in names:
        # of equally long keys, mmengine takes the first in the alphabet
        followed = max((key for key in sorted(known) if key in name),
                       key=len,
                       default='')
        settings = known.get(followed, {})
        keys[name] = dict(
            settings, lr_mult=factor * settings.get('lr_mult', 1.0))
    return dict(config, paramwise_cfg=dict(paramwise, custom_keys=keys))
