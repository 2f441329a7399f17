# SPDX-License-Identifier: Apache-2.0
"""Frames of Freiburg Thermal: a colour and an infrared picture each."""
from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Callable

import numpy as np

from ..label_tables import HEATNET_CLASSES
from .labels import heatnet_ids
from .snapshot import Snapshot, save_bytes, save_image, take
from .street_styles import FREIBURG
from .thermal import render_thermal

Job = Callable[[], None]
Size = tuple[int, int]


def frame_size(size: Size) -> Size:
    """The 1920 x 650 frame, scaled to the height of ``size``."""
    return size[0], round(size[0] * 1920 / 650)


def plan_heatnet(root: Path, num_train: int, num_val: int, size: Size,
                 seed: int) -> list[Job]:
    """Frames of ``write_heatnet``, and the list of class names."""
    root, size = root / 'heatnet', frame_size(size)
    jobs: list[Job] = [partial(_class_names, root)]
    for night, number in ((False, num_train), (True, num_train // 2)):
        sequence = 'seq_01_night' if night else 'seq_00_day'
        for index in range(number):
            folder = f'train/{sequence}/{index * 2 // max(number, 1):02d}'
            jobs.append(
                partial(_train_frame, root / folder, _stamp(night, index),
                        night, size, seed))
    # As in the real dumps, a frame whose colour picture got lost.
    jobs.append(
        partial(_lone_frame, root / 'train/seq_00_day/00', _stamp(False, 9999),
                size, seed))
    for night in (False, True):
        for index in range(num_val):
            jobs.append(
                partial(_test_frame,
                        root / 'test' / ('night' if night else 'day'),
                        _stamp(night, 5000 + index), night, size, seed))
    return jobs


def _stamp(night: bool, index: int) -> str:
    """Seconds and nanoseconds; every other one ends in 0."""
    second = 1570722156 + 40000 * night + 2 * index
    nanosecond = 100000000 + (index * 37987631) % 89999999 * 10
    return f'{second}_{nanosecond + index % 2 * 3}'


def _shoot(stamp: str, night: bool, size: Size,
           seed: int) -> tuple[Snapshot, np.ndarray]:
    condition = 'heatnet_night' if night else 'heatnet_day'
    shot = take(seed, f'heatnet/{stamp}', size, FREIBURG, condition)
    return shot, render_thermal(shot.buffers, night, shot.rng)


def _train_frame(folder: Path, stamp: str, night: bool, size: Size,
                 seed: int) -> None:
    shot, counts = _shoot(stamp, night, size, seed)
    save_image(folder / f'fl_rgb/fl_rgb_{stamp}.png', shot.image)
    save_image(folder / f'fl_ir_aligned/fl_ir_aligned_{stamp}.png', counts)
    # The teacher that made the labels of the real set saw nothing by night.
    if not night:
        save_image(folder / f'fl_rgb_labels/fl_rgb_labels_{stamp}.png',
                   heatnet_ids(shot.sketch))


def _lone_frame(folder: Path, stamp: str, size: Size, seed: int) -> None:
    _, counts = _shoot(stamp, False, size, seed)
    save_image(folder / f'fl_ir_aligned/fl_ir_aligned_{stamp}.png', counts)


def _test_frame(folder: Path, stamp: str, night: bool, size: Size,
                seed: int) -> None:
    shot, counts = _shoot(stamp, night, size, seed)
    # Infrared names of the real set lose the last digit if it is 0.
    short = stamp[:-1] if stamp.endswith('0') else stamp
    labels = heatnet_ids(shot.sketch)
    save_image(folder / f'ImagesRGB/fl_rgb_{stamp}_rgb.png', shot.image)
    save_image(folder / f'ImagesIR/fl_ir_aligned_{short}_ir.png', counts)
    mask = folder / f'SegmentationClass/fl_rgb_{stamp}_rgb.png'
    save_image(mask, labels)
    array = io.BytesIO()
    np.save(array, labels.astype(np.int32))
    save_bytes(mask.with_suffix('.npy'), array.getvalue())


def _class_names(root: Path) -> None:
    names = (*HEATNET_CLASSES, 'background', 'ignore')
    save_bytes(root / 'test/class_names.txt', '\n'.join(names).encode())
