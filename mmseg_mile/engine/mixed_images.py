# SPDX-License-Identifier: Apache-2.0
"""Two streams of training images that become one."""
from __future__ import annotations

from fractions import Fraction
from itertools import count
from typing import Any, Dict, Iterator, Optional, Tuple

from torch.utils.data import Sampler

from .positioned_sampler import PositionedSampler
from .random_state import sample_seed
from .seeded_dataset import SeededDataset


class MixedImages:
    """A task's own images, and behind them those of other tasks.

    Args:
        own (SeededDataset): Of the task.
        rehearsed (SeededDataset): Of other tasks.
    """

    def __init__(self, own: SeededDataset, rehearsed: SeededDataset) -> None:
        self.own = own
        self.rehearsed = rehearsed

    @property
    def metainfo(self) -> dict:
        """dict: Of the task's own images."""
        return self.own.metainfo

    def __len__(self) -> int:
        return len(self.own) + len(self.rehearsed)

    def __getitem__(self, item: Tuple[int, int]) -> Any:
        position, index = item
        if index < len(self.own):
            return self.own[position, index]
        return self.rehearsed[position, index - len(self.own)]


class MixedSampler(Sampler):
    """Takes turns between two streams, each with a sampler of its own.

    Which stream a turn belongs to depends on the turn alone: as soon as
    ``share`` of the turns so far make up one more whole image, it is a
    rehearsed one. So every process has the same mixture in each batch, and
    the task's own images come in the order, and with the augmentations, that
    they have without rehearsal.

    Yields ``(position, index)``: the position in the image's own stream of
    all processes together, and the image in :class:`MixedImages`.

    Args:
        dataset (MixedImages): The images.
        sampler (dict): Config of any sampler, used for both streams.
        share (Fraction): Of rehearsed images, above 0 and below 1.
        seed (int, optional): Of the run. Defaults to None.

    Raises:
        ValueError: While iterating, if a sampler yields nothing.
    """

    def __init__(self,
                 dataset: MixedImages,
                 sampler: Dict[str, Any],
                 share: Fraction,
                 seed: Optional[int] = None) -> None:
        self._own = PositionedSampler(dataset.own, sampler, seed)
        # for each task another order, or a part of the images would come
        # in every task and another in none
        stream = sample_seed(seed, dataset.rehearsed.stream, 'order')
        self._rehearsed = PositionedSampler(dataset.rehearsed, sampler, stream)
        self._offset = len(dataset.own)
        self._share = share
        self._start = 0

    def skip(self, num_samples: int) -> None:
        """Begin behind the first ``num_samples`` of this process."""
        self._start = num_samples
        rehearsed = self._rehearsed_before(num_samples)
        self._own.skip(num_samples - rehearsed)
        self._rehearsed.skip(rehearsed)

    def __iter__(self) -> Iterator[Tuple[int, int]]:
        own, rehearsed = iter(self._own), iter(self._rehearsed)
        for turn in count(self._start):
            before, after = map(self._rehearsed_before, (turn, turn + 1))
            if before == after:
                yield next(own)
            else:
                position, index = next(rehearsed)
                yield position, self._offset + index

    def __len__(self) -> int:
        return len(self._own) + len(self._rehearsed)

    def _rehearsed_before(self, turn: int) -> int:
        return int(turn * self._share)
