# SPDX-License-Identifier: Apache-2.0
"""From a stream's config to tasks, checked datasets and loaders."""
from __future__ import annotations

import copy
import logging
import math
import os.path as osp
from collections import Counter
from fractions import Fraction
from typing import (Any, Callable, Dict, Iterator, List, Mapping, Optional,
                    Sequence, Set)

import numpy as np
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Subset

from mmseg.registry import DATASETS
from mmseg_mile.datasets.checked_pipeline import check_dataset
from mmseg_mile.datasets.driving import sequence_of
from mmseg_mile.structures import Task, check_task_name
from .rehearsal import Rehearsal

_REQUIRED = ('name', 'train_dataset', 'val_dataset')
# Handed to `Task` as they are, where a config gives them.
_HANDED_ON = ('init_from', 'family', 'eval_classes', 'protocol', 'sensors')
TASK_KEYS = (*_REQUIRED, 'max_iters', *_HANDED_ON)


def in_order(configs: Any, order: Optional[Sequence[str]]) -> Any:
    """Tasks in the order in which they shall be learned.

    Args:
        configs (Any): ``train_cfg.tasks``.
        order (Sequence[str], optional): All their names; None leaves the
            tasks as they are.

    Raises:
        ValueError: If ``configs`` is no list of dicts, or ``order`` does not
            name every task once.
    """
    if not isinstance(configs, (list, tuple)) or not configs or not all(
            isinstance(config, Mapping) for config in configs):
        raise ValueError(
            'train_cfg.tasks must be a list of one or more dicts with '
            f'{list(TASK_KEYS)}, got {configs!r}')
    if order is None:
        return configs
    names = [str(config.get('name')) for config in configs]
    if not isinstance(order, (list, tuple)) or (sorted(map(str, order))
                                                != sorted(names)):
        raise ValueError('train_cfg.order must name every task once, got '
                         f'{order!r}; the tasks are {names}')
    return [configs[names.index(str(name))] for name in order]


