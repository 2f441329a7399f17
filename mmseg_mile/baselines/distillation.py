# SPDX-License-Identifier: Apache-2.0
"""What a network would have said before a task."""
from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
