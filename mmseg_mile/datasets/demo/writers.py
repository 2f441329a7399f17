# SPDX-License-Identifier: Apache-2.0
"""Fabricated data in the folder layouts of the real data sets.

Each ``plan_*`` function lists the frames of one data set as calls that can be
made in any order and process; each ``write_*`` function makes them.
"""
from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Callable, Sequence

from . import street_styles as styles
from .heatnet_writer import plan_heatnet
from .labels import (cityscapes_annotation, cityscapes_label_ids,
                     cityscapes_train_ids, idd_annotation, idd_masks)
from .snapshot import save_image, save_json, take

Job = Callable[[], None]
Size = tuple[int, int]
ACDC_CONDITIONS = ('fog', 'night', 'rain', 'snow')
_CITIES = dict(
    train=('aachen', 'bochum', 'hamburg'), val=('frankfurt', 'lindau'))
_IDD_PARTS = (('IDD_Segmentation', '.png'), ('idd20kII', '.jpg'))


def wide_size(size: Size) -> Size:
    """Size of a 16:9 camera where Cityscapes' 2:1 camera has ``size``."""
    return size[0], 2 * round(size[1] * 4 / 9)


def write_cityscapes(root: str | Path, num_train: int, num_val: int,
                     size: Size, seed: int) -> None:
    """Write ``root/cityscapes``, clear days in German towns.

    Args:
        root (str | Path): Folder that holds all data sets.
        num_train (int): Frames of split 'train'.
        num_val (int): Frames of split 'val'.
        size (Size): Image height and width.
        seed (int): Seed; equal seeds give equal files.
    """
    _run(plan_cityscapes(Path(root), num_train, num_val, size, seed))


def write_acdc(root: str | Path, conditions: Sequence[str], num_train: int,
               num_val: int, size: Size, seed: int) -> None:
    """Write ``root/acdc``: fog, night, rain and snow in Swiss towns.

    ``num_train`` and ``num_val`` count the frames of each of ``conditions``;
    for the rest see :func:`write_cityscapes`.

    Raises:
        ValueError: If a condition is unknown.
    """
    _run(plan_acdc(Path(root), conditions, num_train, num_val, size, seed))


def write_bdd100k(root: str | Path, num_train: int, num_val: int, size: Size,
                  seed: int) -> None:
    """Write ``root/bdd100k``: wide American streets at any hour."""
    _run(plan_bdd100k(Path(root), num_train, num_val, size, seed))


def write_idd(root: str | Path, num_train: int, num_val: int, size: Size,
              seed: int) -> None:
    """Write ``root/idd``, both parts: dusty roads, crowded mixed traffic."""
    _run(plan_idd(Path(root), num_train, num_val, size, seed))


def write_heatnet(root: str | Path, num_train: int, num_val: int, size: Size,
                  seed: int) -> None:
    """Write ``root/heatnet``: aligned colour and infrared, day and night.

    ``num_train`` labelled day frames and half as many unlabelled night
    frames; ``num_val`` day and as many night frames of split 'test'.
    """
    _run(plan_heatnet(Path(root), num_train, num_val, size, seed))


def plan_cityscapes(root: Path, num_train: int, num_val: int, size: Size,
                    seed: int) -> list[Job]:
    """Frames of :func:`write_cityscapes`."""
    jobs: list[Job] = []
    for split, number in (('train', num_train), ('val', num_val)):
        for index in range(number):
            city = _CITIES[split][index % len(_CITIES[split])]
            stem = f'{split}/{city}/{city}_{index:06d}_000019'
            jobs.append(
                partial(_cityscapes_frame, root / 'cityscapes', stem, size,
                        seed))
    return jobs


