# SPDX-License-Identifier: Apache-2.0
"""One network that is defended against forgetting while it trains on."""
from __future__ import annotations

from typing import Any, Iterable

from mmseg_mile.models.backbones.base_weights import hold_statistics
from mmseg_mile.structures import Task
from .fine_tune_segmentor import FineTuneSegmentor


class DefendedSegmentor(FineTuneSegmentor):
    """Fine-tuning with a term in the loss that defends earlier tasks.

    Args:
        hold_statistics (bool): Whether norm layers keep the running
            statistics of the first task, and train with them, from the
            second task on. The networks of the defences' papers had no batch
            norm; statistics that follow the newest task change what is
            predicted for the earlier ones, however well the weights are
            defended. Defaults to True.
        *args, **kwargs: As in :class:`FineTuneSegmentor`.
    """

    #: Whether a task was learned before the present one.
    defends = False

    def __init__(self,
                 *args: Any,
                 hold_statistics: bool = True,
                 **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hold_statistics = hold_statistics

    def begin_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Grow the head; from the second task on there is what to defend."""
        self.defends = bool(self.classes)
        super().begin_task(task, loader)

    def train(self, mode: bool = True) -> 'DefendedSegmentor':
        """Norm layers may keep their statistics; auxiliary heads are new."""
        super().train(mode)
        if mode and self.defends and self.hold_statistics:
            hold_statistics(
                self,
                self.auxiliary_head.modules() if self.with_auxiliary_head else
                ())
        return self
