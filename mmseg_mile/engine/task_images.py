# SPDX-License-Identifier: Apache-2.0
"""Where in the stream of training images a sample stands."""
from __future__ import annotations

from itertools import count, islice
from typing import Any, Dict, Iterator, Optional, Sequence, Sized, Tuple

from mmengine.dist import get_dist_info
from torch.utils.data import Dataset, Sampler

from mmseg.registry import DATA_SAMPLERS
from .snapshot import sample_seed, seeded


class PositionedSampler(Sampler):
    """Another sampler, repeated without end, that can start anywhere.

    Yields ``(position, index)``: the position in the stream of all processes
    together, and the image. Skipping draws indices only, no image is read.

    Args:
        dataset (Sized): The dataset.
        sampler (dict): Config of any sampler.
        seed (int, optional): Handed to it. Defaults to None.

    Raises:
        ValueError: While iterating, if the sampler yields nothing.
    """

    def __init__(self,
                 dataset: Sized,
                 sampler: Dict[str, Any],
                 seed: Optional[int] = None) -> None:
        self.sampler = DATA_SAMPLERS.build(
            sampler, default_args=dict(dataset=dataset, seed=seed))
        self._rank, self._world_size = get_dist_info()
        self._start = 0

    def skip(self, num_samples: int) -> None:
        """Begin behind the first ``num_samples`` of this process."""
        self._start = num_samples

    def __iter__(self) -> Iterator[Tuple[int, int]]:
        stream = enumerate(self._indices())
        for turn, index in islice(stream, self._start, None):
            yield turn * self._world_size + self._rank, index

    def __len__(self) -> int:
        return len(self.sampler)

    def _indices(self) -> Iterator[int]:
        for epoch in count():
            if hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)
            is_empty = True
            for index in self.sampler:
                is_empty = False
                yield index
            if is_empty:
                raise ValueError(
                    f'train_dataloader.sampler {type(self.sampler).__name__} '
                    f'gives process {self._rank} no image: use '
                    'InfiniteSampler, or fewer processes')


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
