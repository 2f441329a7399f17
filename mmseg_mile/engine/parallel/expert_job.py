# SPDX-License-Identifier: Apache-2.0
"""One task of a stream, learned in a process of its own."""
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, Optional

from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings
from torch import nn

from mmseg_mile.experts import ExpertStore
from mmseg_mile.models import ExpertSegmentor, FixedGate
from ..loops import IncrementalTaskLoop


@dataclass(frozen=True)
class ExpertJob:
    """What a process must know to learn one task.

    Args:
        cfg (Config): Of the whole stream, with its seed.
        index (int): Position of the task.
        start (str, optional): Expert that it starts from; None is the base.
        base (Path): Library whose base is used.
        experts (dict[str, Path]): Experts to load, and their libraries.
        work_dir (Path): Where the process works; kept for ``--resume``.
    """
    cfg: Config
    index: int
    start: Optional[str]
    base: Path
    experts: Dict[str, Path]
    work_dir: Path


class ExpertTaskLoop(IncrementalTaskLoop):
    """Learns one task of the stream and evaluates nothing.

    Prototypes are left to the process that has those of all tasks, so the
    gate that a task meets here looks at no image.

    Args:
        *args: As in :class:`IncrementalTaskLoop`.
        job (ExpertJob): What to learn.
        **kwargs: As in :class:`IncrementalTaskLoop`.
    """

    def __init__(self, *args: Any, job: ExpertJob, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.job = job

    def run(self) -> nn.Module:
        """Learn the task, unless an earlier process has."""
        job, task = self.job, self.tasks[self.job.index]
        self.restore()
        if self.results.cost.is_learned[job.index]:
            return self.runner.model
        model = self.model
        assert isinstance(model, ExpertSegmentor)
        model.backbone.load_base(*ExpertStore(job.base).load_base())
        with model.gated(FixedGate(task.name)):
            for name, library in job.experts.items():
                model.import_experts(ExpertStore(library).open([name]))
            self.learn(job.index, replace(task, init_from=job.start or 'base'))
        return self.runner.model


def learn_expert(job: ExpertJob) -> float:
    """Learn one task with a runner of its own.

    Args:
        job (ExpertJob): The task.

    Returns:
        float: Seconds that the training took.
    """
    import_modules_from_strings(**job.cfg.get('custom_imports', {}))
    cfg = job.cfg.copy()
    cfg.work_dir, cfg.resume = str(job.work_dir), True
    runner = Runner.from_cfg(cfg)
    loop = stream_loop(ExpertTaskLoop, runner, job=job, num_checked=0)
    runner.train()
    return float(loop.results.cost.train_seconds[job.index])


def stream_loop(kind: Any, runner: Runner,
                **changes: Any) -> IncrementalTaskLoop:
    """Give a runner another loop over the stream of its config.

    The config itself, which experts and results quote, stays as it is.

    Args:
        kind (type): A subclass of ``IncrementalTaskLoop``.
        runner (Runner): Whose loop was not built yet.
        **changes: Arguments that differ from ``train_cfg``, or are new.

    Raises:
        ValueError: If the config trains no stream.
    """
    settings = dict(runner.cfg.train_cfg)
    if settings.pop('type', None) != 'IncrementalTaskLoop':
        raise ValueError(
            'train_cfg.type must be IncrementalTaskLoop to learn the tasks '
            f'of a stream, got {runner.cfg.train_cfg.get("type")!r}')
    settings.update(dataloader=runner.cfg.train_dataloader, **changes)
    runner._train_loop = kind(runner, **settings)
    return runner._train_loop
