# SPDX-License-Identifier: Apache-2.0
"""What a stream cost: sizes and times, the ``cost`` of ``results.json``."""
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
from numpy.typing import ArrayLike

from . import results_schema as schema
from .results_schema import COST_KEYS, EXPERT_COST_KEYS


@dataclass(eq=False)
class StreamCost:
    """Sizes and times of one run of T tasks; NaN stands for not known.

    Args:
        train_seconds (np.ndarray): (T,) training time of each task.
        kept_params (np.ndarray): (T,) values that have to be kept, after
            each task, to predict and to go on learning: weights, norm
            statistics, prototypes.
        kept_bytes (np.ndarray): (T,) bytes of the files that hold them, and
            of kept images.
        base_params (int, optional): Parameters of the backbone.
        experts (list[dict]): Size of each expert, ``EXPERT_COST_KEYS``.
        macs (int, optional): Multiply-adds of one image's prediction.
    """
    train_seconds: np.ndarray
    kept_params: np.ndarray
    kept_bytes: np.ndarray
    base_params: Optional[int] = None
    experts: List[Dict[str, Any]] = field(default_factory=list)
    macs: Optional[int] = None

    @classmethod
    def new(cls, num_tasks: int) -> 'StreamCost':
        """Nothing is known yet."""
        seconds, params, num_bytes = np.full((3, num_tasks), np.nan)
        return cls(seconds, params, num_bytes)

    @property
    def is_learned(self) -> np.ndarray:
        """np.ndarray: (T,) bool, the tasks that were trained."""
        return ~np.isnan(self.train_seconds)

    def set_task(self, index: int, seconds: float, params: float,
                 num_bytes: float) -> None:
        """Set what one task took, and what is kept after it."""
        where = f'[{index}]'
        values = (('train_seconds', seconds), ('kept_params', params),
                  ('kept_bytes', num_bytes))
        for name, value in values:
            checked = schema.check_range(value, 0, math.inf,
                                         f'cost.{name}{where}')
            getattr(self, name)[index] = checked

    def set_experts(self, experts: Sequence[Dict[str, Any]],
                    tasks: Sequence[str]) -> None:
        """Set the sizes of the experts; empty for a method without any.

        Args:
            experts (Sequence[dict]): ``EXPERT_COST_KEYS`` per expert.
            tasks (Sequence[str]): Names that experts may have.
        """
        for index, entry in enumerate(experts):
            schema.check_cost(entry, tasks, f'cost.experts[{index}]')
        self.experts = [{
            key: entry[key]
            for key in EXPERT_COST_KEYS
        } for entry in experts]

    def extend(self, num_tasks: int) -> None:
        """Make room for tasks at the end of the stream.

        The work of a prediction is that of the longest stream, so that it
        becomes unknown.
        """
        if num_tasks > len(self.train_seconds):
            self.macs = None
        for name in ('train_seconds', 'kept_params', 'kept_bytes'):
            old = getattr(self, name)
            setattr(
                self, name,
                np.concatenate([old,
                                np.full(num_tasks - len(old), np.nan)]))

    def to_document(self) -> Dict[str, Any]:
        """The ``cost`` of ``results.json``."""
        return dict(
            base_params=self.base_params,
            experts=schema.write_numbers(self.experts),
            train_seconds=schema.write_numbers(self.train_seconds),
            kept_params=schema.write_counts([self.kept_params])[0],
            kept_bytes=schema.write_counts([self.kept_bytes])[0],
            macs=self.macs)

    @classmethod
    def from_document(cls, document: Any,
                      tasks: Sequence[str]) -> 'StreamCost':
        """The content of the field, checked.

        Raises:
            ValueError: If something is wrong; names the field.
        """
        schema.check_keys(document, COST_KEYS, 'cost')
        schema.check_type(document['experts'], list, 'cost.experts')
        for name in ('base_params', 'macs'):
            if document[name] is not None:
                schema.check_type(document[name], int, f'cost.{name}')
        cost = cls.new(len(tasks))
        cost.base_params, cost.macs = document['base_params'], document['macs']
        cost.set_experts(document['experts'], tasks)
        columns: List[ArrayLike] = [
            schema.read_vector(document[name], len(tasks), f'cost.{name}')
            for name in ('train_seconds', 'kept_params', 'kept_bytes')
        ]
        for index, values in enumerate(zip(*columns)):
            cost.set_task(index, *values)
        return cost
