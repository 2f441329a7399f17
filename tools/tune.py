# SPDX-License-Identifier: Apache-2.0
"""Choose settings of methods on images held out of training.

    python tools/tune.py configs/tuning/camvid_idd.py --work-dir DIR

Every method gets the same number of tries, and every try is a selection run:
scored on sequences that were cut out of the training sets, without a file of
the reported images being opened (train_cfg.selection_share). The tuning file
is a config:

    selection_share = 0.2
    methods = {                     # paths are relative to this file
        '../mile/mobilenet_v2_camvid_idd.py': [
            {},                     # the config as it is
            {'optim_wrapper.optimizer.lr': 1e-3},
        ],
    }

The first try of all methods comes before any second one. What is finished is
kept and what was stopped goes on: the same command again loses a few
iterations. A run that fails, as one that diverges, does not stop the others.

The log, a line per finished run as CSV, is written after each run. It marks
the best try of each method: the highest average mIoU, routed, over the seeds
of all tries whose seeds have finished; of equal ones the first.
"""
from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import pandas as pd
from mmengine.config import Config
from stream_runs import (OWN_OPTIONS, Run, add_run_arguments, parse_options,
                         plan_run, refuse_own, run_in)

from mmseg_mile.engine.task_data import check_selection_share
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.evaluation.tables import markdown_table
from mmseg_mile.files import read_json, write_text

SHARE = 'train_cfg.selection_share'
SHIPPED = 'as shipped'


class Try(NamedTuple):
    """One setting of a method, with one seed.

    Args:
        config (str): Path of the method's config.
        number (int): 1 for the first try of the method.
        options (str): Settings that differ from the config.
        seed (int): Random seed.
        run (Run): Its run.
    """
    config: str
    number: int
    options: str
    seed: int
    run: Run


def read_tuning(path: Path) -> Config:
    """The tuning file.

    Raises:
        ValueError: If a field is missing or malformed, or one method would
            have more tries than another.
    """
    cfg = Config.fromfile(path)
    check_selection_share(cfg.get('selection_share'))
    methods = cfg.get('methods')
    if cfg.get('selection_share') is None or not isinstance(
            methods, Mapping) or not methods:
        raise ValueError(f'{path} must have selection_share, a float, and '
                         'methods={config path: [try, ...]}, got '
                         f'{sorted(cfg.keys())}')
    for config, tries in methods.items():
        if not isinstance(tries, list) or not tries or not all(
                isinstance(each, Mapping) for each in tries):
            raise ValueError(f'{path}: methods[{config!r}] must be a list of '
                             'dicts of config options, {} for the config as '
                             f'it is, got {tries!r}')
        if any(each in tries[:index] for index, each in enumerate(tries)):
            raise ValueError(f'{path}: methods[{config!r}] has one try twice; '
                             f'the tries must differ: {tries}')
    counts = {config: len(tries) for config, tries in methods.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f'{path}: every method must have the same number of '
                         f'tries, got {counts}: add tries, or remove some')
    return cfg


def plan_tries(args: argparse.Namespace) -> List[Try]:
    """All tries, the first one of each method first.

    Args:
        args (argparse.Namespace): Of the command line.

    Raises:
        ValueError: If the tuning file is malformed, runs would be mixed up,
            or a setting cannot be met.
    """
    cfg = read_tuning(args.tuning)
    methods = {
        os.path.relpath(args.tuning.parent / config): tries
        for config, tries in cfg.methods.items()
    }
    own = {key for tries in methods.values() for each in tries for key in each}
    refuse_own(args.cfg_options, [*OWN_OPTIONS, SHARE, *own])
    plan = []
    for seed in args.seeds:
        for index in range(len(next(iter(methods.values())))):
            for config, tries in methods.items():
                options = as_options(tries[index], f'try {index + 1} of '
                                     f'{config}')
                refuse_own(options, [*OWN_OPTIONS, SHARE])
                run = plan_run(config, seed,
                               args.work_dir / f'try_{index + 1}', [
                                   *args.cfg_options,
                                   f'{SHARE}={cfg.selection_share}', *options
                               ], args.pretrained)
                run = run._replace(name=f'{run.name}, try {index + 1}')
                plan.append(
                    Try(config, index + 1, ' '.join(options) or SHIPPED, seed,
                        run))
    if len({each.run.work_dir for each in plan}) < len(plan):
        raise ValueError(
            'configs must have different file names, and seeds must differ, '
            f'got {list(methods)} and {args.seeds}')
    return plan


