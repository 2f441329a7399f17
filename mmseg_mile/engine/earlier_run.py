# SPDX-License-Identifier: Apache-2.0
"""What an earlier run left in a work dir, and whether to go on from it."""
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from mmengine.dist import barrier, is_main_process
from mmengine.runner import Runner

from mmseg_mile.evaluation import (RoutedImage, StreamResults, read_json,
                                   routing_log_path, write_json,
                                   write_routing_log)
from mmseg_mile.experts import ExpertStore
from mmseg_mile.structures import Task
from .rehearsal import check_extension
from .run_settings import changes, refuse, settings_of
from .task_snapshot import TaskSnapshot


class EarlierRun:
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

    def settle(self, runner: Runner, changed: Sequence[str]) -> None:
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

    def tidy(self, tasks: Sequence[Task], results: StreamResults) -> None:
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