class TaskData:
    """The datasets of a stream, opened and checked before training starts.

    Args:
        tasks (Sequence[dict]): One per task: ``name``, ``train_dataset`` and
            ``val_dataset`` (configs of any mmseg dataset), and optionally
            ``max_iters`` and further fields of :class:`Task`.
        data_root (str): Joined with each dataset's relative ``data_root``.
        max_iters (int): Iterations of tasks that name none.
        num_checked (int): Images per dataset that are read for the check,
            evenly spaced.
        rehearsal (Mapping[str, Any], optional): See :class:`Rehearsal`.
            Defaults to None.
        seed (int): Of the run. Defaults to 0.
        selection_share (float, optional): Share of each task's training
            images that are held out by sequence, see :func:`hold_out`, and
            take the place of ``val_dataset``, of which no file is opened.
            Defaults to None: none is held out.
        budget (int): Times the iterations of every task. Defaults to 1.

    Raises:
        ValueError: If a task is malformed, a name occurs twice, a folder is
            missing, a split is empty, a file cannot be read, a label lies
            outside the classes, or images cannot be held out; names task,
            dataset and file.
    """

    def __init__(self,
                 tasks: Sequence[Mapping[str, Any]],
                 data_root: str,
                 max_iters: int,
                 num_checked: int,
                 rehearsal: Optional[Mapping[str, Any]] = None,
                 seed: int = 0,
                 selection_share: Optional[float] = None,
                 budget: int = 1) -> None:
        if type(budget) is not int or budget < 1:
            raise ValueError('train_cfg.budget must be a whole number >= 1, '
                             f'got {budget!r}')
        self._budget = budget
        check_selection_share(selection_share)
        self._data_root = data_root
        self._selection_share = selection_share
        self._datasets: Dict[str, Dict[str, Any]] = {}
        self.tasks: List[Task] = [
            self._open(config, max_iters) for config in in_order(tasks, None)
        ]
        for name, datasets in self._datasets.items():
            for split, dataset in datasets.items():
                _check_samples(dataset, split, name, num_checked)
        self.rehearsal = Rehearsal(rehearsal, {
            n: datasets['train']
            for n, datasets in self._datasets.items()
        }, seed)

    def train_loader(self, runner: Runner, task: Task,
                     template: Dict[str, Any]) -> DataLoader:
        """Training images through the training pipeline, shuffled.

        Order and augmentations follow from seed and task, wherever in the
        stream of images the loader starts. Every data sample says in its
        metainfo ``task`` whose image it is.
        """
        images = self.rehearsal.mix(task.name, template['sampler'])
        return runner.build_dataloader(
            dict(template, **images), seed=runner.seed)

    def val_loader(self, runner: Runner, task: Task,
                   template: Dict[str, Any]) -> DataLoader:
        """Validation images, each once, in order."""
        return _ordered_loader(runner, template,
                               self._datasets[task.name]['val'])

    def prototype_loader(self, runner: Runner, task: Task, template: Dict[str,
                                                                          Any],
                         max_images: int) -> DataLoader:
        """Training images through the *test* pipeline, in order.

        Crops and flips of the training pipeline would shift prototypes.

        Args:
            runner (Runner): Builds the loader.
            task (Task): The task.
            template (dict): Config of the validation loader.
            max_images (int): More images are thinned out evenly.
        """
        pipeline = next(_leaves(task.val_dataset)).get('pipeline', [])

        def use_test_pipeline(config: Dict[str, Any], is_leaf: bool) -> None:
            if is_leaf:
                config['pipeline'] = pipeline
            elif 'pipeline' in config:
                # a wrapper that mixes images would mix these, too
                config['pipeline'] = []

        dataset = DATASETS.build(
            _changed(task.train_dataset, use_test_pipeline))
        check_dataset(dataset, task.num_classes)
        if len(dataset) > max_images:
            runner.logger.info(f'prototypes of {task.name!r} from '
                               f'{max_images} of {len(dataset)} images')
            dataset = Subset(dataset, _spread(len(dataset), max_images))
        return _ordered_loader(runner, template, dataset)

    def _open(self, config: Mapping[str, Any], max_iters: Any) -> Task:
        unknown = sorted(set(map(str, config)) - set(TASK_KEYS))
        missing = [key for key in _REQUIRED if key not in config]
        if unknown or missing:
            raise ValueError(
                f'task {config.get("name")!r} has unknown keys {unknown} and '
                f'lacks {missing}; a task has {list(TASK_KEYS)}')
        name = check_task_name(config['name'])
        if name in self._datasets:
            raise ValueError(f'two tasks of the stream are called {name!r}: '
                             'names must be unique, they are also the names '
                             'of the experts')
        iters = config.get('max_iters', max_iters)
        if type(iters) is not int or iters < 1:
            raise ValueError(f'max_iters of task {name!r} must be a whole '
                             f'number >= 1, got {iters!r}')
        rooted = {
            split:
            _rooted(config[f'{split}_dataset'], self._data_root,
                    f'{split}_dataset of task {name!r}')
            for split in ('train', 'val')
        }
        if self._selection_share is not None:
            if 'eval_classes' in config:
                raise ValueError(
                    f'task {name!r} has eval_classes, but its training '
                    'images are labelled in its own classes alone: leave '
                    'eval_classes or train_cfg.selection_share out')
            rooted = _with_selection_images(rooted, self._selection_share,
                                            name)
        self._datasets[name] = {
            split: _build(dataset, f'{split}_dataset of task {name!r}')
            for split, dataset in rooted.items()
        }
        fields = {
            key:
            tuple(config[key])
            if isinstance(config[key], list) else config[key]
            for key in _HANDED_ON if key in config
        }
        return self._task(name, rooted, iters * self._budget, fields)

    def _task(self, name: str, rooted: Dict[str, Dict[str, Any]], iters: int,
              fields: Dict[str, Any]) -> Task:
        datasets = self._datasets[name]
        classes = {
            s: tuple(d.metainfo['classes'])
            for s, d in datasets.items()
        }
        evaluated = tuple(fields.get('eval_classes') or classes['train'])
        if classes['val'] != evaluated:
            raise ValueError(
                f'task {name!r} trains on the classes {classes["train"]} and '
                f'shall be evaluated on {evaluated}, but its val_dataset has '
                f'{classes["val"]}: both datasets must declare the same '
                'classes in the same order, or eval_classes those of '
                'val_dataset')
        # one palette unless the classes differ
        source = 'train' if 'eval_classes' in fields else 'val'
        palette = datasets[source].metainfo['palette']
        task = Task(
            name=name,
            classes=classes['train'],
            palette=tuple(tuple(colour) for colour in palette),
            train_dataset=rooted['train'],
            val_dataset=rooted['val'],
            max_iters=iters,
            **fields)
        for split, dataset in datasets.items():
            check_dataset(dataset, len(classes[split]))
        return task


