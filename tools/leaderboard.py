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
import shlex
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from stream_runs import (OWN_OPTIONS, TRAIN, Run, add_run_arguments, plan_run,
                         refuse_own, run_in)

from mmseg_mile.evaluation.leaderboard import (REFERENCE, read_leaderboard,
                                               write_shown_tables)
from mmseg_mile.visualization.leaderboard_page import write_leaderboard


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
    refuse_own(options, OWN_OPTIONS)
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
    parser.add_argument(
        '--out', type=Path, help='where tables go (default: the work dir)')
    add_run_arguments(parser, Path('work_dirs/leaderboard'))
    parser.add_argument(
        '--print',
        action='store_true',
        help='run nothing: print the commands that could run now')
    parser.add_argument(
        '--reference',
        default=REFERENCE,
        help='method that Delta_m is taken against (default: %(default)r)')
    parser.add_argument(
        '--compare',
        help='method that the others are compared with, image by image '
        '(default: the one of rank 1)')
    args = parser.parse_args()
    if bool(args.configs) == bool(args.results):
        parser.error('give configs to run, or --results to read')
    if args.results and args.out is None:
        parser.error('--results needs --out')
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
    return run_in(args, plan, partial(write, [args.work_dir], args))


def write(folders: Sequence[Path], args: argparse.Namespace) -> List[Path]:
    """Compare the runs in some folders."""
    leaderboard = read_leaderboard(folders, args.reference, args.compare)
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
