# SPDX-License-Identifier: Apache-2.0
"""Predictions of images, and the folder that keeps them."""
from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import (Any, Callable, Dict, Iterator, List, Optional, Sequence,
                    Tuple)

import cv2
import numpy as np

from mmseg.structures import SegDataSample
from mmseg_mile.files import printable, read_json, write_json
from mmseg_mile.library.edits import AnyPath
from mmseg_mile.visualization.overlay import (MAX_JPEG_SIZE,
                                              read_image_for_display)
from .images import ImageSource, Source, VideoFile


@dataclass(frozen=True, eq=False)
class Prediction:
    """The label map of one image, and where it comes from.

    Args:
        name (str): Of the image, see :class:`ImageSource`.
        labels (np.ndarray): (H, W) indices into ``classes``, uint8, or
            uint16 of more than 255 classes; the size of the image on disk,
            unless the pipeline crops. 255 throughout where the model
            abstained.
        classes (tuple[str]): Names of the labels; experts may differ.
        palette (tuple): One RGB triple per class.
        expert (str, optional): The heaviest expert; None if there was none.
        mixture (dict[str, float]): Weights of the experts, those above 0.
        distances (dict[str, float]): Of the image to each expert; NaN where
            the gate measures none.
        ood (bool): Whether the gate found the image out-of-distribution.
        ood_score (float, optional): Above 1 where it is; None where the gate
            does not measure it.
        abstained (bool): Whether it was left without a prediction.
        forced (bool): Whether the expert was asked for.
        seconds (float): That reading and predicting took, its share of the
            batch.
        source (ImageSource): The image.
        columns (tuple[int, int], optional): First column that the pipeline
            kept, and first that it did not. Defaults to None: all are kept.
    """
    name: str
    labels: np.ndarray = field(repr=False)
    classes: Tuple[str, ...]
    palette: Tuple[Tuple[int, ...], ...] = field(repr=False)
    expert: Optional[str]
    mixture: Dict[str, float]
    distances: Dict[str, float]
    ood: bool
    ood_score: Optional[float]
    abstained: bool
    forced: bool
    seconds: float
    source: ImageSource = field(repr=False)
    columns: Optional[Sequence[int]] = field(repr=False, default=None)

    @classmethod
    def from_sample(cls, sample: SegDataSample, source: ImageSource,
                    forced: bool, seconds: float) -> 'Prediction':
        """The prediction in a data sample of a ``ContinualSegmentor``."""
        labels = sample.pred_sem_seg.data[0].cpu().numpy()
        wide = len(sample.classes) > 255
        return cls(
            name=source.name,
            labels=labels.astype(np.uint16 if wide else np.uint8),
            classes=sample.classes,
            palette=sample.palette,
            expert=sample.expert,
            mixture=sample.get('mixture', {}),
            distances=sample.get('distances', {}),
            ood=sample.get('ood', False),
            ood_score=sample.get('ood_score'),
            abstained=sample.get('abstained', False),
            forced=forced,
            seconds=seconds,
            source=source,
            columns=sample.get('cropped_columns', {}).get('img'))

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB of what the labels cover, read again.

        Raises:
            ValueError: If the file is gone, or cannot be decoded.
        """
        with self.source.file() as path:
            image = read_image_for_display(path)
        shape = self.labels.shape
        if self.columns is not None and image.shape[:2] != shape:
            image = image[:, self.columns[0]:self.columns[1]]
        if image.shape[:2] != shape:
            image = cv2.resize(
                image, shape[::-1], interpolation=cv2.INTER_AREA)
        return image

    def record(self) -> Dict[str, Any]:
        """All but the label map, as JSON can say it: null for NaN."""
        names = ('name', 'expert', 'mixture', 'distances', 'ood', 'ood_score',
                 'abstained', 'forced', 'classes', 'palette')
        record = {name: getattr(self, name) for name in names}
        record['distances'] = {
            name: None if math.isnan(distance) else distance
            for name, distance in self.distances.items()
        }
        return dict(
            record, shape=self.labels.shape, seconds=round(self.seconds, 4))

    def nearest(self) -> List[Tuple[str, float]]:
        """Experts and distances, the nearest first; [] if none is known."""
        known = [(n, d) for n, d in self.distances.items()
                 if not math.isnan(d)]
        return sorted(known, key=lambda item: item[1])

    @property
    def title(self) -> str:
        """str: Experts of the prediction, in a few words."""
        if self.abstained:
            return 'no prediction'
        if self.expert is None:
            return 'base without an expert'
        if len(self.mixture) < 2:
            return f'expert {self.expert}'
        parts = sorted(self.mixture.items(), key=lambda item: -item[1])
        return 'experts ' + ' + '.join(f'{100 * weight:.0f} % {name}'
                                       for name, weight in parts)

    @property
    def note(self) -> str:
        """str: Measurements behind the choice of experts, in a line."""
        if self.forced:
            return 'expert as asked for'
        near = ', '.join(f'{n} {d:.3g}' for n, d in self.nearest()[:3])
        parts = ['out-of-distribution'] if self.ood else []
        parts.append(f'distances: {near}' if near else 'no distances')
        if self.ood_score is not None:
            parts.append(f'ood score {self.ood_score:.2f}')
        return '; '.join(parts)


SETTINGS, LINES, _LOCK = 'run.json', 'predictions.jsonl', '.lock'
_OURS = ('labels', 'overlays', LINES, SETTINGS)
_JPEG_QUALITY = 92

Line = Dict[str, Any]


class PredictionFolder:
    """Label maps, overlays, and one line of JSON per image.

    ``labels/`` has the label maps as grey PNG files whose values are indices
    into the ``classes`` of the image's line, 16 bit of more than 255
    classes; ``overlays/`` the pictures, JPEG (a longer side is shrunk to
    the 65500 pixels that it can have), and MP4 of videos. Folders below are
    those of the images. ``predictions.jsonl`` has a line per image, see
    :meth:`Prediction.record`, with the paths of its files.
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
        # images by the files that are named after them
        self._places: Dict[str, str] = {}
        present = {p.name
                   for p in self.root.iterdir()
                   } if self.root.is_dir() else set()
        if SETTINGS not in present and present - {_LOCK}:
            raise ValueError(f'{self.root} holds files that are no '
                             'predictions: name a new or an empty folder')
        if SETTINGS in present and not overwrite:
            self._refuse_other(settings)
            self._read_lines()
            return
        for path in (self.root / name for name in present & set(_OURS)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        write_json(self.root / SETTINGS, settings)

    def pending(self, sources: Sequence[Source]) -> List[Source]:
        """Those that are not done, or were changed since, each once.

        Raises:
            ValueError: If one has the name of another file that is done.
        """
        found = {s.name: s for s in sources if not self._is_done(s)}
        if [name for name in found if self.lines.pop(name, None)]:
            self._rewrite()
        return list(found.values())

    def keep(self, prediction: Prediction, overlay: np.ndarray) -> None:
        """Write an image's files, and then its line.

        Args:
            prediction (Prediction): Of the image.
            overlay (np.ndarray): (H, W, 3) uint8 RGB.
        """
        name = prediction.name
        picture = self._place('overlays', name, '.jpg')
        times = MAX_JPEG_SIZE / max(overlay.shape[:2])
        if times < 1:
            size = [max(1, int(n * times)) for n in overlay.shape[1::-1]]
            overlay = cv2.resize(overlay, size, interpolation=cv2.INTER_AREA)
        _, content = cv2.imencode('.jpg', overlay[:, :, ::-1],
                                  [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        _write(self.root / picture, content.tobytes())
        self._write_line(prediction, name, prediction.source.path,
                         self._place('labels', name, '.png'), picture)

    @contextlib.contextmanager
    def video(
        self, video: VideoFile
    ) -> Iterator[Callable[[Prediction, np.ndarray], None]]:
        """A :meth:`keep` for frames of a video, done when the block ends.

        Overlays take the size of the first one, cut to even numbers of rows
        and columns, which video codecs want.

        Raises:
            ValueError: If OpenCV cannot write it.
        """
        picture = self._place('overlays', video.name, '.mp4')
        path = self.root / picture
        if printable(path) != str(path):
            # OpenCV would end the process
            raise ValueError(f'{printable(path)} has bytes in its name that '
                             'are no UTF-8, with which OpenCV writes no '
                             'video: name another folder')
        path.parent.mkdir(parents=True, exist_ok=True)
        # the suffix chooses the container
        partial = path.with_name(f'.partial.{path.name}')
        writer = cv2.VideoWriter()

        def keep(prediction: Prediction, overlay: np.ndarray) -> None:
            height, width = (n - n % 2 for n in overlay.shape[:2])
            codec = cv2.VideoWriter.fourcc(*'mp4v')
            if not writer.isOpened() and not writer.open(
                    str(partial), codec, video.fps, (width, height)):
                raise ValueError(f'{path} cannot be written: this OpenCV has '
                                 'no MPEG-4 encoder')
            writer.write(np.ascontiguousarray(overlay[:height, :width, ::-1]))
            self._write_line(prediction, video.name, video.path,
                             f'labels/{prediction.name}.png', picture)

        try:
            yield keep
            writer.release()
            if partial.is_file():
                os.replace(partial, path)
        finally:
            writer.release()
            partial.unlink(missing_ok=True)

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
            file.write(json.dumps(line, allow_nan=False) + '\n')

    def _is_done(self, source: Source) -> bool:
        if source.name not in self.lines or source.path is None:
            return False
        line = self.lines[source.name][0]
        if line['image'] != str(source.path.absolute()):
            raise ValueError(
                f'{self.root} holds the prediction of {line["image"]} under '
                f'the name {source.name!r}, which {source.path} has as well: '
                'name another folder, or replace what is there (--overwrite)')
        last = 'labels'
        if isinstance(source, VideoFile):
            if not source.is_complete(len(self.lines[source.name])):
                return False
            # what is written last
            last = 'overlay'
        made = self.root / line[last]
        return made.is_file() and (made.stat().st_mtime_ns
                                   >= source.path.stat().st_mtime_ns)

    def _place(self, folder: str, name: str, suffix: str) -> str:
        """Path of a file: named as the image, with another suffix."""
        short = str(PurePosixPath(folder, name).with_suffix(suffix))
        if self._places.setdefault(short, name) == name:
            return short
        return str(PurePosixPath(folder, name + suffix))

    def _refuse_other(self, settings: Dict[str, Any]) -> None:
        stored = read_json(self.root / SETTINGS)
        # a library that was copied is the same library
        other = sorted(key for key in {
            **stored,
            **settings
        } if stored.get(key) != settings.get(key) and key != 'library')
        if other:
            raise ValueError(
                f'{self.root} holds predictions that were made with other '
                f'settings ({", ".join(other)}): name another folder, or '
                'replace them (--overwrite)')

    def _read_lines(self) -> None:
        path = self.root / LINES
        text = path.read_text(encoding='utf-8') if path.is_file() else ''
        for text_line in text.split('\n'):
            # a killed run may have left half a line at the end
            with contextlib.suppress(ValueError):
                line = json.loads(text_line)
                self.lines.setdefault(line['source'], []).append(line)
                for kind in ('labels', 'overlay'):
                    self._places.setdefault(line[kind], line['source'])
        if text and not text.endswith('\n'):
            self._rewrite()

    def _rewrite(self) -> None:
        lines = chain.from_iterable(self.lines.values())
        _write(self.root / LINES,
               ''.join(json.dumps(line) + '\n' for line in lines).encode())


def _write(path: Path, content: bytes) -> None:
    """Write a file that is there as a whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.partial')
    partial.write_bytes(content)
    os.replace(partial, path)
