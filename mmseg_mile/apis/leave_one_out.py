# SPDX-License-Identifier: Apache-2.0
"""Every task of finished runs without its expert, and without its family."""
from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from mmengine.config import Config

from mmseg_mile.engine.expert_leaks import find_leaks
from mmseg_mile.engine.left_out_evaluator import LeftOutCell, evaluate_cells
from mmseg_mile.engine.left_out_gates import (LeftOutMethod, fitted_gates,
                                              gate_options, left_out_methods,
                                              oracle_method, views_wanted)
from mmseg_mile.engine.work_dir import commit, device, versions
from mmseg_mile.evaluation.leave_one_out import LeaveOneOut, LeftOutRun
from mmseg_mile.evaluation.leave_one_out_tables import csv_lines, markdown
from mmseg_mile.evaluation.left_out_methods import ORACLE, removals
from mmseg_mile.evaluation.left_out_score import (LeftOutImage,
                                                  write_left_out_images)
from mmseg_mile.files import write_text
from mmseg_mile.gates.simple_gates import FixedGate
from mmseg_mile.library.edits import AnyPath
from mmseg_mile.structures import Task, families
from mmseg_mile.visualization.charts import leave_one_out_chart
from mmseg_mile.visualization.plots import save_figure
from .left_out_cells import KeptCells, Wanted, wanted_cells
from .left_out_run import LeftOutExperts, read_finished

# Seconds between two lines of progress.
_PAUSE = 10.0
Say = Callable[[str], None]


def leave_one_out(work_dirs: Sequence[AnyPath],
                  out: AnyPath,
                  config: Optional[Config] = None,
                  gate: Optional[Mapping[str, Any]] = None,
                  taus: Sequence[float] = (),
                  options: Optional[Mapping[str, Any]] = None,
                  say: Say = print) -> LeaveOneOut:
    """Score every task of some runs with experts left out.

    What is finished is kept in ``out/cells``: the same call again goes on,
    and a call with more methods computes only these.

    Args:
        work_dirs (Sequence[str | Path]): Of one method on one stream, one
            per seed.
        out (str | Path): Gets leave_one_out.{json,md,csv,png} and
            images.jsonl.
        config (Config, optional): Trusted, and taken instead of the one that
            the libraries carry. Defaults to None.
        gate (Mapping[str, Any], optional): Options of the gate that shall
            differ from those of the run's, see :func:`gate_options`.
        taus (Sequence[float]): Further temperatures of SemLA's weights.
            Defaults to ().
        options (Mapping[str, Any], optional): Settings that override the
            config, by dotted name.
        say (Callable): Told what goes on. Defaults to print.

    Returns:
        LeaveOneOut: All scores.

    Raises:
        ValueError: If the runs do not fit together, or an option is wrong.
    """
    out = Path(out)
    runs, images = [], []
    for finished in read_finished(work_dirs):
        opened = LeftOutExperts(finished, out / 'logs', config, options or {})
        chosen = gate_options(opened.model.gate, gate or {})
        done, lines = _score_run(opened, out, chosen, taus, say)
        runs.append(done)
        images += lines
        known = finished.results
        found = LeaveOneOut(known.stream, known.method, tuple(known.tasks),
                            families(opened.tasks), chosen, tuple(runs))
        write_results(found, images, out)
    return found


def write_results(results: LeaveOneOut, images: Sequence[LeftOutImage],
                  out: Path) -> List[Path]:
    """Scores, tables, the log of images and the chart.

    Returns:
        list[Path]: The files.
    """
    write_left_out_images(out / 'images.jsonl', images)
    results.save(out / 'leave_one_out.json')
    write_text(out / 'leave_one_out.md', markdown(results))
    write_text(out / 'leave_one_out.csv', csv_lines(results))
    save_figure(leave_one_out_chart(results), out / 'leave_one_out.png')
    names = ('json', 'md', 'csv', 'png')
    return [*(out / f'leave_one_out.{n}' for n in names), out / 'images.jsonl']


def _score_run(opened: LeftOutExperts, out: Path, chosen: Mapping[str, Any],
               taus: Sequence[float], say: Say) -> Any:
    """Scores and image lines of one run."""
    methods = left_out_methods(chosen, taus)
    settings = opened.settings()
    family = families(opened.tasks)
    scores, images = [], []
    removed: Dict[Any, None] = {}
    for task in opened.tasks:
        path = out / 'cells' / f'seed_{opened.seed}' / f'{task.name}.json'
        kept = KeptCells(path, settings)
        cells = wanted_cells(task.name, family[task.name], family, {
            **methods, ORACLE: oracle_method(task.name)
        }, taus)
        missing = kept.missing(cells)
        if missing:
            _score_target(opened, task, cells, missing, kept, say)
        results = kept.read(cells)
        scores += [result.score for result in results]
        images += [line for result in results for line in result.images]
        removed.update(
            dict.fromkeys(removals(task.name, family[task.name]).values()))
    parents, saw = opened.parents(), opened.base_saw()
    leaks = [
        leak for names in removed for leak in find_leaks(names, parents, saw)
    ]
    origin = dict(commit=commit(), versions=versions(), device=device())
    return LeftOutRun(opened.seed, tuple(leaks), tuple(scores), origin), images


def _score_target(opened: LeftOutExperts, task: Task, cells: Sequence[Wanted],
                  missing: Sequence[Wanted], kept: KeptCells,
                  say: Say) -> None:
    """Compute the cells of a target that are not there."""
    where = f'seed {opened.seed}, {task.name}'
    if kept.outdated(cells):
        say(f'{where}: {kept.outdated(cells)} kept cells are of other '
            'settings than these')
    names = [t.name for t in opened.tasks]
    own = FixedGate(task.name)
    for name in names:
        own.fit(name, None)
    oracle = LeftOutCell((), oracle_method(task.name), own)
    others = [cell for cell in missing if cell.method.name != ORACLE]
    by_removal: Dict[Any, List[LeftOutMethod]] = {}
    for cell in others:
        by_removal.setdefault(cell.removed, []).append(cell.method)
    say(f'{where}: embedding training images')
    fitted = [
        LeftOutCell(removed, method, gate)
        for removed, methods in by_removal.items()
        for method, gate in fitted_gates(
            methods,
            opened.embeddings([n for n in names
                               if n not in removed], views_wanted(methods)))
    ]
    loader = opened.val_loader(task)
    results = evaluate_cells(
        opened.model, task, loader, oracle, fitted, opened.image_log(task),
        opened.seed, _Progress(where, len(loader.dataset), len(missing), say))
    scored = [
        Wanted((), oracle_method(task.name)),
        *(Wanted(cell.removed, cell.method) for cell in fitted)
    ]
    kept.keep(scored, results)


class _Progress:
    """Says how many images are done, now and then."""

    def __init__(self, where: str, total: int, cells: int, say: Say) -> None:
        self._where, self._total, self._cells = where, total, cells
        self._say = say
        self._started = self._said = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if done < self._total and now - self._said < _PAUSE:
            return
        self._said = now
        left = (now - self._started) / done * (self._total - done)
        self._say(f'{self._where}: {done} of {self._total} images in '
                  f'{self._cells} cells, {left:.0f} s left')
