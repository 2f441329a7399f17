# SPDX-License-Identifier: Apache-2.0
"""One full model per task, each trained alone."""
from __future__ import annotations

import contextlib
import copy
from abc import abstractmethod
from pathlib import Path
from typing import (Any, Dict, Iterable, Iterator, List, Optional, Sequence,
                    Tuple)

from torch import Tensor

from mmseg.registry import MODELS
from mmseg_mile.library.expert_store import load_model, save_model
from mmseg_mile.structures import Task
from mmseg_mile.structures.expert import TensorDict
from ..continual_segmentor import ContinualSegmentor


class GivenTaskSegmentor(ContinualSegmentor):
    """Predicts each image with what its task has left behind.

    The task stands in the metainfo ``task`` of the data sample. An image of
    a task that was not learned yet, or of none, goes to the newest one.
    """

    needs_task_label = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._forced: Optional[str] = None

    @property
    @abstractmethod
    def expert_names(self) -> Tuple[str, ...]:
        """tuple[str]: Tasks in the order in which they were learned."""

    @abstractmethod
    def take(self, name: str) -> None:
        """Make the network that of a learned task.

        Args:
            name (str): One of ``expert_names``.
        """

    def predict(self,
                inputs: Tensor,
                data_samples: Optional[list] = None) -> list:
        """See :meth:`ContinualSegmentor.predict`; ``expert`` is the task.

        Raises:
            ValueError: If no task was learned.
        """
        samples = data_samples or [None] * len(inputs)
        names = [self._name_of(sample) for sample in samples]
        outputs: List[Any] = [None] * len(inputs)
        for name in dict.fromkeys(names):
            self.take(name)
            indices = [i for i, other in enumerate(names) if other == name]
            group = super().predict(
                inputs[indices], data_samples
                and [data_samples[i] for i in indices])
            for index, sample in zip(indices, group):
                sample.set_metainfo(dict(expert=name))
                outputs[index] = sample
        return outputs

    @contextlib.contextmanager
    def forced(self, expert: str) -> Iterator[None]:
        """Predict every image inside the block as of one task.

        Raises:
            ValueError: If the task was not learned.
        """
        if expert not in self.expert_names:
            raise ValueError(f'{expert!r} is no learned task; learned are '
                             f'{self.expert_names}')
        previous, self._forced = self._forced, expert
        try:
            yield
        finally:
            self._forced = previous

    def _name_of(self, sample: Any) -> str:
        """The learned task that predicts an image."""
        if not self.expert_names:
            raise ValueError(f'{type(self).__name__} has learned no task yet: '
                             'train it, or load its tasks.')
        if self._forced is not None:
            return self._forced
        task = sample.metainfo.get('task') if sample is not None else None
        return task if task in self.expert_names else self.expert_names[-1]


_Model = Tuple[TensorDict, Tuple[str, ...], Tuple[Tuple[int, ...], ...]]


@MODELS.register_module()
class SingleTaskSegmentor(GivenTaskSegmentor):
    """Every task fine-tunes the pretrained network afresh and in full.

    Nothing is shared, so nothing is forgotten and nothing transferred; T
    tasks cost T models. The true task is given at test time; an image of a
    task that was not learned yet goes to the newest model.
    """

    METHOD = 'one model per task'

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._models: Dict[str, _Model] = {}
        self._pretrained: Optional[TensorDict] = None

    @property
    def expert_names(self) -> Tuple[str, ...]:
        """tuple[str]: Tasks that have a model."""
        return tuple(self._models)

    def begin_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Back to the pretrained backbone, with a new head."""
        self._remember_pretrained()
        self.backbone.load_state_dict(self._pretrained)
        self.set_decode_head(
            self.new_head(task.num_classes), task.classes, task.palette)
        self.renew_auxiliary_heads(task.num_classes)

    def end_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Keep the model aside."""
        self.drop_auxiliary_heads()
        state = {k: v.detach().clone() for k, v in self.state_dict().items()}
        self._models[task.name] = (state, self.classes, self.palette)

    def save_task(self, task: Task, folder: Path,
                  provenance: Dict[str, Any]) -> None:
        """Write the task's model."""
        save_model(folder / task.name, *self._models[task.name], provenance)

    def kept_state(self) -> Dict[str, Tensor]:
        """See :meth:`ContinualSegmentor.kept_state`; all models are kept."""
        return {
            f'{task}/{key}': value
            for task, (state, _, _) in self._models.items()
            for key, value in state.items()
        }

    def load_tasks(self, tasks: Sequence[Task], folder: Path) -> None:
        """Read the models of the tasks."""
        self._remember_pretrained()
        for task in tasks:
            self._models[task.name] = load_model(folder / task.name)

    def take(self, name: str) -> None:
        """See :meth:`GivenTaskSegmentor.take`."""
        state, classes, palette = self._models[name]
        if len(classes) != self.num_classes:
            self.set_decode_head(
                self.new_head(len(classes)).eval(), classes, palette)
        self.set_decode_head(self.decode_head, classes, palette)
        self.load_state_dict(state, strict=True)

    def _remember_pretrained(self) -> None:
        if self._pretrained is None:
            self._pretrained = copy.deepcopy(self.backbone.state_dict())