def as_options(settings: Mapping[str, Any], where: str) -> List[str]:
    """Settings as key=value of a command line.

    Args:
        settings (Mapping[str, Any]): Values by dotted names.
        where (str): Whose they are, for errors.

    Raises:
        ValueError: If a command line cannot hold a value.
    """
    options = []
    for key, value in settings.items():
        text = f'{key}={str(value).replace(" ", "")}'
        read = parse_options([text])
        if read != {key: value}:
            raise ValueError(f'{where}: {key}={value!r} is read from a '
                             f'command line as {read}: use numbers, texts, '
                             'True, False, None, and lists of them')
        options.append(text)
    return options


def log_of(plan: List[Try]) -> pd.DataFrame:
    """A line per finished run; scores in per cent.

    Args:
        plan (list[Try]): All tries.
    """
    configs = list(dict.fromkeys(each.config for each in plan))
    lines = []
    for each in sorted(
            plan, key=lambda t: (configs.index(t.config), t.number, t.seed)):
        results = each.run.results
        if results is not None:
            lines.append({
                'method': each.run.method,
                'config': each.config,
                'try': each.number,
                'options': each.options,
                'seed': each.seed,
                **figures_of(each.run.work_dir, results)
            })
    log = pd.DataFrame(lines)
    if not lines:
        return log
    num_seeds = len({each.seed for each in plan})
    means = log.groupby(['config', 'try'])['average'].agg(['mean', 'size'])
    complete = means[means['size'] == num_seeds]['mean']
    best = set(complete.groupby('config').idxmax())
    log['best'] = [
        'yes' if key in best else '' for key in zip(log['config'], log['try'])
    ]
    return log


def figures_of(work_dir: Path, results: StreamResults) -> Dict[str, Any]:
    """What the log tells of a run, beside its options."""
    figures = {
        'average': results.scores['average_miou'],
        'just learned': results.scores['plasticity']
    }
    figures.update(zip(results.tasks, results.miou['routed'][-1]))
    settings = read_json(work_dir / 'settings.json')
    return {
        **figures, 'iterations': settings['train_cfg']['max_iters'],
        'selection share': results.selection_share,
        'commit': results.provenance['commit'],
        'seconds': round(results.cost.train_seconds.sum())
    }


def best_of(plan: List[Try]) -> pd.DataFrame:
    """The best try of each method beside its first one, means over seeds.

    Args:
        plan (list[Try]): All tries, of which some have finished.
    """
    num_tries = max(each.number for each in plan)
    num_seeds = len({each.seed for each in plan})
    rows = []
    for (method, _), lines in log_of(plan).groupby(['method', 'config'],
                                                   sort=False):
        finished = (lines.groupby('try').size() == num_seeds).sum()
        best = lines[lines['best'] == 'yes']
        names = [f'{n}: {o}' for n, o in zip(best['try'], best['options'])]
        rows.append(
            (method, f'{finished} of {num_tries}', *(names[:1] or ['-']),
             shown(best['average'].mean()), shown(best['just learned'].mean()),
             shown(lines[lines['try'] == 1]['average'].mean())))
    return pd.DataFrame(
        rows,
        columns=('method', 'tries', 'best', 'average', 'just learned',
                 'first try'))


def shown(value: float) -> str:
    """'52.0', or '-' where there is no figure."""
    return '-' if pd.isna(value) else f'{value:.1f}'


def write(plan: List[Try], out: Path) -> List[Path]:
    """Write the log of what is finished."""
    log = log_of(plan)
    if log.empty:
        return []
    write_text(out,
               log.to_csv(index=False, float_format='%.2f',
                          lineterminator='\n'))  # yapf: disable
    return [out]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('tuning', type=Path, help='the tuning file')
    parser.add_argument(
        '--out',
        type=Path,
        help='where the log goes (default: tuning.csv in the work dir)')
    add_run_arguments(parser, Path('work_dirs/tuning'))
    return parser.parse_args()


def main() -> int:
    """Run all tries, write the log, print the best of each method."""
    args = parse_args()
    warnings.filterwarnings('ignore', category=UserWarning)
    plan = plan_tries(args)
    out = args.out or args.work_dir / 'tuning.csv'
    status = run_in(args, [each.run for each in plan],
                    partial(write, plan, out))
    log = log_of(plan)
    if not log.empty:
        print(markdown_table(best_of(plan)))
        commits = sorted(set(log['commit'].astype(str)))
        if len(commits) > 1:
            print(f'The runs are of several commits: {", ".join(commits)}. '
                  'Settings that were chosen among them are not of one code.')
    return status


if __name__ == '__main__':
    sys.exit(main())
