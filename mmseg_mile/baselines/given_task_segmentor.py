# SPDX-License-Identifier: Apache-2.0
"""Methods that are told at test time which task an image belongs to."""
from __future__ import annotations

import contextlib
from abc import abstractmethod
from typing import Any, Iterator, List, Optional, Tuple

from torch import Tensor

from mmseg_mile.models import ContinualSegmentor


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
