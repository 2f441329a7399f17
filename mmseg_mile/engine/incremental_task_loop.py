# SPDX-License-Identifier: Apache-2.0
"""The main job: learn one task after another, and score every one."""
from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.runner import BaseLoop, Runner, set_random_seed
from torch import nn

from mmseg.registry import LOOPS
from mmseg_mile.evaluation import tables
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.library.stored_config import to_json
from mmseg_mile.methods.continual_segmentor import ContinualSegmentor
from mmseg_mile.structures import Task
from .hooks import FiniteLossHook, StreamProgressHook
from .rehearsal import check_rehearsal
from .snapshot import TaskSnapshot
from .task_data import TaskData, in_order
from .task_evaluator import (TaskScore, count_macs, cross_expert_scores,
                             evaluate_forced, evaluate_task, record_cost,
                             record_row, setting_of)
from .task_training import bare_model, train_task
from .work_dir import WorkDir, provenance, reserved


@LOOPS.register_module()
class IncrementalTaskLoop(BaseLoop):
    """Per task: begin, train with a stock loop, end, save, evaluate all.

    The work directory gets ``library/`` (what the tasks left behind),
    ``tasks/`` (a checkpoint folder each) and ``results.json``. With
    ``--resume`` a run that was stopped, at whatever moment, goes on from
    there and ends as if it had not been: on CPUs to the byte, on GPUs, whose
    kernels may add in any order, up to rounding. A config with more tasks at
    its end extends the stream.

    Args:
        runner (Runner): The runner.
        dataloader (dict): Template of the training loader; the loop sets
            its dataset.
        tasks (Sequence[dict]): See :class:`TaskData`.
        max_iters (int): Training iterations per task.
        budget (int): Times ``max_iters``, and those of a task's own, that
            each task is trained; for methods whose weights another one
            trains for several tasks. Defaults to 1.
        stream (str): Name of the stream, for the results.
        method (str, optional): Name of the method, for the results.
            Defaults to the model's ``METHOD``.
        data_root (str): Joined with every dataset's relative ``data_root``.
            Defaults to 'data/'.
        val_dataloader (dict, optional): Template of the loaders that
            evaluate and fit prototypes. Defaults to one image at a time,
            read by as many workers as ``train_dataloader`` has.
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
        selection_share (float, optional): Makes a selection run, in which
            settings are compared without a look at the reported images: of
            each task's training images whole sequences, at least this share
            of the images, are held out (see :func:`hold_out`); training,
            gate and rehearsal see the others, the scores are of the held-out
            ones, and no ``val_dataset`` is opened. Above 0 and below 1.
            Defaults to None: train on all, evaluate on ``val_dataset``.

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
                 rehearsal: Optional[Dict[str, Any]] = None,
                 selection_share: Optional[float] = None,
                 budget: int = 1) -> None:
        # denormal numbers make a CPU crawl and change no result that counts
        torch.set_flush_denormal(True)
        self._runner = runner
        self.dataloader = dataloader
        self.val_dataloader = val_dataloader or dict(
            batch_size=1, num_workers=dataloader.get('num_workers', 0))
        self.data_root = data_root
        self.max_prototype_images = max_prototype_images
        self.cross_experts = cross_experts
        self.checkpoint_interval = checkpoint_interval
        self.changed_settings = changed_settings
        self.rehearsal = rehearsal
        self.model: ContinualSegmentor = bare_model(runner)
        self._check_settings()
        self.data = TaskData(
            in_order(tasks, order), data_root, max_iters, num_checked,
            rehearsal, runner.seed, selection_share, budget)
        self.tasks: List[Task] = self.data.tasks
        self.reused = None if experts_from is None else ReusedExperts(
            experts_from, self.model, self.tasks)
        self.model.check_stream(self.tasks)
        check_schedule(runner.cfg.get('param_scheduler'), self.tasks)
        self.work_dir = WorkDir(Path(runner.work_dir))
        self.results = StreamResults.new(stream, method or self.model.METHOD,
                                         runner.seed,
                                         [t.name for t in self.tasks])
        self.results.setting = setting_of(self.model, rehearsal)
        self.results.selection_share = selection_share
        self.digests: Dict[str, Dict[str, str]] = {}
        # what runner.train() asks of a loop before it starts
        self.iter, self.epoch = 0, 0
        self.max_iters, self.max_epochs = max_iters, 1
        runner.register_hook(FiniteLossHook())
        runner.register_hook(StreamProgressHook())

    def run(self) -> nn.Module:
        """Learn the stream; finished steps of an earlier run are kept.

        Raises:
            ValueError: If another run is at work in the work dir.
        """
        with reserved(self.work_dir.path):
            self.learn_stream()
        return self.runner.model

    def learn_stream(self) -> None:
        """Learn and evaluate what is not finished."""
        loaded = self.restore()
        for index, task in enumerate(self.tasks):
            if not self.results.cost.is_learned[index]:
                self.learn(index, task)
            elif index >= loaded:
                self.model.load_tasks([task], self.work_dir.library)
            if self.results.num_finished_rows <= index:
                self.evaluate_row(index)
        self.finish()

    def restore(self) -> int:
        """Load what an earlier run left in the work directory.

        Returns:
            int: Tasks that the model has loaded: those with a full row.
        """
        work_dir = self.work_dir
        work_dir.require_resume(self.runner.cfg.get('resume'))
        has_results = work_dir.results_path.exists()
        if has_results:
            self._read_results(work_dir)
        if self.reused:
            self.reused.check(self.results)
        work_dir.check_settings(self.runner, self.changed_settings)
        work_dir.clean_up(self.tasks, self.results)
        work_dir.check_library()
        rows = self.results.num_finished_rows
        return self._load_tasks(work_dir, rows) if has_results else 0

    def load(self, path: Path) -> int:
        """Load what a run left in a work directory, whatever its settings.

        Args:
            path (Path): The work directory.

        Returns:
            int: Number of tasks that are learned.
        """
        work_dir = WorkDir(path)
        self._read_results(work_dir)
        return self._load_tasks(work_dir, len(self.tasks))

    def _read_results(self, work_dir: WorkDir) -> None:
        randomness = self.runner.cfg.get('randomness', {})
        results = work_dir.read_results(self.results,
                                        randomness.get('seed') is not None)
        new = [t.name for t in self.tasks if t.name not in results.tasks]
        if new and self.rehearsal and self.rehearsal['tasks'] == 'all':
            raise ValueError(
                f"train_cfg.rehearsal.tasks='all': the tasks {new} would have "
                'to be trained beside those that this run has learned without '
                'them. Choose another --work-dir.')
        results.extend(self.results.tasks)
        self.results = results
        self.digests = work_dir.read_digests()

    def _load_tasks(self, work_dir: WorkDir, at_most: int) -> int:
        learned = int(self.results.cost.is_learned.sum())
        loaded = min(learned, at_most)
        self.model.load_tasks(self.tasks[:loaded], work_dir.library)
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
        if self.reused:
            self.keep(index, task, self.reused.take(index, images))
            return
        self.model.begin_task(task, images)
        runner.call_hook('before_stream_task', tasks=self.tasks, index=index)
        folder = self.work_dir.task_folder(index, task)
        # what begins a task may have had more or less to read, and to build
        set_random_seed(seed)
        seconds = train_task(
            runner, self.data.train_loader(runner, task, self.dataloader),
            task.max_iters, folder, self.checkpoint_interval)
        self.model.eval()
        self.model.end_task(task, images)
        self.keep(index, task, seconds)
        TaskSnapshot(folder).discard()

    def keep(self, index: int, task: Task, seconds: float) -> None:
        """Write what a task leaves behind, and what it took."""
        library = self.work_dir.library
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
                    self.data.rehearsal.kept_bytes(index))
        self.results.set_provenance(**origin)
        self.work_dir.save(self.results, self.digests)

    def evaluate_row(self, index: int) -> None:
        """Score every task of the stream after learning task ``index``."""
        started = time.perf_counter()
        self.runner.call_hook('before_stream_row', task_index=index)
        after = self.tasks[index].name
        cache = self.work_dir.row_cache(after)

        def evaluate(task: Task) -> TaskScore:
            return evaluate_task(self.runner, self.model, task,
                                 self._val_loader(task), self.data_root, after)

        scores = [cache.score(task, evaluate) for task in self.tasks]
        self.digests[after] = record_row(self.results, index, self.tasks,
                                         scores, self.model)
        self.work_dir.save(self.results, self.digests,
                           {after: [i for s in scores for i in s.images]})
        cache.discard()
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
        self.work_dir.save(self.results, self.digests)
        for table in tables.CLOSING_TABLES:
            self.runner.logger.info('\n' + table(self.results))
        for task in self.tasks:
            iou = self.results.class_iou['routed'][task.name]
            absent = [c for c in task.eval_classes if np.isnan(iou[c])]
            if absent:
                self.runner.logger.warning(
                    f'mIoU of {task.name!r} is without {absent}, which no '
                    'label of its val_dataset shows')
        self.runner.call_hook('after_stream', results=self.results)

    def _force_experts(self) -> Optional[np.ndarray]:
        """mIoU of every task with every expert."""
        names = self.model.expert_names
        if len(names) < 2:
            return None
        tasks = {task.name: task for task in self.tasks}
        matrix = cross_expert_scores(
            self.work_dir.cross_path, names, self.digests[names[-1]],
            self.results.miou['oracle'][len(names) - 1, :len(names)],
            lambda name, expert: evaluate_forced(self.model, tasks[
                name], self._val_loader(tasks[name]), expert))
        self.runner.logger.info('\n' +
                                tables.cross_expert_table(names, matrix))
        return matrix

    def _val_loader(self, task: Task) -> Any:
        return self.data.val_loader(self.runner, task, self.val_dataloader)

    def _check_settings(self) -> None:
        """Refuse a model that learns no streams, and idle settings."""
        hooks = self.runner.hooks
        if not isinstance(self.model, ContinualSegmentor):
            raise ValueError(
                'IncrementalTaskLoop trains a ContinualSegmentor such as '
                'ExpertSegmentor, got model.type '
                f'{type(self.model).__name__!r}')
        if any(isinstance(h, EMAHook) for h in hooks):
            raise ValueError(
                'EMAHook averages one fixed set of weights, but every task '
                'trains another: remove it from custom_hooks')
        if self.runner._val_loop is not None or any(
                isinstance(h, CheckpointHook) and h.save_best for h in hooks):
            raise ValueError(
                'IncrementalTaskLoop evaluates every task itself: remove '
                'val_cfg, val_dataloader, val_evaluator and '
                'CheckpointHook.save_best, and give train_cfg.val_dataloader '
                'if needed')
        load_from = self.runner.cfg.get('load_from')
        if load_from is not None:
            raise ValueError(
                f'load_from={load_from!r}: each task begins with a head of '
                'its own, and what does not fit would be left out. Let the '
                "backbone start from it: init_cfg=dict(type='Pretrained', "
                f"checkpoint={load_from!r}, prefix='backbone.') in the "
                'innermost model.backbone, without prefix for a file of a '
                'bare backbone')
        for field, template in (('train_dataloader', self.dataloader),
                                ('train_cfg.val_dataloader',
                                 self.val_dataloader)):
            if 'dataset' in template:
                raise ValueError(
                    f'{field}.dataset has no effect: the datasets stand in '
                    'train_cfg.tasks, remove it')
            sampler = dict(type='DefaultSampler')
            try:
                self.runner.build_dataloader(
                    dict(template, dataset=[0], sampler=sampler), seed=0)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f'{field} makes no loader of images, correct '
                                 f'its fields: {error}') from error
        if self.checkpoint_interval < 1:
            raise ValueError('train_cfg.checkpoint_interval must be >= 1, got '
                             f'{self.checkpoint_interval}')
        check_rehearsal(self.model, self.rehearsal)


def check_schedule(schedulers: Any, tasks: Sequence[Task]) -> None:
    """Refuse schedulers that begin when the shortest task is over.

    Args:
        schedulers (dict | list[dict], optional): Of the config.
        tasks (Sequence[Task]): Of the stream.
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


