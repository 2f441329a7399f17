# SPDX-License-Identifier: Apache-2.0
"""One network for all tasks: fine-tuning, replay and joint training."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterable, Optional, Sequence, Tuple

import torch
from torch import Tensor

from mmseg.registry import MODELS
from mmseg_mile.adapters.base_weights import hold_statistics
from mmseg_mile.library.expert_store import load_model, save_model
from mmseg_mile.structures import Task
from mmseg_mile.structures.expert import TensorDict
from ..continual_segmentor import (ContinualSegmentor, copy_matching,
                                   head_config)


@MODELS.register_module()
class FineTuneSegmentor(ContinualSegmentor):
    """The whole network goes on training on each new task, with no defence.

    The lower bound of continual learning. The head predicts the union of all
    classes seen so far, by name; a new class gets a new row. No task label
    is used at test time.

    With ``train_cfg.rehearsal=dict(tasks='seen', ...)`` it is replay: images
    of earlier tasks are trained beside the new ones, each with the labels of
    its own task. What the same object is called there may be unlabelled, or
    of another class, in the new task; both labels are taken as they are.
    """

    METHOD = 'sequential fine-tuning'
    rehearses: Tuple[Optional[str], ...] = (None, 'seen')

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # of the whole stream, as far as it is known
        self._spaces: Dict[str, Tuple[str, ...]] = {}
        self._colours: Dict[str, Tuple[int, ...]] = {}
        self._tables: Dict[str, Tensor] = {}
        self._task: Optional[str] = None

    def check_stream(self, tasks: Sequence[Task]) -> None:
        """See :meth:`ContinualSegmentor.check_stream`; of the union, too."""
        super().check_stream(tasks)
        for task in tasks:
            # images of an earlier task are labelled in its classes
            self._spaces[task.name] = task.classes
            for name, colour in zip(task.classes, task.palette):
                self._colours.setdefault(name, colour)
            for template in (self.head_template, *self._auxiliary_templates):
                head_config(template, len(self._colours))

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
            self.set_decode_head(head, classes, palette)
        self.renew_auxiliary_heads(len(self.classes))
        self._spaces[task.name] = task.classes
        self._task = task.name
        self._tables = {}

    def end_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Nothing is kept apart from the weights."""
        self.drop_auxiliary_heads()

    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """mmseg's loss on labels in the head's label space.

        Args:
            inputs (Tensor): (B, C, H, W), normalised.
            data_samples (list[SegDataSample]): Labelled in the classes of
                the task that the metainfo ``task`` names, or else in those
                of the task that is trained.

        Returns:
            dict[str, Tensor]: Losses by name.
        """
        for sample in data_samples:
            table = self._label_table(sample.metainfo.get('task', self._task))
            truth = sample.gt_sem_seg
            truth.data = table.to(inputs.device)[truth.data.long()]
        return super().loss(inputs, data_samples)

    def save_task(self, task: Task, folder: Path,
                  provenance: Dict[str, Any]) -> None:
        """Write all weights as they are after the task."""
        save_model(folder / task.name, self.kept_state(), self.classes,
                   self.palette, provenance)

    def load_tasks(self, tasks: Sequence[Task], folder: Path) -> None:
        """Read the weights as they were after the last of ``tasks``."""
        if tasks:
            state, classes, palette = load_model(folder / tasks[-1].name)
            self.set_decode_head(self.new_head(len(classes)), classes, palette)
            self.load_kept_state(state)

    def load_kept_state(self, state: TensorDict) -> None:
        """Take over what :meth:`kept_state` gave, for the present head."""
        self.load_state_dict(state, strict=True)

    def _label_table(self, task: str) -> Tensor:
        """From the labels of a task to those of the head; (256, ) int64."""
        if task not in self._tables:
            table = torch.full((256, ), 255, dtype=torch.long)
            for index, name in enumerate(self._spaces[task]):
                table[index] = self.classes.index(name)
            self._tables[task] = table
        return self._tables[task]


@MODELS.register_module()
class JointSegmentor(FineTuneSegmentor):
    """One network for the images of all tasks, which are all there at once.

    Not incremental: what one network makes of every image of the stream
    within the iterations of the stream. They come in as many parts as there
    are tasks, and the schedule of the learning rate begins anew with each.
    All parts train the images of all tasks; so row i of the score matrix is
    the network after i + 1 parts of the budget, and says nothing of
    forgetting. It is a reference and no upper bound: a method that spends
    each part on the task that it adds can score higher, and replay does so
    on the real stream of our tables.

    The head predicts the union of all classes of the stream from the start.
    No task label is used at test time. It needs
    ``train_cfg.rehearsal=dict(tasks='all', ...)``, where ``share=None``
    shows every image equally often.
    """

    METHOD = 'joint training'
    rehearses = ('all', )

    def begin_task(self, task: Task, loader: Iterable[dict]) -> None:
        """With the first task, a head for all; later nothing changes."""
        if not self.classes:
            self.set_decode_head(
                self.new_head(len(self._colours)), tuple(self._colours),
                tuple(self._colours.values()))
        super().begin_task(task, loader)


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
