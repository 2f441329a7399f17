# SPDX-License-Identifier: Apache-2.0
"""Pretrained weights of a config, whatever wraps its backbone."""
from __future__ import annotations

from pathlib import Path

from mmengine.config import Config


def set_pretrained(cfg: Config, path: str) -> None:
    """Let the backbone of a config start from other weights.

    Changes ``init_cfg.checkpoint`` of the innermost backbone: that of MILE
    lies in the one that holds the experts.

    Args:
        cfg (Config): Changed in place.
        path (str): A file, or an address such as 'mmcls://mobilenet_v2'.

    Raises:
        ValueError: If the file does not exist, or the backbone does not
            start from pretrained weights.
    """
    if '://' not in path and not Path(path).is_file():
        raise ValueError(f'the pretrained weights {path!r} do not exist: give '
                         'the path of a file')
    where, backbone = 'model', cfg.get('model') or {}
    while backbone.get('backbone') is not None:
        where, backbone = f'{where}.backbone', backbone['backbone']
    init = backbone.get('init_cfg')
    if where == 'model' or not isinstance(init, dict) or ('checkpoint'
                                                          not in init):
        raise ValueError(
            f'{where}.init_cfg must name a checkpoint that pretrained weights '
            f'can replace, got {init!r}: set it to dict(type="Pretrained", '
            f'checkpoint={path!r}) in the config')
    init['checkpoint'] = path
