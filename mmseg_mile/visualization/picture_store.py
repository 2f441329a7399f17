# SPDX-License-Identifier: Apache-2.0
"""Panels on disk as soon as they are there, to outlive a killed run."""
from __future__ import annotations

import math
import shutil
from logging import Logger
from pathlib import Path
from typing import Any, Collection, Dict, Iterable, List, Optional

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from mmseg_mile.files import read_json, write_json
from .class_colours import (UNLABELLED, Colour, LabelSpace,
                            choose_class_colours, hex_colour)
from .figure_file import PathLike
from .panel import IGNORE_INDEX, Panel

Entry = Dict[str, Any]
MAPS = ('truth', 'prediction', 'oracle')
# What no photograph at this size loses visibly.
JPEG_QUALITY = 90


class PictureStore:
    """Pictures of one evaluation row in a folder, listed in ``index.json``.

    The index holds ``after``, the task learned last; ``colours``, '#rrggbb'
    per class that occurs; and ``pictures``, one entry per panel: ``task``,
    ``number`` (its place in the task's evaluation), ``file``, ``expert``,
    ``ood``, ``miou``, ``oracle_miou``, and relative to the folder
    the files ``image`` (JPEG), ``truth``, ``prediction`` and ``oracle``
    (PNG, or null where the own expert predicted nothing else). Every PNG is
    a picture in these colours whose palette indices are labels, whose names
    ``classes`` lists. So a page can show the files as they are, and a
    gallery can be drawn again.

    An entry is listed once its files are complete.

    Args:
        folder (PathLike): May hold what an earlier run has kept.

    Raises:
        ValueError: If there is an index that cannot be read.
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)
        self.after: Optional[str] = None
        self.entries: List[Entry] = []
        self.colours: Dict[str, Colour] = {}
        if self._index.exists():
            document = read_json(self._index)
            self.after = document['after']
            self.entries = document['pictures']
            self.colours = {
                name: _from_hex(colour)
                for name, colour in document['colours'].items()
            }

    @property
    def _index(self) -> Path:
        return self.folder / 'index.json'

    def begin_row(self, after: str,
                  label_spaces: Iterable[LabelSpace]) -> None:
        """Keep what is there of the same row, and forget any other.

        Args:
            after (str): Task that was learned last.
            label_spaces (Iterable): Pairs of class names and palette that
                decide on the colours, such as those of all tasks.
        """
        if self.after != after:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.after, self.entries, self.colours = after, [], {}
        self._extend_colours(label_spaces, first=True)

    def drop(self, tasks: Collection[str]) -> None:
        """Forget the pictures of some tasks."""
        for entry in [e for e in self.entries if e['task'] in tasks]:
            self.remove(entry)

    def add(self, panel: Panel, number: int) -> Entry:
        """Write a panel and list it.

        Args:
            panel (Panel): Of the present row.
            number (int): Of the image in its task, for the names of files.
        """
        maps = panel.label_maps()
        self._extend_colours(space for _, _, space in maps)
        stem = f'{panel.task}/{number}'
        (self.folder / panel.task).mkdir(parents=True, exist_ok=True)
        entry: Entry = dict(
            task=panel.task,
            number=number,
            file=panel.file,
            expert=panel.expert,
            ood=panel.ood,
            miou=_known(panel.miou),
            oracle_miou=_known(panel.oracle_miou),
            image=f'{stem}_image.jpg',
            **dict.fromkeys(MAPS),
            classes={})
        Image.fromarray(panel.image).save(
            self.folder / entry['image'], quality=JPEG_QUALITY)
        for name, labels, (classes, _) in maps:
            entry[name] = f'{stem}_{name}.png'
            entry['classes'][name] = self._write_labels(
                self.folder / entry[name], labels, classes)
        self.entries.append(entry)
        self._write_index()
        return entry

    def remove(self, entry: Entry) -> None:
        """Forget one picture."""
        self.entries.remove(entry)
        self._write_index()
        for name in ('image', *MAPS):
            if entry[name]:
                (self.folder / entry[name]).unlink(missing_ok=True)

    def panels(self, logger: Logger) -> List[Panel]:
        """All panels as they are on disk, in the order of the entries.

        A file that is gone or broken costs its panel and a warning: a
        picture is no reason to end a training.
        """
        found = []
        for entry in self.entries:
            try:
                found.append(self._read(entry))
            except (OSError, ValueError) as error:
                logger.warning(f'a picture in {self.folder} is left out: '
                               f'{error}')
        return found

    def _read(self, entry: Entry) -> Panel:
        spaces: Dict[str, Any] = {}
        for name in filter(entry.get, MAPS):
            classes = entry['classes'][name]
            with Image.open(self.folder / entry[name]) as file:
                spaces[name] = np.array(file).astype(np.int16)
            spaces[f'{name}_classes'] = classes
            spaces[f'{name}_palette'] = [self.colours[c] for c in classes]
        with Image.open(self.folder / entry['image']) as file:
            image = np.array(file)
        texts = ('task', 'expert', 'ood', 'miou', 'oracle_miou', 'file')
        return Panel(image, **spaces, **{name: entry[name] for name in texts})

    def _extend_colours(self,
                        label_spaces: Iterable[LabelSpace],
                        first: bool = False) -> None:
        known = (tuple(self.colours), tuple(self.colours.values()))
        self.colours = choose_class_colours(
            [*label_spaces, known] if first else [known, *label_spaces])

    def _write_labels(self, path: Path, labels: np.ndarray,
                      classes: Any) -> List[str]:
        """Write a paletted PNG of the classes that occur; returns them."""
        values = np.setdiff1d(labels, [IGNORE_INDEX])
        names = [classes[v] for v in values]
        indices = np.where(labels == IGNORE_INDEX, IGNORE_INDEX,
                           np.searchsorted(values, labels))
        palette = [UNLABELLED] * 256
        palette[:len(names)] = [self.colours[name] for name in names]
        picture = Image.frombytes('P', labels.shape[::-1],
                                  indices.astype(np.uint8).tobytes())
        picture.putpalette([v for colour in palette for v in colour])
        picture.save(path)
        return names

    def _write_index(self) -> None:
        occurring = {
            name
            for entry in self.entries
            for names in entry['classes'].values()
            for name in names
        }
        colours = {
            name: hex_colour(colour)
            for name, colour in self.colours.items() if name in occurring
        }
        write_json(
            self._index,
            dict(after=self.after, colours=colours, pictures=self.entries))


def _known(value: Optional[float]) -> Optional[float]:
    """As the routing log rounds a score; None of NaN."""
    if value is None or math.isnan(value):
        return None
    return round(value, 4)


def _from_hex(colour: str) -> Colour:
    red, green, blue = (round(255 * part) for part in to_rgb(colour))
    return red, green, blue
