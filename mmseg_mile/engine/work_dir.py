# SPDX-License-Identifier: Apache-2.0
"""The work directory of a stream: results, settings, library, rows."""
from __future__ import annotations

import contextlib
import platform
import shutil
import subprocess
from importlib import import_module
from pathlib import Path
from typing import (Any, Callable, Dict, Iterator, List, Mapping, Optional,
                    Sequence, Set, Tuple)

import torch
from mmengine.config import Config
from mmengine.dist import (barrier, broadcast_object_list, get_world_size,
                           is_main_process)
from mmengine.runner import Runner

from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.evaluation.routing_log import (RoutedImage, routing_log_path,
                                               write_routing_log)
from mmseg_mile.files import PathLike, locked, read_json, write_json
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.library.stored_config import name_classes, to_json
from mmseg_mile.structures import Task
from .snapshot import TaskSnapshot
from .task_data import in_order
from .task_evaluator import TaskScore

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
    values = name_classes(cfg).to_dict()
    for name in ('work_dir', 'resume', 'launcher'):
        values.pop(name, None)
    return dict(
        commit=commit(),
        versions=versions(),
        config=to_json(values),
        device=device())


# Fields of a config that results depend on.
_FIELDS = ('model', 'data_preprocessor', 'train_dataloader', 'train_cfg',
           'optim_wrapper', 'param_scheduler', 'auto_scale_lr',
           'model_wrapper_cfg', 'sync_bn')
_LOADER_FIELDS = ('batch_size', 'sampler', 'batch_sampler', 'collate_fn',
                  'drop_last')
# Of train_cfg: where images lie, what is checked, kept and allowed.
_WITHOUT_EFFECT = ('data_root', 'num_checked', 'checkpoint_interval',
                   'changed_settings')

Changes = Dict[str, Tuple[Any, Any]]


def settings_of(cfg: Config, seed: int) -> Dict[str, Any]:
    """Settings that the results of a config depend on, as JSON values.

    Not hooks, logging, visualisers, folders, nor how loaders divide their
    work.

    Args:
        cfg (Config): Of the runner.
        seed (int): That it uses, configured or drawn.
    """
    found = {k: _plain(cfg.get(k)) for k in _FIELDS if cfg.get(k) is not None}
    train_cfg = found.setdefault('train_cfg', {})
    for name in _WITHOUT_EFFECT:
        train_cfg.pop(name, None)
    # an order that is spelled out is that of tasks listed so
    order = train_cfg.pop('order', None)
    if order is not None:
        train_cfg['tasks'] = in_order(train_cfg.get('tasks'), order)
    for parent, name in ((found, 'train_dataloader'), (train_cfg,
                                                       'val_dataloader')):
        if name in parent:
            parent[name] = {
                k: v
                for k, v in parent[name].items() if k in _LOADER_FIELDS
            }
    found['randomness'] = dict(_plain(cfg.get('randomness') or {}), seed=seed)
    found['num_processes'] = get_world_size()
    return found


def changes(old: Dict[str, Any], new: Dict[str, Any]) -> Changes:
    """Old and new value of what differs; more tasks are no change."""
    train_cfg = new.get('train_cfg', {})
    if 'tasks' in train_cfg:
        count = len(old.get('train_cfg', {}).get('tasks', []))
        tasks = train_cfg['tasks'][:count]
        new = dict(new, train_cfg=dict(train_cfg, tasks=tasks))
    return _differences(old, new)


