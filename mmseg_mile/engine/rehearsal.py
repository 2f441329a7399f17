# SPDX-License-Identifier: Apache-2.0
"""Images of other tasks that are trained beside a task's own."""
from __future__ import annotations

import os
from fractions import Fraction
from itertools import count
from typing import (Any, Dict, Iterator, List, Mapping, Optional, Sequence,
                    Set, Tuple)

import numpy as np
from torch.utils.data import ConcatDataset, Sampler

from mmseg.datasets import MultiImageMixDataset
from mmseg_mile.methods.continual_segmentor import ContinualSegmentor
from .snapshot import sample_seed
from .task_images import PositionedSampler, SeededDataset, TaskImages


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


_FIELDS = ('tasks', 'images_per_task', 'share')
_TASKS = ('seen', 'all')


class Rehearsal:
    """Which images of which other tasks are trained, and how often.

    ``tasks='seen'`` is replay (experience replay: Chaudhry et al. 2019,
    1902.10486, there with a buffer filled while the images stream by): some
    images of each earlier task are kept. ``tasks='all'`` is joint training,
    cut into as many parts as there are tasks: every task of the stream,
    later ones included.

    The kept images of a task depend on the seed and the task alone: its
    list of images is cut into ``images_per_task`` equal stretches, and one
    image is drawn from each, since neighbours of a video look alike. They
    are read from where the dataset lies; no copy is made.

    Args:
        config (Mapping[str, Any]): ``train_cfg.rehearsal``, with ``tasks``
            ('seen' or 'all'); ``images_per_task``, of which a task with
            fewer images keeps all (None, the default, keeps all images of
            every task); and ``share``, the share of rehearsed images in
            training, 0 to 1 (None: every image is as likely as any other).
            Defaults to 0.5.
        datasets (Mapping[str, Any]): Training images by the name of their
            task, in the order of the stream.
        seed (int): Of the run.

    Raises:
        ValueError: If a field is unknown or out of its range, or a dataset
            does not say where its files are, or mixes images that are kept
            with others.
    """

    def __init__(self, config: Mapping[str, Any], datasets: Mapping[str, Any],
                 seed: int) -> None:
        check_rehearsal_config(config)
        self.tasks: str = config['tasks']
        self.images_per_task: Optional[int] = config.get('images_per_task')
        self.share: Optional[float] = config.get('share', 0.5)
        self._names = list(datasets)
        self._images = {
            name: TaskImages(dataset, name, self._chosen(dataset, name, seed))
            for name, dataset in datasets.items()
        }
        self._seed = seed
        # before training starts: a dataset may not tell its files
        self._files = {
            name: _files_of(images)
            for name, images in self._images.items()
        }

    def others(self, task: str) -> List[str]:
        """Names of the tasks whose images are trained beside ``task``'s."""
        position = self._names.index(task)
        later = self._names[position + 1:] if self.tasks == 'all' else []
        return self._names[:position] + later

    def images(self, task: str) -> TaskImages:
        """The images of a task that are kept for others."""
        return self._images[task]

    def kept_bytes(self, index: int) -> int:
        """What the images take that must be kept after a task.

        Args:
            index (int): Position of the task in the stream.

        Returns:
            int: Bytes on disk of images and labels: those of all tasks up
            to this one, or of the whole stream where later tasks are
            rehearsed as well.
        """
        last = len(self._names) if self.tasks == 'all' else index + 1
        files = set().union(*(self._files[n] for n in self._names[:last]))
        return sum(os.path.getsize(path) for path in files)

    def mix(self, own: SeededDataset, task: str,
            sampler: Dict[str, Any]) -> Optional[Dict[str, Any]]:
        """A task's own images with those of other tasks.

        Args:
            own (SeededDataset): Images of the task.
            task (str): Its name.
            sampler (dict): Config of the sampler.

        Returns:
            dict, optional: ``dataset`` and ``sampler`` for the loader; None
            for the first task of replay, which has no other to rehearse.
        """
        others = [self._images[name] for name in self.others(task)]
        if not others:
            return None
        # no task's name has a slash
        rehearsed = SeededDataset(
            ConcatDataset(others), self._seed, f'{task}/rehearsed')
        share = Fraction(len(rehearsed), len(own) + len(rehearsed))
        if self.share is not None:
            share = Fraction(str(self.share))
        return dict(
            dataset=MixedImages(own, rehearsed),
            sampler=dict(type=MixedSampler, sampler=sampler, share=share))

    def _chosen(self, dataset: Any, task: str,
                seed: int) -> Optional[List[int]]:
        """Indices of the kept images; None for all."""
        length, count = len(dataset), self.images_per_task
        if count is None or count >= length:
            return None
        _check_single(dataset, task)
        edges = np.arange(count + 1) * length // count
        draw = np.random.default_rng(sample_seed(seed, task, 'kept images'))
        return draw.integers(edges[:-1], edges[1:]).tolist()


