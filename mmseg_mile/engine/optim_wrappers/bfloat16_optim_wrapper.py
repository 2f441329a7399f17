# SPDX-License-Identifier: Apache-2.0
"""Mixed precision where mmengine's ``AmpOptimWrapper`` refuses to run."""
from __future__ import annotations

import contextlib
from typing import Iterator

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from mmseg.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(OptimWrapper):
    """Forward passes under bfloat16 autocast, on any device.

    ``AmpOptimWrapper`` asks for a GPU because it scales losses for float16.
    bfloat16 has the range of float32 and needs no scaling. Parameters,
    their gradients and the optimizer stay float32.

    Args:
        **kwargs: As for ``OptimWrapper``.
    """

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast on the device of ``model``.

        Args:
            model (nn.Module): The model that is trained.
        """
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(
                device, dtype=torch.bfloat16):
            yield
