# SPDX-License-Identifier: Apache-2.0
"""A prediction as a piece of a page."""
from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, Dict, List, NamedTuple, Optional

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from mmseg_mile.apis.predictions import Prediction
from mmseg_mile.reports.page import data_uri
from mmseg_mile.visualization.class_colours import (UNLABELLED, Colour,
                                                    hex_colour, paint_labels)
from mmseg_mile.visualization.panel import IGNORE_INDEX

TEMPLATES = Path(__file__).parent / 'templates'
# Pixels; a page shows no more.
MAX_WIDTH = 1600
_JPEG_QUALITY = 88


class Bar(NamedTuple):
    """One line of the list of experts.

    Args:
        name (str): The expert.
        distance (str): Of the image to it.
        length (float): Of the bar, per cent of the longest.
        weight (str): Its share in the prediction, or ''.
    """
    name: str
    distance: str
    length: float
    weight: str


class Swatch(NamedTuple):
    """One class of the legend."""
    name: str
    colour: str
    share: str


class ResultView:
    """What the page tells of one prediction.

    Args:
        prediction (Prediction): Of an image.
        colours (dict[str, tuple]): One RGB triple per class name.
    """

    def __init__(self, prediction: Prediction, colours: Dict[str,
                                                             Colour]) -> None:
        self.prediction = prediction
        self.name = prediction.name
        speaker = prediction.speaker()
        self.title = speaker[0].upper() + speaker[1:]
        self.reasons = prediction.reasons()
        self.ood = prediction.ood
        self.seconds = f'{prediction.seconds:.2f}'
        self.size = '{1} x {0}'.format(*prediction.labels.shape)
        self.labels_file = f'{PurePath(prediction.name).stem}_labels.png'
        self._colours = colours

    def render(self) -> str:
        """The HTML."""
        return render('result.html', view=self)

    @property
    def bars(self) -> List[Bar]:
        """list[Bar]: Experts whose distance is known, the nearest first."""
        near = self.prediction.nearest()
        longest = max((d for _, d in near), default=0) or 1
        return [
            Bar(name, f'{distance:.3g}',
                round(100 * max(0, distance) / longest, 1), self._weight(name))
            for name, distance in near
        ]

    @property
    def legend(self) -> List[Swatch]:
        """list[Swatch]: Classes that occur, the largest first."""
        return [
            Swatch(name, hex_colour(self._colours.get(name, UNLABELLED)),
                   f'{100 * share:.1f} %' if share >= 0.0005 else '< 0.1 %')
            for name, share in self.prediction.shares().items()
        ]

    def photo(self) -> str:
        """Address of the image as a JPEG."""
        image = self.prediction.image()
        size = _shown_size(image)
        if size:
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, 'JPEG', quality=_JPEG_QUALITY)
        return data_uri(stream.getvalue(), 'image/jpeg')

    def map(self) -> str:
        """Address of the label map in colours, as a PNG."""
        labels = self.prediction.labels
        size = _shown_size(labels)
        if size:
            labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        picture = Image.fromarray(
            paint_labels(labels, self.prediction.classes, self._colours,
                         IGNORE_INDEX))
        stream = io.BytesIO()
        picture.save(stream, 'PNG')
        return data_uri(stream.getvalue(), 'image/png')

    def labels(self) -> str:
        """Address of the label map itself, as ``tools/infer.py`` writes it."""
        _, content = cv2.imencode('.png', self.prediction.labels)
        return data_uri(content.tobytes(), 'image/png')

    def _weight(self, name: str) -> str:
        weight: Optional[float] = self.prediction.mixture.get(name)
        return f'{100 * weight:.0f} %' if weight else ''


def render(template: str, **values: Any) -> str:
    """A page, or a piece of one, from a file of ``templates``."""
    return _templates().get_template(template).render(values)


def _shown_size(picture: np.ndarray) -> Any:
    """Columns and rows of what is shown; None of what is small enough."""
    high, wide = picture.shape[:2]
    if wide <= MAX_WIDTH:
        return None
    return MAX_WIDTH, max(1, high * MAX_WIDTH // wide)


@lru_cache(maxsize=None)
def _templates() -> Environment:
    # StrictUndefined: a forgotten value is an error, not a gap in the page
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True)