def check_rehearsal_config(config: Any) -> None:
    """Refuse settings that mean nothing.

    Args:
        config (Any): ``train_cfg.rehearsal``.

    Raises:
        ValueError: Naming the field and its value.
    """
    where = 'train_cfg.rehearsal'
    if not isinstance(config, Mapping) or not set(config) <= set(_FIELDS):
        raise ValueError(f'{where} must be a dict with some of {_FIELDS}, '
                         f'got {config!r}')
    if config.get('tasks') not in _TASKS:
        raise ValueError(
            f"{where}.tasks must be 'seen' (replay) or 'all' (joint "
            f'training), got {config.get("tasks")!r}')
    count = config.get('images_per_task')
    if count is not None and (type(count) is not int or count < 1):
        raise ValueError(f'{where}.images_per_task must be a whole number '
                         f'>= 1, or None for all images, got {count!r}')
    share = config.get('share', 0.5)
    if share is not None and (type(share) is not float or not 0 < share < 1):
        raise ValueError(
            f'{where}.share must lie above 0 (no rehearsal: leave it out) '
            f'and below 1, or be None for a share in proportion to the '
            f'number of images, got {share!r}')


def check_rehearses(model: ContinualSegmentor,
                    config: Optional[Mapping[str, Any]]) -> None:
    """Refuse a method that cannot learn from the images it would get.

    Args:
        model (ContinualSegmentor): The method.
        config (Mapping[str, Any], optional): ``train_cfg.rehearsal``.

    Raises:
        ValueError: Saying what the method can do.
    """
    tasks = config and config.get('tasks')
    if tasks in model.rehearses:
        return
    meanings = {
        None: 'without train_cfg.rehearsal',
        'seen': "with train_cfg.rehearsal=dict(tasks='seen', ...)",
        'all': "with train_cfg.rehearsal=dict(tasks='all', ...)"
    }
    possible = ' or '.join(meanings[t] for t in model.rehearses)
    raise ValueError(
        f'train_cfg.rehearsal is {config and dict(config)}, but '
        f'{type(model).__name__} is trained {possible}: change the one or '
        'the other.')


def check_extension(config: Optional[Mapping[str, Any]],
                    learned: Sequence[str], tasks: Sequence[str]) -> None:
    """Refuse more tasks for a stream that is trained jointly.

    Args:
        config (Mapping[str, Any], optional): ``train_cfg.rehearsal``.
        learned (Sequence[str]): Tasks of the run that is resumed.
        tasks (Sequence[str]): Tasks of the config.

    Raises:
        ValueError: Naming the new tasks.
    """
    new = [task for task in tasks if task not in learned]
    if config and config.get('tasks') == 'all' and new:
        raise ValueError(
            f"train_cfg.rehearsal.tasks='all': the tasks {new} would have to "
            'be trained beside those that this run has learned without '
            'them. Choose another --work-dir.')


def _check_single(dataset: Any, task: str) -> None:
    """Refuse a wrapper that adds images which are not kept."""
    if isinstance(dataset, MultiImageMixDataset):
        raise ValueError(
            f'train_dataset of task {task!r} is a MultiImageMixDataset, which '
            'would mix the kept images with images that are not kept: remove '
            'it, or train_cfg.rehearsal.images_per_task.')
    for each in getattr(dataset, 'datasets', ()):
        _check_single(each, task)
    if hasattr(dataset, 'dataset'):
        _check_single(dataset.dataset, task)


def _files_of(images: TaskImages) -> Set[str]:
    """Paths of images and labels."""
    dataset = images.dataset
    while not hasattr(dataset, 'get_data_info') and hasattr(
            dataset, 'dataset'):
        dataset = dataset.dataset
    if not hasattr(dataset, 'get_data_info'):
        raise ValueError(
            f'train_dataset of task {images.task!r}: {type(dataset).__name__} '
            'has no get_data_info, so that the size of its images cannot be '
            'told: use a dataset of mmengine for train_cfg.rehearsal.')
    chosen = range(len(dataset)) if images.indices is None else images.indices
    infos = (dataset.get_data_info(index) for index in chosen)
    return {
        os.path.abspath(info[key])
        for info in infos
        for key in ('img_path', 'seg_map_path') if info.get(key)
    }