def plan_acdc(root: Path, conditions: Sequence[str], num_train: int,
              num_val: int, size: Size, seed: int) -> list[Job]:
    """Frames of :func:`write_acdc`."""
    jobs: list[Job] = []
    for condition in conditions:
        if condition not in ACDC_CONDITIONS:
            raise ValueError(f'conditions must be among {ACDC_CONDITIONS}, '
                             f'got {condition!r}; drop it')
        first = 100 * (ACDC_CONDITIONS.index(condition) + 3)
        for split, number in (('train', num_train), ('val', num_val)):
            for index in range(number):
                clip = first + 40 * (split == 'val') + index // 20
                drive = f'GOPR{clip:04d}'
                stem = (f'{condition}/{split}/{drive}/'
                        f'{drive}_frame_{30 * index + 41:06d}')
                jobs.append(
                    partial(_acdc_frame, root / 'acdc', stem, wide_size(size),
                            seed))
    return jobs


def plan_bdd100k(root: Path, num_train: int, num_val: int, size: Size,
                 seed: int) -> list[Job]:
    """Frames of :func:`write_bdd100k`."""
    splits = (('train', num_train, 0), ('val', num_val, 0x100000))
    return [
        partial(_bdd100k_frame, root / 'bdd100k', split,
                f'{0x3f2a0000 + 977 * index + offset:08x}-{index:08x}',
                wide_size(size), seed) for split, number, offset in splits
        for index in range(number)
    ]


def plan_idd(root: Path, num_train: int, num_val: int, size: Size,
             seed: int) -> list[Job]:
    """Frames of :func:`write_idd`, in turn for either part."""
    jobs: list[Job] = []
    for split, number in (('train', num_train), ('val', num_val)):
        for index in range(number):
            part, suffix = _IDD_PARTS[index % 2]
            drive = (0 if split == 'train' else 100) + index // 16
            stem = f'{split}/{drive}/frame{index:04d}'
            if part == 'IDD_Segmentation':
                stem = f'{split}/{drive}/{index:06d}'
            jobs.append(
                partial(_idd_frame, root / 'idd' / part, stem, suffix,
                        wide_size(size), seed))
    return jobs


def _run(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job()


def _cityscapes_frame(root: Path, stem: str, size: Size, seed: int) -> None:
    shot = take(seed, f'cityscapes/{stem}', size, styles.GERMAN, 'cityscapes')
    save_image(root / f'leftImg8bit/{stem}_leftImg8bit.png', shot.image)
    annotation = cityscapes_annotation(shot.sketch)
    label = f'{root}/gtFine/{stem}_gtFine'
    save_json(Path(f'{label}_polygons.json'), annotation)
    save_image(Path(f'{label}_labelIds.png'), cityscapes_label_ids(annotation))
    save_image(
        Path(f'{label}_labelTrainIds.png'), cityscapes_train_ids(annotation))


def _acdc_frame(root: Path, stem: str, size: Size, seed: int) -> None:
    condition = stem.split('/')[0]
    shot = take(seed, f'acdc/{stem}', size, styles.SWISS, condition)
    save_image(root / f'rgb_anon/{stem}_rgb_anon.png', shot.image)
    annotation = cityscapes_annotation(shot.sketch)
    save_image(root / f'gt/{stem}_gt_labelIds.png',
               cityscapes_label_ids(annotation))
    save_image(root / f'gt/{stem}_gt_labelTrainIds.png',
               cityscapes_train_ids(annotation))


def _bdd100k_frame(root: Path, split: str, name: str, size: Size,
                   seed: int) -> None:
    shot = take(seed, f'bdd100k/{split}/{name}', size, styles.AMERICAN,
                'bdd100k')
    save_image(root / f'images/10k/{split}/{name}.jpg', shot.image)
    save_image(root / f'labels/sem_seg/masks/{split}/{name}.png',
               cityscapes_train_ids(cityscapes_annotation(shot.sketch)))


def _idd_frame(root: Path, stem: str, suffix: str, size: Size,
               seed: int) -> None:
    shot = take(seed, f'idd/{root.name}/{stem}', size, styles.INDIAN, 'idd')
    save_image(root / f'leftImg8bit/{stem}_leftImg8bit{suffix}', shot.image)
    annotation = idd_annotation(shot.sketch)
    save_json(root / f'gtFine/{stem}_gtFine_polygons.json', annotation)
    for name, mask in idd_masks(annotation).items():
        save_image(root / f'gtFine/{stem}_gtFine_{name}.png', mask)
