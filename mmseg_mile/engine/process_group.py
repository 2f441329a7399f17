# SPDX-License-Identifier: Apache-2.0
"""Several processes that train one model on a machine without a GPU."""
from __future__ import annotations

import os
import subprocess
from datetime import timedelta
from typing import Dict

import torch.distributed
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_distributed

# Where launchers other than torchrun tell a process who it is.
_LAUNCHERS: Dict[str, Dict[str, str]] = dict(
    pytorch={},
    slurm=dict(
        RANK='SLURM_PROCID',
        WORLD_SIZE='SLURM_NTASKS',
        LOCAL_RANK='SLURM_LOCALID'),
    mpi=dict(
        RANK='OMPI_COMM_WORLD_RANK',
        WORLD_SIZE='OMPI_COMM_WORLD_SIZE',
        LOCAL_RANK='OMPI_COMM_WORLD_LOCAL_RANK'))


def use_cpu_group(cfg: Config) -> None:
    """Let a launched config train on CPUs where there is no accelerator.

    mmengine would give each process a GPU before it joins the others. On a
    machine without one, this joins them with gloo, and has the model wrapped
    without devices. Nothing changes in a single process or with a GPU.

    Args:
        cfg (Config): Changed in place, before a runner is built.

    Raises:
        ValueError: If the launcher is unknown, or did not launch this
            process.
    """
    if cfg.get('launcher', 'none') == 'none' or get_device() != 'cpu':
        return
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False))
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
    if not is_distributed():
        options = dict(cfg.get('env_cfg', {}).get('dist_cfg', {}))
        _join(cfg.launcher, options.get('timeout', 1800))


def _join(launcher: str, timeout_s: float) -> None:
    if launcher not in _LAUNCHERS:
        raise ValueError(f'launcher must be none or one of '
                         f'{list(_LAUNCHERS)}, got {launcher!r}')
    for name, source in _LAUNCHERS[launcher].items():
        if source in os.environ:
            os.environ[name] = os.environ[source]
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = _first_node()
    os.environ.setdefault('MASTER_PORT', '29500')
    wanted = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR')
    missing = [name for name in wanted if name not in os.environ]
    if missing:
        raise ValueError(
            f'--launcher {launcher} finds no {missing} in the environment: '
            'start the tool with tools/dist_train.sh or torchrun '
            '(--launcher pytorch), srun (slurm) or mpirun with MASTER_ADDR '
            'set (mpi), or leave --launcher out.')
    torch.distributed.init_process_group(
        'gloo', timeout=timedelta(seconds=timeout_s))


def _first_node() -> str:
    """Host name of the first node of a Slurm job."""
    nodes = subprocess.run(['scontrol', 'show', 'hostnames'],
                           capture_output=True,
                           text=True,
                           check=True)
    return nodes.stdout.split()[0]
