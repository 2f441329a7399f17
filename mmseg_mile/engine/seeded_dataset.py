# SPDX-License-Identifier: Apache-2.0
"""Augmentations that are the same whoever draws them, and whenever."""
from __future__ import annotations

from typing import Any, Optional, Sequence, Tuple

from torch.utils.data import Dataset

from .random_state import sample_seed, seeded


class TaskImages(Dataset):
    """Some images of a task, each of which says whose it is.

    Args:
        dataset (Any): Any map-style dataset of packed samples.
        task (str): Becomes the metainfo ``task`` of every data sample.
        indices (Sequence[int], optional): Chosen images. Defaults to None:
            all of them.
    """

    def __init__(self,
                 dataset: Any,
                 task: str,
                 indices: Optional[Sequence[int]] = None) -> None:
        self.dataset = dataset
        self.task = task
        self.indices = indices

    @property
    def metainfo(self) -> dict:
        """dict: Of the dataset."""
        return self.dataset.metainfo

    def __len__(self) -> int:
        return len(self.dataset if self.indices is None else self.indices)

    def __getitem__(self, index: int) -> Any:
        if self.indices is not None:
            index = self.indices[index]
        sample = self.dataset[index]
        sample['data_samples'].set_metainfo(dict(task=self.task))
        return sample


class SeededDataset:
    """A dataset whose random transforms depend on the position alone.

    A sample is the same in any worker, with any number of workers, and after
    a run was interrupted. Transforms must draw from the generators of
    Python, numpy or torch, as all of mmcv's and mmseg's do.

    Args:
        dataset (Any): Any map-style dataset.
        seed (int): Of the run.
        stream (str): Streams of images of one seed draw differently; each
            task has one or two.
    """

    def __init__(self, dataset: Any, seed: int, stream: str) -> None:
        self.dataset = dataset
        self.seed = seed
        self.stream = stream

    @property
    def metainfo(self) -> dict:
        """dict: Of the dataset."""
        return self.dataset.metainfo

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: Tuple[int, int]) -> Any:
        position, index = item
        with seeded(sample_seed(self.seed, self.stream, position)):
            return self.dataset[index]
