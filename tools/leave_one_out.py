# SPDX-License-Identifier: Apache-2.0
"""Predict every task of finished runs without the expert that learned it.

    python tools/leave_one_out.py WORK_DIR... --out DIR

WORK_DIR... are the seeds of one method on one stream. Each task is predicted
without its own expert, and without those of its family (`family` of a task in
train_cfg.tasks; by default, tasks of one dataset class below one data_root):
by the base alone, by all other experts alike, by the nearest one, and by
SemLA's weights of the nearest ones, fused as weights or as outputs; and with
each policy for images that the gate flags as out-of-distribution.

DIR gets leave_one_out.{json,md,csv,png}, images.jsonl (weights, distances and
mIoU of each image in each cell), and cells/ with what is finished: the same
command again goes on where it stopped.

A base that was trained on a task, and experts that started from its expert,
have seen what is left out: such cells are marked.
"""
from __future__ import annotations

import argparse
import warnings
from functools import partial
from pathlib import Path

from analysis_tools.leave_one_out import leave_one_out
from mmengine.config import DictAction

import mmseg_mile  # noqa: F401  registers the components
from mmseg_mile.apis.library_model import read_config


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'work_dirs', nargs='+', type=Path, help='of finished runs')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument(
        '--config',
        help='taken instead of the config that the libraries carry')
    parser.add_argument(
        '--gate',
        nargs='+',
        action=DictAction,
        help='options of the gate, as key=value: top_k, tau, relative; '
        'metric, num_prototypes, shrinkage, perturbation_weight, '
        'ood_quantile '
        "(default: those of the run's gate, top_k=5, tau=0.4, relative=True)")
    parser.add_argument(
        '--sweep-tau',
        nargs='+',
        type=float,
        default=[],
        help="further temperatures of SemLA's weights")
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that override the config, as key=value, such as '
        'train_cfg.data_root=DATA')
    return parser.parse_args()


def main() -> None:
    """Score what is missing, print the tables."""
    args = parse_args()
    warnings.filterwarnings('ignore', category=UserWarning)
    config = read_config(args.config) if args.config else None
    leave_one_out(args.work_dirs, args.out, config, args.gate, args.sweep_tau,
                  args.cfg_options, partial(print, flush=True))
    print((args.out / 'leave_one_out.md').read_text(encoding='utf-8'))


if __name__ == '__main__':
    main()
