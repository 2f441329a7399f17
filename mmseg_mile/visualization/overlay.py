# SPDX-License-Identifier: Apache-2.0
"""Images and label maps to look at: colours, overlays, legends."""
from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import cv2
import matplotlib
import mmengine.fileio as fileio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmseg_mile.files import PathLike

Colour = Tuple[int, int, int]
LabelSpace = Tuple[Sequence[str], Sequence[Sequence[int]]]

IGNORE_INDEX = 255
# Marks pixels without a label; no class may have it.
UNLABELLED: Colour = (222, 222, 222)
OOD_COLOUR = '#b26a00'
# Share of the colours where a label map lies over an image.
OPACITY = 0.55
# Smaller images are enlarged, or no text would fit below them.
MIN_WIDTH = 480
MAX_LEGEND_LINES = 5
# Rows or columns that a JPEG file can have.
MAX_JPEG_SIZE = 65500
# Values between these percentiles fill the eight bits of a deeper image.
STRETCH = (1, 99)


class Caption(NamedTuple):
    """A line of text under a picture.

    Args:
        text (str): The words.
        colour (str): Of the words, as matplotlib names it. Defaults to a
            dark grey.
        bold (bool): Whether they are bold. Defaults to False.
    """
    text: str
    colour: str = '0.25'
    bold: bool = False


def choose_class_colours(
        label_spaces: Iterable[LabelSpace]) -> Dict[str, Colour]:
    """Colour per class name; the first label space with a name decides.

    Palettes of different data sets give the same colour to different
    classes. Such a class gets a lighter or darker shade, so that a wrong
    prediction never looks like a right one.

    Args:
        label_spaces (Iterable): Pairs of class names and palette.
    """
    chosen: Dict[str, Colour] = {}
    for classes, palette in label_spaces:
        for name, colour in zip(classes, palette):
            if name not in chosen:
                taken = {UNLABELLED, *chosen.values()}
                shades = _shades(colour)
                chosen[name] = next((s for s in shades if s not in taken),
                                    shades[0])
    return chosen


def _shades(colour: Sequence[int]) -> List[Colour]:
    """A colour, then mixed with white and black to different degrees."""
    red, green, blue = map(int, colour)
    shades = [(red, green, blue)]
    for strength in (0.4, 0.6, 0.2, 0.3, 0.5, 0.7):
        for other in (255, 0):
            red, green, blue = (
                round(c + (other - c) * strength) for c in shades[0])
            shades.append((red, green, blue))
    return shades


def paint_labels(labels: np.ndarray, classes: Sequence[str],
                 colours: Dict[str, Colour]) -> np.ndarray:
    """(H, W, 3) uint8 RGB picture of an (H, W) label map."""
    table = np.array([*(colours[name] for name in classes), UNLABELLED],
                     dtype=np.uint8)
    unlabelled = _is_unlabelled(labels, classes)
    return table[np.where(unlabelled, len(classes), labels)]


