# SPDX-License-Identifier: Apache-2.0
"""Fabricated data sets in the folder layouts of the real ones."""
from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import zlib
from functools import partial
from pathlib import Path
from typing import (Any, Callable, Dict, Iterator, List, Mapping, NamedTuple,
                    Tuple, Union)

import cv2
import numpy as np

from ..idd import draw_polygons
from ..label_tables import (CITYSCAPES_CLASSES, CITYSCAPES_NAME_TO_TRAIN_ID,
                            CITYSCAPES_NOT_DRAWN, CITYSCAPES_RAW_TO_TRAIN_ID,
                            HEATNET_BACKGROUND, HEATNET_CLASSES,
                            HEATNET_IGNORE, IDD_NAME_TO_CS_TRAIN_ID,
                            IDD_NAME_TO_LEVEL3_ID)
from . import scene as streets
from .canvas import Scene
from .rendering import Pixels, render, render_thermal
from .scene import Street, sample_scene

Size = Tuple[int, int]
Content = Union[np.ndarray, bytes, Dict[str, Any]]
DATA_SETS = ('cityscapes', 'acdc', 'bdd100k', 'idd', 'heatnet')
MANIFEST = 'demo.json'
# Stands while the data are being made, and tells an interrupted run, whose
# files may be replaced, from somebody's real data, which never may.
UNFINISHED = 'demo.unfinished'
# To be raised whenever equal parameters give other files than before.
GENERATOR = 2
_MIN_SIZE = 32

# yapf: disable
# From the names of scenes to those of the data sets.
TO_IDD = {'terrain': 'non-drivable fallback'}
TO_CITYSCAPES = {
    'curb': 'sidewalk', 'drivable fallback': 'ground', 'billboard': 'static',
    'obs-str-bar-fallback': 'static', 'animal': 'dynamic',
    'autorickshaw': 'dynamic', 'vehicle fallback': 'dynamic'}
_CITYSCAPES_RAW_IDS = {
    **{CITYSCAPES_CLASSES[train]: raw
       for raw, train in CITYSCAPES_RAW_TO_TRAIN_ID.items()},
    'ego vehicle': 1, 'static': 4, 'dynamic': 5, 'ground': 6,
    'guard rail': 14, 'bridge': 15}
_HEATNET_MEMBERS = {
    'road': ('road', ), 'sidewalk': ('sidewalk', 'drivable fallback'),
    'building': ('building', 'wall', 'bridge'), 'curb': ('curb', ),
    'fence': ('fence', 'guard rail'),
    'pole': ('pole', 'traffic light', 'traffic sign'),
    'vegetation': ('vegetation', ), 'terrain': ('terrain', ),
    'sky': ('sky', ), 'person': ('person', 'rider'),
    'car': ('car', 'truck', 'bus'), 'bicycle': ('bicycle', 'motorcycle')}
HEATNET_NAME_TO_ID = {
    **{name: HEATNET_CLASSES.index(merged)
       for merged, names in _HEATNET_MEMBERS.items() for name in names},
    **dict.fromkeys(('billboard', 'obs-str-bar-fallback', 'animal',
                     'autorickshaw', 'vehicle fallback'), HEATNET_BACKGROUND),
    'ego vehicle': HEATNET_IGNORE}
# yapf: enable


def make_demo_data(root: Union[str, Path],
                   seed: int = 0,
                   num_train: int = 48,
                   num_val: int = 12,
                   size: Size = (128, 256),
                   overwrite: bool = False,
                   num_processes: int = 2) -> Dict[str, Any]:
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
    _check_arguments(num_train, num_val, seed, size)
    manifest = dict(
        generator=GENERATOR,
        seed=seed,
        num_train=num_train,
        num_val=num_val,
        size=list(size))
    if _is_made(root, manifest, overwrite):
        return manifest
    _write(root / UNFINISHED, manifest)
    # absent while files change, so that no other run takes them for whole
    (root / MANIFEST).unlink(missing_ok=True)
    for name in DATA_SETS:
        shutil.rmtree(root / name, ignore_errors=True)
    _run([
        partial(_make_frame, root, seed, frame)
        for frame in _frames(num_train, num_val, (size[0], size[1]))
    ], num_processes)
    names = (*HEATNET_CLASSES, 'background', 'ignore')
    _write(root / 'heatnet/test/class_names.txt', '\n'.join(names).encode())
    _write(root / MANIFEST, manifest)
    (root / UNFINISHED).unlink()
    return manifest


