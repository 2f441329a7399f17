# SPDX-License-Identifier: Apache-2.0
"""What made a result."""
from __future__ import annotations

import platform
import shutil
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.dist import barrier, get_world_size, is_main_process
from mmengine.runner import Runner

from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.evaluation.routing_log import (RoutedImage, routing_log_path,
                                               write_routing_log)
from mmseg_mile.files import read_json, write_json
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.library.stored_config import to_json
from mmseg_mile.structures import Task
from .rehearsal import check_extension
from .snapshot import TaskSnapshot
from .task_data import in_order

_PACKAGES = ('mmseg_mile', 'mmseg', 'mmengine', 'mmcv', 'torch', 'peft',
             'numpy')


def versions() -> Dict[str, str]:
    """Versions of Python and the packages that results depend on."""
    found = {p: import_module(p).__version__ for p in _PACKAGES}
    return dict(python=platform.python_version(), **found)


def commit() -> Optional[str]:
    """Hash of the checked-out commit of this package, or None."""
    try:
        output = subprocess.run(
            ['git', 'describe', '--always', '--dirty', '--abbrev=12'],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.stdout.strip() or None


def device() -> str:
    """Name of the device that computes."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f'cpu {platform.machine()}, {torch.get_num_threads()} threads'


def provenance(cfg: Config) -> Dict[str, Any]:
    """The ``provenance`` field of ``results.json``.

    Args:
        cfg (Config): The resolved config; what differs from start to start
            is left out.
    """
    values = cfg.to_dict()
    for name in ('work_dir', 'resume', 'launcher'):
        values.pop(name, None)
    return dict(
        commit=commit(),
        versions=versions(),
        config=to_json(values),
        device=device())


# What a Runner reads; other names of a config only help to write it.
_FIELDS = ('model', 'data_preprocessor', 'load_from', 'train_dataloader',
           'train_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr',
           'default_hooks', 'custom_hooks', 'env_cfg', 'model_wrapper_cfg',
           'sync_bn', 'compile', 'default_scope')
# Where data lie, who loads them, what is checked, kept and drawn.
_WITHOUT_EFFECT = {
    'train_dataloader':
    ('num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor',
     'timeout', 'multiprocessing_context', 'disable_subprocess_warning'),
    'train_cfg':
    ('data_root', 'num_checked', 'checkpoint_interval', 'changed_settings'),
    'env_cfg': ('mp_cfg', 'dist_cfg', 'resource_limit'),
    'default_hooks':
    ('runtime_info', 'timer', 'logger', 'checkpoint', 'visualization'),
}
_HOOKS_WITHOUT_EFFECT = ('CheckpointHook', 'FiniteLossHook', 'IterTimerHook',
                         'LoggerHook', 'MemoryProfilerHook', 'ProfilerHook',
                         'RuntimeInfoHook', 'SegVisualizationHook',
                         'StreamPicturesHook', 'StreamProgressHook',
                         'StreamReportHook', 'StreamScalarsHook')
_ABSENT = 'absent'

Changes = Dict[str, Tuple[Any, Any]]


def settings_of(cfg: Config, seed: int) -> Dict[str, Any]:
    """What the results of a config depend on, as plain JSON values.

    Left out are the work dir, ``train_cfg.data_root`` and
    ``train_cfg.checkpoint_interval``, launcher, logging, visualisers, hooks
    that log, draw or write checkpoints, and how loaders divide their work.

    Args:
        cfg (Config): Of the runner.
        seed (int): That it uses, configured or drawn.
    """
    found = {k: _plain(cfg.get(k)) for k in _FIELDS if cfg.get(k) is not None}
    # an order that is spelled out is that of tasks listed so
    train_cfg = found.get('train_cfg', {})
    order = train_cfg.pop('order', None)
    if order is not None:
        train_cfg['tasks'] = in_order(train_cfg.get('tasks'), order)
    for field, names in _WITHOUT_EFFECT.items():
        _leave_out(found.get(field), names)
    _leave_out(
        found.get('train_cfg', {}).get('val_dataloader'),
        _WITHOUT_EFFECT['train_dataloader'])
    found['custom_hooks'] = [
        h for h in found.get('custom_hooks', [])
        if h.get('type') not in _HOOKS_WITHOUT_EFFECT
    ]
    found['randomness'] = dict(_plain(cfg.get('randomness') or {}), seed=seed)
    found['num_processes'] = get_world_size()
    return found


def changes(old: Dict[str, Any], new: Dict[str, Any]) -> Changes:
    """Fields that differ, by dotted name: old and new value.

    Tasks at the end of the new stream are no change.
    """
    train_cfg = new.get('train_cfg', {})
    if 'tasks' in train_cfg:
        count = len(old.get('train_cfg', {}).get('tasks', []))
        tasks = train_cfg['tasks'][:count]
        new = dict(new, train_cfg=dict(train_cfg, tasks=tasks))
    found: Changes = {}
    _compare(old, new, '', found)
    return found


def refuse(found: Changes, allowed: Sequence[str], work_dir: Any) -> None:
    """Refuse changes that were not announced.

    Args:
        found (dict): Of :func:`changes`.
        allowed (Sequence[str]): Dotted names; one allows all below it.
        work_dir (Any): Of the run that is resumed.

    Raises:
        ValueError: Naming every field with its old and new value.
    """
    refused = [
        f'  {name}: {_short(old)} -> {_short(new)}'
        for name, (old, new) in found.items()
        if not any(f'{name}.'.startswith(f'{a}.') for a in allowed)
    ]
    if refused:
        raise ValueError(
            f'{work_dir} holds a run with other settings:\n' +
            '\n'.join(refused) +
            '\nResume with the same config, choose another --work-dir, or '
            'name in train_cfg.changed_settings what shall differ from here '
            'on.')


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f'{text[:97]}...'


def _plain(value: Any) -> Any:
    """JSON has neither tuples nor classes."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    return getattr(value, '__qualname__', type(value).__qualname__)


def _leave_out(settings: Any, names: Sequence[str]) -> None:
    for name in names:
        (settings or {}).pop(name, None)


def _compare(old: Any, new: Any, path: str, found: Changes) -> None:
    if isinstance(old, dict) and isinstance(new, dict):
        pairs: List[Tuple[Any, Any, Any]] = [
            (k, old.get(k, _ABSENT), new.get(k, _ABSENT))
            for k in {**old, **new}]  # yapf: disable
    elif (isinstance(old, list) and isinstance(new, list)
          and len(old) == len(new)):
        pairs = [(i, *both) for i, both in enumerate(zip(old, new))]
    else:
        if old != new:
            found[path] = (old, new)
        return
    for key, before, after in pairs:
        _compare(before, after, f'{path}.{key}' if path else str(key), found)


class WorkDir:
    """The work directory of a stream, as a run finds and leaves it.

    Args:
        work_dir (Path): The directory.
    """

    def __init__(self, work_dir: Path) -> None:
        self.work_dir = work_dir
        self.results_path = work_dir / 'results.json'
        self.library = work_dir / 'library'
        self.cross_path = work_dir / 'cross_expert_miou.json'
        self.row_folder = work_dir / 'unfinished_row'
        self._digests = work_dir / 'oracle_digests.json'
        self._settings = work_dir / 'settings.json'

    def task_folder(self, index: int, task: Task) -> Path:
        """Where checkpoints and the snapshot of a task are."""
        return self.work_dir / 'tasks' / f'{index:02d}_{task.name}'

    def require_resume(self, resume: bool) -> None:
        """Refuse to train over what an earlier run has done.

        Raises:
            ValueError: Naming the file or folder.
        """
        found = [p for p in (self.results_path, self.library) if p.exists()]
        if found and not resume:
            raise ValueError(
                f'{found[0]} holds finished tasks: add --resume to go on from '
                'them, or choose another --work-dir.')
        if self._snapshots() and not resume:
            raise ValueError(
                f'{self._snapshots()[0].path} holds an unfinished task: add '
                '--resume to go on from it, or choose another --work-dir.')

    def read_results(
            self,
            new: StreamResults,
            seed_is_set: bool,
            rehearsal: Optional[Dict[str, Any]] = None) -> StreamResults:
        """The results so far, extended to the tasks of ``new``.

        Args:
            new (StreamResults): Empty, of the config.
            seed_is_set (bool): Whether the config names a seed.
            rehearsal (dict, optional): ``train_cfg.rehearsal``. Defaults to
                None.

        Raises:
            ValueError: If there are none, or of another stream, method, seed
                or order of tasks.
        """
        path = self.results_path
        if not path.exists():
            raise ValueError(f'{path} does not exist: give the work dir of a '
                             'run that has finished at least one task.')
        old = StreamResults.load(path)
        names = ['stream', 'method'] + ['seed'] * seed_is_set
        for name in names:
            if getattr(old, name) != getattr(new, name):
                raise ValueError(
                    f'{path} belongs to {name} {getattr(old, name)!r}, the '
                    f'config says {getattr(new, name)!r}: resume with the '
                    'same config, or choose another --work-dir.')
        check_extension(rehearsal, old.tasks, new.tasks)
        old.extend(new.tasks)
        return old

    def read_digests(self) -> Dict[str, Dict[str, str]]:
        """Digests of oracle label maps, per row and task."""
        return read_json(self._digests) if self._digests.exists() else {}

    def save(self,
             results: StreamResults,
             digests: Dict[str, Dict[str, str]],
             routed: Optional[Dict[str, List[RoutedImage]]] = None) -> None:
        """Write what was measured.

        Args:
            results (StreamResults): So far.
            digests (dict): Of oracle label maps, per row and task.
            routed (dict[str, list[RoutedImage]], optional): New rows of the
                routing log by the task learned last. Defaults to None.
        """
        if is_main_process():
            # first, because results.json says that the row is complete
            for after, images in (routed or {}).items():
                write_routing_log(
                    routing_log_path(self.work_dir, after), images)
            write_json(self._digests, digests)
            results.save(self.results_path)

    def check_settings(self, runner: Runner, changed: Sequence[str]) -> None:
        """Compare the settings with those of the earlier run, and note them.

        Unfinished work of other settings is forgotten.

        Args:
            runner (Runner): Has the config and the seed.
            changed (Sequence[str]): Settings that may differ.

        Raises:
            ValueError: If others do; names each with both values.
        """
        present = settings_of(runner.cfg, runner.seed)
        barrier()
        if self._settings.exists() and runner.cfg.get('resume'):
            found = changes(read_json(self._settings), present)
            refuse(found, changed, self.work_dir)
            if found:
                runner.logger.warning(
                    f'{sorted(found)} changed: unfinished tasks and rows '
                    'begin anew')
                self._forget_unfinished()
        if is_main_process():
            write_json(self._settings, present)
        barrier()

    def check_library(self) -> None:
        """Read every file of the library before more is trained upon it.

        Raises:
            ValueError: If one is missing or was changed; names it.
        """
        store = ExpertStore(self.library)
        names = store.names
        for expert in store.open(names) if names else []:
            expert.verify()

    def clean_up(self, tasks: Sequence[Task], results: StreamResults) -> None:
        """Remove what a process was about to remove when it was killed.

        Args:
            tasks (Sequence[Task]): Of the stream.
            results (StreamResults): So far.
        """
        learned = results.cost.is_learned
        for index, task in enumerate(tasks):
            if learned[index]:
                TaskSnapshot(self.task_folder(index, task)).discard()
        if learned.sum() == results.num_finished_rows and is_main_process():
            shutil.rmtree(self.row_folder, ignore_errors=True)

    def _forget_unfinished(self) -> None:
        # every process has compared before anything is gone
        barrier()
        if is_main_process():
            for snapshot in self._snapshots():
                snapshot.discard()
            shutil.rmtree(self.row_folder, ignore_errors=True)
            self.cross_path.unlink(missing_ok=True)

    def _snapshots(self) -> List[TaskSnapshot]:
        folders = sorted((self.work_dir / 'tasks').glob('*'))
        return [s for s in map(TaskSnapshot, folders) if s.exists()]
