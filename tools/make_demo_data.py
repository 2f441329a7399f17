# SPDX-License-Identifier: Apache-2.0
"""Fabricate small stand-ins for the five driving data sets.

Example:
    python tools/make_demo_data.py data/demo --preview demo.png
"""
from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, Optional, Sequence, Union

import cv2
import numpy as np
from prettytable import PrettyTable

from mmseg_mile.datasets.demo import DATA_SETS, make_demo_data
from mmseg_mile.datasets.label_tables import (CITYSCAPES_PALETTE,
                                              HEATNET_PALETTE)

# Title of a row, its pictures and its masks, which sort alike.
_ROWS = (
    ('cityscapes', 'cityscapes/leftImg8bit/train/*/*.png',
     'cityscapes/gtFine/train/*/*_labelTrainIds.png'),
    *((f'acdc {weather}', f'acdc/rgb_anon/{weather}/train/*/*.png',
       f'acdc/gt/{weather}/train/*/*_labelTrainIds.png')
      for weather in ('fog', 'night', 'rain', 'snow')),
    ('bdd100k', 'bdd100k/images/10k/train/*.jpg',
     'bdd100k/labels/sem_seg/masks/train/*.png'),
    ('idd', 'idd/*/leftImg8bit/train/*/*_leftImg8bit.*',
     'idd/*/gtFine/train/*/*_labelcsTrainIds.png'),
    *((f'heatnet {kind} {time}', f'heatnet/test/{time}/Images{kind}/*.png',
       f'heatnet/test/{time}/SegmentationClass/*.png')
      for kind in ('RGB', 'IR') for time in ('day', 'night')),
)


def draw_contact_sheet(root: Union[str, Path], columns: int = 4) -> np.ndarray:
    """Draw a row of frames for each domain, and beside them their labels.

    Args:
        root (str | Path): Folder of :func:`make_demo_data`.
        columns (int): Frames per domain. Defaults to 4.

    Returns:
        np.ndarray: BGR image.
    """
    rows = []
    for title, images, masks in _ROWS:
        pairs = list(
            zip(
                sorted(Path(root).glob(images)),
                sorted(Path(root).glob(masks))))
        chosen = [pairs[i * len(pairs) // columns] for i in range(columns)]
        palette = np.zeros((256, 3), np.uint8)
        colors = HEATNET_PALETTE if 'heatnet' in title else CITYSCAPES_PALETTE
        palette[:len(colors)] = colors
        row = np.hstack([_tile(path) for path, _ in chosen] +
                        [_tile(path, palette) for _, path in chosen])
        cv2.putText(row, title, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, .4,
                    (0, 255, 255), 1, cv2.LINE_AA)
        rows.append(row)
    return np.vstack(rows)


def _tile(path: Path, palette: Any = None) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if palette is not None:
        image = palette[image][..., ::-1]
    elif image.dtype == np.uint16:
        grey = np.clip((image - 21800.) / (25000 - 21800), 0, 1) * 255
        image = cv2.cvtColor(grey.astype(np.uint8), cv2.COLOR_GRAY2BGR)
    kind = cv2.INTER_AREA if palette is None else cv2.INTER_NEAREST
    return cv2.resize(image, (256, 128), interpolation=kind)


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
