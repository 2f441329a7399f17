# SPDX-License-Identifier: Apache-2.0
"""Subject, settings and results of a benchmark."""
from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import (Any, Callable, Dict, Iterator, List, Mapping, Optional,
                    Sequence)

import numpy as np
import torch
from prettytable import PrettyTable, TableStyle

from mmseg.structures import SegDataSample
from mmseg_mile.engine.work_dir import commit, versions
from mmseg_mile.files import write_json

DTYPES = ('fp32', 'bf16')
MODES = ('whole', 'slide')


@dataclass(frozen=True)
class Settings:
    """Batch, device and number of repetitions of one benchmark.

    Args:
        size (int): Side of the square images in pixels. Defaults to 512.
        batch (int): Images per batch. Defaults to 4.
        experts (int): Experts that the batch mixes: image i belongs to
            expert ``i % experts``. Defaults to 4.
        rounds (int): How often each contender is timed. Defaults to 9.
        warmup (int): Untimed runs of each contender. Defaults to 2.
        device (str): As in ``torch.device``. Defaults to 'cpu'.
        dtype (str): 'fp32', or 'bf16' for autocast. Defaults to 'fp32'.
        mode (str): 'whole', or 'slide' for windows of half the image's
            side at a stride of three eighths of it. Defaults to 'whole'.
        threads (int, optional): Of torch; None leaves torch's choice.
            Defaults to None.
        seed (int): Of weights and images. Defaults to 0.

    Raises:
        ValueError: If a value is out of range.
    """
    size: int = 512
    batch: int = 4
    experts: int = 4
    rounds: int = 9
    warmup: int = 2
    device: str = 'cpu'
    dtype: str = 'fp32'
    mode: str = 'whole'
    threads: Optional[int] = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (('size', 32), ('batch', 1), ('experts', 1),
                            ('rounds', 1), ('warmup', 0)):
            if getattr(self, name) < least:
                raise ValueError(f'--{name} must be at least {least}, got '
                                 f'{getattr(self, name)}')
        if self.size % 32:
            raise ValueError(f'--size must be a multiple of 32, got '
                             f'{self.size}: the deepest features have one '
                             'value per 32 pixels')
        if self.experts > self.batch:
            raise ValueError(
                f'--experts must not exceed --batch, {self.batch}, got '
                f'{self.experts}: each expert gets at least one image')
        for name, allowed in (('dtype', DTYPES), ('mode', MODES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f'--{name} must be one of {allowed}, got '
                                 f'{getattr(self, name)!r}')
        if self.threads is not None and self.threads < 1:
            raise ValueError(f'--threads must be at least 1, got '
                             f'{self.threads}')
        if torch.device(self.device).type == 'cuda' and (
                not torch.cuda.is_available()):
            raise ValueError(f'--device is {self.device!r}, but torch finds '
                             "no CUDA device: use 'cpu'")

    @property
    def test_cfg(self) -> Dict[str, Any]:
        """dict: mmseg's ``test_cfg`` for the mode."""
        if self.mode == 'whole':
            return dict(mode='whole')
        crop, stride = self.size // 2, 3 * self.size // 8
        return dict(
            mode='slide', crop_size=(crop, crop), stride=(stride, stride))

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Threads as asked for, and denormals as zeros, for all alike."""
        threads = torch.get_num_threads()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        torch.set_flush_denormal(True)
        try:
            yield
        finally:
            torch.set_flush_denormal(False)
            torch.set_num_threads(threads)

    def autocast(self) -> torch.autocast:
        """The context in which every contender runs."""
        return torch.autocast(
            torch.device(self.device).type,
            dtype=torch.bfloat16,
            enabled=self.dtype == 'bf16')

    def synchronise(self) -> None:
        """Wait until the device has done what it was asked to do."""
        if torch.device(self.device).type == 'cuda':
            torch.cuda.synchronize(self.device)

    def environment(self) -> Dict[str, Any]:
        """Commit, versions, device and threads, for the record."""
        device = torch.device(self.device)
        return dict(
            commit=commit(),
            versions=versions(),
            device=torch.cuda.get_device_name(device)
            if device.type == 'cuda' else device.type,
            cpu=_cpu_model(),
            threads=self.threads or torch.get_num_threads())


def _cpu_model() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        lines = []
    names = [x.split(':', 1)[1].strip() for x in lines if 'model name' in x]
    return names[0] if names else platform.processor() or platform.machine()


Runs = Mapping[str, Callable[[], Any]]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""
    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: List[float]) -> 'Spread':
        """Of at least one value."""
        lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75))
        return cls(float(median), float(lower), float(upper))


def interleaved_seconds(runs: Runs,
                        settings: Settings) -> Dict[str, List[float]]:
    """Time every run once per round, each round starting with another.

    What slows the machine down for a while then hits all of them, and no
    run always follows the same one.

    Args:
        runs (Mapping[str, Callable]): Contenders by name.
        settings (Settings): Number of rounds and of untimed runs.

    Returns:
        dict[str, list[float]]: Seconds per round.
    """
    seconds: Dict[str, List[float]] = {name: [] for name in runs}
    for _ in range(settings.warmup):
        for run in runs.values():
            run()
    names = list(runs)
    for index in range(settings.rounds):
        start = index % len(names)
        for name in names[start:] + names[:start]:
            settings.synchronise()
            begin = time.perf_counter()
            runs[name]()
            settings.synchronise()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratios(seconds: Mapping[str, List[float]],
           reference: str) -> Dict[str, Spread]:
    """Of each contender to ``reference``, round by round.

    Args:
        seconds (Mapping[str, list[float]]): From
            :func:`interleaved_seconds`.
        reference (str): The contender that counts as 1.
    """
    return {
        name: Spread.of([a / b for a, b in zip(values, seconds[reference])])
        for name, values in seconds.items()
    }


MAX_LOGITS_DIFFERENCE = 1e-4
MAX_LABEL_SHARE = 1e-4


@dataclass(frozen=True)
class Difference:
    """Largest difference of logits, and share of pixels with another label.

    Args:
        logits (float): ``max |a - b| / max |b|``, the worst image.
        labels (float): Share of all pixels, 0 to 1.
        num_labels (int): Distinct labels in the reference's maps: with one,
            equal label maps would mean nothing.
        num_pixels (int): Of all maps; one of them may lie on a tie, which
            rounding decides.
    """
    logits: float
    labels: float
    num_labels: int
    num_pixels: int

    @property
    def passed(self) -> bool:
        """bool: Whether fp32 rounding explains the difference."""
        return self.within(MAX_LOGITS_DIFFERENCE)

    def within(self, logits: float) -> bool:
        """Whether logits differ by no more than this, and labels hardly."""
        # written so that NaN fails
        few = max(MAX_LABEL_SHARE, 1 / self.num_pixels)
        return (self.logits <= logits and self.labels <= few
                and self.num_labels > 1)


def compare(samples: Sequence[SegDataSample],
            references: Sequence[SegDataSample]) -> Difference:
    """Compare predictions image by image.

    Args:
        samples (Sequence[SegDataSample]): Of the model in question.
        references (Sequence[SegDataSample]): Of the model that is right.

    Raises:
        ValueError: If a prediction has no logits.
    """
    logits: List[float] = []
    wrong = total = 0
    labels = set()
    for sample, reference in zip(samples, references):
        if 'seg_logits' not in sample or 'seg_logits' not in reference:
            raise ValueError('a prediction holds no seg_logits to compare')
        mine, right = (s.seg_logits.data.float() for s in (sample, reference))
        logits.append(float((mine - right).abs().max() / right.abs().max()))
        mine, right = (s.pred_sem_seg.data for s in (sample, reference))
        wrong += int((mine != right).sum())
        total += right.numel()
        labels |= set(right.unique().tolist())
    # max() would pass over NaN
    worst = max(logits) if all(x == x for x in logits) else float('nan')
    return Difference(worst, wrong / total, len(labels), total)


@dataclasses.dataclass
class Report:
    """Results of a benchmark.

    Args:
        name (str): The subcommand.
        title (str): What was measured, in a sentence.
        settings (Settings): How.
        columns (dict[str, str]): Field of a row -> heading of its column.
        rows (list[dict]): One per line of the table; may hold more fields.
        failures (list[str]): What must not be; empty if all is well.
    """
    name: str
    title: str
    settings: Settings
    columns: Dict[str, str]
    rows: List[Dict[str, Any]]
    failures: List[str] = dataclasses.field(default_factory=list)

    def record(self) -> Dict[str, Any]:
        """Everything, for JSON."""
        return dict(
            benchmark=self.name,
            title=self.title,
            settings=dataclasses.asdict(self.settings),
            environment=self.settings.environment(),
            rows=self.rows,
            failures=self.failures)

    def table(self) -> str:
        """The rows as a Markdown table."""
        table = PrettyTable(list(self.columns.values()), align='r')
        table.set_style(TableStyle.MARKDOWN)
        for field in ('model', 'contender', 'part', 'note'):
            if field in self.columns:
                table.align[self.columns[field]] = 'l'
        for row in self.rows:
            table.add_row([_cell(row.get(field)) for field in self.columns])
        return table.get_string()

    def markdown(self) -> str:
        """Title, circumstances, table and failures."""
        where = self.settings.environment()
        parts = ', '.join(f'{k} {v}' for k, v in where['versions'].items())
        lines = [
            self.title, '',
            f'{where["device"]}, {where["cpu"]}, {where["threads"]} threads, '
            f'commit {where["commit"]}, {parts}.', '',
            self.table()
        ]
        lines += ['', *(f'FAILED: {x}'
                        for x in self.failures)] if self.failures else []
        return '\n'.join(lines) + '\n'

    def write(self, folder: Path) -> List[Path]:
        """``benchmark_<name>.{json,md}`` in ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = folder / f'benchmark_{self.name}'
        paths = [stem.with_suffix(s) for s in ('.json', '.md')]
        write_json(paths[0], self.record())
        paths[1].write_text(self.markdown(), encoding='utf-8')
        return paths


def model_name(path: str) -> str:
    """Name of a config in tables: its file without the suffix."""
    return Path(path).stem


def range_text(spread: Any) -> str:
    """Median and quartiles of a ratio."""
    return f'{spread.median:.3f} ({spread.lower:.3f}-{spread.upper:.3f})'


def raised(error: Exception) -> str:
    """An exception in one line."""
    first = (str(error).splitlines() or [''])[0]
    return f'raised {type(error).__name__}: {first[:120]}'


def goal_of(goals: Dict[str, float], config: str) -> Optional[float]:
    """The goal of the longest name that the config's file starts with."""
    stem = model_name(config)
    known: Sequence[str] = [n for n in goals if stem.startswith(n)]
    return goals[max(known, key=len)] if known else None


def _cell(value: Any) -> str:
    if value is None:
        return '-'
    if isinstance(value, float):
        return f'{value:.0f}' if abs(value) >= 100 else f'{value:#.3g}'
    return str(value)


_STATUS = Path('/proc/self/status')


def figures_of(module: str, task: Dict[str, Any]) -> Dict[str, Any]:
    """Run ``python -m module TASK`` and read what it prints last.

    Args:
        module (str): Reads a JSON object from its first argument and prints
            one with :func:`print_figures`.
        task (dict): That object.

    Raises:
        RuntimeError: If the process fails; quotes the end of its output.
    """
    tools = str(Path(__file__).resolve().parents[2])
    paths = [tools, *filter(None, [os.environ.get('PYTHONPATH')])]
    process = subprocess.run([sys.executable, '-m', module,
                              json.dumps(task)],
                             capture_output=True,
                             text=True,
                             env=dict(
                                 os.environ,
                                 PYTHONPATH=os.pathsep.join(paths)))
    if process.returncode != 0:
        raise RuntimeError(f'{module} failed on {task}: '
                           f'{process.stderr[-2000:]}')
    return json.loads(process.stdout.splitlines()[-1])


def print_figures(figures: Dict[str, Any]) -> None:
    """Hand figures to :func:`figures_of`."""
    print(json.dumps(figures))


def resident_bytes() -> int:
    """Resident set of this process now; its peak where /proc is missing."""
    try:
        lines = _STATUS.read_text(encoding='utf-8').splitlines()
    except OSError:
        # kilobytes, but bytes on macOS
        unit = 1 if sys.platform == 'darwin' else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    values = [x.split() for x in lines if x.startswith('VmRSS:')]
    return 1024 * int(values[0][1])


def settled_bytes() -> int:
    """Resident set after freed memory went back to the system.

    An allocator keeps some of what was freed, another amount each time;
    glibc can be told not to.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)
    return resident_bytes()
