# SPDX-License-Identifier: Apache-2.0
"""Training images of a task, beside them images of other tasks."""
from __future__ import annotations

import os
from bisect import bisect_right
from fractions import Fraction
from itertools import count, islice
from typing import (Any, Dict, Iterable, Iterator, Mapping, Optional, Set,
                    Sized, Tuple)

import numpy as np
from mmengine.dist import get_dist_info
from torch.utils.data import ConcatDataset, Dataset, Sampler, Subset

from mmseg.datasets import MultiImageMixDataset
from mmseg.registry import DATA_SAMPLERS
from mmseg_mile.methods.continual_segmentor import ContinualSegmentor
from .snapshot import sample_seed, seeded

# Name of a stream of images, position in the stream, image in the dataset.
Item = Tuple[str, int, int]


class TrainingImages(Dataset):
    """Images whose random transforms depend on their position alone.

    A sample is the same in any worker, and after a run was interrupted, if
    transforms draw from the generators of Python, numpy or torch, as all of
    mmcv's and mmseg's do. It names its task in the metainfo ``task``.

    Args:
        images (Mapping[str, Subset]): By task, the task's own first.
        seed (int): Of the run.
    """

    def __init__(self, images: Mapping[str, Subset], seed: int) -> None:
        self._tasks = list(images)
        self._images: ConcatDataset = ConcatDataset(images.values())
        self._seed = seed
        own: Any = images[self._tasks[0]].dataset
        self.metainfo = own.metainfo

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, item: Item) -> Any:
        stream, position, index = item
        with seeded(sample_seed(self._seed, stream, position)):
            sample = self._images[index]
        place = bisect_right(self._images.cumulative_sizes, index)
        sample['data_samples'].set_metainfo(dict(task=self._tasks[place]))
        return sample


class PositionedSampler(Sampler):
    """Another sampler, repeated without end, that can start anywhere.

    Positions are those in the stream of all processes together. Skipping
    draws indices only, no image is read.

    Args:
        images (Sized): The images.
        sampler (dict): Config of any sampler.
        seed (int): Handed to it.
        stream (str): Name of the stream.
        first (int): Index of the first image. Defaults to 0.

    Raises:
        ValueError: While iterating, if the sampler yields nothing.
    """

    def __init__(self,
                 images: Sized,
                 sampler: Dict[str, Any],
                 seed: int,
                 stream: str,
                 first: int = 0) -> None:
        self.sampler = DATA_SAMPLERS.build(
            sampler, default_args=dict(dataset=images, seed=seed))
        self._stream = stream
        self._first = first
        self._rank, self._world_size = get_dist_info()
        self._start = 0

    def skip(self, num_samples: int) -> None:
        """Begin behind the first ``num_samples`` of this process."""
        self._start = num_samples

    def __iter__(self) -> Iterator[Item]:
        turns = enumerate(self._indices())
        for turn, index in islice(turns, self._start, None):
            position = turn * self._world_size + self._rank
            yield self._stream, position, self._first + index

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


class MixedSampler(Sampler):
    """Turns of own and rehearsed images.

    As soon as ``share`` of the turns so far make up one more whole image,
    it is a rehearsed one. So every process has the same mixture in each
    batch, and the task's own images come in the order, and with the
    augmentations, that they have without rehearsal.

    Args:
        own (PositionedSampler | MixedSampler): Of the task's own images.
        rehearsed (PositionedSampler | MixedSampler): Of images of others.
        share (Fraction): Of rehearsed images, above 0 and below 1.
    """

    def __init__(self, own: 'PositionedSampler | MixedSampler',
                 rehearsed: 'PositionedSampler | MixedSampler',
                 share: Fraction) -> None:
        self._own = own
        self._rehearsed = rehearsed
        self._share = share
        self._start = 0

    def skip(self, num_samples: int) -> None:
        """Begin behind the first ``num_samples`` of this process."""
        self._start = num_samples
        rehearsed = self._rehearsed_before(num_samples)
        self._own.skip(num_samples - rehearsed)
        self._rehearsed.skip(rehearsed)

    def __iter__(self) -> Iterator[Item]:
        own, rehearsed = iter(self._own), iter(self._rehearsed)
        for turn in count(self._start):
            before, after = map(self._rehearsed_before, (turn, turn + 1))
            yield next(own if before == after else rehearsed)

    def __len__(self) -> int:
        return len(self._own) + len(self._rehearsed)

    def _rehearsed_before(self, turn: int) -> int:
        return int(turn * self._share)


