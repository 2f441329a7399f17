# SPDX-License-Identifier: Apache-2.0
"""A scene's polygons and masks in the vocabulary of each data set.

Scenes use the label names of IDD, plus 'terrain'. The masks are drawn by the
very function that the converters of the real archives use.
"""
from __future__ import annotations

from typing import Mapping

import numpy as np

from ..idd import draw_polygons
from ..label_tables import (CITYSCAPES_CLASSES, CITYSCAPES_NAME_TO_TRAIN_ID,
                            CITYSCAPES_NOT_DRAWN, CITYSCAPES_RAW_TO_TRAIN_ID,
                            HEATNET_BACKGROUND, HEATNET_CLASSES,
                            HEATNET_IGNORE, IDD_NAME_TO_CS_TRAIN_ID,
                            IDD_NAME_TO_LEVEL3_ID)
from .sketch import Sketch

# yapf: disable
_TO_CITYSCAPES = {
    'curb': 'sidewalk', 'drivable fallback': 'ground', 'billboard': 'static',
    'obs-str-bar-fallback': 'static', 'animal': 'dynamic',
    'autorickshaw': 'dynamic', 'vehicle fallback': 'dynamic'}
_TO_IDD = {'terrain': 'non-drivable fallback'}

CITYSCAPES_NAME_TO_RAW_ID = {
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


def annotate(sketch: Sketch, rename: Mapping[str, str]) -> dict:
    """Polygon annotation as Cityscapes and IDD write it."""
    objects = [
        dict(
            label=rename.get(part.label, part.label),
            polygon=np.rint(part.outline).astype(int).tolist())
        for part in sketch.parts if part.label is not None
    ]
    return dict(
        imgHeight=sketch.camera.height,
        imgWidth=sketch.camera.width,
        objects=objects)


def cityscapes_annotation(sketch: Sketch) -> dict:
    """Polygons under Cityscapes names."""
    return annotate(sketch, _TO_CITYSCAPES)


def cityscapes_label_ids(annotation: Mapping) -> np.ndarray:
    """Raw ids; 0 is unlabeled."""
    return draw_polygons(
        annotation,
        CITYSCAPES_NAME_TO_RAW_ID,
        CITYSCAPES_NOT_DRAWN,
        background=0)


def cityscapes_train_ids(annotation: Mapping) -> np.ndarray:
    """The 19 classes; 255 is ignored."""
    return draw_polygons(annotation, CITYSCAPES_NAME_TO_TRAIN_ID,
                         CITYSCAPES_NOT_DRAWN)


def idd_annotation(sketch: Sketch) -> dict:
    """Polygons under IDD names."""
    return annotate(sketch, _TO_IDD)


def idd_masks(annotation: Mapping) -> dict[str, np.ndarray]:
    """Both masks that are made from IDD's polygons, by file name part."""
    return dict(
        labelcsTrainIds=draw_polygons(annotation, IDD_NAME_TO_CS_TRAIN_ID),
        labellevel3Ids=draw_polygons(annotation, IDD_NAME_TO_LEVEL3_ID))


def heatnet_ids(sketch: Sketch) -> np.ndarray:
    """HeatNet's 12 classes, 12 background and 13 ignore."""
    return draw_polygons(
        annotate(sketch, {}),
        HEATNET_NAME_TO_ID, ('license plate', ),
        background=HEATNET_IGNORE)
