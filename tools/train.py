# SPDX-License-Identifier: Apache-2.0
"""Learn a stream of tasks: python tools/train.py CONFIG."""
from __future__ import annotations

import argparse
import contextlib
import os
import os.path as osp
from datetime import timedelta

import torch.distributed
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.runner import Runner

from mmseg_mile.adapters.base_weights import weights_only
from mmseg_mile.apis.library_model import read_config, set_pretrained
from mmseg_mile.engine.work_dir import reserved

# Where a process finds its rank, the number of processes, and its local rank.
PLACES = dict(
    pytorch=('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    mpi=('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE',
         'OMPI_COMM_WORLD_LOCAL_RANK'))


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
    cfg = read_config(args.config, args.cfg_options)
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


def join_processes(cfg: Config) -> None:
    """Let processes train together on a machine without an accelerator.

    mmengine would give each process a GPU before it joins the others. Here
    they join with gloo, and the model is wrapped without devices. Nothing
    changes in a single process or with an accelerator.

    Args:
        cfg (Config): Changed in place, before a runner is built.

    Raises:
        ValueError: If the launcher did not launch this process.
    """
    if cfg.launcher == 'none' or get_device() != 'cpu':
        return
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False))
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
    if is_distributed():
        return
    for name, source in zip(PLACES['pytorch'], PLACES[cfg.launcher]):
        if source in os.environ:
            os.environ[name] = os.environ[source]
    os.environ.setdefault('MASTER_PORT', '29500')
    missing = [name for name in (*PLACES['pytorch'], 'MASTER_ADDR')
               if name not in os.environ]  # yapf: disable
    if missing:
        raise ValueError(
            f'--launcher {cfg.launcher} finds no {missing} in the '
            'environment: start the tool with tools/dist_train.sh or '
            'torchrun (--launcher pytorch), or set MASTER_ADDR and use srun '
            '(slurm) or mpirun (mpi), or leave --launcher out.')
    dist_cfg = cfg.get('env_cfg', {}).get('dist_cfg', {})
    torch.distributed.init_process_group(
        'gloo', timeout=timedelta(seconds=dist_cfg.get('timeout', 1800)))


def main() -> None:
    """Learn the stream of the config."""
    cfg = load_config(parse_args())
    join_processes(cfg)
    with contextlib.ExitStack() as stack:
        stack.enter_context(weights_only())
        if cfg.launcher == 'none':
            # a runner writes its config into the work dir when it is built
            stack.enter_context(reserved(cfg.work_dir))
        Runner.from_cfg(cfg).train()


if __name__ == '__main__':
    main()
