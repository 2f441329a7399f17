# SPDX-License-Identifier: Apache-2.0
"""What made a result."""
from __future__ import annotations

import copy
import platform
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any, Dict, Optional

import torch
from mmengine.config import Config

_PACKAGES = ('mmseg_mile', 'mmseg', 'mmengine', 'mmcv', 'torch', 'peft',
             'numpy')


def versions() -> Dict[str, str]:
    """Versions of Python and the packages that results depend on."""
    found = {p: import_module(p).__version__ for p in _PACKAGES}
    return dict(python=platform.python_version(), **found)


def commit() -> Optional[str]:
    """Hash of the checked-out commit of this package, or None."""
    try:
        output = subprocess.run(
            ['git', 'describe', '--always', '--dirty', '--abbrev=12'],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.stdout.strip() or None


def device() -> str:
    """Name of the device that computes."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f'cpu {platform.machine()}, {torch.get_num_threads()} threads'


def config_text(cfg: Config) -> str:
    """The resolved config, without what differs from start to start."""
    cfg = copy.deepcopy(cfg)
    for name in ('work_dir', 'resume', 'launcher'):
        cfg.pop(name, None)
    return cfg.pretty_text


def provenance(config: str) -> Dict[str, Any]:
    """The ``provenance`` field of ``results.json``.

    Args:
        config (str): The resolved config as text.
    """
    return dict(
        commit=commit(), versions=versions(), config=config, device=device())
