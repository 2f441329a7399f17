# SPDX-License-Identifier: Apache-2.0
"""Many experts in one library against few."""
from __future__ import annotations

import copy
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence

import torch

from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from .benchmark_models import build_expert_segmentor
from .contenders import Ours, Subject
from .domain_images import blank_samples
from .library_memory import library_memory
from .ratio_plot import Bar
from .report import Report, model_name, range_text
from .settings import Settings
from .timing import Spread, interleaved_seconds, ratios
from .written_library import WrittenLibrary, benchmark_inputs, write_library

TIME_GOAL = 1.02
MEMORY_GOAL = 1.05
_OPENINGS = 3
_COLUMNS = dict(
    model='model',
    experts='experts',
    open_seconds='open s',
    route_milliseconds='route ms',
    predict_milliseconds='predict ms',
    ratio_text='predict / fewest (quartiles)',
    goal='goal',
    opened_mebibytes='MiB grown, opened',
    used_mebibytes='MiB grown, all used',
    expected_mebibytes='MiB adapters + heads',
    memory_ratio='grown / expected',
    memory_goal='goal memory')


def benchmark_scale(configs: Sequence[str], settings: Settings,
                    counts: Sequence[int]) -> Report:
    """Open, route and predict with libraries of several sizes.

    The same batch, routed to the same experts, is predicted with each
    library, interleaved; label maps are compared first. Memory is measured
    in a process per library: what it grew by over that of the smallest one,
    after opening, and after every expert was used once.

    Args:
        configs (Sequence[str]): Files whose model is an ``ExpertSegmentor``.
        settings (Settings): Of the benchmark.
        counts (Sequence[int]): Experts per library.

    Returns:
        Report: Its ``failures`` name libraries of another prediction.

    Raises:
        ValueError: If there are not two different counts above 0.
    """
    sizes = sorted(set(counts))
    if len(sizes) < 2 or sizes[0] < 1:
        raise ValueError(f'--counts must name at least two different numbers '
                         f'of experts, got {list(counts)}')
    settings = dataclasses.replace(
        settings, experts=min(settings.experts, sizes[0]))
    rows: List[Dict[str, Any]] = []
    failures: List[str] = []
    with settings.computing():
        for config in configs:
            with tempfile.TemporaryDirectory() as folder:
                library = write_library(config, Path(folder), sizes[-1],
                                        settings)
                rows += measure(config, library, sizes, settings, failures)
    return Report(
        'scale', f'Libraries of {", ".join(map(str, sizes))} experts, the '
        f'same batch of {settings.batch}, {settings.size} px, '
        f'{settings.dtype}', settings, _COLUMNS, rows, _bars(rows),
        f'relative to {sizes[0]} experts (time), to the size of adapters and '
        'heads (memory)', failures)


def measure(config: str, library: WrittenLibrary, sizes: Sequence[int],
            settings: Settings, failures: List[str]) -> List[Dict[str, Any]]:
    """Compare, then time, libraries of one config.

    Args:
        config (str): File of the config.
        library (WrittenLibrary): Of the largest size.
        sizes (Sequence[int]): Experts per library, ascending.
        settings (Settings): Of the benchmark.
        failures (list[str]): Appended to.

    Returns:
        list[dict]: One row per size.
    """
    blank = build_expert_segmentor(library.config, settings)
    opened = {n: [] for n in sizes}  # type: Dict[int, List[float]]
    ours: Dict[int, Ours] = {}
    for _ in range(_OPENINGS):
        for size in sizes:
            model = copy.deepcopy(blank)
            start = time.perf_counter()
            library.open(model, size)
            opened[size].append(time.perf_counter() - start)
            ours[size] = _contender(library, model, settings)
    few = ours[sizes[0]].outputs()
    for size in sizes[1:]:
        if not all(
                torch.equal(a.pred_sem_seg.data, b.pred_sem_seg.data)
                for a, b in zip(ours[size].outputs(), few)):
            failures.append(f'{model_name(config)}: {size} experts predict '
                            f'other label maps than {sizes[0]}')
    runs = {f'predict {n}': ours[n].run for n in sizes}
    runs.update({f'route {n}': _routing(ours[n]) for n in sizes})
    seconds = interleaved_seconds(runs, settings)
    memory = {
        n: library_memory(config, library.folder, n, settings)
        for n in sizes
    }
    rows = []
    for size in sizes:
        expected = sum(library.num_bytes[sizes[0]:size])
        grown = {
            k: memory[size][k] - memory[sizes[0]][k]
            for k in ('opened', 'used')
        }
        rows.append(
            dict(
                model=model_name(config),
                experts=size,
                open_seconds=Spread.of(opened[size]).median,
                **_times(seconds, size, sizes[0]),
                opened_mebibytes=round(grown['opened'] / 2**20, 1),
                used_mebibytes=round(grown['used'] / 2**20, 1),
                expected_mebibytes=round(expected / 2**20, 1),
                memory_ratio=grown['used'] / expected if expected else None,
                memory_goal=MEMORY_GOAL if expected else None))
    return rows


def _contender(library: WrittenLibrary, model: ExpertSegmentor,
               settings: Settings) -> Ours:
    """Routed prediction, all set."""
    inputs = benchmark_inputs(model, settings)
    ours = Ours(Subject(library.config, settings, model, (), inputs, inputs))
    ours.prepare()
    return ours


def _routing(ours: Ours) -> Any:
    subject = ours.subject

    @torch.no_grad()
    def route() -> Any:
        with subject.settings.autocast():
            return subject.model.route(subject.inputs,
                                       blank_samples(subject.inputs))

    return route


def _times(seconds: Dict[str, List[float]], size: int,
           fewest: int) -> Dict[str, Any]:
    """Medians, and the ratio of predictions to the smallest library's."""
    ratio = ratios(seconds, f'predict {fewest}')[f'predict {size}']
    return dict(
        route_milliseconds=round(
            1e3 * Spread.of(seconds[f'route {size}']).median, 2),
        predict_milliseconds=round(
            1e3 * Spread.of(seconds[f'predict {size}']).median, 1),
        ratio=ratio.median,
        ratio_lower=ratio.lower,
        ratio_upper=ratio.upper,
        ratio_text=range_text(ratio),
        goal=TIME_GOAL if size > fewest else None)


def _bars(rows: List[Dict[str, Any]]) -> List[Bar]:
    bars = []
    for row in rows:
        bars.append(
            Bar(f'{row["model"]}: time', f'{row["experts"]} experts',
                row['ratio'], row['ratio_lower'], row['ratio_upper'],
                row['goal']))
    for row in rows:
        if row['memory_ratio'] is not None:
            bars.append(
                Bar(f'{row["model"]}: memory',
                    f'{row["experts"]} experts',
                    row['memory_ratio'],
                    goal=row['memory_goal']))
    return bars
