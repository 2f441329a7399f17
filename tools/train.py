# SPDX-License-Identifier: Apache-2.0
"""Learn a stream of tasks: python tools/train.py CONFIG."""
from __future__ import annotations

import argparse
import os
import os.path as osp

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.runner import Runner

from mmseg_mile.apis.library_model import set_pretrained
from mmseg_mile.engine.process_group import use_cpu_group


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of a stream and a method')
    parser.add_argument(
        '--work-dir', help='where results go (default: work_dirs/CONFIG)')
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on where the run in the work dir was stopped')
    parser.add_argument(
        '--amp',
        action='store_true',
        help='automatic mixed precision: float16 with loss scaling on a GPU, '
        'bfloat16 on a CPU')
    parser.add_argument(
        '--pretrained',
        help='weights that the backbone starts from, instead of those that '
        'the config names')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that override the config, as key=value')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def load_config(args: argparse.Namespace) -> Config:
    """The config with the command line's changes.

    Raises:
        ValueError: If --amp meets an optimizer wrapper that it cannot turn
            into mixed precision, or --pretrained a backbone without weights.
    """
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    if args.pretrained is not None:
        set_pretrained(cfg, args.pretrained)
    cfg.launcher = args.launcher
    cfg.resume = args.resume
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        name = osp.splitext(osp.basename(args.config))[0]
        cfg.work_dir = osp.join('work_dirs', name)
    if args.amp:
        use_mixed_precision(cfg)
    return cfg


def use_mixed_precision(cfg: Config) -> None:
    """Change the optimizer wrapper to the device's mixed precision.

    Raises:
        ValueError: If it is not a plain one that could be changed.
    """
    wrapper = cfg.optim_wrapper
    if wrapper.type in ('AmpOptimWrapper', 'Bfloat16OptimWrapper'):
        return
    if wrapper.type != 'OptimWrapper':
        raise ValueError('--amp needs optim_wrapper.type OptimWrapper, got '
                         f'{wrapper.type!r}: change it, or leave --amp out.')
    if get_device() == 'cpu':
        wrapper.type = 'Bfloat16OptimWrapper'
    else:
        wrapper.type = 'AmpOptimWrapper'
        wrapper.loss_scale = 'dynamic'


def main() -> None:
    """Learn the stream of the config."""
    cfg = load_config(parse_args())
    use_cpu_group(cfg)
    Runner.from_cfg(cfg).train()


if __name__ == '__main__':
    main()
