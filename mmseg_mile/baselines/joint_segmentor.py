# SPDX-License-Identifier: Apache-2.0
"""Joint training: all tasks at once, as if there were no stream."""
from __future__ import annotations

from typing import Any, Dict, Iterable, Sequence, Tuple

from mmseg.registry import MODELS
from mmseg_mile.structures import Task
from .fine_tune_segmentor import FineTuneSegmentor


@MODELS.register_module()
class JointSegmentor(FineTuneSegmentor):
    """One network for the images of all tasks, which are all there at once.

    Not incremental, but what increments are measured against: the upper
    bound of one network for all tasks. It has the iterations of the whole
    stream and no more, in as many parts as there are tasks, and the schedule
    of the learning rate begins anew with each. All parts train the images of
    all tasks; so row i of the score matrix is the network after i + 1 parts
    of the budget, and says nothing of forgetting.

    The head speaks the union of all classes of the stream from the start.
    No task label is used at test time. It needs
    ``train_cfg.rehearsal=dict(tasks='all', ...)``, where ``share=None``
    shows every image equally often.
    """

    METHOD = 'joint training'
    rehearses = ('all', )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._colours: Dict[str, Tuple[int, ...]] = {}

    def check_stream(self, tasks: Sequence[Task]) -> None:
        """See :meth:`FineTuneSegmentor.check_stream`; its classes stay."""
        super().check_stream(tasks)
        for task in tasks:
            for name, colour in zip(task.classes, task.palette):
                self._colours.setdefault(name, colour)

    def begin_task(self, task: Task, loader: Iterable[dict]) -> None:
        """With the first task, a head for all; later nothing changes."""
        if not self.classes:
            self.speak(
                self.new_head(len(self._colours)), tuple(self._colours),
                tuple(self._colours.values()))
        super().begin_task(task, loader)