def _check_arguments(num_train: int, num_val: int, seed: int,
                     size: Size) -> None:
    for name, value, least in (('num_train', num_train, 1),
                               ('num_val', num_val, 1), ('seed', seed, 0)):
        if value < least:
            raise ValueError(f'{name} must be at least {least}, got {value}')
    if len(size) != 2 or min(size) < _MIN_SIZE:
        raise ValueError(f'size must be (height, width) of at least '
                         f'{_MIN_SIZE} pixels each, got {size}')


def _is_made(root: Path, manifest: Dict[str, Any], overwrite: bool) -> bool:
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
    if found == manifest:
        return len(present) == len(DATA_SETS)
    if not overwrite:
        raise ValueError(
            f'{root} holds demo data made with {found}, asked for '
            f'{manifest}; choose another folder, or overwrite them '
            '(--overwrite)')
    return False


def _run(jobs: List[Callable[[], None]], num_processes: int) -> None:
    if num_processes < 2:
        for job in jobs:
            job()
        return
    with multiprocessing.Pool(num_processes, cv2.setNumThreads, (1, )) as pool:
        # unordered: each frame is seeded by its own name
        for _ in pool.imap_unordered(_call, jobs, chunksize=8):
            pass


def _call(job: Callable[[], None]) -> None:
    job()


# -- frames ------------------------------------------------------------------


class Shot(NamedTuple):
    """A scene, its pixels, its BGR picture, and chance for the rest."""
    scene: Scene
    pixels: Pixels
    image: np.ndarray
    rng: np.random.Generator


class _Frame(NamedTuple):
    """One picture of a data set.

    ``key`` alone decides which scene it is, so that frames can be made in
    any order and by any process; ``files`` gives the contents by path below
    the data set's folder.
    """
    data_set: str
    key: str
    size: Size
    street: Street
    condition: str
    files: Callable[[Shot], Dict[str, Content]]


def take(seed: int, key: str, size: Size, street: Street,
         condition: str) -> Shot:
    """Sample and photograph a scene; arguments as in :func:`sample_scene`."""
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    scene = sample_scene(rng, size, street)
    pixels = Pixels.of(scene)
    return Shot(scene, pixels, render(pixels, condition, rng), rng)


def _make_frame(root: Path, seed: int, frame: _Frame) -> None:
    shot = take(seed, f'{frame.data_set}/{frame.key}', frame.size,
                frame.street, frame.condition)
    for name, content in frame.files(shot).items():
        _write(root / frame.data_set / name, content)


def _write(path: Path, content: Content) -> None:
    """Write a picture, bytes or JSON in one step: whole or absent."""
    if isinstance(content, np.ndarray):
        options = [cv2.IMWRITE_JPEG_QUALITY, 92]
        _, encoded = cv2.imencode(path.suffix, content,
                                  options if path.suffix == '.jpg' else [])
        content = encoded.tobytes()
    elif isinstance(content, dict):
        content = json.dumps(content).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    partly = path.with_name(f'{path.name}.{os.getpid()}.partial')
    partly.write_bytes(content)
    os.replace(partly, path)


def wide_size(size: Size) -> Size:
    """Size of a 16:9 camera where Cityscapes' 2:1 camera has ``size``."""
    return size[0], 2 * round(size[1] * 4 / 9)


