# SPDX-License-Identifier: Apache-2.0
"""Learn the tasks of a stream at the same time.

python tools/train_experts.py CONFIG --num-workers 4
"""
from __future__ import annotations

import argparse
import os
import os.path as osp

from mmengine.config import Config, DictAction


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of a stream and of MILE')
    parser.add_argument(
        '--work-dir', help='where results go (default: work_dirs/CONFIG)')
    parser.add_argument(
        '--num-workers',
        type=int,
        default=2,
        help='tasks that are learned at the same time (default: 2)')
    parser.add_argument(
        '--engine',
        choices=['auto', 'processes', 'ray'],
        default='auto',
        help='processes of this machine, or Ray: auto takes Ray where it is '
        'installed')
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on with what is not finished in the work dir')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that override the config, as key=value')
    return parser.parse_args()


def load_config(args: argparse.Namespace) -> Config:
    """The config with the command line's changes."""
    from mmseg_mile.apis.library_model import read_config
    cfg = read_config(args.config, args.cfg_options)
    cfg.launcher = 'none'
    cfg.resume = args.resume
    name = osp.splitext(osp.basename(args.config))[0]
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or osp.join(
        'work_dirs', name)
    return cfg


def main() -> None:
    """Learn all tasks, then evaluate as if they had come one by one."""
    args = parse_args()
    # each process would start a thread per core
    os.environ.setdefault(
        'OMP_NUM_THREADS',
        str(max(1, (os.cpu_count() or 1) // max(1, args.num_workers))))
    # torch reads the number of threads when it is imported
    from mmengine.runner import Runner

    from mmseg_mile.adapters.base_weights import weights_only
    from mmseg_mile.engine.parallel import build_executor, learn_experts
    from mmseg_mile.engine.work_dir import reserved
    cfg = load_config(args)
    with weights_only(), reserved(cfg.work_dir):
        learn_experts(cfg, build_executor(args.engine, args.num_workers),
                      args.num_workers)
        cfg.resume = True
        Runner.from_cfg(cfg).train()


if __name__ == '__main__':
    main()
