# SPDX-License-Identifier: Apache-2.0
"""Many experts in one library against few."""
from __future__ import annotations

import copy
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import torch
from mmengine.config import Config, ConfigDict
from safetensors.torch import save_file
from torch import Tensor

from mmseg_mile.engine.work_dir import provenance
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.methods.prediction import blank_samples
from mmseg_mile.structures import Task
from .harness import (Report, Settings, Spread, figures_of, goal_of,
                      interleaved_seconds, model_name, print_figures,
                      range_text, ratios, settled_bytes)
from .models import (ExpertDrawer, build_expert_segmentor, build_stock,
                     domain_images, load_model_config, preprocess, quiet,
                     stock_model_config)
from .prediction import Ours, Subject


class WrittenLibrary(NamedTuple):
    """A library of ``len(tasks)`` experts.

    Args:
        config (ConfigDict): Of the model that the experts belong to.
        folder (Path): Of the library.
        tasks (tuple[Task]): In order; the first ones know the domains of
            ``domain_images``.
        num_bytes (list[int]): Adapter, norm layers and head of each expert
            in memory.
    """
    config: ConfigDict
    folder: Path
    tasks: Tuple[Task, ...]
    num_bytes: List[int]

    def open(self, model: ExpertSegmentor, count: int) -> None:
        """Load the base and the first ``count`` experts into a model."""
        with quiet():
            model.load_tasks(self.tasks[:count], self.folder)


def write_library(path: str, folder: Path, count: int,
                  settings: Settings) -> WrittenLibrary:
    """Draw and save experts of a config.

    Args:
        path (str): File of the config.
        folder (Path): Where to.
        count (int): How many experts.
        settings (Settings): Seed and domains.
    """
    config = load_model_config(path, settings)
    model = build_expert_segmentor(config, settings)
    drawer = ExpertDrawer(model, config, domain_images(settings), settings)
    store = ExpertStore(folder)
    store.save_base(model.backbone.base_state(), model.backbone.fingerprint())
    origin = provenance(Config(dict(model=config)))
    tasks, sizes = [], []
    for expert in drawer.draw(count):
        store.save(dataclasses.replace(expert, provenance=origin))
        tasks.append(Task(expert.name, expert.classes, expert.palette, {}, {}))
        sizes.append(
            sum(v.numel() * v.element_size()
                for part, tensors in expert.parts.items()
                if part != 'prototypes' for v in tensors.values()))
    return WrittenLibrary(config, folder, tuple(tasks), sizes)


def benchmark_inputs(model: ExpertSegmentor, settings: Settings) -> Tensor:
    """The normalised batch of the settings, on the device."""
    with torch.no_grad():
        return preprocess(model, domain_images(settings).to(settings.device))


_TOUCH_SIDE = 32


def library_memory(config: str, folder: Path, count: int,
                   settings: Settings) -> Dict[str, int]:
    """Resident bytes with the first ``count`` experts of a library.

    Args:
        config (str): File of the config.
        folder (Path): Of the library.
        count (int): How many of its experts.
        settings (Settings): Of the benchmark.

    Returns:
        dict[str, int]: ``opened`` after the library was opened and a batch
        predicted, ``used`` after every expert has predicted an image.
    """
    return figures_of(
        'analysis_tools.benchmark.library_scale',
        dict(
            config=config,
            folder=str(folder),
            count=count,
            settings=dataclasses.asdict(settings)))


@torch.no_grad()
def measure(config: str, folder: Path, count: int,
            settings: Settings) -> Dict[str, Any]:
    """In this process; see :func:`library_memory`."""
    with settings.computing(), quiet():
        model = build_expert_segmentor(
            load_model_config(config, settings), settings)
        store = ExpertStore(folder)
        model.backbone.load_base(*store.load_base())
        model.import_experts(store.open(store.names[:count]))
        inputs = benchmark_inputs(model, settings)
        model.predict(inputs, blank_samples(inputs))
        opened = settled_bytes()
        image = inputs[:1, :, :_TOUCH_SIDE, :_TOUCH_SIDE]
        for name in model.expert_names:
            with model.forced(name):
                model.predict(image, blank_samples(image))
        return dict(opened=opened, used=settled_bytes())


