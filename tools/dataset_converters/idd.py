# SPDX-License-Identifier: Apache-2.0
"""Draw the masks of IDD from its polygons, for both parts and label spaces.

Writes ``<id>_gtFine_labelcsTrainIds.png`` (19 classes of Cityscapes) and
``<id>_gtFine_labellevel3Ids.png`` (26 classes of IDD) beside the polygons.

Example:
    python tools/dataset_converters/idd.py data/idd
"""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Optional, Sequence

from mmengine.utils import track_parallel_progress, track_progress

from mmseg_mile.datasets.idd import draw_polygons, read_polygons, write_mask
from mmseg_mile.datasets.label_tables import (IDD_NAME_TO_CS_TRAIN_ID,
                                              IDD_NAME_TO_LEVEL3_ID)

PARTS = ('.', 'IDD_Segmentation', 'idd20kII')
POLYGON_ENDING = '_gtFine_polygons.json'
TABLES = {
    '_gtFine_labelcsTrainIds.png': IDD_NAME_TO_CS_TRAIN_ID,
    '_gtFine_labellevel3Ids.png': IDD_NAME_TO_LEVEL3_ID,
}


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'data_root',
        help='folder that holds IDD_Segmentation/ and idd20kII/, or is one')
    parser.add_argument(
        '--overwrite', action='store_true', help='make masks again that exist')
    parser.add_argument(
        '--nproc', type=int, default=1, help='number of processes')
    return parser.parse_args(argv)


def convert(stem: str) -> None:
    """Write the masks of one image."""
    path = stem + POLYGON_ENDING
    annotation = read_polygons(path)
    for ending, table in TABLES.items():
        try:
            mask = draw_polygons(annotation, table)
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from error
        write_mask(stem + ending, mask)


def find_stems(data_root: str) -> list[str]:
    """Every polygon file of both parts, without its ending."""
    stems = [
        str(path)[:-len(POLYGON_ENDING)] for part in PARTS for path in Path(
            data_root, part, 'gtFine').glob(f'*/*/*{POLYGON_ENDING}')
    ]
    if not stems:
        raise ValueError(
            f'data_root={data_root!r} has no gtFine/<split>/<drive>/*'
            f'{POLYGON_ENDING}, neither directly nor below '
            f'{" or ".join(PARTS[1:])}; extract the IDD archives there.')
    return sorted(stems)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Convert what is not yet converted."""
    args = parse_args(argv)
    stems = find_stems(args.data_root)
    todo = [
        stem for stem in stems if args.overwrite or not all(
            Path(stem + ending).exists() for ending in TABLES)
    ]
    print(f'{len(stems)} annotations, {len(todo)} to draw')
    if args.nproc > 1 and todo:
        track_parallel_progress(convert, todo, args.nproc)
    elif todo:
        track_progress(convert, todo)


if __name__ == '__main__':
    main()
