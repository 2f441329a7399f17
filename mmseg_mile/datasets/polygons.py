# SPDX-License-Identifier: Apache-2.0
"""Label masks from polygons, as Cityscapes and IDD store them."""
from __future__ import annotations

import json
import os
from typing import Collection, Mapping

import numpy as np
from PIL import Image, ImageDraw

from .label_tables import IGNORE


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
        ValueError: If a label is unknown.
    """
    size = (annotation['imgWidth'], annotation['imgHeight'])
    mask = Image.new('L', size, background)
    pen = ImageDraw.Draw(mask)
    for entry in annotation['objects']:
        name = single_label(entry['label'], {*ids, *not_drawn})
        # Two corners make a line; fewer make nothing, and Pillow refuses them.
        if (entry.get('deleted') or name in not_drawn
                or len(entry['polygon']) < 2):
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
