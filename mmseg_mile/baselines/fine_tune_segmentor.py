# SPDX-License-Identifier: Apache-2.0
"""Sequential fine-tuning: one set of weights, trained on task after task."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterable, Optional, Sequence

import torch
from torch import Tensor

from mmseg.registry import MODELS
from mmseg_mile.experts.model_store import load_model, save_model
from mmseg_mile.models import ContinualSegmentor
from mmseg_mile.models.segmentors.task_head import copy_matching
from mmseg_mile.structures import Task


@MODELS.register_module()
class FineTuneSegmentor(ContinualSegmentor):
    """The whole network goes on training on each new task, with no defence.

    The lower bound of continual learning. The head speaks the union of all
    classes seen so far, by name; a new class gets a new row. No task label
    is used at test time.
    """

    METHOD = 'sequential fine-tuning'

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._labels: Optional[Tensor] = None

    def begin_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Grow the head by the task's new classes."""
        new = [c for c in task.classes if c not in self.classes]
        if new:
            classes = (*self.classes, *new)
            colours = dict(zip(task.classes, task.palette))
            palette = (*self.palette, *(colours[c] for c in new))
            head = self.new_head(len(classes))
            if self.classes:
                copy_matching(head, self.decode_head.state_dict(), classes,
                              self.classes)
            self.speak(head, classes, palette)
        self.renew_auxiliary_heads(len(self.classes))
        self._labels = torch.full((256, ), 255, dtype=torch.long)
        for index, name in enumerate(task.classes):
            self._labels[index] = self.classes.index(name)

    def end_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Nothing is kept apart from the weights."""
        self.drop_auxiliary_heads()

    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """mmseg's loss on labels in the head's label space."""
        assert self._labels is not None
        table = self._labels.to(inputs.device)
        for sample in data_samples:
            truth = sample.gt_sem_seg
            truth.data = table[truth.data.long()]
        return super().loss(inputs, data_samples)

    def save_task(self, task: Task, folder: Path,
                  provenance: Dict[str, Any]) -> None:
        """Write all weights as they are after the task."""
        save_model(folder / task.name, self.state_dict(), self.classes,
                   self.palette, provenance)

    def load_tasks(self, tasks: Sequence[Task], folder: Path) -> None:
        """Read the weights as they were after the last of ``tasks``."""
        if tasks:
            state, classes, palette = load_model(folder / tasks[-1].name)
            self.speak(self.new_head(len(classes)), classes, palette)
            self.load_state_dict(state, strict=True)
