# SPDX-License-Identifier: Apache-2.0
"""Predict images and videos with a library of experts.

    python tools/infer.py LIBRARY IMAGES [IMAGES ...] --out DIR

The library is all that is needed. DIR gets the label maps, overlays to look
at, and predictions.jsonl; the same command again goes on where it stopped.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from library_arguments import add_library_arguments, library_arguments
from prettytable import PrettyTable

import mmseg_mile  # noqa: F401  registers the components
from mmseg_mile.apis.inferencer import (InferenceReport, MILEInferencer,
                                        infer_images)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('library', help='a library, or work dir of a run')
    parser.add_argument(
        'images',
        nargs='+',
        help='files, folders with all below them, patterns, videos')
    parser.add_argument(
        '--out', required=True, metavar='DIR', help='where results go')
    parser.add_argument('--batch-size', type=int, default=1, metavar='N')
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace predictions in DIR that were made in another way')
    parser.add_argument(
        '--skip-broken',
        action='store_true',
        help='go on after an image that cannot be read, or is too large')
    add_library_arguments(parser)
    return parser.parse_args()


def show(report: InferenceReport, out: Path) -> None:
    """Print images per expert, and what they took."""
    table = PrettyTable(['expert', 'images', 'ood'])
    table.align = 'r'
    table.align['expert'] = 'l'
    for name, count in report.images.most_common():
        table.add_row([name, count, report.ood[name]])
    print(table)
    for name, reason in report.broken.items():
        print(f'skipped {name}: {reason}')
    total = sum(report.images.values())
    each = 1000 * report.seconds / max(1, report.predicted)
    print(f'{total} images, {sum(report.ood.values())} out-of-distribution, '
          f'{len(report.broken)} skipped; {report.predicted} predicted now, '
          f'{each:.0f} ms each; results in {out}')


def main() -> None:
    """Predict."""
    args = parse_args()
    try:
        inferencer = MILEInferencer(args.library, **library_arguments(args))
        report = infer_images(inferencer, args.images, args.out,
                              args.batch_size, args.overwrite,
                              args.skip_broken)
    except (ValueError, OSError) as error:
        sys.exit(f'infer.py: {error}')
    show(report, Path(args.out))


if __name__ == '__main__':
    main()
