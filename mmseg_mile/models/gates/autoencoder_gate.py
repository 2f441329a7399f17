# SPDX-License-Identifier: Apache-2.0
"""Expert Gate: one undercomplete autoencoder of features per task."""
from __future__ import annotations

from typing import Any

from torch import Tensor

from mmseg.registry import TASK_UTILS
from .autoencoders import LinearAutoencoder
from .reconstruction_gate import ReconstructionGate


@TASK_UTILS.register_module()
class AutoencoderGate(ReconstructionGate):
    """Gate of Expert Gate (Aljundi et al., CVPR 2017, arXiv 1611.06194).

    One hidden layer of ReLU units reconstructs features of a frozen network
    (section 3.1), hard gating by the least error. Where this departs from
    the paper: features are pooled over space by the embedder, not the whole
    map of the last convolution; they are standardised by the statistics of
    the first task, for want of those of ImageNet; the loss is the squared
    error; and images are routed one by one. Units, Adam's rate and weight
    decay are those of the public port to PyTorch.

    Args:
        hidden (int): Units of the code, fewer than the embedding has values.
            Defaults to 100.
        num_steps (int): Optimizer steps per task. Defaults to 1000.
        batch_size (int): Images per step. Defaults to 32.
        **kwargs: As in :class:`ReconstructionGate`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 hidden: int = 100,
                 num_steps: int = 1000,
                 batch_size: int = 32,
                 **kwargs: Any) -> None:
        super().__init__(num_steps, batch_size, **kwargs)
        if hidden < 1:
            raise ValueError(f'gate.hidden must be >= 1, got {hidden}')
        self.hidden = hidden

    def autoencoder(self, size: int) -> LinearAutoencoder:
        """See :meth:`ReconstructionGate.autoencoder`."""
        if self.hidden >= size:
            raise ValueError(
                f'gate.hidden {self.hidden} must be less than the {size} '
                'values of an embedding, or each autoencoder could copy any '
                'image: take fewer units, or more stages in the embedder')
        return LinearAutoencoder(size, self.hidden)

    def _size_of(self, mean: Tensor) -> int:
        return len(mean)
