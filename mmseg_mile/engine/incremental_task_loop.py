# SPDX-License-Identifier: Apache-2.0
"""The main job: learn one task after another, and score every one."""
from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.runner import BaseLoop, Runner, set_random_seed
from torch import nn

from mmseg.registry import LOOPS
from mmseg_mile.evaluation import tables
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.evaluation.tables import cross_expert_table
from mmseg_mile.library.stored_config import to_json
from mmseg_mile.methods.continual_segmentor import ContinualSegmentor
from mmseg_mile.structures import Task
from .expert_reuse import ReusedExperts
from .hooks import FiniteLossHook, StreamProgressHook
from .rehearsal import check_rehearses
from .snapshot import TaskSnapshot
from .task_data import TaskData, in_order
from .task_evaluator import (CrossScores, RowCache, TaskScore, count_macs,
                             evaluate_task, record_cost, record_row,
                             setting_of)
from .task_training import bare_model, train_task
from .work_dir import WorkDir, provenance


def check_runner(runner: Runner, model: Any,
                 dataloaders: Dict[str, Dict[str, Any]]) -> None:
    """Refuse a model that cannot learn streams, and settings without effect.

    Args:
        runner (Runner): The runner.
        model (Any): Its model, unwrapped.
        dataloaders (dict): Templates of loaders by the name of their field.

    Raises:
        ValueError: Naming the field.
    """
    if not isinstance(model, ContinualSegmentor):
        raise ValueError(
            'IncrementalTaskLoop trains a ContinualSegmentor such as '
            f'ExpertSegmentor, got model.type {type(model).__name__!r}')
    if any(isinstance(h, EMAHook) for h in runner.hooks):
        raise ValueError(
            'EMAHook averages one fixed set of weights, but every task '
            'trains another: remove it from custom_hooks')
    if runner._val_loop is not None:
        raise ValueError(
            'IncrementalTaskLoop evaluates every task itself: remove '
            'val_cfg, val_dataloader and val_evaluator, and give '
            'train_cfg.val_dataloader if needed')
    if any(
            isinstance(h, CheckpointHook) and h.save_best
            for h in runner.hooks):
        raise ValueError(
            'CheckpointHook.save_best needs validation while a task trains, '
            'which IncrementalTaskLoop has not: remove it')
    for field, template in dataloaders.items():
        if 'dataset' in template:
            raise ValueError(
                f'{field}.dataset has no effect: the datasets stand in '
                'train_cfg.tasks, remove it')


def check_schedule(schedulers: Any, tasks: Sequence[Task]) -> None:
    """Refuse schedulers that begin when the shortest task is over.

    Args:
        schedulers (dict | list[dict], optional): Of the config.
        tasks (Sequence[Task]): Of the stream.

    Raises:
        ValueError: Naming the scheduler and the task.
    """
    shortest = min(tasks, key=lambda t: t.max_iters)
    configs = [schedulers] if isinstance(schedulers, dict) else schedulers
    for index, config in enumerate(configs or []):
        begin = config.get('begin', 0)
        if not config.get('by_epoch', True) and begin >= shortest.max_iters:
            raise ValueError(
                f'param_scheduler.{index}.begin is {begin}, but task '
                f'{shortest.name!r} trains {shortest.max_iters} iterations '
                'only: begin earlier (and let warm-up end there), or train '
                'longer.')


def check_interval(checkpoint_interval: int) -> int:
    """Return ``checkpoint_interval`` if it is one.

    Raises:
        ValueError: If it is below 1.
    """
    if checkpoint_interval < 1:
        raise ValueError('train_cfg.checkpoint_interval must be >= 1, got '
                         f'{checkpoint_interval}')
    return checkpoint_interval


