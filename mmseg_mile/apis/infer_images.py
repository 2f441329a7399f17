# SPDX-License-Identifier: Apache-2.0
"""From images to a folder of predictions."""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional

from rich.progress import track

from mmseg_mile.experts.folder_lock import locked
from mmseg_mile.experts.library_edits import AnyPath
from .image_batches import count_images
from .image_sources import VideoFile, check_images, list_sources
from .mile_inferencer import MILEInferencer
from .prediction import Prediction
from .prediction_folder import Line, PredictionFolder

BASE, NOTHING = 'base, without an expert', 'no prediction'


@dataclass
class InferenceReport:
    """What a folder holds, and what it took.

    Args:
        images (Counter): Predicted images, and frames, per expert, ``BASE``
            or ``NOTHING``; those of earlier runs are among them.
        unfamiliar (Counter): Those of them that the gate flagged.
        predicted (int): Images of this run.
        seconds (float): That reading and predicting them took.
        broken (dict[str, str]): Why an image was skipped, by its name.
    """
    images: Counter = field(default_factory=Counter)
    unfamiliar: Counter = field(default_factory=Counter)
    predicted: int = 0
    seconds: float = 0.0
    broken: Dict[str, str] = field(default_factory=dict)


def infer_images(inferencer: MILEInferencer,
                 inputs: Any,
                 out: AnyPath,
                 batch_size: int = 1,
                 overwrite: bool = False,
                 skip_broken: bool = False) -> InferenceReport:
    """Predict images and videos into a folder, see :class:`PredictionFolder`.

    Called again it goes on where it stopped; an image that was changed since
    is predicted again. Images inside of the folder itself are left out.

    Args:
        inferencer (MILEInferencer): Predicts.
        inputs (Any): See :func:`list_sources`.
        out (str | Path): The folder.
        batch_size (int): Images that are predicted at a time. Defaults to 1.
        overwrite (bool): Whether predictions that were made in another way
            may go. Defaults to False.
        skip_broken (bool): Whether to go on after an image that cannot be
            read. Defaults to False.

    Returns:
        InferenceReport: Of the images that were asked for.

    Raises:
        ValueError: If an input is missing or no image, before anything is
            predicted or deleted, the folder is another run's, or another
            process writes it.
    """
    sources = [s for s in list_sources(inputs) if not _lies_in(s, Path(out))]
    if not sources:
        raise ValueError(f'all images lie in {out}, where the predictions '
                         'go: name another folder')
    if not skip_broken:
        check_images(sources)
    Path(out).mkdir(parents=True, exist_ok=True)
    with locked(Path(out), wait=False):
        folder = PredictionFolder(out, inferencer.settings, overwrite)
        return _infer(inferencer, sources, folder, batch_size, skip_broken)


def _infer(inferencer: MILEInferencer, sources: List[Any],
           folder: PredictionFolder, batch_size: int,
           skip_broken: bool) -> InferenceReport:
    pending = folder.pending(sources)
    report = InferenceReport()
    broken = report.broken if skip_broken else None
    found = _predicted(inferencer, folder, pending, batch_size, broken)
    if inferencer.show_progress and pending:
        found = track(
            found, description='Inference', total=count_images(pending))
    for prediction in found:
        report.predicted += 1
        report.seconds += prediction.seconds
    for line in chain.from_iterable(
            folder.lines.get(name, []) for name in {s.name
                                                    for s in sources}):
        report.images[_speaker(line)] += 1
        report.unfamiliar[_speaker(line)] += line['unfamiliar']
    return report


def _predicted(inferencer: MILEInferencer, folder: PredictionFolder,
               sources: List[Any], batch_size: int,
               broken: Optional[Dict[str, str]]) -> Iterable[Prediction]:
    """Predictions, each when its files are written."""
    images = [s for s in sources if not isinstance(s, VideoFile)]
    if images:
        for prediction in inferencer.stream(images, batch_size, broken=broken):
            folder.keep(prediction, inferencer.overlay(prediction))
            yield prediction
    for video in (s for s in sources if isinstance(s, VideoFile)):
        with folder.video(video) as keep:
            for prediction in inferencer.stream([video], batch_size):
                keep(prediction,
                     inferencer.overlay(prediction, fixed_legend=True))
                yield prediction


def _lies_in(source: Any, folder: Path) -> bool:
    path = getattr(source, 'path', None)
    return path is not None and folder.resolve() in path.resolve().parents


def _speaker(line: Line) -> str:
    if line['abstained']:
        return NOTHING
    return line['expert'] or BASE