def refuse(found: Changes, allowed: Sequence[str], work_dir: Any) -> None:
    """Refuse changes that were not announced, naming old and new values.

    Args:
        found (dict): Of :func:`changes`.
        allowed (Sequence[str]): Dotted names; one allows all below it.
        work_dir (Any): Of the run that is resumed.
    """
    refused = [
        f'  {name}: {repr(old)[:100]} -> {repr(new)[:100]}'
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


def _plain(value: Any) -> Any:
    """JSON has neither tuples nor classes."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    return getattr(value, '__qualname__', type(value).__qualname__)


def _differences(old: Any, new: Any, path: str = '') -> Changes:
    pairs: List[Tuple[Any, Any, Any]]
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(key, old.get(key, 'absent'), new.get(key, 'absent'))
                 for key in {**old, **new}]  # yapf: disable
    elif (isinstance(old, list) and isinstance(new, list)
          and len(old) == len(new)):
        pairs = [(i, *both) for i, both in enumerate(zip(old, new))]
    else:
        return {} if old == new else {path: (old, new)}
    found: Changes = {}
    for key, before, after in pairs:
        found.update(_differences(before, after, f'{path}.{key}'.lstrip('.')))
    return found


# Those that this process has to itself.
_RESERVED: Set[Path] = set()


@contextlib.contextmanager
def reserved(work_dir: PathLike) -> Iterator[None]:
    """Keep other runs out of a work dir inside the block.

    The processes of a run share it, and blocks may be nested.

    Raises:
        ValueError: If another run has it, in every process.
    """
    path = Path(work_dir).resolve()
    if path in _RESERVED:
        yield
        return
    with contextlib.ExitStack() as stack:
        refusal = ['']
        if is_main_process():
            path.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(locked(path, wait=False))
            except ValueError as error:
                refusal = [str(error)]
        broadcast_object_list(refusal)
        if refusal[0]:
            raise ValueError(refusal[0])
        _RESERVED.add(path)
        stack.callback(_RESERVED.discard, path)
        yield


class WorkDir:
    """The work directory of a stream, as a run finds and leaves it.

    Args:
        path (Path): The directory.

    Attributes:
        library (Path): What the tasks left behind.
        results_path (Path): ``results.json``.
        cross_path (Path): mIoU of every task with every expert.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = path / 'library'
        self.results_path = path / 'results.json'
        self.cross_path = path / 'cross_expert_miou.json'
        self._rows = path / 'unfinished_row'
        self._digests = path / 'oracle_digests.json'
        self._settings = path / 'settings.json'

    def task_folder(self, index: int, task: Task) -> Path:
        """Folder of the checkpoints and the snapshot of a task."""
        return self.path / 'tasks' / f'{index:02d}_{task.name}'

    def row_cache(self, after: str) -> 'RowCache':
        """Scores of the row after learning task ``after``."""
        return RowCache(self._rows, after)

    def require_resume(self, resume: Optional[bool]) -> None:
        """Refuse to train over what an earlier run has done."""
        found = [p for p in (self.results_path, self.library) if p.exists()]
        found += [snapshot.path for snapshot in self._snapshots()]
        if found and not resume:
            raise ValueError(
                f'{found[0]} holds finished or unfinished tasks: add '
                '--resume to go on from them, or choose another --work-dir.')

    def read_results(self, new: StreamResults,
                     seed_is_set: bool) -> StreamResults:
        """The results so far.

        Args:
            new (StreamResults): Empty, of the config.
            seed_is_set (bool): Whether the config names a seed.

        Raises:
            ValueError: If there are none, or of another stream, method,
                selection share or seed.
        """
        path = self.results_path
        if not path.exists():
            raise ValueError(f'{path} does not exist: give the work dir of a '
                             'run that has finished at least one task.')
        old = StreamResults.load(path)
        names = ['stream', 'method', 'selection_share']
        for name in names + ['seed'] * seed_is_set:
            if getattr(old, name) != getattr(new, name):
                raise ValueError(
                    f'{path} belongs to {name} {getattr(old, name)!r}, the '
                    f'config says {getattr(new, name)!r}: resume with the '
                    'same config, or choose another --work-dir.')
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
                routing log. Defaults to None.
        """
        if is_main_process():
            # first, because results.json says that the row is complete
            for after, images in (routed or {}).items():
                write_routing_log(routing_log_path(self.path, after), images)
            write_json(self._digests, digests)
            results.save(self.results_path)

    def check_settings(self, runner: Runner, changed: Sequence[str]) -> None:
        """Compare the settings with those of the earlier run, and note them.

        Unfinished work of other settings is removed.

        Args:
            runner (Runner): Has the config and the seed.
            changed (Sequence[str]): Settings that may differ.
        """
        present = settings_of(runner.cfg, runner.seed)
        found: Changes = {}
        barrier()
        if self._settings.exists() and runner.cfg.get('resume'):
            found = changes(read_json(self._settings), present)
            refuse(found, changed, self.path)
        # every process has compared before anything is gone
        barrier()
        if found:
            runner.logger.warning(f'{sorted(found)} changed: unfinished tasks '
                                  'and rows begin anew')
        if is_main_process():
            if found:
                for snapshot in self._snapshots():
                    snapshot.discard()
                shutil.rmtree(self._rows, ignore_errors=True)
                self.cross_path.unlink(missing_ok=True)
            write_json(self._settings, present)
        barrier()

    def check_library(self) -> None:
        """Read every file of the library before more is trained upon it."""
        store = ExpertStore(self.library)
        names = store.names
        for expert in store.open(names) if names else []:
            expert.verify()

    def clean_up(self, tasks: Sequence[Task], results: StreamResults) -> None:
        """Remove what a process was about to remove when it was killed."""
        learned = results.cost.is_learned
        for index, task in enumerate(tasks):
            if learned[index]:
                TaskSnapshot(self.task_folder(index, task)).discard()
        if learned.sum() == results.num_finished_rows and is_main_process():
            shutil.rmtree(self._rows, ignore_errors=True)

    def _snapshots(self) -> List[TaskSnapshot]:
        folders = sorted((self.path / 'tasks').glob('*'))
        return [s for s in map(TaskSnapshot, folders) if s.path.exists()]


class RowCache:
    """The score of each task of a row, on disk as soon as it is known.

    Args:
        folder (Path): Of the row in progress; gone when it is complete.
        row (str): Name of the task that was learned last.
    """

    def __init__(self, folder: Path, row: str) -> None:
        self.folder = folder
        self.row = row

    def score(self, task: Task, evaluate: Callable[[Task],
                                                   TaskScore]) -> TaskScore:
        """The kept score of a task, or else a new one.

        The main process says which: when others look, it may have removed
        the folder already.
        """
        path = self.folder / f'{task.name}.json'
        kept: List[Any] = [None]
        if is_main_process() and path.exists():
            kept = [read_json(path)]
        broadcast_object_list(kept)
        if kept[0] and kept[0]['row'] == self.row:
            return TaskScore.from_document(task, kept[0]['score'])
        score = evaluate(task)
        if is_main_process():
            write_json(path, dict(row=self.row, score=score.to_document()))
        return score

    def discard(self) -> None:
        """Remove the row, which is complete and kept elsewhere."""
        if is_main_process():
            shutil.rmtree(self.folder, ignore_errors=True)
