# SPDX-License-Identifier: Apache-2.0
"""Where in the stream of training images a sample stands."""
from __future__ import annotations

from itertools import count, islice
from typing import Any, Dict, Iterator, Optional, Sized, Tuple

from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from mmseg.registry import DATA_SAMPLERS


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