GOALS = dict(segformer_b2=1 / 20)
# Part of an expert -> the files of its folder that make it up.
PARTS = dict(
    adapter=('adapter_model.safetensors', ),
    head=('head.safetensors', ),
    norm=('norm.safetensors', ),
    prototypes=('prototypes.safetensors', ),
    json=('adapter_config.json', 'expert.json'))
_COLUMNS = dict(
    model='model',
    **{f'{part}_bytes': part
       for part in PARTS},
    expert_bytes='expert, bytes',
    stock_bytes='stock checkpoint, bytes',
    ratio_text='expert / stock',
    goal_text='goal')


def benchmark_disk(configs: Sequence[str], settings: Settings) -> Report:
    """An expert's folder, part by part, against stock weights in fp32.

    The stock checkpoint holds the weights of backbone and head alone, as
    safetensors: no optimizer, no auxiliary head.

    Args:
        configs (Sequence[str]): Files whose model is an ``ExpertSegmentor``.
        settings (Settings): Seed and size of the images that the prototypes
            are made of.
    """
    settings = dataclasses.replace(settings, experts=1)
    rows = [_measure_disk(config, settings) for config in configs]
    return Report('disk', 'One expert on disk, with its head', settings,
                  _COLUMNS, rows)


def _measure_disk(config: str, settings: Settings) -> Dict[str, Any]:
    """The row of one config."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = write_library(config, folder / 'library', 1, settings)
        sizes = _part_sizes(folder / 'library' / library.tasks[0].name)
        stock = build_stock(stock_model_config(library.config), settings)
        save_file({
            k: v.contiguous()
            for k, v in stock.state_dict().items()
        }, str(folder / 'stock.safetensors'))
        stock_bytes = (folder / 'stock.safetensors').stat().st_size
    expert_bytes = sum(sizes.values())
    goal = goal_of(GOALS, config)
    return dict(
        model=model_name(config),
        **{
            f'{part}_bytes': size
            for part, size in sizes.items()
        },
        expert_bytes=expert_bytes,
        stock_bytes=stock_bytes,
        ratio=expert_bytes / stock_bytes,
        ratio_text=f'1/{stock_bytes / expert_bytes:.1f}',
        goal=goal,
        goal_text=f'1/{1 / goal:.0f}' if goal else None)


def _part_sizes(folder: Path) -> Dict[str, int]:
    """Bytes per part.

    Raises:
        ValueError: If the folder holds a file that is no part.
    """
    sizes = {part: 0 for part in PARTS}
    known = {file: part for part, files in PARTS.items() for file in files}
    strange: List[str] = []
    for path in folder.iterdir():
        if path.name in known:
            sizes[known[path.name]] += path.stat().st_size
        else:
            strange.append(path.name)
    if strange:
        raise ValueError(f'{folder} holds files of no known part of an '
                         f'expert: {strange}')
    return sizes


TIME_GOAL = 1.02
MEMORY_GOAL = 1.05
_OPENINGS = 3
_SCALE_COLUMNS = dict(
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
                rows += _measure_scale(config, library, sizes, settings,
                                       failures)
    return Report(
        'scale', f'Libraries of {", ".join(map(str, sizes))} experts, the '
        f'same batch of {settings.batch}, {settings.size} px, '
        f'{settings.dtype}', settings, _SCALE_COLUMNS, rows, failures)


def _measure_scale(config: str, library: WrittenLibrary, sizes: Sequence[int],
                   settings: Settings,
                   failures: List[str]) -> List[Dict[str, Any]]:
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


if __name__ == '__main__':
    given = json.loads(sys.argv[1])
    print_figures(
        measure(given['config'], Path(given['folder']), given['count'],
                Settings(**given['settings'])))
