# SPDX-License-Identifier: Apache-2.0
"""From a stream's config to tasks, checked datasets and loaders."""
from __future__ import annotations

import copy
import os.path as osp
import unicodedata
from typing import (Any, Dict, Iterable, List, Mapping, Optional, Sequence,
                    TypeGuard)

import numpy as np
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Subset

from mmseg.registry import DATASETS
from mmseg_mile.datasets.checked_pipeline import check_dataset
from mmseg_mile.structures import Task, check_task_name
from .rehearsal import Rehearsal
from .task_images import PositionedSampler, SeededDataset, TaskImages

TASK_KEYS = ('name', 'train_dataset', 'val_dataset', 'max_iters', 'init_from',
             'family')


def in_order(configs: Any, order: Optional[Sequence[str]]) -> Any:
    """Tasks in the order in which they shall be learned.

    Args:
        configs (Any): ``train_cfg.tasks``.
        order (Sequence[str], optional): All their names; None leaves the
            tasks as they are.

    Raises:
        ValueError: If ``order`` does not name every task once.
    """
    if order is None:
        return configs
    names = [
        config.get('name') if isinstance(config, Mapping) else None
        for config in _listed(configs)
    ]
    if not _is_list(order) or (sorted(map(str, order)) != sorted(
            map(str, names))):
        raise ValueError('train_cfg.order must name every task once, got '
                         f'{order!r}; the tasks are {names}')
    places = [str(name) for name in names]
    return [configs[places.index(str(name))] for name in order]


def check_task_configs(configs: Any, max_iters: Any) -> None:
    """Refuse a list of tasks that could not be opened.

    Args:
        configs (Any): ``train_cfg.tasks``.
        max_iters (Any): Of tasks that name none.

    Raises:
        ValueError: Naming the task and the field.
    """
    if configs is None or not len(_listed(configs)):
        raise ValueError('train_cfg.tasks is empty: a stream needs at '
                         'least one task')
    known: dict[str, str] = {}
    for index, config in enumerate(configs):
        if not isinstance(config, Mapping):
            raise ValueError(f'train_cfg.tasks[{index}] must be a dict with '
                             f'{list(TASK_KEYS)}, got {config!r}')
        check_task_config(config, max_iters)
        name = config['name']
        # one folder where file names know no case or Unicode form
        same = known.setdefault(
            unicodedata.normalize('NFKC', name).casefold(), name)
        if index >= len(known):
            both = (f'called {name!r}' if same == name else
                    f'called {same!r} and {name!r}, one name to some disks')
            raise ValueError(f'two tasks of the stream are {both}: names must '
                             'be unique, they are also the names of the '
                             'experts')


def check_task_config(config: Mapping[str, Any], max_iters: Any) -> None:
    """Refuse one task; arguments and errors as above."""
    unknown = sorted(set(map(str, config)) - set(TASK_KEYS))
    missing = [k for k in TASK_KEYS[:3] if k not in config]
    if unknown or missing:
        raise ValueError(
            f'task {config.get("name")!r} has unknown keys {unknown} and '
            f'lacks {missing}; a task has {list(TASK_KEYS)}')
    name = check_task_name(config['name'])
    for key in ('train_dataset', 'val_dataset'):
        value = config[key]
        if not isinstance(value, Mapping) or 'type' not in value:
            raise ValueError(f'{key} of task {name!r} must be a dict with a '
                             f'"type" and the arguments of it, got {value!r}')
    iters = config.get('max_iters', max_iters)
    if type(iters) is not int or iters < 1:
        raise ValueError(f'max_iters of task {name!r} must be a whole '
                         f'number >= 1, got {iters!r}')
    for key in ('init_from', 'family'):
        value = config.get(key)
        if value is not None and not isinstance(value, str):
            raise ValueError(f'{key} of task {name!r} must be a name, got '
                             f'{value!r}')


def check_metainfo(metainfo: Mapping[str, Any], where: str) -> None:
    """Refuse classes or colours that are not what they seem.

    Args:
        metainfo (Mapping[str, Any]): Of an opened dataset.
        where (str): Names the dataset.

    Raises:
        ValueError: Naming the field and its value.
    """
    classes, palette = metainfo.get('classes'), metainfo.get('palette')
    if not classes:
        raise ValueError(f'{where} declares no classes: give it '
                         'metainfo=dict(classes=(...))')
    if not _is_list(classes) or not all(
            isinstance(c, str) and c for c in classes):
        raise ValueError(f'{where}: metainfo.classes must be a list of names, '
                         f"got {classes!r}: write ('road', ) for one class")
    if not _is_list(palette) or not all(
            _is_list(c) and len(c) == 3 for c in palette):
        raise ValueError(f'{where}: metainfo.palette must be a list with one '
                         f'[red, green, blue] per class, got {palette!r}')