@LOOPS.register_module()
class IncrementalTaskLoop(BaseLoop):
    """Per task: begin, train with a stock loop, end, save, evaluate all.

    The work directory gets ``library/`` (what the tasks left behind),
    ``tasks/`` (a checkpoint folder each) and ``results.json``. With
    ``--resume`` a run that was stopped, at whatever moment, goes on from
    there and ends as if it had not been. A config with more tasks at its end
    extends the stream.

    Args:
        runner (Runner): The runner.
        dataloader (dict): Template of the training loader; the loop sets
            its dataset.
        tasks (Sequence[dict]): See :class:`TaskData`.
        max_iters (int): Training iterations per task.
        stream (str): Name of the stream, for the results.
        method (str, optional): Name of the method, for the results.
            Defaults to the model's ``METHOD``.
        data_root (str): Joined with every dataset's relative ``data_root``.
            Defaults to 'data/'.
        val_dataloader (dict, optional): Template of the loaders that
            evaluate and fit prototypes. Defaults to one image at a time.
        max_prototype_images (int): Training images per task that the gate
            sees. Defaults to 1000.
        cross_experts (bool): Whether to force every expert on every task
            at the end, which tells what routing is worth. Defaults to True.
        num_checked (int): Images per dataset that are read before training
            starts. Defaults to 16.
        checkpoint_interval (int): Iterations between two snapshots of a task
            that is trained, at most these are lost. Defaults to 200.
        changed_settings (Sequence[str]): Dotted names of settings that may
            differ from those of the run that is resumed, such as
            'optim_wrapper'. Defaults to ().
        order (Sequence[str], optional): Names of all tasks in the order in
            which they are learned. Defaults to None: as listed.
        experts_from (str, optional): Work dir of a finished run whose
            experts are taken over instead of trained, see
            :class:`ReusedExperts`. Defaults to None.
        rehearsal (dict, optional): Images of other tasks that are trained
            beside a task's own, see :class:`Rehearsal`. Defaults to None.

    Raises:
        ValueError: If the model, a task, or a result to resume from does
            not fit.
    """

    def __init__(self,
                 runner: Runner,
                 dataloader: Dict[str, Any],
                 tasks: Sequence[Dict[str, Any]],
                 max_iters: int,
                 stream: str,
                 method: Optional[str] = None,
                 data_root: str = 'data/',
                 val_dataloader: Optional[Dict[str, Any]] = None,
                 max_prototype_images: int = 1000,
                 cross_experts: bool = True,
                 num_checked: int = 16,
                 checkpoint_interval: int = 200,
                 changed_settings: Sequence[str] = (),
                 order: Optional[Sequence[str]] = None,
                 experts_from: Optional[str] = None,
                 rehearsal: Optional[Dict[str, Any]] = None) -> None:
        # denormal numbers make a CPU crawl and change no result that counts
        torch.set_flush_denormal(True)
        self._runner = runner
        self.dataloader = dataloader
        self.val_dataloader = val_dataloader or dict(
            batch_size=1, num_workers=0)
        self.max_prototype_images = max_prototype_images
        self.cross_experts = cross_experts
        self.checkpoint_interval = check_interval(checkpoint_interval)
        self.changed_settings = changed_settings
        self.model: ContinualSegmentor = bare_model(runner)
        check_runner(
            runner, self.model, {
                'train_dataloader': dataloader,
                'train_cfg.val_dataloader': self.val_dataloader
            })
        self.data_root = data_root
        self.rehearsal = rehearsal
        check_rehearses(self.model, rehearsal)
        self.data = TaskData(
            in_order(tasks, order), data_root, max_iters, num_checked)
        if rehearsal is not None:
            self.data.rehearse(rehearsal, runner.seed)
        self.tasks: List[Task] = self.data.tasks
        self.adopted = None if experts_from is None else ReusedExperts(
            experts_from, self.model, self.tasks)
        self.model.check_stream(self.tasks)
        check_schedule(runner.cfg.get('param_scheduler'), self.tasks)
        self.work_dir = Path(runner.work_dir)
        self.earlier = WorkDir(self.work_dir)
        self.results = StreamResults.new(stream, method or self.model.METHOD,
                                         runner.seed,
                                         [t.name for t in self.tasks])
        self.results.setting = setting_of(self.model, rehearsal)
        self.digests: Dict[str, Dict[str, str]] = {}
        # what runner.train() asks of a loop before it starts
        self.iter, self.epoch = 0, 0
        self.max_iters, self.max_epochs = max_iters, 1
        for kind in (FiniteLossHook, StreamProgressHook):
            if not any(isinstance(h, kind) for h in runner.hooks):
                runner.register_hook(kind())

    def run(self) -> nn.Module:
        """Learn the stream; finished steps of an earlier run are kept."""
        loaded = self.restore()
        for index, task in enumerate(self.tasks):
            if not self.results.cost.is_learned[index]:
                self.learn(index, task)
            elif index >= loaded:
                self.model.load_tasks([task], self.earlier.library)
            if self.results.num_finished_rows <= index:
                self.evaluate_row(index)
        self.finish()
        return self.runner.model

    def restore(self) -> int:
        """Take up what an earlier run left in the work directory.

        Returns:
            int: Tasks that the model has taken up: those with a full row.

        Raises:
            ValueError: If that is of another config, or without ``--resume``.
        """
        self.earlier.require_resume(bool(self.runner.cfg.get('resume')))
        has_results = self.earlier.results_path.exists()
        if has_results:
            self._read_results(self.earlier)
        if self.adopted:
            self.adopted.open(self.results)
        self.earlier.check_settings(self.runner, self.changed_settings)
        self.earlier.clean_up(self.tasks, self.results)
        self.earlier.check_library()
        rows = self.results.num_finished_rows
        return self._load_tasks(self.earlier, rows) if has_results else 0

    def load(self, work_dir: Path) -> int:
        """Take up what a run left in ``work_dir``, whatever its config.

        Returns:
            int: Number of tasks that are learned.

        Raises:
            ValueError: If there are no results, or of another stream, method
                or seed.
        """
        earlier = WorkDir(work_dir)
        self._read_results(earlier)
        return self._load_tasks(earlier, len(self.tasks))

    def _read_results(self, earlier: WorkDir) -> None:
        randomness = self.runner.cfg.get('randomness', {})
        self.results = earlier.read_results(self.results,
                                            randomness.get('seed') is not None,
                                            self.rehearsal)
        self.digests = earlier.read_digests()

    def _load_tasks(self, earlier: WorkDir, at_most: int) -> int:
        learned = int(self.results.cost.is_learned.sum())
        loaded = min(learned, at_most)
        self.model.load_tasks(self.tasks[:loaded], earlier.library)
        self.runner.logger.info(
            f'{learned} of {len(self.tasks)} tasks were learned already, '
            f'{self.results.num_finished_rows} rows evaluated')
        return loaded

    def learn(self, index: int, task: Task) -> None:
        """Train one task and keep what it leaves behind."""
        runner = self.runner
        runner.logger.info(f'task {index + 1} of {len(self.tasks)}: '
                           f'{task.name}, {task.num_classes} classes, '
                           f'{task.max_iters} iterations')
        # the same start for a task whether or not the run was interrupted
        seed = self.results.seed + index
        set_random_seed(seed)
        images = self.data.prototype_loader(runner, task, self.val_dataloader,
                                            self.max_prototype_images)
        if self.adopted:
            self._keep(index, task, self.adopted.take(index, images))
            return
        self.model.begin_task(task, images)
        runner.call_hook('before_stream_task', tasks=self.tasks, index=index)
        folder = self.earlier.task_folder(index, task)
        # what begins a task may have had more or less to read, and to build
        set_random_seed(seed)
        seconds = train_task(
            runner, self.data.train_loader(runner, task, self.dataloader),
            task.max_iters, folder, self.checkpoint_interval)
        self.model.eval()
        self.model.end_task(task, images)
        self._keep(index, task, seconds)
        TaskSnapshot(folder).discard()

    def evaluate_row(self, index: int) -> None:
        """Score every task of the stream after learning task ``index``."""
        started = time.perf_counter()
        self.runner.call_hook('before_stream_row', task_index=index)
        after = self.tasks[index].name
        kept = RowCache(self.earlier.row_folder, after)
        score = partial(self._evaluate, after)
        scores = [kept.score(task, score) for task in self.tasks]
        self.digests[after] = record_row(self.results, index, self.tasks,
                                         scores, self.model.gate)
        self.earlier.save(self.results, self.digests,
                          {after: [i for s in scores for i in s.images]})
        kept.discard()
        self.runner.call_hook(
            'after_stream_row',
            seconds=time.perf_counter() - started,
            results=self.results)
        self.runner.logger.info(f'after {after}:\n' +
                                tables.row_table(self.results, index))

    def finish(self) -> None:
        """Cross-expert scores, closing tables, pictures."""
        forced = self._force_experts() if self.cross_experts else None
        if self.results.cost.macs is None:
            task = self.tasks[-1]
            self.results.cost.macs = count_macs(self.model, task,
                                                self._val_loader(task))
        self.results.compute_scores(forced)
        self.earlier.save(self.results, self.digests)
        for table in tables.CLOSING_TABLES:
            self.runner.logger.info('\n' + table(self.results))
        self.runner.call_hook('after_stream', results=self.results)

    def _val_loader(self, task: Task) -> Any:
        return self.data.val_loader(self.runner, task, self.val_dataloader)

    def _evaluate(self, after: str, task: Task) -> TaskScore:
        return evaluate_task(self.runner, self.model, task,
                             self._val_loader(task), self.data_root, after)

    def _force_experts(self) -> Optional[np.ndarray]:
        """mIoU of every task with every expert."""
        names = self.model.expert_names
        if len(names) < 2:
            return None
        own = self.results.miou['oracle'][len(names) - 1, :len(names)]
        matrix = CrossScores(self.earlier.cross_path, names,
                             self.digests[names[-1]]).fill_forced(
                                 self.model, self.tasks, self._val_loader, own)
        self.runner.logger.info('\n' + cross_expert_table(names, matrix))
        return matrix

    def _keep(self, index: int, task: Task, seconds: float) -> None:
        library = self.earlier.library
        origin = provenance(self.runner.cfg)
        if is_main_process():
            self.model.save_task(
                task, library,
                dict(
                    origin,
                    task=task.name,
                    seed=self.results.seed,
                    max_iters=task.max_iters,
                    train_dataset=to_json(task.train_dataset)))
        record_cost(self.results, index, seconds, self.model, library,
                    self.data.kept_bytes(index))
        self.results.set_provenance(**origin)
        self.earlier.save(self.results, self.digests)
