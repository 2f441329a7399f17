# SPDX-License-Identifier: Apache-2.0
"""Augmentations that are the same whoever draws them, and whenever."""
from __future__ import annotations

from typing import Any, Tuple

from .random_state import sample_seed, seeded


class SeededDataset:
    """A dataset whose random transforms depend on the position alone.

    A sample is the same in any worker, with any number of workers, and after
    a run was interrupted. Transforms must draw from the generators of
    Python, numpy or torch, as all of mmcv's and mmseg's do.

    Args:
        dataset (Any): Any map-style dataset.
        seed (int): Of the run.
        task (str): Tasks of one seed draw differently.
    """

    def __init__(self, dataset: Any, seed: int, task: str) -> None:
        self.dataset = dataset
        self.seed = seed
        self.task = task

    @property
    def metainfo(self) -> dict:
        """dict: Of the dataset."""
        return self.dataset.metainfo

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: Tuple[int, int]) -> Any:
        position, index = item
        with seeded(sample_seed(self.seed, self.task, position)):
            return self.dataset[index]
