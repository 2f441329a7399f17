# SPDX-License-Identifier: Apache-2.0
"""IDD: unstructured traffic in India."""
from __future__ import annotations

import json
import os
from typing import Any, Collection, Mapping

import numpy as np
from PIL import Image, ImageDraw

from mmseg.registry import DATASETS
from .driving import DrivingDataset, FolderPair
from .label_tables import (CITYSCAPES_CLASSES, CITYSCAPES_PALETTE,
                           IDD_LEVEL3_CLASSES, IDD_LEVEL3_PALETTE, IGNORE)


def read_polygons(path: str) -> dict:
    """Read a ``_polygons.json`` file.

    Raises:
        ValueError: If the file is no such annotation.
    """
    try:
        with open(path, encoding='utf-8') as file:
            annotation = json.load(file)
    except ValueError as error:
        raise ValueError(f'cannot read {path!r}: {error}. Extract or download '
                         'the file again.') from error
    missing = {'imgHeight', 'imgWidth', 'objects'} - set(annotation)
    if missing:
        raise ValueError(f'{path!r} lacks {sorted(missing)}: it is no polygon '
                         'annotation of Cityscapes or IDD.')
    return annotation


def draw_polygons(annotation: Mapping,
                  ids: Mapping[str, int],
                  not_drawn: Collection[str] = (),
                  background: int = IGNORE) -> np.ndarray:
    """Draw the polygons in the order of the file, later ones on top.

    Args:
        annotation (Mapping): ``imgHeight``, ``imgWidth`` and ``objects``, each
            with ``label``, ``polygon`` and perhaps ``deleted``.
        ids (Mapping[str, int]): Value of each label.
        not_drawn (Collection[str]): Labels whose polygons leave the mask as
            it is. Defaults to ().
        background (int): Value where no polygon lies. Defaults to 255.

    Returns:
        np.ndarray: uint8 mask, imgHeight x imgWidth.

    Raises:
        ValueError: If a label of what is not deleted is unknown.
    """
    size = (annotation['imgWidth'], annotation['imgHeight'])
    mask = Image.new('L', size, background)
    pen = ImageDraw.Draw(mask)
    for entry in annotation['objects']:
        if entry.get('deleted'):
            continue
        name = single_label(entry['label'], {*ids, *not_drawn})
        # Two corners make a line; fewer make nothing, and Pillow refuses them.
        if name in not_drawn or len(entry['polygon']) < 2:
            continue
        pen.polygon([(x, y) for x, y in entry['polygon']], fill=ids[name])
    return np.asarray(mask)


def single_label(name: str, known: Collection[str]) -> str:
    """Turn 'cargroup' into 'car', unless a label has the longer name."""
    if name in known:
        return name
    single = name.removesuffix('group')
    if single not in known:
        raise ValueError(f'unknown label {name!r}; known are {sorted(known)}.')
    return single


def write_mask(path: str, mask: np.ndarray) -> None:
    """Write a png that is either whole or not there.

    A converter that was killed must not leave half a file, which its next run
    would take for a finished one.
    """
    partial = f'{path}.{os.getpid()}.partial'
    Image.fromarray(mask.astype(np.uint8)).save(partial, format='PNG')
    os.replace(partial, path)


PARTS = ('IDD_Segmentation', 'idd20kII')


@DATASETS.register_module()
class IDDDataset(DrivingDataset):
    """IDD, parts I (png) and II (jpg) as one dataset.

    Either part may be absent, and ``data_root`` may be one part itself. The
    archives hold polygons; the converter draws the masks of both label spaces.

    Args:
        label_space (str): 'cs_train_ids' for the 19 classes of Cityscapes, in
            which 'terrain' is IDD's non-drivable fallback and labels such as
            autorickshaw are ignored, or 'level3' for the 26 classes of the
            official score. Defaults to 'cs_train_ids'.
        *args, **kwargs: See :class:`DrivingDataset`.
    """
    METAINFO = dict(classes=CITYSCAPES_CLASSES, palette=CITYSCAPES_PALETTE)
    LABEL_SPACES: dict[str, dict[str, Any]] = dict(
        cs_train_ids=METAINFO,
        level3=dict(classes=IDD_LEVEL3_CLASSES, palette=IDD_LEVEL3_PALETTE))
    MASK_SUFFIXES = dict(
        cs_train_ids='_gtFine_labelcsTrainIds.png',
        level3='_gtFine_labellevel3Ids.png')
    SOURCE = ('https://idd.insaan.iiit.ac.in (registration; research licence '
              'named there), "IDD Segmentation" part I and part II')
    LAYOUT = ('IDD_Segmentation/leftImg8bit/{train,val}/<drive>/'
              '<id>_leftImg8bit.png\n'
              'IDD_Segmentation/gtFine/{train,val}/<drive>/'
              '<id>_gtFine_{labelcsTrainIds,labellevel3Ids}.png\n'
              'idd20kII/leftImg8bit/{train,val}/<drive>/<id>_leftImg8bit.jpg\n'
              'idd20kII/gtFine/{train,val}/<drive>/'
              '<id>_gtFine_{labelcsTrainIds,labellevel3Ids}.png\n'
              '(either part, or data_root is one part)')
    CONVERTER = 'python tools/dataset_converters/idd.py'
    default_domain = 'idd'

    def __init__(self,
                 *args: Any,
                 label_space: str = 'cs_train_ids',
                 **kwargs: Any) -> None:
        self.check_choice('label_space', label_space, tuple(self.LABEL_SPACES))
        self.native_metainfo = self.LABEL_SPACES[label_space]
        self.seg_map_ending = self.MASK_SUFFIXES[label_space]
        super().__init__(*args, **kwargs)

    def folder_pairs(self) -> list[FolderPair]:
        """One pair of folders per part."""
        roots = [
            self.data_root,
            *(self.join(self.data_root, part) for part in PARTS)
        ]
        images = [self.join(root, 'leftImg8bit') for root in roots]
        self.existing_folder(images)
        return [
            FolderPair(
                self.join(root, 'leftImg8bit', self.split),
                self.join(root, 'gtFine', self.split),
                ('_leftImg8bit.png', '_leftImg8bit.jpg'), self.seg_map_ending)
            for root, folder in zip(roots, images) if self.is_folder(folder)
        ]
