# SPDX-License-Identifier: Apache-2.0
"""Kept pictures side by side, with captions and the colours of classes."""
from __future__ import annotations

import io
from pathlib import Path
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

from markupsafe import Markup
from PIL import Image

from mmseg_mile.files import PathLike
from mmseg_mile.visualization.class_colours import UNLABELLED, hex_colour
from mmseg_mile.visualization.picture_store import Entry, PictureStore
from .page import data_uri, number, render_template

# What a caption says of an expert that is, and is not, that of the task.
MARKS = {True: '\u2713', False: '\u2717'}
HEADINGS = dict(
    image='image',
    truth='ground truth',
    prediction='prediction',
    oracle='own expert')


class Tile(NamedTuple):
    """One picture with its caption; no source where the file is gone."""
    source: Optional[str]
    heading: str
    captions: Sequence[Markup]


def prediction_gallery(store: PictureStore) -> Markup:
    """Image, truth and prediction of the first images of every task."""
    return _gallery(store, store.entries, ('image', 'truth', 'prediction'))


def cost_gallery(store: PictureStore) -> Markup:
    """The same and what the own expert predicts, the costliest first."""
    entries = sorted(
        store.entries,
        key=lambda entry:
        (-(entry['oracle_miou'] - entry['miou']), entry['file']))
    return _gallery(store, entries, tuple(HEADINGS))


def expert_words(expert: Optional[str], task: str) -> Markup:
    """The expert, marked by whether it is the task's own."""
    if expert is None:
        return Markup('')
    right = expert == task
    return Markup('<span class="{}">{}&nbsp;{}</span>').format(
        'right' if right else 'wrong', MARKS[right], expert)


def _gallery(store: PictureStore, entries: Sequence[Entry],
             names: Sequence[str]) -> Markup:
    """Raises a ``ValueError`` that names the file if one is broken."""
    index = store.folder / 'index.json'
    try:
        shots = [(entry['task'], entry['file'],
                  [_tile(store.folder, entry, name) for name in names])
                 for entry in entries]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f'{index} lists a picture without {error}. Remove the folder '
            'and evaluate the run again, or report without it') from error
    return render_template('gallery.html', shots=shots, legend=_legend(store))


def _tile(folder: Path, entry: Entry, name: str) -> Tile:
    captions: List[Markup] = []
    if name == 'image' and entry['ood']:
        captions.append(
            Markup(
                '<span class="out-of-distribution">out-of-distribution</span>')
        )
    scores = dict(prediction='miou', oracle='oracle_miou')
    if name in scores:
        expert = entry['expert'] if name == 'prediction' else entry['task']
        captions.append(expert_words(expert, entry['task']))
        miou = entry[scores[name]]
        if miou is not None:
            captions.append(Markup('mIoU {}').format(number(miou)))
    file = entry[name]
    source = read_picture(folder / file) if file else None
    return Tile(source, HEADINGS[name], [c for c in captions if c])


def read_picture(path: PathLike) -> Optional[str]:
    """A picture file as a data address; None if there is no such file.

    Raises:
        ValueError: If the file is no whole PNG or JPEG; names the file.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return None
    try:
        with Image.open(io.BytesIO(content), formats=('PNG', 'JPEG')) as file:
            file.load()
            kind = file.get_format_mimetype()
    # what Pillow raises of a broken file depends on where it is broken
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f'{path} is no whole picture ({error}): restore the file, or '
            'remove it to have the report without it') from error
    return data_uri(content, str(kind))


def _legend(store: PictureStore) -> List[Tuple[str, Any]]:
    colours = [(name, hex_colour(c)) for name, c in store.colours.items()]
    return [*colours, ('not labelled', hex_colour(UNLABELLED))]
