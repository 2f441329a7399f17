# SPDX-License-Identifier: Apache-2.0
"""Fabricate small stand-ins for the five driving data sets.

Example:
    python tools/make_demo_data.py data/demo --preview demo.png
"""
from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Optional, Sequence

import cv2
from prettytable import PrettyTable

from mmseg_mile.datasets.demo import (DATA_SETS, draw_contact_sheet,
                                      make_demo_data)


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('root', help='folder for the data sets')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--num-train', type=int, default=48, help='training frames per domain')
    parser.add_argument(
        '--num-val',
        type=int,
        default=12,
        help='validation or test frames per domain')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(128, 256),
        metavar=('HEIGHT', 'WIDTH'),
        help='size of a Cityscapes image')
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace demo data made with other parameters')
    parser.add_argument(
        '--nproc', type=int, default=2, help='number of processes')
    parser.add_argument(
        '--preview',
        metavar='FILE',
        help='also draw some frames of each domain')
    return parser.parse_args(argv)


def summarize(root: Path) -> PrettyTable:
    """Count the files of each data set."""
    table = PrettyTable(['data set', 'images', 'masks', 'MiB'])
    table.align = 'r'
    table.align['data set'] = 'l'
    for name in DATA_SETS:
        files = [path for path in (root / name).rglob('*') if path.is_file()]
        pictures = [path for path in files if path.suffix in ('.png', '.jpg')]
        masks = [
            path for path in pictures
            if {'gt', 'gtFine', 'masks', 'fl_rgb_labels', 'SegmentationClass'}
            & set(path.relative_to(root).parts)
        ]
        size = sum(path.stat().st_size for path in files) / 2**20
        table.add_row(
            [name, len(pictures) - len(masks),
             len(masks), f'{size:.1f}'])
    return table


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Make the data, print what is there, and draw the preview."""
    args = parse_args(argv)
    root, start = Path(args.root), time.perf_counter()
    make_demo_data(root, args.seed, args.num_train, args.num_val,
                   tuple(args.size), args.overwrite, args.nproc)
    print(summarize(root))
    print(f'{root}: seed {args.seed}, {time.perf_counter() - start:.1f} s')
    if args.preview:
        sheet = draw_contact_sheet(root)
        if not cv2.imwrite(args.preview, sheet):
            raise ValueError(f'cannot write --preview {args.preview!r}; use a '
                             'folder that exists and a name that ends in .png')
        print(f'preview: {args.preview}')


if __name__ == '__main__':
    main()
