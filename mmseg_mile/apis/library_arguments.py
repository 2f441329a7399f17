# SPDX-License-Identifier: Apache-2.0
"""Command-line arguments that say how a library predicts."""
from __future__ import annotations

import argparse
from typing import Any, Dict

from mmengine.config import DictAction

from mmseg_mile.gates.base_gate import OOD_POLICIES


def add_library_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a tool the arguments of :class:`MILEInferencer`.

    Args:
        parser (ArgumentParser): Of the tool.
    """
    parser.add_argument(
        '--expert',
        help='predict all images with it (default: the gate '
        'chooses)')
    parser.add_argument(
        '--experts', nargs='+', help='choose among these (default: all)')
    parser.add_argument(
        '--ood-policy',
        choices=OOD_POLICIES,
        help='what to do with images that no expert knows (default: as the '
        'library says)')
    parser.add_argument(
        '--fusion',
        choices=('weights', 'logits'),
        help='how experts are fused (default: as the library says)')
    parser.add_argument(
        '--vocabulary',
        nargs='+',
        metavar='CLASS',
        help='classes to label images in, of an open-vocabulary library '
        '(default: those of the experts)')
    parser.add_argument(
        '--task',
        help='expert whose way of loading images is right, where they differ')
    parser.add_argument(
        '--config', help='config of the model, if the library has none')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings of the model, as model.gate.top_k=3')
    parser.add_argument('--device', help='cpu, cuda:1, ... (default: a GPU '
                        'if there is one)')  # yapf: disable


def library_arguments(args: argparse.Namespace) -> Dict[str, Any]:
    """What :func:`add_library_arguments` read.

    Returns:
        dict: For the constructor of :class:`MILEInferencer`.
    """
    names = ('expert', 'experts', 'ood_policy', 'fusion', 'vocabulary', 'task',
             'config', 'cfg_options', 'device')
    return {name: getattr(args, name) for name in names}
