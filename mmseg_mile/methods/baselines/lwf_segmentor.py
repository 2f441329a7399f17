# SPDX-License-Identifier: Apache-2.0
"""Learning without forgetting: the old network's answers are kept alive."""
from __future__ import annotations

import copy
from typing import Any, Dict, Iterable, List, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from mmseg.utils import add_prefix
from mmseg_mile.structures import Task
from .ewc_segmentor import DefendedSegmentor
from .fine_tune_segmentor import with_rate_of

# Shape legend: B images, C classes, h x w grid of the logits


class Teacher:
    """A frozen copy of a segmentor as it is now.

    No module, so that it is neither trained nor saved as part of the model
    that asks it.

    Args:
        model (EncoderDecoder): Stays as it is.
    """

    def __init__(self, model: Any) -> None:
        self._model = copy.deepcopy(model)
        self._model.requires_grad_(False)
        self._model.zero_grad()
        self._model.eval()

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits on the head's own grid.

        Args:
            inputs (Tensor): (B, 3, H, W), normalised.

        Returns:
            Tensor: (B, C, h, w), C the classes that it knew.
        """
        return self._model(inputs, mode='tensor')


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
        for name, value in dict(
                lwf_weight=lwf_weight, shared_lr_mult=shared_lr_mult).items():
            if value < 0:
                raise ValueError(f'model.{name} must be >= 0, got {value}')
        if temperature <= 0:
            raise ValueError('model.temperature must be > 0 (the paper has '
                             f'2), got {temperature}')
        head: Any = type(self.decode_head)
        if (not issubclass(head, BaseDecodeHead)
                or head.loss is not BaseDecodeHead.loss
                or head.loss_by_feat is not BaseDecodeHead.loss_by_feat):
            raise ValueError(
                'LwFSegmentor distils one map of logits, but decode_head.type '
                f'{head.__name__!r} computes its loss in its own way: use a '
                'head with the loss of BaseDecodeHead, such as '
                'SegformerHead.')
        self.lwf_weight = lwf_weight
        self.temperature = temperature
        self.shared_lr_mult = shared_lr_mult
        self._teacher: Optional[Teacher] = None
        self._wanted: Optional[Tensor] = None

    def begin_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Copy the network as it is, then grow the head."""
        self._teacher = self._wanted = None
        if self.classes:
            self._teacher = Teacher(self)
        super().begin_task(task, loader)

    def end_task(self, task: Task, loader: Iterable[dict]) -> None:
        """The copy has done its work."""
        super().end_task(task, loader)
        self._teacher = self._wanted = None

    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """Fine-tuning's loss, and ``loss_lwf`` from the second task on."""
        if self._teacher is not None:
            self._wanted = self._teacher(inputs)
        return super().loss(inputs, data_samples)

    def optim_wrapper_config(self, config: Dict[str, Any]) -> Dict[str, Any]:
        """See :meth:`ContinualSegmentor.optim_wrapper_config`.

        Raises:
            ValueError: See :func:`with_rate_of`; for the first task already.
        """
        if self.shared_lr_mult == 1:
            return config
        names = [n for n, _ in self.backbone.named_parameters('backbone')]
        slower = with_rate_of(names, self.shared_lr_mult, config)
        return config if self._teacher is None else slower

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
