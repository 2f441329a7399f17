# SPDX-License-Identifier: Apache-2.0
"""Write one expert, or several fused, for MMSegmentation or as ONNX.

    python tools/export_expert.py LIBRARY fog.pth --experts fog
    python tools/export_expert.py LIBRARY mix.onnx --experts fog rain

What is written is run beside our model, and kept if it predicts the same.
"""
from __future__ import annotations

import argparse
import sys
from typing import Dict

from mmengine.logging import MMLogger

import mmseg_mile  # noqa: F401  registers the components
from mmseg_mile.apis import export_files
from mmseg_mile.apis.export import TOLERANCE


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'library', help='folder of the library, or work dir of a run')
    parser.add_argument(
        'out',
        help='NAME.pth, a checkpoint of mmseg whose config is written to '
        'NAME.py, or NAME.onnx')
    parser.add_argument(
        '--experts', nargs='+', required=True, help='one, or several to fuse')
    parser.add_argument(
        '--weights',
        nargs='+',
        type=float,
        help='one per expert, divided by their sum (default: equal)')
    parser.add_argument(
        '--config',
        help='config of the model (default: the one in the library)')
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='the only size of images that an ONNX model takes (default: as '
        'many sizes as possible)')
    parser.add_argument(
        '--tolerance',
        type=float,
        default=TOLERANCE,
        help='largest difference of logits, relative to the largest logit '
        '(default: %(default)s)')
    return parser.parse_args()


def mixture(args: argparse.Namespace) -> Dict[str, float]:
    """Weights by expert."""
    weights = args.weights or [1.0] * len(args.experts)
    if len(weights) != len(args.experts) or len(set(args.experts)) != len(
            args.experts):
        raise ValueError('--weights must be one number for each of '
                         f'{args.experts}, each named once, got {weights}')
    return dict(zip(args.experts, weights))


def main() -> None:
    """Export, and say what came of it."""
    args = parse_args()
    # not a line for each weight that a head starts from
    MMLogger.get_instance('mmengine', log_level='WARNING')
    size = tuple(args.size) if args.size else None
    try:
        made = export_files(args.library, args.out, mixture(args), args.config,
                            size, args.tolerance)
    except (ValueError, OSError) as error:
        sys.exit(f'export_expert.py: {error}')
    experts = list(made.mixture)[0] if len(made.mixture) == 1 else ' + '.join(
        f'{weight:.4g} {name}' for name, weight in made.mixture.items())
    print(f'{experts}: {" and ".join(map(str, made.files))}')
    print('logits are those of our model, within '
          f'{args.tolerance:g} of the largest')
    for note in made.notes:
        print(note)


if __name__ == '__main__':
    main()