class ReusedExperts:
    """Experts of a finished run, instead of trained ones.

    Gates can be compared over the very same experts at the price of an
    evaluation. Only adapters, heads and the base are taken over; the gate
    of this run learns every task from its images.

    Args:
        work_dir (str): Of the finished run.
        model (ContinualSegmentor): Of this run.
        tasks (Sequence[Task]): Of the stream.

    Raises:
        ValueError: If the method has no experts.
    """

    def __init__(self, work_dir: str, model: ContinualSegmentor,
                 tasks: Sequence[Task]) -> None:
        self._where = f'train_cfg.experts_from={str(work_dir)!r}'
        if not model.supports_parallel:
            raise ValueError(f'{self._where}: {type(model).__name__} has no '
                             'experts; leave experts_from out')
        model.reuses_experts = True
        self._model = model
        self._tasks = tasks
        self._run = WorkDir(Path(work_dir))
        self._store = ExpertStore(self._run.library)

    def check(self, results: StreamResults) -> None:
        """Refuse a run that does not have the experts this one still needs.

        Args:
            results (StreamResults): Of this run, so far.

        Raises:
            ValueError: If the other run has not learned the tasks, knows
                other classes of one, is of another seed, or was trained on
                other images.
        """
        if results.cost.is_learned.all():
            return
        if not self._run.results_path.exists():
            raise ValueError(f'{self._where} holds no results.json: name the '
                             'work dir of a finished run of the same stream')
        other = StreamResults.load(self._run.results_path)
        learned = other.tasks[:int(other.cost.is_learned.sum())]
        if learned[:len(results.tasks)] != results.tasks:
            raise ValueError(f'{self._where} has learned {learned}, this '
                             f'stream needs {results.tasks} in this order')
        if other.seed != results.seed:
            raise ValueError(
                f'{self._where} is of seed {other.seed}, this run of seed '
                f'{results.seed}: compare runs of one seed')
        if other.selection_share != results.selection_share:
            raise ValueError(
                f'{self._where} is of train_cfg.selection_share='
                f'{other.selection_share}, this run of '
                f'{results.selection_share}: its experts were trained on '
                'other images, name a run of the same share')
        self._store.open_tasks(self._tasks)
        self._seconds = other.cost.train_seconds

    def take(self, index: int, images: Iterable[dict]) -> float:
        """Make the expert of a task the model's own.

        Args:
            index (int): Position of the task.
            images (Iterable[dict]): Its training images through the test
                pipeline.

        Returns:
            float: Seconds that its training took in the other run.
        """
        if not self._model.expert_names:
            self._model.backbone.load_base(*self._store.load_base())
        task = self._tasks[index]
        expert, = self._store.open_tasks([task])
        self._model.reuse_expert(task, images, expert)
        return float(self._seconds[index])