class Rehearsal:
    """Images of other tasks that are trained beside a task's own.

    ``tasks='seen'`` is replay (experience replay: Chaudhry et al. 2019,
    1902.10486, there with a buffer filled while the images stream by): some
    images of each earlier task are kept. ``tasks='all'`` is joint training,
    cut into as many parts as there are tasks: every task of the stream,
    later ones included. Without a config, no image of another task is seen.

    A task's list of images is cut into ``images_per_task`` equal stretches,
    and one image of each is kept, drawn from seed and task, since
    neighbours of a video look alike. No copy is made.

    Args:
        config (Mapping[str, Any], optional): ``train_cfg.rehearsal``, with
            ``tasks`` ('seen' or 'all'); ``images_per_task`` (None, the
            default, keeps all images); and ``share`` of rehearsed images in
            training (None: every image is as likely as any other; 'equal':
            every task comes as often as any other; defaults to 0.5).
        datasets (Mapping[str, Any]): Training images by the name of their
            task, in the order of the stream.
        seed (int): Of the run.

    Raises:
        ValueError: If a dataset does not list its files, or mixes images
            that are kept with others.
    """

    def __init__(self, config: Optional[Mapping[str, Any]],
                 datasets: Mapping[str, Any], seed: int) -> None:
        self.config = dict(config or {})
        self._is_joint = self.config.get('tasks') == 'all'
        self._seed = seed
        self._names = list(datasets)
        self._own = {n: Subset(d, range(len(d))) for n, d in datasets.items()}
        self._kept: Dict[str, Subset] = {}
        self._files: Dict[str, Set[str]] = {}
        for name in self._names if config else ():
            self._kept[name] = self._choose(name)
            # before training starts: a dataset may not list its files
            self._files[name] = _files_of(self._kept[name], name)

    def kept_bytes(self, index: int) -> int:
        """Bytes on disk of the images and labels to keep after a task.

        Those of all tasks up to this one, or of the whole stream where later
        tasks are rehearsed as well; 0 without rehearsal.

        Args:
            index (int): Position of the task in the stream.
        """
        last = len(self._names) if self._is_joint else index + 1
        files: Set[str] = set().union(*(self._files.get(name, ())
                                        for name in self._names[:last]))
        return sum(os.path.getsize(path) for path in files)

    def mix(self, task: str, sampler: Dict[str, Any]) -> Dict[str, Any]:
        """A task's own images, with those of other tasks.

        Args:
            task (str): Its name.
            sampler (dict): Config of the sampler, used for both.

        Returns:
            dict: ``dataset`` and ``sampler`` for the loader.
        """
        own, others = self._own[task], self._others(task)
        mixed: Sampler
        mixed = alone = PositionedSampler(own, sampler, self._seed, task)
        if others:
            share = self.config.get('share', 0.5)
            size = sum(map(len, others.values()))
            parts = [size] if share != 'equal' else map(len, others.values())
            rehearsed = self._rehearsed(f'{task}/rehearsed', len(own), parts,
                                        sampler)
            if share == 'equal':
                share = Fraction(len(others), len(others) + 1)
            elif share is None:
                share = Fraction(size, size + len(own))
            mixed = MixedSampler(alone, rehearsed, Fraction(str(share)))
        images = TrainingImages({task: own, **others}, self._seed)
        # a sampler that was built cannot be copied, as a runner does
        return dict(
            dataset=images, sampler=dict(type=lambda dataset, seed: mixed))

    def _rehearsed(self, stream: str, first: int, sizes: Iterable[int],
                   sampler: Dict[str, Any]) -> Any:
        """Images from ``first`` on, as often of each part of these sizes."""
        # no task's name has a slash
        mixed: Any = None
        for index, size in enumerate(sizes):
            # for each task another order, or a part of the images would
            # come in every task and another in none
            name = f'{stream}/{index}' if index else stream
            order = sample_seed(self._seed, name, 'order')
            part = PositionedSampler(range(size), sampler, order, name, first)
            # the parts before have their equal turns already
            mixed = MixedSampler(mixed, part, Fraction(1, index +
                                                       1)) if index else part
            first += size
        return mixed

    def _others(self, task: str) -> Dict[str, Subset]:
        position = self._names.index(task)
        later = self._names[position + 1:] if self._is_joint else []
        names = self._names[:position] + later if self._kept else []
        return {name: self._kept[name] for name in names}

    def _choose(self, task: str) -> Subset:
        """One image of each equal stretch, or all images."""
        images, number = self._own[task], self.config.get('images_per_task')
        if number is None or number >= len(images):
            return images
        if _is_mixed(images.dataset):
            raise ValueError(
                f'train_dataset of task {task!r} is a MultiImageMixDataset, '
                'which would mix the kept images with images that are not '
                'kept: remove it, or train_cfg.rehearsal.images_per_task.')
        edges = np.arange(number + 1) * len(images) // number
        draw = np.random.default_rng(
            sample_seed(self._seed, task, 'kept images'))
        chosen = draw.integers(edges[:-1], edges[1:])
        return Subset(images.dataset, chosen.tolist())


