# SPDX-License-Identifier: Apache-2.0
"""A finished run, opened to predict without some of its experts."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import (Any, Dict, List, Mapping, NamedTuple, Optional, Sequence,
                    Tuple)

from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor

from mmseg_mile.engine.expert_leaks import Parents, parents_of
from mmseg_mile.engine.incremental_task_loop import IncrementalTaskLoop
from mmseg_mile.engine.task_evaluator import ImageLog
from mmseg_mile.engine.work_dir import commit
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.library.edits import AnyPath, open_library
from mmseg_mile.library.expert_store import StoredExpert
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.structures import Task
from .library_model import library_config

# What of a model's config has no part in predictions that are told their
# mixture.
_IDLE = ('gate', 'fusion', 'ood_policy', 'child_averaging', 'init_from')


class Finished(NamedTuple):
    """What a work dir says of its run.

    Args:
        work_dir (Path): The folder.
        results (StreamResults): All tasks are learned.
    """
    work_dir: Path
    results: StreamResults


def read_finished(work_dirs: Sequence[AnyPath]) -> List[Finished]:
    """Runs of one method on one stream, one per seed, by seed.

    Raises:
        ValueError: If a folder holds no finished run, the runs differ in
            more than the seed, or there is nothing to leave out.
    """
    runs = []
    for folder in map(Path, work_dirs):
        path = folder / 'results.json'
        if not path.is_file():
            raise ValueError(f'{folder} holds no results.json: name the work '
                             'dirs of finished runs')
        results = StreamResults.load(path)
        learned = int(results.cost.is_learned.sum())
        if learned < len(results.tasks):
            raise ValueError(f'{folder} has learned {learned} of '
                             f'{len(results.tasks)} tasks: finish it with '
                             'tools/train.py --resume')
        runs.append(Finished(folder, results))
    if not runs:
        raise ValueError('name one or more work dirs of finished runs')
    runs.sort(key=lambda run: run.results.seed)
    _check_alike(runs)
    return runs


class LeftOutExperts:
    """Model, data and experts of a finished run.

    Args:
        run (Finished): The run.
        log_dir (Path): Gets a log of what was loaded.
        config (Config, optional): Trusted, and taken instead of the one that
            the library carries. Defaults to None.
        options (Mapping[str, Any]): Settings that override the config, by
            dotted name. Defaults to ().

    Raises:
        ValueError: If the run has no experts, or its data are not there.
    """

    def __init__(self, run: Finished, log_dir: Path, config: Optional[Config],
                 options: Mapping[str, Any]) -> None:
        self.seed = run.results.seed
        store = open_library(run.work_dir)
        self.experts: List[StoredExpert] = store.open(run.results.tasks)
        if config is None:
            # the last one's config knows all tasks
            cfg = library_config(self.experts[::-1])
        else:
            cfg = copy.deepcopy(config)
        cfg.merge_from_dict(dict(options))
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=self.seed)
        cfg.work_dir = str(log_dir)
        # hooks and tasks of a training that is over
        cfg.log_level = 'WARNING'
        # a Runner's log and hub go by this name
        cfg.experiment_name = f'leave_one_out_seed_{self.seed}'
        self._runner = Runner.from_cfg(cfg)
        self.loop: IncrementalTaskLoop = self._runner.train_loop
        if not isinstance(self.loop.model, ExpertSegmentor):
            raise ValueError(f'{run.work_dir} was learned by '
                             f'{type(self.loop.model).__name__}, which has no '
                             'experts to leave out')
        self.model: ExpertSegmentor = self.loop.model
        self.tasks: List[Task] = self.loop.tasks
        self.loop.load(run.work_dir)
        self.model.eval()
        self._embeddings: Dict[Tuple[str, int], Tensor] = {}

    def embeddings(self, names: Sequence[str],
                   num_views: int) -> Dict[str, Tensor]:
        """Embed the training images of tasks, each task once.

        Args:
            names (Sequence[str]): Of the tasks.
            num_views (int): See :meth:`ExpertSegmentor.embed_images`.
        """
        for task in self.tasks:
            key = task.name, num_views
            if task.name in names and key not in self._embeddings:
                loader = self.loop.data.prototype_loader(
                    self._runner, task, self.loop.val_dataloader,
                    self.loop.max_prototype_images)
                self._embeddings[key] = self.model.embed_images(
                    loader, num_views)
        return {name: self._embeddings[name, num_views] for name in names}

    def val_loader(self, task: Task) -> Any:
        """Validation images of a task."""
        return self.loop.data.val_loader(self._runner, task,
                                         self.loop.val_dataloader)

    def image_log(self, task: Task) -> ImageLog:
        """Describes the images of a task."""
        return ImageLog(task, self.tasks[-1].name, self.loop.data_root)

    def parents(self) -> Dict[str, Parents]:
        """Where each expert started."""
        return parents_of(self.tasks, self.model.init_from,
                          {e.name: e.provenance
                           for e in self.experts}, self.loop.reused
                          is not None)

    def base_saw(self) -> List[str]:
        """Tasks that the base was trained on."""
        first = self.model.backbone.base_training == 'first_task'
        return [self.tasks[0].name] if first else []

    def settings(self) -> Dict[str, Any]:
        """What every cell's score depends on."""
        cfg = self._runner.cfg
        return dict(
            # another version may score otherwise: they are not mixed
            commit=commit(),
            model={
                k: v
                for k, v in cfg.model.items() if k not in _IDLE
            },
            tasks={
                t.name: [t.train_dataset, t.val_dataset]
                for t in self.tasks
            },
            max_prototype_images=self.loop.max_prototype_images,
            base=self.experts[0].base_fingerprint,
            experts={e.name: e.checksums
                     for e in self.experts})


def _check_alike(runs: Sequence[Finished]) -> None:
    first = runs[0]
    for run in runs[1:]:
        for name in ('stream', 'method', 'tasks'):
            mine, theirs = (getattr(r.results, name) for r in (first, run))
            if mine != theirs:
                raise ValueError(
                    f'{run.work_dir} is of {name} {theirs!r}, '
                    f'{first.work_dir} of {mine!r}: only seeds of one method '
                    'on one stream can be joined, call once for each method')
    seeds = [run.results.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f'the seeds {seeds} are not different: name each '
                         'run once')
    if len(first.results.tasks) < 2:
        raise ValueError(f'{first.work_dir} has learned one task: no expert '
                         'is left without it')