def _listed(configs: Any) -> Sequence[Any]:
    if not _is_list(configs):
        raise ValueError('train_cfg.tasks must be a list of dicts, one per '
                         f'task, got {configs!r}')
    return configs


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, (list, tuple))


# what mmengine says of a dataset without any image
_NOTHING_FOUND = 'need at least one array to concatenate'


class TaskData:
    """The datasets of a stream, opened and checked before training starts.

    Args:
        tasks (Sequence[dict]): One per task: ``name``, ``train_dataset`` and
            ``val_dataset`` (configs of any mmseg dataset), and optionally
            ``max_iters``, ``init_from`` and ``family``.
        data_root (str): Joined with each dataset's relative ``data_root``.
        max_iters (int): Iterations of tasks that name none.
        num_checked (int): Images per dataset that are read for the check,
            evenly spaced.

    Raises:
        ValueError: If a task is malformed, a name occurs twice, a folder is
            missing, a split is empty, a file cannot be read, or a label
            lies outside the classes; names task, dataset and file.
    """

    def __init__(self, tasks: Sequence[Mapping[str, Any]], data_root: str,
                 max_iters: int, num_checked: int) -> None:
        self._datasets: Dict[tuple, Any] = {}
        self.tasks: List[Task] = []
        check_task_configs(tasks, max_iters)
        for config in tasks:
            self.tasks.append(self._open(config, data_root, max_iters))
        for (name, split), dataset in self._datasets.items():
            _check_samples(dataset, split, name, num_checked)
        self.rehearsal: Optional[Rehearsal] = None

    def rehearse(self, config: Mapping[str, Any], seed: int) -> None:
        """From here on, train images of other tasks beside each task's.

        Args:
            config (Mapping[str, Any]): See :class:`Rehearsal`.
            seed (int): Of the run.

        Raises:
            ValueError: See :class:`Rehearsal`.
        """
        self.rehearsal = Rehearsal(
            config,
            {t.name: self._datasets[t.name, 'train']
             for t in self.tasks}, seed)

    def kept_bytes(self, index: int) -> int:
        """Bytes of the images to keep after a task; 0 without rehearsal.

        Args:
            index (int): Position of the task.
        """
        return self.rehearsal.kept_bytes(index) if self.rehearsal else 0

    def train_loader(self, runner: Runner, task: Task,
                     template: Dict[str, Any]) -> DataLoader:
        """Training images through the training pipeline, shuffled.

        Order and augmentations follow from seed and task, wherever in the
        stream of images the loader starts. Every data sample says in its
        metainfo ``task`` whose image it is.
        """
        own = SeededDataset(
            TaskImages(self._datasets[task.name, 'train'], task.name),
            runner.seed, task.name)
        chosen: Optional[Dict[str, Any]] = None
        if self.rehearsal is not None:
            chosen = self.rehearsal.mix(own, task.name, template['sampler'])
        chosen = chosen or dict(
            dataset=own,
            sampler=dict(type=PositionedSampler, sampler=template['sampler']))
        return runner.build_dataloader(
            dict(template, **chosen), seed=runner.seed)

    def val_loader(self, runner: Runner, task: Task,
                   template: Dict[str, Any]) -> DataLoader:
        """Validation images, each once, in order."""
        return _ordered_loader(runner, template, self._datasets[task.name,
                                                                'val'])

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
        pipeline = _pipeline(task.val_dataset)
        dataset = DATASETS.build(_with_pipeline(task.train_dataset, pipeline))
        check_dataset(dataset, task.num_classes)
        if len(dataset) > max_images:
            runner.logger.info(f'prototypes of {task.name!r} from '
                               f'{max_images} of {len(dataset)} images')
            dataset = Subset(dataset, _spread(len(dataset), max_images))
        return _ordered_loader(runner, template, dataset)

    def _open(self, config: Mapping[str, Any], data_root: str,
              max_iters: int) -> Task:
        configs, metas = {}, {}
        for split in ('train', 'val'):
            where = f'{split}_dataset of task {config["name"]!r}'
            configs[split] = _rooted(config[f'{split}_dataset'], data_root)
            dataset = _build(configs[split], where)
            self._datasets[config['name'], split] = dataset
            metas[split] = dataset.metainfo
            check_metainfo(metas[split], where)
        classes, other = (tuple(metas[s]['classes']) for s in ('train', 'val'))
        if classes != other:
            raise ValueError(
                f'task {config["name"]!r} trains on the classes {classes} '
                f'but is evaluated on {other}: both datasets must declare '
                'the same classes in the same order')
        task = Task(
            name=config['name'],
            classes=classes,
            palette=tuple(tuple(c) for c in metas['val']['palette']),
            train_dataset=configs['train'],
            val_dataset=configs['val'],
            max_iters=config.get('max_iters', max_iters),
            init_from=config.get('init_from'),
            family=config.get('family'))
        for split in ('train', 'val'):
            check_dataset(self._datasets[task.name, split], task.num_classes)
        return task


