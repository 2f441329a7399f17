# SPDX-License-Identifier: Apache-2.0
"""Demo data at a glance: pictures, and beside them their labels."""
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ..label_tables import CITYSCAPES_PALETTE, HEATNET_PALETTE

# Title of a row, its pictures and its masks, which sort alike.
_ROWS = (
    ('cityscapes', 'cityscapes/leftImg8bit/train/*/*.png',
     'cityscapes/gtFine/train/*/*_labelTrainIds.png'),
    *((f'acdc {condition}', f'acdc/rgb_anon/{condition}/train/*/*.png',
       f'acdc/gt/{condition}/train/*/*_labelTrainIds.png')
      for condition in ('fog', 'night', 'rain', 'snow')),
    ('bdd100k', 'bdd100k/images/10k/train/*.jpg',
     'bdd100k/labels/sem_seg/masks/train/*.png'),
    ('idd', 'idd/*/leftImg8bit/train/*/*_leftImg8bit.*',
     'idd/*/gtFine/train/*/*_labelcsTrainIds.png'),
    *((f'heatnet {kind} {time}', f'heatnet/test/{time}/Images{kind}/*.png',
       f'heatnet/test/{time}/SegmentationClass/*.png')
      for kind in ('RGB', 'IR') for time in ('day', 'night')),
)
_TILE = (256, 128)


def draw_contact_sheet(root: str | Path, columns: int = 4) -> np.ndarray:
    """Draw a row of frames for each domain.

    Args:
        root (str | Path): Folder of :func:`make_demo_data`.
        columns (int): Frames per domain. Defaults to 4.

    Returns:
        np.ndarray: BGR image.
    """
    rows = []
    for title, images, masks in _ROWS:
        pictures = sorted(Path(root).glob(images))
        labels = sorted(Path(root).glob(masks))
        pairs = list(zip(pictures, labels))
        chosen = [pairs[i * len(pairs) // columns] for i in range(columns)]
        colors = HEATNET_PALETTE if 'heatnet' in title else CITYSCAPES_PALETTE
        row = np.hstack([
            *(_picture(image) for image, _ in chosen),
            *(_colored(mask, colors) for _, mask in chosen)
        ])
        cv2.putText(row, title, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, .4,
                    (0, 255, 255), 1, cv2.LINE_AA)
        rows.append(row)
    return np.vstack(rows)


def _read(path: Path) -> np.ndarray:
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError(f'cannot decode {str(path)!r}; make the demo data '
                         'again, with --overwrite')
    return values


def _picture(path: Path) -> np.ndarray:
    image = _read(path)
    if image.dtype == np.uint16:
        grey = np.clip((image - 21800.) / (25000 - 21800), 0, 1) * 255
        image = cv2.cvtColor(grey.astype(np.uint8), cv2.COLOR_GRAY2BGR)
    return cv2.resize(image, _TILE, interpolation=cv2.INTER_AREA)


def _colored(path: Path, colors: tuple) -> np.ndarray:
    mask = _read(path)
    palette = np.zeros((256, 3), np.uint8)
    palette[:len(colors)] = colors
    return cv2.resize(
        palette[mask][..., ::-1], _TILE, interpolation=cv2.INTER_NEAREST)