def _frames(num_train: int, num_val: int, size: Size) -> Iterator[_Frame]:
    """Every frame of every data set."""
    wide = wide_size(size)
    for split, count in (('train', num_train), ('val', num_val)):
        for index in range(count):
            cities = ('aachen',
                      'bochum') if split == 'train' else ('frankfurt',
                                                          'lindau')
            city = cities[index % 2]
            stem = f'{split}/{city}/{city}_{index:06d}_000019'
            yield _Frame('cityscapes', stem, size, streets.GERMAN,
                         'cityscapes', partial(_cityscapes_files, stem))
            for number, weather in enumerate(('fog', 'night', 'rain', 'snow')):
                clip = 100 * (number + 3) + 40 * (split == 'val') + index // 20
                stem = (f'{weather}/{split}/GOPR{clip:04d}/'
                        f'GOPR{clip:04d}_frame_{30 * index + 41:06d}')
                yield _Frame('acdc', stem, wide, streets.SWISS, weather,
                             partial(_acdc_files, stem))
            first = 0x3f2a0000 + 0x100000 * (split == 'val')
            stem = f'{split}/{first + 977 * index:08x}-{index:08x}'
            yield _Frame('bdd100k', stem, wide, streets.AMERICAN, 'bdd100k',
                         partial(_bdd100k_files, stem))
            part, suffix, prefix = (('IDD_Segmentation', '.png', ''),
                                    ('idd20kII', '.jpg', 'frame'))[index % 2]
            drive = 100 * (split == 'val') + index // 16
            stem = f'{split}/{drive}/{prefix}{index:06d}'
            yield _Frame('idd', f'{part}/{stem}', wide, streets.INDIAN, 'idd',
                         partial(_idd_files, part, stem, suffix))
    yield from _heatnet_frames(num_train, num_val, size)


