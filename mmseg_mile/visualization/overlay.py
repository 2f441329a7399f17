# SPDX-License-Identifier: Apache-2.0
"""A label map over its image, with captions and a legend below."""
from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .class_colours import UNLABELLED, Colour, hex_colour, paint_labels
from .gallery import Caption
from .panel import IGNORE_INDEX

# Share of the colours where a label map lies over an image.
OPACITY = 0.55
# Smaller images are enlarged, or no text would fit below them.
MIN_WIDTH = 480
MAX_LEGEND_LINES = 5


class Entry(NamedTuple):
    """A colour of the legend and what it stands for."""
    text: str
    colour: Colour


def draw_overlay(image: np.ndarray,
                 labels: np.ndarray,
                 classes: Sequence[str],
                 colours: Dict[str, Colour],
                 captions: Sequence[Caption] = (),
                 opacity: float = OPACITY,
                 legend: Optional[Sequence[str]] = None) -> np.ndarray:
    """One picture to look at.

    Args:
        image (np.ndarray): (H, W, 3) uint8 RGB.
        labels (np.ndarray): (H, W) labels, 255 where there is none.
        classes (Sequence[str]): Their names.
        colours (dict[str, tuple]): One RGB triple per class name.
        captions (Sequence[Caption]): Lines below the image, cut to its
            width. Defaults to ().
        opacity (float): Of the colours, 0 to 1. Defaults to 0.55.
        legend (Sequence[str], optional): Classes that the legend names,
            whether they occur or not, which gives all frames of a video one
            size. Defaults to None: those that occur, largest first, with
            their share of the pixels.

    Returns:
        np.ndarray: (H', W', 3) uint8 RGB; a narrow image is enlarged by a
        whole number.

    Raises:
        ValueError: If ``opacity`` is out of range.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f'opacity must be 0 to 1, got {opacity}')
    painted = paint_labels(labels, classes, colours, IGNORE_INDEX)
    picture = cv2.addWeighted(painted, opacity, image, 1 - opacity, 0)
    times = -(-MIN_WIDTH // picture.shape[1])
    if times > 1:
        picture = picture.repeat(times, axis=0).repeat(times, axis=1)
    if legend is None:
        entries = [
            Entry(f'{name} {_per_cent(share)}', colours.get(name, UNLABELLED))
            for name, share in class_shares(labels, classes).items()
        ]
    else:
        entries = [Entry(name, colours[name]) for name in legend]
    strip = _strip(picture.shape[1], captions, entries)
    return np.concatenate([picture, strip])


def class_shares(labels: np.ndarray,
                 classes: Sequence[str]) -> Dict[str, float]:
    """Share of the pixels per class that occurs, largest first.

    Pixels without a label count as 'no label'.
    """
    values, counts = np.unique(labels, return_counts=True)
    names = [
        'no label' if v == IGNORE_INDEX and v >= len(classes) else classes[v]
        for v in values.tolist()
    ]
    shares = dict(zip(names, (counts / labels.size).tolist()))
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _per_cent(share: float) -> str:
    return '< 1 %' if share < 0.005 else f'{100 * share:.0f} %'


def _strip(width: int, captions: Sequence[Caption],
           entries: Sequence[Entry]) -> np.ndarray:
    """(h, width, 3) white strip with the texts on it."""
    size = max(13, width // 52)
    margin, line = size // 2, round(1.5 * size)
    font, bold = _font(size, False), _font(size, True)
    rows = _legend_rows(entries, width - 2 * margin, font, size)
    height = 2 * margin + line * (len(captions) + len(rows))
    picture = Image.new('RGB', (width, height), 'white')
    draw = ImageDraw.Draw(picture)
    y = margin
    for caption in captions:
        used = bold if caption.bold else font
        draw.text((margin, y), _cut(caption.text, width - 2 * margin, used),
                  _pil_colour(caption.colour), used)
        y += line
    for row in rows:
        for x, (text, colour) in row:
            if colour is not None:
                draw.rectangle(
                    (margin + x, y + 1, margin + x + size, y + 1 + size),
                    hex_colour(colour), '#555555')
            draw.text((margin + x + round(1.4 * size), y), text, '#222222',
                      font)
        y += line
    return np.asarray(picture)


_Placed = Tuple[float, Tuple[str, Optional[Colour]]]


def _legend_rows(entries: Sequence[Entry], width: int,
                 font: ImageFont.FreeTypeFont,
                 size: int) -> List[List[_Placed]]:
    """Where each entry goes, as many as there is room for."""
    rows: List[List[_Placed]] = []
    x = float(width)
    for index, entry in enumerate(entries):
        text = _cut(entry.text, width - 2 * size, font)
        needs = 1.4 * size + font.getlength(text)
        if x + needs > width:
            if len(rows) == MAX_LEGEND_LINES:
                rest = f'\u2026 and {len(entries) - index} more'
                # in the place of what would have to be moved
                while rows[-1] and x + 1.4 * size + font.getlength(
                        rest) > width:
                    x = rows[-1].pop()[0]
                    index -= 1
                    rest = f'\u2026 and {len(entries) - index} more'
                rows[-1].append((x, (rest, None)))
                break
            rows.append([])
            x = 0
        rows[-1].append((x, (text, entry.colour)))
        x += needs + size
    return rows


def _cut(text: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """``text``, cut and marked by an ellipsis where it is too wide."""
    if font.getlength(text) <= width:
        return text
    kept = len(text)
    while kept and font.getlength(text[:kept] + '\u2026') > width:
        kept -= 1
    return text[:kept] + '\u2026'


def _pil_colour(colour: str) -> str:
    """A colour of matplotlib's, also a grey such as '0.25'."""
    return matplotlib.colors.to_hex(colour)


@lru_cache(maxsize=None)
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    # the font that comes with matplotlib: the same picture everywhere
    name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
    folder = Path(matplotlib.get_data_path()) / 'fonts' / 'ttf'
    return ImageFont.truetype(str(folder / name), size)
