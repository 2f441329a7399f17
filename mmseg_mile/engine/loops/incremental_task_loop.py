# SPDX-License-Identifier: Apache-2.0
"""The main job: learn one task after another, and score every one."""
from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.runner import BaseLoop, Runner, set_random_seed
from torch import nn

from mmseg.registry import LOOPS
from mmseg_mile.evaluation import (StreamResults, cross_expert_table,
                                   read_json, tables, write_json)
from mmseg_mile.models import ContinualSegmentor
from mmseg_mile.structures import Task
from ..hooks import FiniteLossHook, StreamProgressHook
from ..provenance import provenance
from ..task_data import TaskData
from ..task_evaluator import TaskScore, cross_experts, evaluate_task
from .stream_checks import check_runner, check_schedule
from .task_training import bare_model, train_task


@LOOPS.register_module()
class IncrementalTaskLoop(BaseLoop):
    """Per task: begin, train with a stock loop, end, save, evaluate all.

    The work directory gets ``library/`` (what the tasks left behind),
    ``tasks/`` (a checkpoint folder each) and ``results.json``, which is
    written after every step and from which ``--resume`` goes on at the last
    finished one. A config with more tasks at its end extends the stream.

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
                 num_checked: int = 16) -> None:
        # denormal numbers make a CPU crawl and change no result that counts
        torch.set_flush_denormal(True)
        self._runner = runner
        self.dataloader = dataloader
        self.val_dataloader = val_dataloader or dict(
            batch_size=1, num_workers=0)
        self.max_prototype_images = max_prototype_images
        self.cross_experts = cross_experts
        self.model: ContinualSegmentor = bare_model(runner)
        check_runner(
            runner, self.model, {
                'train_dataloader': dataloader,
                'train_cfg.val_dataloader': self.val_dataloader
            })
        self.data = TaskData(tasks, data_root, max_iters, num_checked)
        self.tasks: List[Task] = self.data.tasks
        self.model.check_stream(self.tasks)
        check_schedule(runner.cfg.get('param_scheduler'), self.tasks)
        self.work_dir = Path(runner.work_dir)
        self.results = StreamResults.new(stream, method or self.model.METHOD,
                                         runner.seed,
                                         [t.name for t in self.tasks])
        self.digests: Dict[str, Dict[str, str]] = {}
        # what runner.train() asks of a loop before it starts
        self.iter, self.epoch = 0, 0
        self.max_iters, self.max_epochs = max_iters, 1
        for kind in (FiniteLossHook, StreamProgressHook):
            if not any(isinstance(h, kind) for h in runner.hooks):
                runner.register_hook(kind())

    def run(self) -> nn.Module:
        """Learn the stream; finished steps of an earlier run are kept."""
        self.restore()
        for index, task in enumerate(self.tasks):
            if np.isnan(self.results.train_seconds[index]):
                self.learn(index, task)
            if self.results.num_finished_rows <= index:
                self.evaluate_row(index)
        self.finish()
        return self.runner.model

    def restore(self) -> int:
        """Take up the work directory's results and experts.

        Returns:
            int: Number of tasks that are already learned.

        Raises:
            ValueError: If there are results but no ``--resume``, or results
                of another stream, method or seed.
        """
        found = [self.work_dir / n for n in ('results.json', 'library')]
        found = [path for path in found if path.exists()]
        if found and not self.runner.cfg.get('resume'):
            raise ValueError(
                f'{found[0]} holds finished tasks: add --resume to go on from '
                'them, or choose another --work-dir.')
        if found and found[0].name == 'results.json':
            return self.load(self.work_dir)
        return 0

    def load(self, work_dir: Path) -> int:
        """Take up what a run left in ``work_dir``; see :meth:`restore`."""
        path = work_dir / 'results.json'
        if not path.exists():
            raise ValueError(f'{path} does not exist: give the work dir of a '
                             'run that has finished at least one task.')
        old, new = StreamResults.load(path), self.results
        names = ['stream', 'method']
        if self.runner.cfg.get('randomness', {}).get('seed') is not None:
            names.append('seed')
        for name in names:
            if getattr(old, name) != getattr(new, name):
                raise ValueError(
                    f'{path} belongs to {name} {getattr(old, name)!r}, the '
                    f'config says {getattr(new, name)!r}: resume with the '
                    'same config, or choose another --work-dir.')
        old.extend(new.tasks)
        self.results = old
        digests = work_dir / 'oracle_digests.json'
        self.digests = read_json(digests) if digests.exists() else {}
        learned = int((~np.isnan(old.train_seconds)).sum())
        self.model.load_tasks(self.tasks[:learned], work_dir / 'library')
        self.runner.logger.info(f'{learned} of {len(self.tasks)} tasks were '
                                f'learned already, {old.num_finished_rows} '
                                'rows evaluated')
        return learned

    def learn(self, index: int, task: Task) -> None:
        """Train one task and keep what it leaves behind."""
        runner = self.runner
        runner.logger.info(f'task {index + 1} of {len(self.tasks)}: '
                           f'{task.name}, {task.num_classes} classes, '
                           f'{task.max_iters} iterations')
        # the same start for a task whether or not the run was interrupted
        set_random_seed(self.results.seed + index)
        images = self.data.prototype_loader(runner, task, self.val_dataloader,
                                            self.max_prototype_images)
        self.model.begin_task(task, images)
        started = time.perf_counter()
        runner.call_hook('before_stream_task', tasks=self.tasks, index=index)
        train_task(runner, self.data.train_loader(runner, task,
                                                  self.dataloader),
                   task.max_iters,
                   self.work_dir / 'tasks' / f'{index:02d}_{task.name}')
        seconds = time.perf_counter() - started
        self.model.eval()
        self.model.end_task(task, images)
        self._keep(index, task, seconds)

    def evaluate_row(self, index: int) -> None:
        """Score every task of the stream after learning task ``index``."""
        started = time.perf_counter()
        self.runner.call_hook('before_stream_row', task_index=index)
        scores = [self._evaluate(task) for task in self.tasks]
        after = self.tasks[index].name
        for column, score in enumerate(scores):
            self.results.set_miou('routed', index, column, score.routed.miou())
            if score.oracle is not None:
                self.results.set_miou('oracle', index, column,
                                      score.oracle.miou())
        self.digests[after] = {
            t.name: s.digest
            for t, s in zip(self.tasks, scores) if s.digest
        }
        self._set_gate(scores[:index + 1])
        for task, score in zip(self.tasks[:index + 1], scores):
            self.results.set_class_iou('routed', task.name,
                                       score.routed.class_iou())
            if score.oracle is not None:
                self.results.set_class_iou('oracle', task.name,
                                           score.oracle.class_iou())
        self.results.compute_scores()
        self._save()
        self.runner.call_hook(
            'after_stream_row', seconds=time.perf_counter() - started)
        self.runner.logger.info(f'after {after}:\n' +
                                tables.row_table(self.results, index))

    def finish(self) -> None:
        """Cross-expert scores, closing tables, pictures."""
        forced = self._force_experts() if self.cross_experts else None
        self.results.compute_scores(forced)
        self._save()
        for table in (tables.score_table, tables.confusion_table,
                      tables.cost_table, tables.summary_table):
            self.runner.logger.info('\n' + table(self.results))
        self.runner.call_hook('after_stream', results=self.results)

    def _evaluate(self, task: Task) -> TaskScore:
        loader = self.data.val_loader(self.runner, task, self.val_dataloader)
        return evaluate_task(self.runner, self.model, task, loader)

    def _set_gate(self, scores: List[TaskScore]) -> None:
        names = [t.name for t in self.tasks[:len(scores)]]
        confusion = [[s.chosen[n] for n in names] for s in scores]
        total = np.sum(confusion)
        if total:
            self.results.set_gate(
                float(np.trace(confusion) / total), confusion)

    def _force_experts(self) -> Optional[np.ndarray]:
        """mIoU of every task with every expert; kept from an earlier run."""
        names = list(self.model.expert_names)
        if len(names) < 2:
            return None
        path = self.work_dir / 'cross_expert_miou.json'
        known = read_json(path) if path.exists() else {}
        # equal label maps of every expert on its own task: the same experts
        digests = self.digests.get(names[-1])
        if digests and known.get('digests') == digests:
            matrix = np.array(known['miou'], dtype=float)
        else:
            matrix = cross_experts(
                self.model, self.tasks, lambda task: self.data.val_loader(
                    self.runner, task, self.val_dataloader))
            own = self.results.miou['oracle'][len(names) - 1]
            np.fill_diagonal(matrix, own[:len(names)])
            if is_main_process():
                write_json(
                    path,
                    dict(tasks=names, miou=matrix.tolist(), digests=digests))
        self.runner.logger.info('\n' + cross_expert_table(names, matrix))
        return matrix

    def _keep(self, index: int, task: Task, seconds: float) -> None:
        library = self.work_dir / 'library'
        origin = provenance(self.runner.cfg.pretty_text)
        if is_main_process():
            self.model.save_task(
                task, library,
                dict(
                    origin,
                    seed=self.results.seed,
                    max_iters=task.max_iters,
                    train_dataset=str(task.train_dataset)))
        times = self.results.train_seconds.copy()
        times[index] = seconds
        base = sum(p.numel() for p in self.model.backbone.parameters())
        # the files are there once the main process has written them
        costs = self.model.expert_costs(library) if is_main_process() else []
        self.results.set_cost(base, costs, times)
        self.results.set_provenance(**origin)
        self._save()

    def _save(self) -> None:
        if is_main_process():
            self.results.save(self.work_dir / 'results.json')
            write_json(self.work_dir / 'oracle_digests.json', self.digests)
