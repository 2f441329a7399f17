# SPDX-License-Identifier: Apache-2.0
"""Sequential fine-tuning: one set of weights, trained on task after task."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterable, Optional, Sequence, Tuple

import torch
from torch import Tensor

from mmseg.registry import MODELS
from mmseg_mile.library.expert_store import load_model, save_model
from mmseg_mile.structures import Task
from mmseg_mile.structures.expert import TensorDict
from ..continual_segmentor import (ContinualSegmentor, copy_matching,
                                   head_config)

_STOCK = ('DefaultOptimWrapperConstructor', None)


def with_rate_of(names: Iterable[str], factor: float,
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
    if config.get('constructor') not in _STOCK or others:
        raise ValueError(
            'model.shared_lr_mult multiplies rates of optim_wrapper.'
            'paramwise_cfg.custom_keys, and optim_wrapper has '
            f'constructor={config.get("constructor")!r} and paramwise_cfg.'
            f'{others or "custom_keys"}: say the same in custom_keys, or set '
            'model.shared_lr_mult=1.')
    known = dict(paramwise.get('custom_keys') or {})
    keys = dict(known)
    for name in names:
        settings = known.get(_followed(name, known), {})
        keys[name] = dict(
            settings, lr_mult=factor * settings.get('lr_mult', 1.0))
    return dict(config, paramwise_cfg=dict(paramwise, custom_keys=keys))


def _followed(name: str, keys: Iterable[str]) -> str:
    """The key that mmengine applies to a parameter; '' if none."""
    found = [key for key in sorted(keys) if key in name]
    return max(found, key=len, default='')


@MODELS.register_module()
class FineTuneSegmentor(ContinualSegmentor):
    """The whole network goes on training on each new task, with no defence.

    The lower bound of continual learning. The head speaks the union of all
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
        self._spaces: Dict[str, Tuple[str, ...]] = {}
        self._tables: Dict[str, Tensor] = {}
        self._task: Optional[str] = None

    def check_stream(self, tasks: Sequence[Task]) -> None:
        """See :meth:`ContinualSegmentor.check_stream`; of the union, too."""
        super().check_stream(tasks)
        known: Dict[str, None] = {}
        for task in tasks:
            # images of an earlier task are labelled in its classes
            self._spaces[task.name] = task.classes
            known.update(dict.fromkeys(task.classes))
            for template in (self.head_template, *self._auxiliary_templates):
                head_config(template, len(known))

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
            table = self._table(sample.metainfo.get('task', self._task))
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
            self.take_state(state)

    def take_state(self, state: TensorDict) -> None:
        """Take over what :meth:`kept_state` gave, for the present head."""
        self.load_state_dict(state, strict=True)

    def _table(self, task: str) -> Tensor:
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
            self.set_decode_head(
                self.new_head(len(self._colours)), tuple(self._colours),
                tuple(self._colours.values()))
        super().begin_task(task, loader)