def check_rehearsal(model: ContinualSegmentor, config: Any) -> None:
    """Refuse settings that mean nothing, or that a method cannot learn from.

    Args:
        model (ContinualSegmentor): The method.
        config (Any): ``train_cfg.rehearsal``.

    Raises:
        ValueError: Naming the field and its value.
    """
    where = 'train_cfg.rehearsal'
    known = ('tasks', 'images_per_task', 'share')
    if config is not None and (not isinstance(config, Mapping)
                               or not set(config) <= set(known)):
        raise ValueError(f'{where} must be a dict with some of {known}, got '
                         f'{config!r}')
    settings = dict(config or {})
    tasks, number = settings.get('tasks'), settings.get('images_per_task')
    share = settings.get('share', 0.5)
    if config is not None and tasks not in ('seen', 'all'):
        raise ValueError(f"{where}.tasks must be 'seen' (replay) or 'all' "
                         f'(joint training), got {tasks!r}')
    if number is not None and (type(number) is not int or number < 1):
        raise ValueError(f'{where}.images_per_task must be a whole number '
                         f'>= 1, or None for all images, got {number!r}')
    if share not in (None, 'equal') and (type(share) is not float
                                         or not 0 < share < 1):
        raise ValueError(
            f'{where}.share must lie above 0 (no rehearsal: leave it out) '
            'and below 1, or be None for a share in proportion to the '
            "number of images, or 'equal' for one that gives each task as "
            f'many, got {share!r}')
    if tasks not in model.rehearses:
        possible = ' or '.join(
            f'with {where}=dict(tasks={t!r}, ...)' if t else f'without {where}'
            for t in model.rehearses)
        raise ValueError(f'{where} is {config and settings}, but '
                         f'{type(model).__name__} is trained {possible}: '
                         'change the one or the other.')


def _is_mixed(dataset: Any) -> bool:
    """True of a wrapper, at any depth, that puts images together."""
    inner = list(getattr(dataset, 'datasets', ()))
    inner += [dataset.dataset] if hasattr(dataset, 'dataset') else []
    return isinstance(dataset, MultiImageMixDataset) or any(
        map(_is_mixed, inner))


def _files_of(images: Subset, task: str) -> Set[str]:
    """Paths of images and labels."""
    dataset: Any = images.dataset
    if not hasattr(dataset, 'get_data_info'):
        raise ValueError(
            f'train_dataset of task {task!r}: {type(dataset).__name__} '
            'has no get_data_info, so that the size of its images is '
            'unknown: use a dataset of mmengine for train_cfg.rehearsal.')
    infos = (dataset.get_data_info(index) for index in images.indices)
    return {
        os.path.abspath(info[key])
        for info in infos
        for key in ('img_path', 'seg_map_path') if info.get(key)
    }