def check_selection_share(share: Any) -> None:
    """Refuse a ``train_cfg.selection_share`` that is no share of images.

    Args:
        share (Any): Its value, None to hold nothing out.

    Raises:
        ValueError: If it is neither None nor a float between 0 and 1.
    """
    if share is not None and (type(share) is not float or not 0 < share < 1):
        raise ValueError(
            'train_cfg.selection_share must lie above 0 and below 1, or be '
            f'None to hold nothing out, got {share!r}')


def hold_out(sequences: Sequence[str], share: float, where: str) -> List[bool]:
    """Images to hold out of training: whole sequences, spread over the list.

    Of all ways to take every n-th sequence or so, the one that holds out the
    fewest images of at least ``share``. A lone sequence is cut: its last run
    of frames is held out.

    Args:
        sequences (Sequence[str]): Sequence of each of N images.
        share (float): Of the images, above 0 and below 1.
        where (str): What the images are, for errors.

    Returns:
        list[bool]: N, True for images that are held out.

    Raises:
        ValueError: If nothing would be left to train on.
    """
    size = len(sequences)
    # as floats, 0.07 * 100 is more than 7
    target = math.ceil(Fraction(str(share)) * size)
    found = Counter(sequences)
    names, counts = list(found), np.array(list(found.values()))
    if len(names) == 1 and target < size:
        return [index >= size - target for index in range(size)]
    # so many of the smallest have enough images, fewer of the largest cannot
    most = np.searchsorted(np.cumsum(np.sort(counts)), target) + 1
    least = -(-target // counts.max())
    best, chosen = size, np.empty(0, int)
    for number in range(min(most, len(names) - 1), least - 1, -1):
        spaced = np.arange(number) * len(names) // number
        shifts = np.arange(-(-len(names) // number))[:, None]
        held = counts[spaced + shifts].sum(1)
        held[held < target] = size
        if held.min() < best:
            best = held.min()
            chosen = spaced + shifts[held.argmin()]
    if not chosen.size:
        raise ValueError(
            f'{where} has {size} images of {len(names)} sequences: '
            f'train_cfg.selection_share={share} of them cannot be held out '
            'with some left to train on, choose a smaller share, or a task '
            'with more images')
    held_out = {names[index] for index in chosen}
    return [name in held_out for name in sequences]


def _with_selection_images(rooted: Dict[str, Dict[str, Any]], share: float,
                           name: str) -> Dict[str, Any]:
    """Configs of what is left to train on, and of what is held out."""
    where = f'train_dataset of task {name!r}'
    images = [
        _listed(_build(dict(leaf), where), leaf, where)
        for leaf in _leaves(rooted['train'])
    ]
    # one image may be in several datasets
    sequences = {
        info['img_path']: sequence_of(info)
        for part in images
        for info in part.values()
    }
    held_out = hold_out(list(sequences.values()), share, where)
    chosen = {p for p, is_held in zip(sequences, held_out) if is_held}
    train: List[List[int]] = []
    held: List[List[int]] = []
    seen: Set[str] = set()
    for part in images:
        paths = {index: info['img_path'] for index, info in part.items()}
        train.append([i for i, p in paths.items() if p not in chosen])
        held.append(
            [i for i, p in paths.items() if p in chosen and p not in seen])
        seen.update(paths.values())
    counts = [
        f'{len(paths)} images of {len({sequences[p] for p in paths})} '
        'sequences' for paths in (sequences.keys() - chosen, chosen)
    ]
    print_log(
        f'selection run: task {name!r} trains on {counts[0]}, '
        f'{counts[1]} are held out',
        logger='current')
    pipeline = next(_leaves(rooted['val'])).get('pipeline', [])
    return dict(
        train=_restricted(rooted['train'], iter(train)),
        val=_unrepeated(_restricted(rooted['train'], iter(held)), pipeline))


def _listed(dataset: Any, config: Mapping[str, Any],
            where: str) -> Dict[int, Dict[str, Any]]:
    """Entries of a dataset, by their index if ``indices`` did not limit it."""
    if not hasattr(dataset, 'get_data_info'):
        raise ValueError(
            f'{where}: {type(dataset).__name__} has no get_data_info, so '
            'that its sequences are unknown: use a dataset of mmengine for '
            'train_cfg.selection_share.')
    limit = config.get('indices')
    if limit is None:
        limit = len(dataset)
    if isinstance(limit, int):
        limit = range(limit) if limit >= 0 else range(limit, 0)
    return {
        index: dataset.get_data_info(position)
        for position, index in enumerate(limit)
    }


def _restricted(config: Mapping[str, Any],
                indices: Iterator[List[int]]) -> Optional[Dict[str, Any]]:
    """A copy of a config with some images of each leaf, without empty ones."""
    if not _inner(config):
        chosen = next(indices)
        return dict(config, indices=chosen) if chosen else None
    inner = [_restricted(each, indices) for each in _inner(config)]
    kept = [each for each in inner if each is not None]
    if not kept:
        return None
    if 'datasets' in config:
        return dict(config, datasets=kept)
    return dict(config, dataset=kept[0])


def _unrepeated(config: Any, pipeline: Any) -> Dict[str, Any]:
    """A copy of a config that evaluates each image of the leaves once."""
    if 'datasets' in config:
        parts = [_unrepeated(each, pipeline) for each in config['datasets']]
        return dict(config, datasets=parts)
    if 'dataset' in config:
        return _unrepeated(config['dataset'], pipeline)
    return dict(config, pipeline=pipeline)


def _build(config: Dict[str, Any], where: str) -> Any:
    try:
        dataset = DATASETS.build(copy.deepcopy(config))
    except (FileNotFoundError, NotADirectoryError, AssertionError) as error:
        raise ValueError(
            f'{where} cannot be opened: {error}. Check data_root '
            f'{_data_roots(config)} and data_prefix; data/README.md shows '
            'the folders, `python tools/make_demo_data.py data/demo` '
            'fabricates a stand-in.') from error
    except UnicodeDecodeError as error:
        lists = [leaf.get('ann_file') for leaf in _leaves(config)]
        raise ValueError(f'{where}: the list of images {lists} is no UTF-8 '
                         f'text ({error}): save it as UTF-8') from error
    except ValueError as error:
        # what mmengine says of a dataset without any image
        if 'need at least one array to concatenate' in str(error):
            raise _empty(where, config) from error
        raise ValueError(f'{where}: {error}') from error
    except (TypeError, KeyError) as error:
        # an argument or a type that does not exist
        raise ValueError(f'{where} cannot be built: {error}. Correct its '
                         'config.') from error
    if not len(dataset):
        raise _empty(where, config)
    _check_metainfo(dataset.metainfo, where)
    return dataset


def _empty(where: str, config: Dict[str, Any]) -> ValueError:
    return ValueError(f'{where} is empty: no image below '
                      f'{_data_roots(config)} matches its suffixes or list')


def _check_metainfo(metainfo: Mapping[str, Any], where: str) -> None:
    """Refuse classes and colours that are no lists of names and triples."""
    classes, palette = metainfo.get('classes'), metainfo.get('palette')
    if not classes:
        raise ValueError(f'{where} declares no classes: give it '
                         'metainfo=dict(classes=(...))')
    if not isinstance(classes, (list, tuple)) or not all(
            isinstance(name, str) and name for name in classes):
        raise ValueError(f'{where}: metainfo.classes must be a list of names, '
                         f"got {classes!r}: write ('road', ) for one class")
    if not isinstance(palette, (list, tuple)) or not all(
            isinstance(c, (list, tuple)) and len(c) == 3 for c in palette):
        raise ValueError(f'{where}: metainfo.palette must be a list with one '
                         f'[red, green, blue] per class, got {palette!r}')


def _check_samples(dataset: Any, split: str, name: str,
                   num_checked: int) -> None:
    """Read some images of a dataset as training and evaluation will."""
    where = f'{split} of task {name!r}'
    seen: Set[int] = set()
    for index in _spread(len(dataset), num_checked):
        try:
            sample = dataset[index]
        except ValueError as error:
            raise ValueError(f'{where}: {error}') from error
        if not isinstance(sample, dict) or 'data_samples' not in sample:
            raise ValueError(f'{where}: the pipeline gives '
                             f'{type(sample).__name__} without data_samples: '
                             'put PackSegInputs at its end')
        packed = sample['data_samples']
        if 'gt_sem_seg' not in packed:
            raise ValueError(f'{where}: the pipeline gives the image '
                             f'{packed.get("img_path")!r} no labels: put '
                             'LoadAnnotations before PackSegInputs')
        size = tuple(packed.get('ori_shape', ())[:2])
        truth = tuple(packed.gt_sem_seg.shape)
        # predictions come in the image's original size
        if split == 'val' and size and size != truth:
            raise ValueError(
                f'{where}: the pipeline gives the image '
                f'{packed.get("img_path")!r} of size {size} labels {truth}: '
                'put LoadAnnotations behind Resize and before '
                'PackSegInputs, so that labels keep their original size')
        seen.update(packed.gt_sem_seg.data.unique().tolist())
    _tell_single_class(where, dataset.metainfo['classes'], seen)


def _tell_single_class(where: str, classes: Sequence[str],
                       seen: Set[int]) -> None:
    """Warn if labels show one class of several, or none."""
    absent = [c for index, c in enumerate(classes) if index not in seen]
    if seen and len(absent) >= max(1, len(classes) - 1):
        print_log(
            f'{where}: no label that was checked shows {absent}. Pixels of '
            '255 are ignored: where they are a class, as in masks of 0 and '
            '255, convert the labels',
            logger='current',
            level=logging.WARNING)


def _spread(length: int, count: int) -> List[int]:
    """At most ``count`` evenly spaced indices below ``length``."""
    return np.linspace(0, length - 1, min(length, count)).astype(int).tolist()


def _inner(config: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """Configs of the datasets inside a wrapper such as ConcatDataset."""
    if 'datasets' in config:
        return list(config['datasets'])
    return [config['dataset']] if 'dataset' in config else []


def _leaves(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Configs of the datasets that read files, at any depth of wrappers."""
    inner = _inner(config)
    for each in inner:
        yield from _leaves(each)
    if not inner:
        yield config


def _changed(original: Mapping[str, Any],
             change: Callable[[Dict[str, Any], bool], None]) -> Dict[str, Any]:
    """A copy of a config after ``change(config, is_leaf)`` at any depth."""
    config: Dict[str, Any] = copy.deepcopy(dict(original))
    inner = [_changed(each, change) for each in _inner(config)]
    if 'datasets' in config:
        config['datasets'] = inner
    elif inner:
        config['dataset'] = inner[0]
    change(config, not inner)
    return config


def _rooted(config: Any, data_root: str, where: str) -> Dict[str, Any]:

    def join_root(config: Dict[str, Any], is_leaf: bool) -> None:
        if is_leaf:
            own = config.get('data_root') or ''
            config['data_root'] = osp.join(data_root, own)

    if not isinstance(config, Mapping) or 'type' not in config:
        raise ValueError(f'{where} must be a dict with a "type" and the '
                         f'arguments of it, got {config!r}')
    return _changed(config, join_root)


def _data_roots(config: Dict[str, Any]) -> List[str]:
    return [leaf.get('data_root', '') for leaf in _leaves(config)]


def _ordered_loader(runner: Runner, template: Dict[str, Any],
                    dataset: Any) -> DataLoader:
    sampler = dict(type='DefaultSampler', shuffle=False, round_up=False)
    return runner.build_dataloader(
        dict(template, dataset=dataset, sampler=sampler), seed=runner.seed)
