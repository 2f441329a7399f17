# SPDX-License-Identifier: Apache-2.0
"""Write the train-id masks of Cityscapes, which its archive does not have.

Example:
    python tools/dataset_converters/cityscapes.py data/cityscapes
"""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Optional, Sequence

import numpy as np
from mmengine.utils import track_parallel_progress, track_progress
from PIL import Image

from mmseg_mile.datasets.idd import draw_polygons, read_polygons, write_mask
from mmseg_mile.datasets.label_tables import (CITYSCAPES_NAME_TO_TRAIN_ID,
                                              CITYSCAPES_NOT_DRAWN,
                                              CITYSCAPES_RAW_TO_TRAIN_ID,
                                              IGNORE)

RAW_ENDING = '_gtFine_labelIds.png'
POLYGON_ENDING = '_gtFine_polygons.json'
TRAIN_ENDING = '_gtFine_labelTrainIds.png'


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data_root', help='folder that holds gtFine/')
    parser.add_argument(
        '--overwrite', action='store_true', help='make masks again that exist')
    parser.add_argument(
        '--nproc', type=int, default=1, help='number of processes')
    return parser.parse_args(argv)


def convert(stem: str) -> None:
    """Write one mask, from the raw ids or else from the polygons."""
    raw = Path(stem + RAW_ENDING)
    if raw.exists():
        table = np.full(256, IGNORE, np.uint8)
        for raw_id, train_id in CITYSCAPES_RAW_TO_TRAIN_ID.items():
            table[raw_id] = train_id
        mask = table[np.asarray(Image.open(raw))]
    else:
        path = stem + POLYGON_ENDING
        try:
            mask = draw_polygons(
                read_polygons(path), CITYSCAPES_NAME_TO_TRAIN_ID,
                CITYSCAPES_NOT_DRAWN)
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from error
    write_mask(stem + TRAIN_ENDING, mask)


def find_stems(data_root: str) -> list[str]:
    """Everything annotated in train and val; test labels are dummies."""
    stems = {
        str(path)[:-len(ending)]
        for split in ('train', 'val')
        for ending in (RAW_ENDING, POLYGON_ENDING)
        for path in Path(data_root, 'gtFine', split).glob(f'*/*{ending}')
    }
    if not stems:
        raise ValueError(
            f'data_root={data_root!r} has no gtFine/{{train,val}}/<city>/*'
            f'{RAW_ENDING} or *{POLYGON_ENDING}; extract '
            'gtFine_trainvaltest.zip there.')
    return sorted(stems)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Convert what is not yet converted."""
    args = parse_args(argv)
    stems = find_stems(args.data_root)
    todo = [
        stem for stem in stems
        if args.overwrite or not Path(stem + TRAIN_ENDING).exists()
    ]
    print(f'{len(stems)} annotations, {len(todo)} masks to write')
    if args.nproc > 1 and todo:
        track_parallel_progress(convert, todo, args.nproc)
    elif todo:
        track_progress(convert, todo)


if __name__ == '__main__':
    main()
