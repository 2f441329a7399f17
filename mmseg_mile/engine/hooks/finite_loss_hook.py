# SPDX-License-Identifier: Apache-2.0
"""Stop a task whose loss is lost."""
from __future__ import annotations

from typing import Any, Optional

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmseg.registry import HOOKS
from ..divergence import diverged


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Raises when the loss is NaN or infinite.

    Args:
        interval (int): Iterations between two checks; reading the loss
            waits for a GPU. Defaults to 10.
    """

    def __init__(self, interval: int = 10) -> None:
        self.interval = interval

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: Any = None,
                         outputs: Optional[dict] = None) -> None:
        """Check the total loss.

        Raises:
            FloatingPointError: If it is not finite; says how to go on.
        """
        if not (self.every_n_train_iters(runner, self.interval)
                or self.is_last_train_iter(runner)):
            return
        loss = (outputs or {}).get('loss')
        if loss is not None and not torch.isfinite(loss).all():
            raise diverged(f'the loss is {float(loss)}', runner.iter + 1)
