# SPDX-License-Identifier: Apache-2.0
"""Measure time, memory and bytes against stock MMSegmentation and PEFT.

    python tools/benchmark.py predict CONFIG... [--size 512 --batch 4 ...]
    python tools/benchmark.py fuse CONFIG... [--library 20]
    python tools/benchmark.py train CONFIG...
    python tools/benchmark.py scale CONFIG... [--counts 3 30 300]
    python tools/benchmark.py disk CONFIG...

Weights and images are drawn from a seed: nothing is downloaded. Outputs are
compared before anything is timed; the exit status is 1 where they differ.
Each command prints a table and writes it, with a record, as
``benchmark_<command>.{md,json}`` into ``--out``.
"""
from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Dict

from analysis_tools.benchmark.fusion import benchmark_fusion
from analysis_tools.benchmark.harness import DTYPES, MODES, Report, Settings
from analysis_tools.benchmark.library_scale import (benchmark_disk,
                                                    benchmark_scale)
from analysis_tools.benchmark.prediction import benchmark_prediction
from analysis_tools.benchmark.training import benchmark_training

import mmseg_mile  # noqa: F401  registers the components

# Images of a training batch are as large as what fits two cores.
DEFAULTS: Dict[str, Dict[str, int]] = dict(
    predict=dict(size=512, batch=4, experts=4, rounds=9),
    fuse=dict(size=512, batch=4, experts=4, rounds=9),
    train=dict(size=256, batch=2, experts=1, rounds=9),
    scale=dict(size=512, batch=4, experts=3, rounds=15),
    disk=dict(size=256, batch=1, experts=1, rounds=1))


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    for command, defaults in DEFAULTS.items():
        sub = commands.add_parser(
            command, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.add_argument('configs', nargs='+', help='configs of MILE')
        sub.add_argument('--out', default='work_dirs/benchmark', type=Path)
        sub.add_argument('--device', default='cpu')
        sub.add_argument('--seed', type=int, default=0)
        sub.add_argument('--size', type=int, default=defaults['size'])
        if command == 'disk':
            continue
        sub.add_argument('--batch', type=int, default=defaults['batch'])
        sub.add_argument('--rounds', type=int, default=defaults['rounds'])
        sub.add_argument('--warmup', type=int, default=2)
        sub.add_argument('--threads', type=int)
        sub.add_argument('--dtype', choices=DTYPES, default='fp32')
        if command == 'train':
            continue
        sub.add_argument('--mode', choices=MODES, default='whole')
        sub.add_argument(
            '--experts',
            type=int,
            default=defaults['experts'],
            help='that the batch mixes')
        if command == 'fuse':
            sub.add_argument(
                '--library', type=int, default=20, help='experts to be mixed')
        if command == 'scale':
            sub.add_argument(
                '--counts', nargs='+', type=int, default=[3, 30, 300])
    return parser.parse_args()


def run(args: argparse.Namespace) -> Report:
    """Run the command."""
    given = {
        k: v
        for k, v in vars(args).items()
        if k not in ('command', 'configs', 'out', 'counts', 'library')
    }
    settings = Settings(**{**DEFAULTS[args.command], **given})
    if args.command == 'scale':
        return benchmark_scale(args.configs, settings, args.counts)
    if args.command == 'fuse':
        return benchmark_fusion(args.configs, settings, args.library)
    command = dict(
        predict=benchmark_prediction,
        train=benchmark_training,
        disk=benchmark_disk)[args.command]
    return command(args.configs, settings)


def main() -> int:
    """Print the table, write the files, say whether outputs agree."""
    args = parse_args()
    warnings.filterwarnings('ignore', category=UserWarning)
    report = run(args)
    print(report.markdown())
    for path in report.write(args.out):
        print(path)
    for failure in report.failures:
        print(f'FAILED: {failure}', file=sys.stderr)
    return 1 if report.failures else 0


if __name__ == '__main__':
    sys.exit(main())