def _build(config: Dict[str, Any], where: str) -> Any:
    try:
        dataset = DATASETS.build(copy.deepcopy(config))
    except (FileNotFoundError, NotADirectoryError, AssertionError) as error:
        raise ValueError(
            f'{where} cannot be opened: {error}. Check data_root '
            f'{_data_roots(config)} and data_prefix; data/README.md shows '
            'the folders, `python tools/make_demo_data.py data/demo` '
            'fabricates a stand-in.') from error
    except ValueError as error:
        if _NOTHING_FOUND in str(error):
            raise _empty(where, config) from error
        raise ValueError(f'{where}: {error}') from error
    except (TypeError, KeyError) as error:
        # an argument or a type that does not exist
        raise ValueError(f'{where} cannot be built: {error}. Correct its '
                         'config.') from error
    if not len(dataset):
        raise _empty(where, config)
    return dataset


def _empty(where: str, config: Dict[str, Any]) -> ValueError:
    return ValueError(f'{where} is empty: no image below '
                      f'{_data_roots(config)} matches its suffixes or list')


def _check_samples(dataset: Any, split: str, name: str,
                   num_checked: int) -> None:
    for index in _spread(len(dataset), num_checked):
        try:
            sample = dataset[index]
        except ValueError as error:
            raise ValueError(f'{split} of task {name!r}: {error}') from error
        where = f'{split} of task {name!r}'
        if not isinstance(sample, dict) or 'data_samples' not in sample:
            raise ValueError(f'{where}: the pipeline gives '
                             f'{type(sample).__name__} without data_samples: '
                             'put PackSegInputs at its end')
        if 'gt_sem_seg' not in sample['data_samples']:
            raise ValueError(
                f'{where}: the pipeline gives the image '
                f'{sample["data_samples"].get("img_path")!r} no labels: put '
                'LoadAnnotations before PackSegInputs')
        if split == 'val':
            _check_truth(sample['data_samples'], where)


def _check_truth(sample: Any, where: str) -> None:
    """Predictions come in the image's original size, so must the truth."""
    truth = sample.gt_sem_seg
    size = tuple(sample.get('ori_shape', ())[:2])
    if size and size != tuple(truth.shape):
        raise ValueError(
            f'{where}: the pipeline gives the image '
            f'{sample.get("img_path")!r} of size {size} labels '
            f'{tuple(truth.shape)}: put LoadAnnotations behind Resize and '
            'before PackSegInputs, so that labels keep their original size')


def _spread(length: int, count: int) -> List[int]:
    """At most ``count`` evenly spaced indices below ``length``."""
    return np.linspace(0, length - 1, min(length, count)).astype(int).tolist()


def _inner_configs(config: Dict[str, Any]) -> Iterable[Dict[str, Any]]:
    """Configs of the datasets inside a wrapper such as ConcatDataset."""
    if 'datasets' in config:
        return config['datasets']
    return [config['dataset']] if 'dataset' in config else []


def _rooted(original: Mapping[str, Any], data_root: str) -> Dict[str, Any]:
    config: Dict[str, Any] = copy.deepcopy(dict(original))
    inner = [_rooted(c, data_root) for c in _inner_configs(config)]
    if 'datasets' in config:
        config['datasets'] = inner
    elif inner:
        config['dataset'] = inner[0]
    else:
        own = config.get('data_root') or ''
        config['data_root'] = osp.join(data_root, own)
    return config


def _data_roots(config: Dict[str, Any]) -> List[str]:
    inner = _inner_configs(config)
    return [r for c in inner
            for r in _data_roots(c)] or [config.get('data_root', '')]


def _pipeline(config: Dict[str, Any]) -> Any:
    inner = list(_inner_configs(config))
    return _pipeline(inner[0]) if inner else config.get('pipeline', [])


def _with_pipeline(config: Dict[str, Any], pipeline: Any) -> Dict[str, Any]:
    config = copy.deepcopy(config)
    inner = [_with_pipeline(c, pipeline) for c in _inner_configs(config)]
    if 'datasets' in config:
        config['datasets'] = inner
    elif inner:
        config['dataset'] = inner[0]
    if not inner:
        config['pipeline'] = pipeline
    elif 'pipeline' in config:
        # a wrapper that mixes images would mix the test pipeline's, too
        config['pipeline'] = []
    return config


def _ordered_loader(runner: Runner, template: Dict[str, Any],
                    dataset: Any) -> DataLoader:
    sampler = dict(type='DefaultSampler', shuffle=False, round_up=False)
    return runner.build_dataloader(
        dict(template, dataset=dataset, sampler=sampler), seed=runner.seed)
