# SPDX-License-Identifier: Apache-2.0
"""All five data sets, fabricated once and found again."""
from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path

import cv2

from .heatnet_writer import plan_heatnet
from .snapshot import save_json
from .writers import (ACDC_CONDITIONS, Job, plan_acdc, plan_bdd100k,
                      plan_cityscapes, plan_idd)

MANIFEST = 'demo.json'
# Stands while the data are being made, and tells an interrupted run, whose
# files may be replaced, from somebody's real data, which never may.
UNFINISHED = 'demo.unfinished'
DATA_SETS = ('cityscapes', 'acdc', 'bdd100k', 'idd', 'heatnet')
# To be raised whenever equal parameters give other files than before.
GENERATOR = 1
_MIN_SIZE = 32


def make_demo_data(root: str | Path,
                   seed: int = 0,
                   num_train: int = 48,
                   num_val: int = 12,
                   size: tuple[int, int] = (128, 256),
                   overwrite: bool = False,
                   num_processes: int = 2) -> dict:
    """Fabricate Cityscapes, ACDC, BDD100K, IDD and Freiburg Thermal.

    Data made before with the same parameters are left as they are; what an
    interrupted run left behind is made anew.

    Args:
        root (str | Path): Folder to hold one folder per data set.
        seed (int): Seed; equal parameters give byte-identical files.
            Defaults to 0.
        num_train (int): Training frames per domain. Defaults to 48.
        num_val (int): Validation or test frames per domain. Defaults to 12.
        size (tuple[int, int]): Height and width of a Cityscapes image; the
            others follow with their own aspect ratio. Defaults to (128, 256).
        overwrite (bool): Replace demo data made with other parameters.
            Defaults to False.
        num_processes (int): Processes to share the work. Defaults to 2.

    Returns:
        dict: The parameters, as written to ``root/demo.json``.

    Raises:
        ValueError: If an argument is out of range, or ``root`` holds other
            data.
    """
    root = Path(root)
    manifest = _parameters(seed, num_train, num_val, size)
    if _is_made(root, manifest, overwrite):
        return manifest
    _clear(root, manifest)
    height, width = size
    counts = num_train, num_val, (height, width), seed
    jobs = [
        *plan_cityscapes(root, *counts),
        *plan_acdc(root, ACDC_CONDITIONS, *counts),
        *plan_bdd100k(root, *counts), *plan_idd(root, *counts),
        *plan_heatnet(root, *counts)
    ]
    _run(jobs, num_processes)
    save_json(root / MANIFEST, manifest)
    (root / UNFINISHED).unlink()
    return manifest


def _clear(root: Path, manifest: dict) -> None:
    save_json(root / UNFINISHED, manifest)
    # Absent while files change, so that no other run takes them for whole.
    (root / MANIFEST).unlink(missing_ok=True)
    for name in DATA_SETS:
        if (root / name).exists():
            shutil.rmtree(root / name)


def _parameters(seed: int, num_train: int, num_val: int,
                size: tuple[int, int]) -> dict:
    for name, value in (('num_train', num_train), ('num_val', num_val)):
        if value < 1:
            raise ValueError(f'{name} must be at least 1, got {value}')
    if seed < 0:
        raise ValueError(f'seed must not be negative, got {seed}')
    if len(size) != 2 or min(size) < _MIN_SIZE:
        raise ValueError(f'size must be (height, width) of at least '
                         f'{_MIN_SIZE} pixels each, got {size}')
    return dict(
        generator=GENERATOR,
        seed=seed,
        num_train=num_train,
        num_val=num_val,
        size=list(size))


def _is_made(root: Path, manifest: dict, overwrite: bool) -> bool:
    """Whether the data are there; refuses data that must not be replaced."""
    present = [name for name in DATA_SETS if (root / name).exists()]
    if (root / UNFINISHED).exists():
        return False
    if not (root / MANIFEST).exists():
        if present:
            raise ValueError(
                f'{root} holds {present} but no {MANIFEST}, so they are not '
                'demo data; choose another folder')
        return False
    found = json.loads((root / MANIFEST).read_text())
    if found != manifest:
        if not overwrite:
            raise ValueError(
                f'{root} holds demo data made with {found}, asked for '
                f'{manifest}; choose another folder, or overwrite them '
                '(--overwrite)')
        return False
    return len(present) == len(DATA_SETS)


def _run(jobs: list[Job], num_processes: int) -> None:
    if num_processes < 2:
        for job in jobs:
            job()
        return
    with multiprocessing.Pool(num_processes, _one_thread) as pool:
        # Unordered: each frame is seeded by its own name.
        for _ in pool.imap_unordered(_call, jobs, chunksize=8):
            pass


def _one_thread() -> None:
    cv2.setNumThreads(1)


def _call(job: Job) -> None:
    job()
