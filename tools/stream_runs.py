# SPDX-License-Identifier: Apache-2.0
"""Runs of configs and seeds: planned, run in processes, gone on with."""
from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import (Any, Callable, Dict, List, NamedTuple, Optional, Sequence,
                    Tuple)

import torch
from filelock import FileLock, Timeout
from mmengine.config import DictAction

import mmseg_mile  # noqa: F401  registers the components
from mmseg.registry import MODELS
from mmseg_mile.apis.library_model import read_config, set_pretrained
from mmseg_mile.engine.work_dir import changes, refuse, settings_of
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.files import read_json

TRAIN = [sys.executable, str(Path(__file__).resolve().with_name('train.py'))]
# Settings that this program chooses for each run.
OWN_OPTIONS = ('work_dir', 'resume', 'randomness.seed',
               'train_cfg.experts_from')
TAIL_LINES = 20


class Run(NamedTuple):
    """One config with one seed.

    Args:
        name (str): Config and seed, for people.
        work_dir (Path): Where its results go.
        arguments (list[str]): Of ``tools/train.py``.
        method (str): Name that it has in the tables.
        tasks (list[str]): In the order in which it learns them.
        needs (Path, optional): Absolute work dir whose experts it takes
            over.
    """
    name: str
    work_dir: Path
    arguments: List[str]
    method: str
    tasks: List[str]
    needs: Optional[Path] = None

    @property
    def results(self) -> Optional[StreamResults]:
        """StreamResults: What it measured, None before it is finished."""
        path = self.work_dir / 'results.json'
        if not path.exists():
            return None
        found = StreamResults.load(path)
        # the work of a prediction is counted when all else is done
        done = (
            found.num_finished_rows == len(found.tasks)
            and found.cost.macs is not None)
        return found if done and found.tasks == self.tasks else None

    @property
    def log(self) -> Path:
        """Path: What it prints."""
        return self.work_dir.with_name(f'{self.work_dir.name}.log')


def add_run_arguments(parser: argparse.ArgumentParser, work_dir: Path) -> None:
    """Give a tool the arguments that its runs have in common.

    Args:
        parser (argparse.ArgumentParser): Of the tool.
        work_dir (Path): Where runs go by default.
    """
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=work_dir,
        help='where runs go (default: %(default)s)')
    parser.add_argument(
        '--pretrained', help='weights that every backbone starts from')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        help='settings of every run that override its config, as key=value')
    parser.add_argument(
        '--jobs',
        type=num_jobs,
        default=1,
        help='runs at the same time (default: 1). They share out the cores, '
        'unless OMP_NUM_THREADS is set, and the GPUs where there are '
        'several; on few cores, more jobs of one thread are faster than '
        'fewer of many')


def num_jobs(text: str) -> int:
    """The value of --jobs."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {number}')
    return number


def refuse_own(options: Sequence[str], own: Sequence[str]) -> None:
    """Refuse settings that a tool chooses for each run itself.

    Args:
        options (Sequence[str]): Given for all runs, as key=value.
        own (Sequence[str]): Names of the tool's own settings.
    """
    found = [o for o in options if o.partition('=')[0] in own]
    if found:
        raise ValueError(f'{found} differ from run to run: leave them out of '
                         '--cfg-options, give --seeds and --work-dir instead')


def plan_run(config: str, seed: int, root: Path, options: Sequence[str],
             pretrained: Optional[str]) -> Run:
    """The run of one config with one seed.

    Args:
        config (str): Path of the config.
        seed (int): Random seed.
        root (Path): The run gets ``<config>/seed_<n>/`` in it.
        options (Sequence[str]): Settings that override the config, as
            key=value.
        pretrained (str, optional): Weights of the backbone, instead of what
            the config says.

    Raises:
        ValueError: If the config has no stream, a setting cannot be met, or
            the work dir holds a run with other settings.
    """
    cfg = read_config(config)
    if 'tasks' not in (cfg.get('train_cfg') or {}):
        raise ValueError(f'{config} must have train_cfg.tasks: it is no '
                         'config of a stream')
    work_dir = root / Path(config).stem / f'seed_{seed}'
    options = [*options, f'randomness.seed={seed}']
    needs = cfg.train_cfg.get('experts_from')
    if needs is not None:
        try:
            needs = needs.format(work_dir=root, seed=seed)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f'{config}: train_cfg.experts_from may hold {{work_dir}} and '
                f'{{seed}}, got {needs!r}') from error
        options.append(f'train_cfg.experts_from={needs}')
    cfg.merge_from_dict(parse_options(options))
    arguments = [config, '--work-dir', str(work_dir), '--resume']
    if pretrained is not None:
        set_pretrained(cfg, pretrained)
        arguments += ['--pretrained', pretrained]
    known = work_dir / 'settings.json'
    if known.exists():
        refuse(
            changes(read_json(known), settings_of(cfg, seed)),
            cfg.train_cfg.get('changed_settings', ()), work_dir)
    method = cfg.train_cfg.get('method') or MODELS.get(cfg.model.type).METHOD
    order = cfg.train_cfg.get('order') or [
        task.name for task in cfg.train_cfg.tasks
    ]
    return Run(f'{Path(config).stem}, seed {seed}',
               work_dir, [*arguments, '--cfg-options', *options], method,
               list(order), needs and Path(needs).resolve())


def parse_options(options: Sequence[str]) -> Dict[str, Any]:
    """The values of key=value texts, as ``tools/train.py`` reads them."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='+', action=DictAction)
    return parser.parse_args(['--options', *options]).options


