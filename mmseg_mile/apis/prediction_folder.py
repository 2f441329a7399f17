# SPDX-License-Identifier: Apache-2.0
"""Predictions in a folder, which a second run goes on filling."""
from __future__ import annotations

import contextlib
import json
import os
import shutil
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import (Any, Callable, Dict, Iterable, Iterator, List, Optional,
                    Sequence, Union)

import cv2
import numpy as np

from mmseg_mile.evaluation.atomic_json import read_json, write_json, write_text
from mmseg_mile.experts.library_edits import AnyPath
from .image_sources import ImageSource, VideoFile
from .prediction import Prediction
from .video_files import VideoWriter

SETTINGS, LINES = 'run.json', 'predictions.jsonl'
_OURS = ('labels', 'overlays', LINES, SETTINGS)
_JPEG_QUALITY = 92
# A library that was copied is the same library.
_MAY_DIFFER = ('library', )

Source = Union[ImageSource, VideoFile]
Line = Dict[str, Any]
KeepFrame = Callable[[Prediction, np.ndarray], None]


class PredictionFolder:
    """Label maps, overlays, and one line of JSON per image.

    ``labels/`` has the label maps as grey PNG files whose values are indices
    into the ``classes`` of the image's line, 16 bit of more than 255
    classes; ``overlays/`` the pictures, JPEG, and MP4 of videos. Folders
    below are those of the images. ``predictions.jsonl`` has a line per
    image, see :meth:`Prediction.record`, with the paths of its files.
    An image counts as done once its line is written.

    Args:
        root (str | Path): The folder; made if need be.
        settings (dict): What decides on the predictions.
        overwrite (bool): Whether predictions that are there may go. Defaults
            to False.

    Raises:
        ValueError: If the folder holds files of something else, or
            predictions that were made in another way.
    """

    def __init__(self,
                 root: AnyPath,
                 settings: Dict[str, Any],
                 overwrite: bool = False) -> None:
        self.root = Path(root)
        #: Lines per image or video, by its name.
        self.lines: Dict[str, List[Line]] = {}
        self._places: Dict[str, str] = {}
        is_ours = (self.root / SETTINGS).is_file()
        if self.root.exists() and not is_ours and (not self.root.is_dir() or
                                                   any(self.root.iterdir())):
            raise ValueError(f'{self.root} holds files that are no '
                             'predictions: name a new or an empty folder')
        if overwrite and is_ours:
            self._clear()
        elif is_ours:
            self._refuse_other(settings)
            self._read_lines()
            return
        write_json(self.root / SETTINGS, settings)

    def pending(self, sources: Sequence[Source]) -> List[Source]:
        """Those that are not done, or were changed since, each once.

        Raises:
            ValueError: If one has the name of another file that is done.
        """
        found = {s.name: s for s in sources if not self._is_done(s)}
        self._forget(found)
        return list(found.values())

    def keep(self, prediction: Prediction, overlay: np.ndarray) -> None:
        """Write an image's files, and then its line."""
        picture = self._place('overlays', prediction.name, '.jpg')
        _, content = cv2.imencode('.jpg', overlay[:, :, ::-1],
                                  [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        _write(self.root / picture, content.tobytes())
        labels = self._place('labels', prediction.name, '.png')
        self._write_line(prediction, prediction.name, prediction.source.path,
                         labels, picture)

    @contextlib.contextmanager
    def video(self, video: VideoFile) -> Iterator[KeepFrame]:
        """Takes up the frames of a video; it is done when the block ends."""
        self._forget([video.name])
        picture = self._place('overlays', video.name, '.mp4')
        with VideoWriter(self.root / picture, video.fps) as writer:

            def keep(prediction: Prediction, overlay: np.ndarray) -> None:
                writer.add(overlay)
                self._write_line(prediction, video.name, video.path,
                                 f'labels/{prediction.name}.png', picture)

            yield keep

    def _write_line(self, prediction: Prediction, source: str,
                    path: Optional[Path], labels: str, picture: str) -> None:
        _, content = cv2.imencode('.png', prediction.labels)
        _write(self.root / labels, content.tobytes())
        line = dict(
            prediction.record(),
            source=source,
            image=path and str(path.absolute()),
            labels=labels,
            overlay=picture)
        self.lines.setdefault(source, []).append(line)
        with open(self.root / LINES, 'a', encoding='utf-8') as file:
            file.write(_as_line(line))

    def _is_done(self, source: Source) -> bool:
        line = next(iter(self.lines.get(source.name, [])), None)
        if line is None or source.path is None:
            return False
        if line['image'] != str(source.path.absolute()):
            raise ValueError(
                f'{self.root} holds the prediction of {line["image"]} under '
                f'the name {source.name!r}, which {source.path} has as well: '
                'name another folder, or replace what is there (--overwrite)')
        # of a video, what is written last
        made = self.root / line['overlay' if isinstance(source, VideoFile
                                                        ) else 'labels']
        return made.is_file() and (made.stat().st_mtime_ns
                                   >= source.path.stat().st_mtime_ns)

    def _place(self, folder: str, name: str, suffix: str) -> str:
        """Where a file goes: named as the image, with another suffix."""
        short = str(PurePosixPath(folder, name).with_suffix(suffix))
        if self._places.setdefault(short, name) == name:
            return short
        return str(PurePosixPath(folder, name + suffix))

    def _refuse_other(self, settings: Dict[str, Any]) -> None:
        stored = read_json(self.root / SETTINGS)
        other = [
            key for key in {
                **stored,
                **settings
            }
            if stored.get(key) != settings.get(key) and key not in _MAY_DIFFER
        ]
        if other:
            raise ValueError(
                f'{self.root} holds predictions that were made with other '
                f'settings ({", ".join(sorted(other))}): name another '
                'folder, or replace them (--overwrite)')

    def _read_lines(self) -> None:
        path = self.root / LINES
        text = path.read_text(encoding='utf-8') if path.is_file() else ''
        for line in text.splitlines():
            # a killed run may have left half a line at the end
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                self.lines.setdefault(value['source'], []).append(value)
                for kind in ('labels', 'overlay'):
                    self._places.setdefault(value[kind], value['source'])
        if text and not text.endswith('\n'):
            self._rewrite()

    def _forget(self, sources: Iterable[str]) -> None:
        gone = [s for s in sources if self.lines.pop(s, None) is not None]
        if gone:
            self._rewrite()

    def _rewrite(self) -> None:
        lines = chain.from_iterable(self.lines.values())
        write_text(self.root / LINES, ''.join(map(_as_line, lines)))

    def _clear(self) -> None:
        for name in _OURS:
            path = self.root / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _as_line(value: Line) -> str:
    return json.dumps(value, ensure_ascii=False) + '\n'


def _write(path: Path, content: bytes) -> None:
    """A file that is there as a whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.partial')
    partial.write_bytes(content)
    os.replace(partial, path)