def _heatnet_frames(num_train: int, num_val: int,
                    size: Size) -> Iterator[_Frame]:
    """Aligned colour and infrared: day frames and half as many by night."""
    wide = size[0], round(size[0] * 1920 / 650)
    for night, count in ((False, num_train), (True, num_train // 2)):
        sequence = 'seq_01_night' if night else 'seq_00_day'
        time = 'heatnet_night' if night else 'heatnet_day'
        jobs = [(f'train/{sequence}/{index * 2 // count:02d}', index,
                 _heatnet_train_files) for index in range(count)]
        jobs += [(f'test/{"night" if night else "day"}', 5000 + index,
                  _heatnet_test_files) for index in range(num_val)]
        if not night:
            # as in the real dumps, a frame whose colour picture got lost
            jobs.append(('train/seq_00_day/00', 9999, _heatnet_lone_files))
        for folder, index, files in jobs:
            # seconds and nanoseconds; every other one ends in 0
            second = 1570722156 + 40000 * night + 2 * index
            nanosecond = 100000000 + index * 37987631 % 89999999 * 10
            stamp = f'{second}_{nanosecond + index % 2 * 3}'
            yield _Frame('heatnet', stamp, wide, streets.FREIBURG, time,
                         partial(files, folder, stamp, night))


# -- files of one frame ------------------------------------------------------


def annotation(scene: Scene, rename: Mapping[str, str]) -> Dict[str, Any]:
    """Polygons as Cityscapes and IDD write them."""
    objects = [
        dict(
            label=rename.get(part.label, part.label),
            polygon=np.rint(part.outline).astype(int).tolist())
        for part in scene.parts if part.label is not None
    ]
    return dict(imgHeight=scene.height, imgWidth=scene.width, objects=objects)


def cityscapes_masks(polygons: Mapping[str, Any]) -> Dict[str, np.ndarray]:
    """Masks of Cityscapes and ACDC, by the name in the file."""
    return dict(
        labelIds=draw_polygons(
            polygons, _CITYSCAPES_RAW_IDS, CITYSCAPES_NOT_DRAWN, background=0),
        labelTrainIds=draw_polygons(polygons, CITYSCAPES_NAME_TO_TRAIN_ID,
                                    CITYSCAPES_NOT_DRAWN))


def idd_masks(polygons: Mapping[str, Any]) -> Dict[str, np.ndarray]:
    """Both masks of IDD, by the name in the file."""
    return dict(
        labelcsTrainIds=draw_polygons(polygons, IDD_NAME_TO_CS_TRAIN_ID),
        labellevel3Ids=draw_polygons(polygons, IDD_NAME_TO_LEVEL3_ID))


def heatnet_mask(scene: Scene) -> np.ndarray:
    """HeatNet's 12 classes, 12 background and 13 ignore."""
    return draw_polygons(
        annotation(scene, {}),
        HEATNET_NAME_TO_ID, ('license plate', ),
        background=HEATNET_IGNORE)


def _cityscapes_files(stem: str, shot: Shot) -> Dict[str, Content]:
    polygons = annotation(shot.scene, TO_CITYSCAPES)
    label = f'gtFine/{stem}_gtFine'
    files: Dict[str, Content] = {
        f'leftImg8bit/{stem}_leftImg8bit.png': shot.image,
        f'{label}_polygons.json': polygons
    }
    for name, mask in cityscapes_masks(polygons).items():
        files[f'{label}_{name}.png'] = mask
    return files


def _acdc_files(stem: str, shot: Shot) -> Dict[str, Content]:
    masks = cityscapes_masks(annotation(shot.scene, TO_CITYSCAPES))
    files: Dict[str, Content] = {f'rgb_anon/{stem}_rgb_anon.png': shot.image}
    files.update({f'gt/{stem}_gt_{n}.png': mask for n, mask in masks.items()})
    return files


def _bdd100k_files(stem: str, shot: Shot) -> Dict[str, Content]:
    masks = cityscapes_masks(annotation(shot.scene, TO_CITYSCAPES))
    return {
        f'images/10k/{stem}.jpg': shot.image,
        f'labels/sem_seg/masks/{stem}.png': masks['labelTrainIds']
    }


def _idd_files(part: str, stem: str, suffix: str,
               shot: Shot) -> Dict[str, Content]:
    polygons = annotation(shot.scene, TO_IDD)
    files: Dict[str, Content] = {
        f'{part}/leftImg8bit/{stem}_leftImg8bit{suffix}': shot.image,
        f'{part}/gtFine/{stem}_gtFine_polygons.json': polygons
    }
    for name, mask in idd_masks(polygons).items():
        files[f'{part}/gtFine/{stem}_gtFine_{name}.png'] = mask
    return files


def _heatnet_lone_files(folder: str, stamp: str, night: bool,
                        shot: Shot) -> Dict[str, Content]:
    counts = render_thermal(shot.pixels, night, shot.rng)
    return {f'{folder}/fl_ir_aligned/fl_ir_aligned_{stamp}.png': counts}


def _heatnet_train_files(folder: str, stamp: str, night: bool,
                         shot: Shot) -> Dict[str, Content]:
    files = _heatnet_lone_files(folder, stamp, night, shot)
    files[f'{folder}/fl_rgb/fl_rgb_{stamp}.png'] = shot.image
    # the teacher that made the labels of the real set saw nothing by night
    if not night:
        files[f'{folder}/fl_rgb_labels/fl_rgb_labels_{stamp}.png'] = (
            heatnet_mask(shot.scene))
    return files


def _heatnet_test_files(folder: str, stamp: str, night: bool,
                        shot: Shot) -> Dict[str, Content]:
    labels, array = heatnet_mask(shot.scene), io.BytesIO()
    np.save(array, labels.astype(np.int32))
    # infrared names of the real set lose the last digit if it is 0
    short = stamp[:-1] if stamp.endswith('0') else stamp
    mask = f'{folder}/SegmentationClass/fl_rgb_{stamp}_rgb'
    return {
        f'{folder}/ImagesRGB/fl_rgb_{stamp}_rgb.png':
        shot.image,
        f'{folder}/ImagesIR/fl_ir_aligned_{short}_ir.png':
        render_thermal(shot.pixels, night, shot.rng),
        f'{mask}.png':
        labels,
        f'{mask}.npy':
        array.getvalue()
    }
