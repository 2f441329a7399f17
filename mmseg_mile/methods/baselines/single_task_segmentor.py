# SPDX-License-Identifier: Apache-2.0
"""One full model per task, each trained alone."""
from __future__ import annotations

import contextlib
from pathlib import Path
from typing import (Any, Dict, Iterable, Iterator, List, Optional, Sequence,
                    Set, Tuple)

from torch import Tensor

from mmseg.registry import MODELS
from mmseg_mile.library.expert_store import load_model, save_model
from mmseg_mile.structures import Task
from mmseg_mile.structures.expert import TensorDict
from ..continual_segmentor import ContinualSegmentor, copy_matching

# State, classes and palette.
_Network = Tuple[TensorDict, Tuple[str, ...], Tuple[Tuple[int, ...], ...]]


class GivenTaskSegmentor(ContinualSegmentor):
    """Predicts each image with what its task has left behind.

    The task stands in the metainfo ``task`` of the data sample. An image of
    a task that was not learned yet, or of none, goes to the newest one.
    """

    needs_task_label = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._kept: Dict[str, _Network] = {}
        self._active = ''
        self._forced: Optional[str] = None

    @property
    def expert_names(self) -> Tuple[str, ...]:
        """tuple[str]: Tasks in the order in which they were learned."""
        return tuple(self._kept)

    def shared_names(self) -> Set[str]:
        """Names in the state dict of what all tasks share."""
        return set()

    def activate(self, name: str) -> None:
        """Make the network that of a learned task.

        Args:
            name (str): One of ``expert_names``.
        """
        if name != self._active:
            self._load(*self._kept[name])
            self._active = name

    def predict(self,
                inputs: Tensor,
                data_samples: Optional[list] = None) -> list:
        """See :meth:`ContinualSegmentor.predict`; ``expert`` is the task.

        Raises:
            ValueError: If no task was learned.
        """
        samples = data_samples or [None] * len(inputs)
        names = [self._task_of(sample) for sample in samples]
        outputs: List[Any] = [None] * len(inputs)
        for name in dict.fromkeys(names):
            self.activate(name)
            indices = [i for i, other in enumerate(names) if other == name]
            group = super().predict(
                inputs[indices], data_samples
                and [data_samples[i] for i in indices])
            for index, sample in zip(indices, group):
                sample.set_metainfo(dict(expert=name))
                outputs[index] = sample
        return outputs

    def _task_of(self, sample: Any) -> str:
        """The learned task that predicts an image."""
        if not self._kept:
            raise ValueError(f'{type(self).__name__} has learned no task yet: '
                             'train it, or load its tasks.')
        if self._forced is not None:
            return self._forced
        task = sample.metainfo.get('task') if sample is not None else None
        return task if task in self._kept else self.expert_names[-1]

    @contextlib.contextmanager
    def forced(self, expert: str) -> Iterator[None]:
        """Predict every image inside the block as of one task.

        Raises:
            ValueError: If the task was not learned.
        """
        if expert not in self._kept:
            raise ValueError(f'{expert!r} is no learned task; learned are '
                             f'{self.expert_names}')
        previous, self._forced = self._forced, expert
        try:
            yield
        finally:
            self._forced = previous

    def save_task(self, task: Task, folder: Path,
                  provenance: Dict[str, Any]) -> None:
        """Write the network of a task, what is shared as it is now."""
        self.activate(task.name)
        save_model(folder / task.name, self.state_dict(), self.classes,
                   self.palette, provenance)

    def load_tasks(self, tasks: Sequence[Task], folder: Path) -> None:
        """Read the tasks' networks; what is shared is that of the last."""
        for task in tasks:
            self._load(*load_model(folder / task.name), strict=True)
            self._keep(task.name)

    def kept_state(self) -> TensorDict:
        """See :meth:`ContinualSegmentor.kept_state`; what is shared, once."""
        shared = self.shared_names()
        held = {k: v for k, v in self.state_dict().items() if k in shared}
        for name, (state, _, _) in self._kept.items():
            held.update({f'{name}/{key}': v for key, v in state.items()})
        return held

    def _keep(self, name: str) -> None:
        """The network as it is now becomes that of a task."""
        shared = self.shared_names()
        state = {
            key: value.detach().clone()
            for key, value in self.state_dict().items() if key not in shared
        }
        self._kept[name] = (state, self.classes, self.palette)
        self._active = name

    def _load(self,
              state: TensorDict,
              classes: Sequence[str],
              palette: Sequence[Sequence[int]],
              strict: bool = False) -> None:
        head = self.decode_head
        if len(classes) != self.num_classes:
            head = self.new_head(len(classes)).train(self.training)
        self.set_decode_head(head, classes, palette)
        self.load_state_dict(state, strict=strict)


@MODELS.register_module()
class SingleTaskSegmentor(GivenTaskSegmentor):
    """Every task fine-tunes a network of its own, in full.

    Nothing is shared, so nothing is forgotten; T tasks cost T models. The
    true task is given at test time; an image of a task that was not learned
    yet goes to the newest model.

    Args:
        init_from (str): Where the network of a task starts: 'base', the
            pretrained backbone, so that nothing is transferred either; or
            'previous', the network of the task before, its head as far as
            the classes are the same. Defaults to 'base'.
        *args, **kwargs: See :class:`ContinualSegmentor`.

    Raises:
        ValueError: If ``init_from`` is neither.
    """

    METHOD = 'one model per task'

    def __init__(self,
                 *args: Any,
                 init_from: str = 'base',
                 **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if init_from not in ('base', 'previous'):
            raise ValueError("model.init_from must be 'base' or 'previous', "
                             f'got {init_from!r}')
        self.init_from = init_from
        self._pretrained: TensorDict = {}

    def begin_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Go back to where the network starts, with a new head."""
        self._remember_pretrained()
        head = self.new_head(task.num_classes)
        if self.init_from == 'previous' and self._kept:
            self.activate(self.expert_names[-1])
            copy_matching(head, self.decode_head.state_dict(), task.classes,
                          self.classes)
        else:
            self.load_state_dict(self._pretrained, strict=False)
        self._active = ''
        self.set_decode_head(head, task.classes, task.palette)
        self.renew_auxiliary_heads(task.num_classes)

    def end_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Keep the model aside."""
        self.drop_auxiliary_heads()
        self._keep(task.name)

    def load_tasks(self, tasks: Sequence[Task], folder: Path) -> None:
        """Read the models of the tasks."""
        self._remember_pretrained()
        super().load_tasks(tasks, folder)

    def _remember_pretrained(self) -> None:
        if not self._pretrained:
            self._pretrained = {
                key: value.detach().clone()
                for key, value in self.state_dict().items()
                if key.startswith(('backbone.', 'neck.'))
            }
