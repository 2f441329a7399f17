# SPDX-License-Identifier: Apache-2.0
"""Compare methods on a stream: run configs and seeds, or read their runs.

    python tools/leaderboard.py CONFIG... --seeds 0 1 2 --work-dir DIR
    python tools/leaderboard.py --results DIR... --out DIR

The first form trains every config with every seed into
DIR/<config>/seed_<n>, all configs with the first seed before any with the
second, so that the table is complete early. What is finished is kept and what
was stopped goes on: Ctrl-C and the same command again lose a few iterations.
A run that fails does not stop the others; the exit status is then 1.

leaderboard.{html,md,csv}, runs.csv, a chart per stream, and each table as it
is shown, tables/*.csv, are written into --out after each run. Joined are only
runs of the same stream, order of tasks and schema; what was left out is
listed with the reason.

A config may take over the experts of another one, to compare gates:

    train_cfg = dict(experts_from='{work_dir}/OTHER_CONFIG/seed_{seed}')

{work_dir} and {seed} are filled in, and the run waits for the other one.

Another scheduler can run what is missing, one command per line; print again
for the runs that wait for others, and read them all with --results:

    python tools/leaderboard.py CONFIG... --work-dir DIR --print > missing
    xargs -P 4 -d '\\n' -I{} sh -c '{}' < missing
    sbatch --array=1-$(wc -l < missing) --wrap \\
        'eval "$(sed -n ${SLURM_ARRAY_TASK_ID}p missing)"'
"""
from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
import warnings
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
from mmseg_mile.evaluation.leaderboard import (REFERENCE, read_leaderboard,
                                               write_shown_tables)
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.files import read_json
from mmseg_mile.visualization.leaderboard_page import write_leaderboard

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


def plan_runs(configs: Sequence[str],
              seeds: Sequence[int],
              root: Path,
              options: Sequence[str] = (),
              pretrained: Optional[str] = None) -> List[Run]:
    """Every config with the first seed, then with the second, and so on.

    Args:
        configs (Sequence[str]): Paths of configs.
        seeds (Sequence[int]): Random seeds.
        root (Path): Gets ``<config>/seed_<n>/`` of each run.
        options (Sequence[str]): Settings of every run, as key=value.
            Defaults to ().
        pretrained (str, optional): Weights of every backbone. Defaults to
            None: as the configs say.

    Raises:
        ValueError: If two runs would be mixed up, a setting cannot be met,
            or a work dir holds a run with other settings.
    """
    own = [o for o in options if o.partition('=')[0] in OWN_OPTIONS]
    if own:
        raise ValueError(f'{own} differ from run to run: give --seeds and '
                         '--work-dir instead')
    plan = [
        plan_run(config, seed, root, options, pretrained) for seed in seeds
        for config in configs
    ]
    methods: Dict[Any, str] = {}
    for config, run in zip(configs, plan):
        other = methods.setdefault((run.method, *run.tasks), config)
        if other != config:
            raise ValueError(
                f'{other} and {config} both call their method {run.method!r}, '
                'and would pass for seeds of one: give one of them a name '
                'with train_cfg.method')
    folders = {run.work_dir.resolve() for run in plan}
    if len(folders) < len(plan):
        raise ValueError(
            'configs must have different file names, and seeds must differ, '
            f'got {list(configs)} and {list(seeds)}')
    for run in plan:
        if run.needs and run.needs not in folders and not (
                run.needs / 'results.json').exists():
            raise ValueError(
                f'{run.name} takes its experts from {run.needs}, which holds '
                'no results and is of none of the configs: name the config '
                'that trains them as well')
    return plan


def plan_run(config: str, seed: int, root: Path, options: Sequence[str],
             pretrained: Optional[str]) -> Run:
    """The run of one config with one seed, see :func:`plan_runs`."""
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


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='*', help='configs to run')
    parser.add_argument(
        '--results',
        nargs='+',
        type=Path,
        metavar='DIR',
        help='run nothing: read work dirs, or folders that hold some')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/leaderboard'),
        help='where runs go (default: %(default)s)')
    parser.add_argument(
        '--out', type=Path, help='where tables go (default: the work dir)')
    parser.add_argument(
        '--pretrained', help='weights that every backbone starts from')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        help='settings of every run that override its config, as key=value')
    parser.add_argument(
        '--jobs',
        type=int,
        default=1,
        help='runs at the same time (default: 1). They share out the cores, '
        'unless OMP_NUM_THREADS is set, and the GPUs where there are '
        'several; on few cores, more jobs of one thread are faster than '
        'fewer of many')
    parser.add_argument(
        '--print',
        action='store_true',
        help='run nothing: print the commands that could run now')
    parser.add_argument(
        '--reference',
        default=REFERENCE,
        help='method that Delta_m is taken against (default: %(default)r)')
    args = parser.parse_args()
    if bool(args.configs) == bool(args.results):
        parser.error('give configs to run, or --results to read')
    if args.results and args.out is None:
        parser.error('--results needs --out')
    if args.jobs < 1:
        parser.error(f'--jobs must be at least 1, got {args.jobs}')
    return args


def run_configs(args: argparse.Namespace) -> int:
    """Run the configs; tables are written as runs finish."""
    plan = plan_runs(args.configs, args.seeds, args.work_dir, args.cfg_options,
                     args.pretrained)
    if args.print:
        missing = [run for run in plan if run.results is None]
        unfinished = {run.work_dir.resolve() for run in missing}
        for run in missing:
            if run.needs not in unfinished:
                print(shlex.join([*TRAIN, *run.arguments]))
        return 0
    args.work_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(args.work_dir / '.leaderboard.lock')
    try:
        with lock.acquire(timeout=0):
            failed = run_missing(
                plan,
                TRAIN,
                args.jobs,
                on_finished=lambda: write([args.work_dir], args),
                log=partial(print, flush=True))
    except Timeout:
        print(
            f'another leaderboard works in {args.work_dir}: wait for it, '
            'or choose another --work-dir',
            file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nStopped. This goes on where it stopped:\n  ' +
              shlex.join(['python', *sys.argv]))
        return 130
    print(*write([args.work_dir], args), sep='\n')
    for name, reason in failed.items():
        print(f'\nFAILED: {name}: {reason}', file=sys.stderr)
    return 1 if failed else 0


def write(folders: Sequence[Path], args: argparse.Namespace) -> List[Path]:
    """Compare the runs in some folders."""
    leaderboard = read_leaderboard(folders, args.reference)
    out = args.out or args.work_dir
    return [
        *write_leaderboard(leaderboard, out),
        *write_shown_tables(leaderboard, out / 'tables')
    ]


def main() -> int:
    """Run or read, and write the tables."""
    args = parse_args()
    warnings.filterwarnings('ignore', category=UserWarning)
    if args.results:
        print(*write(args.results, args), sep='\n')
        return 0
    return run_configs(args)


if __name__ == '__main__':
    sys.exit(main())