def run_missing(plan: Sequence[Run],
                command: Sequence[str],
                jobs: int = 1,
                on_finished: Callable[[], object] = lambda: None,
                log: Callable[[str], object] = print) -> Dict[str, str]:
    """Run what is not finished, some runs at a time, in the order given.

    A run waits for the one whose experts it takes over. Whatever ends this
    function ends the runs first; they go on from their snapshots.

    Args:
        plan (Sequence[Run]): All runs.
        command (Sequence[str]): Program that gets the arguments of a run.
        jobs (int): Runs at the same time. Defaults to 1.
        on_finished (Callable): Called after each run that finished.
        log (Callable): Gets lines of progress. Defaults to ``print``.

    Returns:
        dict[str, str]: Runs that failed, and why.
    """
    waiting = [run for run in plan if run.results is None]
    unfinished = {run.work_dir.resolve() for run in waiting}
    active: Dict[int, Tuple[Run, subprocess.Popen]] = {}
    failed: Dict[str, str] = {}
    log(f'{len(plan) - len(waiting)} of {len(plan)} runs are finished already')
    # a scheduler's signal ends the runs as Ctrl-C does
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while waiting or active:
            for slot in {*range(jobs)} - {*active}:
                run = next((r for r in waiting if r.needs not in unfinished),
                           None)
                if run is not None:
                    waiting.remove(run)
                    active[slot] = run, start(run, command, slot, jobs)
                    log(f'{run.name} starts, see {run.log}')
            if not active:
                for run in waiting:
                    failed[run.name] = (f'{run.needs}, whose experts it '
                                        'needs, did not finish')
                break
            time.sleep(0.1)
            for slot, (run, process) in list(active.items()):
                if process.poll() is None:
                    continue
                del active[slot]
                left = len(waiting) + len(active)
                done = f'[{len(plan) - left}/{len(plan)}] {run.name}'
                results = run.results
                if process.returncode or results is None:
                    failed[run.name] = ending(run, process.returncode)
                    log(f'{done} FAILED')
                else:
                    unfinished.remove(run.work_dir.resolve())
                    average = results.scores['average_miou']
                    log(f'{done}: average mIoU {average:.1f} %')
                    on_finished()
    finally:
        for _, process in active.values():
            process.terminate()
        for _, process in active.values():
            process.wait()
        signal.signal(signal.SIGTERM, handler)
    return failed


def start(run: Run, command: Sequence[str], slot: int,
          jobs: int) -> subprocess.Popen:
    """A process for one of several runs, with its share of the machine."""
    environment = dict(os.environ, PYTHONUNBUFFERED='1')
    if jobs > 1:
        cores = len(os.sched_getaffinity(0))
        environment.setdefault('OMP_NUM_THREADS', str(max(1, cores // jobs)))
        gpus = environment.get('CUDA_VISIBLE_DEVICES', '').split(',')
        if gpus == ['']:
            gpus = [str(index) for index in range(torch.cuda.device_count())]
        if len(gpus) > 1:
            environment['CUDA_VISIBLE_DEVICES'] = gpus[slot % len(gpus)]
    run.log.parent.mkdir(parents=True, exist_ok=True)
    with open(run.log, 'wb') as file:
        return subprocess.Popen([*command, *run.arguments],
                                stdin=subprocess.DEVNULL,
                                stdout=file,
                                stderr=subprocess.STDOUT,
                                env=environment)


def ending(run: Run, status: int) -> str:
    """Report of a failed run: its status and the end of its output."""
    how = f'exit status {status}' if status else (
        'ended without having finished its tasks')
    lines = run.log.read_text('utf-8', errors='replace').splitlines()
    return '\n'.join([f'{how}, the end of {run.log}:', *lines[-TAIL_LINES:]])


def run_in(args: argparse.Namespace, plan: Sequence[Run],
           write: Callable[[], Sequence[Path]]) -> int:
    """Run what is missing; one tool at a time has the work dir.

    Args:
        args (argparse.Namespace): Of :func:`add_run_arguments`.
        plan (Sequence[Run]): All runs.
        write (Callable): Writes the tables, after each run and at the end,
            and returns their paths.

    Returns:
        int: Exit status of the tool.
    """
    args.work_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(args.work_dir / '.runs.lock').acquire(timeout=0):
            failed = run_missing(
                plan,
                TRAIN,
                args.jobs,
                on_finished=write,
                log=partial(print, flush=True))
    except Timeout:
        print(
            f'another process runs configs in {args.work_dir}: wait for it, '
            'or choose another --work-dir',
            file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nStopped. This goes on where it stopped:\n  ' +
              shlex.join(['python', *sys.argv]))
        return 130
    print(*write(), sep='\n')
    for name, reason in failed.items():
        print(f'\nFAILED: {name}: {reason}', file=sys.stderr)
    return 1 if failed else 0
