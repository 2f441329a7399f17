# SPDX-License-Identifier: Apache-2.0
"""Compare methods on a stream: run configs and seeds, or read their runs.

    python tools/leaderboard.py CONFIG... --seeds 0 1 2 --work-dir DIR
    python tools/leaderboard.py --results DIR... --out DIR

The first form trains every config with every seed into
DIR/<config>/seed_<n>, all configs with the first seed before any with the
second, so that the table is complete early. What is finished is kept and what
was stopped goes on: Ctrl-C and the same command again lose a few iterations.
A run that fails does not stop the others; the exit status is then 1.

leaderboard.{html,md,csv}, runs.csv and a chart per stream are written into
--out after each run. Joined are only runs of the same stream, order of tasks
and schema; what was left out is listed with the reason.

A config may take over the experts of another one, to compare gates:

    train_cfg = dict(experts_from='{work_dir}/OTHER_CONFIG/seed_{seed}')

{work_dir} and {seed} are filled in, and the run waits for the other one.
"""
from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import List, Sequence

import mmseg_mile  # noqa: F401  registers the components
from mmseg_mile.apis.leaderboard_plan import plan_runs
from mmseg_mile.apis.leaderboard_runs import LeaderboardRuns
from mmseg_mile.evaluation.leaderboard import REFERENCE, read_leaderboard
from mmseg_mile.visualization.leaderboard_page import write_leaderboard

TRAIN = Path(__file__).resolve().with_name('train.py')


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
        '--reference',
        default=REFERENCE,
        help='method that Delta_m is taken against (default: %(default)r)')
    args = parser.parse_args()
    if bool(args.configs) == bool(args.results):
        parser.error('give configs to run, or --results to read')
    if args.results and args.out is None:
        parser.error('--results needs --out')
    return args


def run(args: argparse.Namespace) -> int:
    """Run the configs; tables are written as runs finish."""
    out = args.out or args.work_dir
    plan = plan_runs(args.configs, args.seeds, args.work_dir, args.cfg_options,
                     args.pretrained)
    runs = LeaderboardRuns(
        plan, [sys.executable, str(TRAIN)],
        args.work_dir,
        args.jobs,
        on_finished=lambda: write([args.work_dir], out, args.reference),
        say=partial(print, flush=True))
    try:
        failed = runs.run_all()
    except KeyboardInterrupt:
        print('\nStopped. This goes on where it stopped:\n  ' +
              shlex.join(['python', *sys.argv]))
        return 130
    for path in write([args.work_dir], out, args.reference):
        print(path)
    for name, reason, output in failed:
        print(f'\nFAILED: {name}: {reason}\n{output}', file=sys.stderr)
    return 1 if failed else 0


def write(folders: Sequence[Path], out: Path, reference: str) -> List[Path]:
    """Compare the runs in some folders."""
    return write_leaderboard(read_leaderboard(folders, reference), out)


def main() -> int:
    """Run or read, and write the tables."""
    args = parse_args()
    warnings.filterwarnings('ignore', category=UserWarning)
    if args.results:
        for path in write(args.results, args.out, args.reference):
            print(path)
        return 0
    return run(args)


if __name__ == '__main__':
    sys.exit(main())
