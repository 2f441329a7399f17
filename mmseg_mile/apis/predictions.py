# SPDX-License-Identifier: Apache-2.0
"""What is predicted for one image, and why."""
from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import (Any, Callable, Dict, Iterable, Iterator, List, Optional,
                    Sequence, Tuple, Union)

import cv2
import numpy as np

from mmseg.structures import SegDataSample
from mmseg_mile.files import read_json, write_json, write_text
from mmseg_mile.library.edits import AnyPath
from mmseg_mile.visualization.overlay import OOD_COLOUR as UNFAMILIAR
from mmseg_mile.visualization.overlay import (Caption, as_evaluated,
                                              class_shares, cropped_columns,
                                              read_image_for_display)
from .images import ImageSource, VideoFile, VideoWriter


@dataclass(frozen=True)
class Prediction:
    """The label map of one image, and where it comes from.

    Args:
        name (str): Of the image, see :class:`ImageSource`.
        labels (np.ndarray): (H, W) indices into ``classes``, uint8, or
            uint16 of more than 255 classes; the size of the image on disk,
            unless the pipeline crops. 255 throughout where the model
            abstained.
        classes (tuple[str]): What the labels mean; experts may differ.
        palette (tuple): One RGB triple per class.
        expert (str, optional): The heaviest expert; None if there was none.
        mixture (dict[str, float]): Weights of the experts, those above 0.
        distances (dict[str, float]): Of the image to each expert; NaN where
            the gate measures none.
        ood (bool): Whether the gate found the image unlike all that
            any expert was trained on.
        abstained (bool): Whether it was left without a prediction.
        ood_score (float, optional): What the flag is made of: 1 at the
            limit, larger for stranger images. None where the gate does not
            measure it.
        forced (bool): Whether the expert was asked for.
        seconds (float): That reading and predicting took, its share of the
            batch.
        source (ImageSource): The image.
        columns (tuple[int, int], optional): Columns that the pipeline kept.
    """
    name: str
    labels: np.ndarray = field(repr=False)
    classes: Tuple[str, ...]
    palette: Tuple[Tuple[int, ...], ...] = field(repr=False)
    expert: Optional[str]
    mixture: Dict[str, float]
    distances: Dict[str, float]
    ood: bool
    abstained: bool
    ood_score: Optional[float]
    forced: bool
    seconds: float
    source: ImageSource = field(repr=False)
    columns: Optional[Sequence[int]] = field(repr=False, default=None)

    @classmethod
    def of(cls, source: ImageSource, sample: SegDataSample,
           **how: Any) -> 'Prediction':
        """What an ``ExpertSegmentor`` wrote into a data sample.

        Args:
            source (ImageSource): The image.
            sample (SegDataSample): As the model returned it.
            **how: ``forced`` and ``seconds``.
        """
        labels = sample.pred_sem_seg.data[0].cpu().numpy()
        wide = len(sample.classes) > 255
        return cls(
            name=source.name,
            labels=labels.astype(np.uint16 if wide else np.uint8),
            classes=sample.classes,
            palette=sample.palette,
            expert=sample.expert,
            mixture=dict(sample.mixture),
            distances=dict(sample.distances),
            ood=sample.ood,
            abstained=sample.abstained,
            ood_score=sample.ood_score,
            source=source,
            columns=cropped_columns(sample),
            **how)

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB of what the labels cover, read again.

        Raises:
            ValueError: If the file is gone, or cannot be decoded.
        """
        with self.source.file() as path:
            picture = read_image_for_display(path)
        return as_evaluated(picture, self.columns, self.labels.shape)

    def shares(self) -> Dict[str, float]:
        """Share of the pixels per class that occurs, largest first."""
        return class_shares(self.labels, self.classes)

    def record(self) -> Dict[str, Any]:
        """All but the label map, as JSON can say it: null for NaN."""
        return dict(
            name=self.name,
            expert=self.expert,
            mixture=self.mixture,
            distances={
                name: None if math.isnan(distance) else distance
                for name, distance in self.distances.items()
            },
            ood=self.ood,
            ood_score=self.ood_score,
            abstained=self.abstained,
            forced=self.forced,
            size=list(self.labels.shape),
            classes=list(self.classes),
            palette=[list(colour) for colour in self.palette],
            seconds=round(self.seconds, 4))

    def nearest(self) -> List[Tuple[str, float]]:
        """Experts and distances, the nearest first; [] if none is known."""
        known = [(n, d) for n, d in self.distances.items()
                 if not math.isnan(d)]
        return sorted(known, key=lambda item: item[1])

    def speaker(self) -> str:
        """Who predicted, in a few words."""
        if self.abstained:
            return 'no prediction'
        if self.expert is None:
            return 'base without an expert'
        if len(self.mixture) < 2:
            return f'expert {self.expert}'
        parts = sorted(self.mixture.items(), key=lambda item: -item[1])
        return 'experts ' + ' + '.join(f'{100 * weight:.0f} % {name}'
                                       for name, weight in parts)

    def captions(self) -> List[Caption]:
        """Two lines to stand below an overlay."""
        near = ', '.join(f'{n} {d:.3g}' for n, d in self.nearest()[:3])
        second = 'expert as asked for' if self.forced else (
            f'distances: {near}' if near else 'no distances')
        if not self.ood:
            return [Caption(self.speaker(), bold=True), Caption(second)]
        return [
            Caption(f'{self.speaker()}, UNFAMILIAR', UNFAMILIAR, bold=True),
            Caption(second)
        ]

    def reasons(self) -> List[str]:
        """Sentences that tell why it was predicted so."""
        if self.forced:
            return [f'Expert {self.expert} was asked for; the gate did not '
                    'look at the image.']  # yapf: disable
        return [self._choice(), *self._flag()]

    def _choice(self) -> str:
        near = self.nearest()
        if not near:
            return f'The gate chose {self.speaker()}; it measures no distance.'
        (name, distance), others = near[0], near[1:]
        text = f'Nearest expert: {name}, at a distance of {distance:.3g}'
        if others:
            text += f'; next is {others[0][0]} at {others[0][1]:.3g}'
        said = '' if self.abstained else f' Prediction: {self.speaker()}.'
        return f'{text}.{said}'

    def _flag(self) -> List[str]:
        value = self.ood_score
        if value is None or not math.isfinite(value):
            return ['Out-of-distribution to all experts.'] if self.ood else []
        measured = (f'{value:.2f} on a scale on which nearly all images of '
                    "an expert's domain stay below 1.")
        if not self.ood:
            return [f'Familiar: {measured}']
        stranger = 'It may be of a domain that no expert knows'
        end = 'it is left out' if self.abstained else 'do not rely on the map'
        return [f'Out-of-distribution: {measured} {stranger}: {end}.']


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
