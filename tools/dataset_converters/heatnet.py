# SPDX-License-Identifier: Apache-2.0
"""Store the test labels of Freiburg Thermal (HeatNet) as png.

The ids of the published arrays are not documented beyond doubt: this script
takes them as HeatNet's own 0 to 13 (12 background, 13 ignore), refuses other
values, and compares ``class_names.txt`` where there is one. Look at a mask
before trusting a score.

Example:
    python tools/dataset_converters/heatnet.py data/heatnet
"""
from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Optional, Sequence

import numpy as np
from mmengine.utils import track_parallel_progress, track_progress

from mmseg_mile.datasets.idd import write_mask
from mmseg_mile.datasets.label_tables import HEATNET_CLASSES, HEATNET_IGNORE

NAMES = (*HEATNET_CLASSES, 'background', 'ignore')


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data_root', help='folder that holds test/')
    parser.add_argument(
        '--overwrite', action='store_true', help='make masks again that exist')
    parser.add_argument(
        '--nproc', type=int, default=1, help='number of processes')
    return parser.parse_args(argv)


def convert(path: str) -> None:
    """Write one array as png beside it.

    Raises:
        ValueError: If it is no H x W array of ids 0 to 13.
    """
    try:
        labels = np.load(path)
    except (ValueError, EOFError) as error:
        raise ValueError(f'cannot read {path!r}: {error}. Extract or download '
                         'the file again.') from error
    if labels.ndim != 2:
        raise ValueError(f'{path!r} has shape {labels.shape}, expected rows x '
                         'columns of class ids.')
    wrong = sorted(
        set(np.unique(labels).tolist()) - set(range(HEATNET_IGNORE + 1)))
    if wrong:
        raise ValueError(
            f'{path!r} holds {wrong}, outside HeatNet\'s ids 0 to '
            f'{HEATNET_IGNORE}. A value of -1 hints at labelme\'s order, in '
            'which every id is shifted by one: compare class_names.txt, '
            'renumber the arrays, and run again.')
    write_mask(str(Path(path).with_suffix('.png')), labels)


def warn_of_other_names(path: Path) -> None:
    """Compare ``class_names.txt``, line by line, with the ids taken."""
    text = path.read_text(encoding='utf-8-sig', errors='replace')
    lines = text.lower().split('\n')
    lines = [line.strip() for line in lines if line.strip()]
    differ = [
        f'{index}: {line!r} instead of {name!r}'
        for index, (line, name) in enumerate(zip(lines, NAMES))
        if name not in line
    ]
    if differ or len(lines) > len(NAMES):
        warnings.warn(
            f'{path} names {len(lines)} classes, some others than HeatNet\'s '
            f'({", ".join(differ)}). The arrays may count classes in that '
            'order: look at a mask before trusting a score.',
            stacklevel=2)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Convert what is not yet converted."""
    args = parse_args(argv)
    test = Path(args.data_root, 'test')
    arrays = sorted(map(str, test.glob('*/SegmentationClass/*.npy')))
    if not arrays:
        raise ValueError(
            f'data_root={args.data_root!r} has no test/{{day,night}}/'
            'SegmentationClass/*.npy; extract the test archive there.')
    for names in (*test.glob('class_names.txt'),
                  *test.glob('*/class_names.txt')):
        warn_of_other_names(names)
    todo = [
        path for path in arrays
        if args.overwrite or not Path(path).with_suffix('.png').exists()
    ]
    print(f'{len(arrays)} label arrays, {len(todo)} masks to write')
    if args.nproc > 1 and todo:
        track_parallel_progress(convert, todo, args.nproc)
    elif todo:
        track_progress(convert, todo)


if __name__ == '__main__':
    main()
