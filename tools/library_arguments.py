# SPDX-License-Identifier: Apache-2.0
"""Command-line arguments of tools that predict with a library."""
from __future__ import annotations

import argparse
from typing import Any, Dict

from mmengine.config import DictAction

from mmseg_mile.gates.base_gate import OOD_POLICIES


def add_library_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a tool the arguments of :class:`MILEInferencer`."""
    add = parser.add_argument
    add('--expert',
        help='predict all images with it (default: the gate chooses)')
    add('--experts', nargs='+', help='choose among these (default: all)')
    add('--ood-policy',
        choices=OOD_POLICIES,
        help='what to do with images that no expert knows (default: as the '
        'library says)')
    add('--fusion',
        choices=('weights', 'logits'),
        help='how experts are fused (default: as the library says)')
    add('--vocabulary',
        nargs='+',
        metavar='CLASS',
        help='classes to label images in, of an open-vocabulary library '
        '(default: those of the experts)')
    add('--task',
        help='expert whose pipeline loads the images, where they differ')
    add('--config', help='config of the model, if the library has none')
    add('--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings of the model, as model.gate.top_k=3')
    add('--device', help='cpu, cuda:1, ... (default: a GPU if there is one)')


def library_arguments(args: argparse.Namespace) -> Dict[str, Any]:
    """Arguments of the constructor of :class:`MILEInferencer`."""
    names = ('expert', 'experts', 'ood_policy', 'fusion', 'vocabulary', 'task',
             'config', 'cfg_options', 'device')
    return {name: getattr(args, name) for name in names}