def class_shares(labels: np.ndarray,
                 classes: Sequence[str]) -> Dict[str, float]:
    """Share of the pixels per class that occurs, largest first.

    Pixels without a label count as 'no label'.
    """
    values, counts = np.unique(labels, return_counts=True)
    names = [
        'no label' if none else classes[value] for value, none in zip(
            values.tolist(), _is_unlabelled(values, classes))
    ]
    shares = dict(zip(names, (counts / labels.size).tolist()))
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _is_unlabelled(labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    # of so many classes, 255 is one
    return (labels == IGNORE_INDEX) & (IGNORE_INDEX >= len(classes))


def draw_overlay(image: np.ndarray,
                 labels: np.ndarray,
                 classes: Sequence[str],
                 colours: Dict[str, Colour],
                 captions: Sequence[Caption] = (),
                 opacity: float = OPACITY,
                 legend: Optional[Sequence[str]] = None) -> np.ndarray:
    """A label map over its image, with captions and a legend below.

    Args:
        image (np.ndarray): (H, W, 3) uint8 RGB.
        labels (np.ndarray): (H, W) labels, 255 where there is none.
        classes (Sequence[str]): Their names.
        colours (dict[str, tuple]): One RGB triple per class name.
        captions (Sequence[Caption]): Lines below the image, cut at its
            right edge. Defaults to ().
        opacity (float): Of the colours, 0 to 1. Defaults to 0.55.
        legend (Sequence[str], optional): Classes that the legend names,
            whether they occur or not, which gives all frames of a video one
            size. Defaults to None: those that occur, largest first, with
            their share of the pixels.

    Returns:
        np.ndarray: (H', W', 3) uint8 RGB; a narrow image is enlarged by a
        whole number, as far as a JPEG has room for it.

    Raises:
        ValueError: If ``opacity`` is out of range.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f'opacity must be 0 to 1, got {opacity}')
    painted = paint_labels(labels, classes, colours)
    picture = cv2.addWeighted(painted, opacity, image, 1 - opacity, 0)
    height, width = picture.shape[:2]
    times = max(1, min(-(-MIN_WIDTH // width), MAX_JPEG_SIZE // height))
    picture = picture.repeat(times, axis=0).repeat(times, axis=1)
    if legend is None:
        entries = [(f'{name} {_per_cent(share)}',
                    colours.get(name, UNLABELLED))
                   for name, share in class_shares(labels, classes).items()]
    else:
        entries = [(name, colours[name]) for name in legend]
    strip = _caption_strip(picture.shape[1], captions, entries)
    return np.concatenate([picture, strip])


def _per_cent(share: float) -> str:
    return '< 1 %' if share < 0.005 else f'{100 * share:.0f} %'


def _caption_strip(width: int, captions: Sequence[Caption],
                   entries: List[Tuple[str, Colour]]) -> np.ndarray:
    """(h, width, 3) white strip: captions, then the legend in columns."""
    size = max(13, width // 52)
    margin, line = size // 2, round(1.5 * size)
    font, bold = _font(size, False), _font(size, True)
    widest = max(font.getlength(text) for text, _ in entries) + 2.4 * size
    columns = max(1, min(len(entries), int((width - margin) // widest)))
    room = columns * MAX_LEGEND_LINES
    hidden = len(entries) - room + 1
    if hidden > 1:
        entries = [*entries[:room - 1], (f'and {hidden} more', UNLABELLED)]
    rows = -(-len(entries) // columns)
    height = 2 * margin + line * (len(captions) + rows)
    strip = Image.new('RGB', (width, height), 'white')
    draw = ImageDraw.Draw(strip)
    for row, caption in enumerate(captions):
        draw.text((margin, margin + line * row), caption.text,
                  matplotlib.colors.to_hex(caption.colour),
                  bold if caption.bold else font)
    for index, (text, colour) in enumerate(entries):
        row, column = divmod(index, columns)
        x = margin + (width - margin) // columns * column
        y = margin + line * (len(captions) + row)
        draw.rectangle((x, y + 1, x + size, y + 1 + size), colour, '#555555')
        draw.text((x + round(1.4 * size), y), text, '#222222', font)
    return np.asarray(strip)


@lru_cache(maxsize=None)
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    # the font that comes with matplotlib: the same picture everywhere
    name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
    folder = Path(matplotlib.get_data_path()) / 'fonts' / 'ttf'
    return ImageFont.truetype(str(folder / name), size)


def read_image_for_display(path: PathLike) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a colour, grey or deeper image.

    Eight-bit images are shown as they are. Others, such as 16-bit thermal
    or disparity, are stretched between two percentiles: fit for looking
    at, not for measuring.

    Raises:
        ValueError: If the file is no image that OpenCV can decode.
    """
    data = np.frombuffer(fileio.get(path), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR
                         | cv2.IMREAD_ANYDEPTH) if len(data) else None
    if image is None:
        raise ValueError(f'cannot decode image {str(path)!r} ({len(data)} '
                         'bytes); copy or download the file again.')
    if image.dtype != np.uint8:
        image = _stretch(image)
    return np.ascontiguousarray(image[:, :, ::-1])


def _stretch(image: np.ndarray) -> np.ndarray:
    values = image.astype(np.float32)
    # sensors write zero where they measured nothing, such as at the borders
    # of an aligned frame; that would take most of the range
    known = values[np.isfinite(values) & (values != 0)]
    low, high = np.percentile(known, STRETCH) if known.size else (0, 0)
    scaled = (values - low) * (255 / max(high - low, 1e-6))
    scaled = np.nan_to_num(scaled, posinf=255, neginf=0)
    return np.clip(scaled, 0, 255).round().astype(np.uint8)
