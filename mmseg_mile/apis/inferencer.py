# SPDX-License-Identifier: Apache-2.0
"""Prediction from a library of experts and nothing else."""
from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import (Any, Callable, Dict, Iterable, Iterator, List, Optional,
                    Sequence, Union)

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.infer import BaseInferencer
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from rich.progress import track

from mmseg.structures import SegDataSample
from mmseg_mile.files import locked
from mmseg_mile.library.edits import AnyPath, open_library
from mmseg_mile.library.expert_store import INDEX
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.visualization.class_colours import choose_class_colours
from mmseg_mile.visualization.overlay import OPACITY, draw_overlay
from .images import (Outcome, VideoFile, check_images, count_images,
                     list_sources, load_image, predict_by_size, predict_images,
                     single_images)
from .library_model import (build_model, change_config, choose_way,
                            config_and_ways, known_experts)
from .predictions import Line, Prediction, PredictionFolder


class MILEInferencer(BaseInferencer):
    """Predicts images with the experts of a library.

    The library says how the model is built and how images are loaded; no
    pretrained weights are fetched and no code of the library is run. Several
    images of different sizes may be given at once. Results are those of
    ``model.test_step``.

    Args:
        library (str | Path): Folder of a library, or work dir of a run.
        expert (str, optional): Expert to predict all images with. Defaults
            to None: the gate chooses.
        experts (Sequence[str], optional): Experts among which the gate may
            choose. Defaults to None: all.
        ood_policy (str, optional): What becomes of an image that the gate
            flags, see :class:`RoutedSegmentor`. Defaults to None: as the
            library's config says.
        fusion (str, optional): How the experts of a mixture are fused, see
            :class:`RoutedSegmentor`. Defaults to None: as the config says.
        vocabulary (Sequence[str], optional): Classes to label all images in,
            of an :class:`OpenVocabularyExpertSegmentor`. Defaults to None:
            those of the experts.
        task (str, optional): The expert whose way of loading images is
            right, where they differ, such as for colour and thermal.
            Defaults to None: that of ``expert``, else the common one.
        config (str | Path | Config, optional): Config of the model. Needed
            only where the library has none; it may run code. Defaults to
            None.
        cfg_options (dict, optional): Settings of the config to change, as
            ``{'model.gate.top_k': 3}``. Defaults to None.
        device (str, optional): Such as 'cpu'. Defaults to None: a GPU where
            there is one.
        show_progress (bool): Whether calls draw a bar. Defaults to True.

    Raises:
        ValueError: If there is no library, an expert is unknown, experts
            load images in different ways and none is named, a setting has no
            effect, or the config does not fit.

    Example:
        >>> inferencer = MILEInferencer('work_dirs/demo')
        >>> for prediction in inferencer.stream('photos'):
        ...     print(prediction.name, prediction.expert)
    """

    def __init__(self,
                 library: AnyPath,
                 expert: Optional[str] = None,
                 experts: Optional[Sequence[str]] = None,
                 ood_policy: Optional[str] = None,
                 fusion: Optional[str] = None,
                 vocabulary: Optional[Sequence[str]] = None,
                 task: Optional[str] = None,
                 config: Union[AnyPath, Config, None] = None,
                 cfg_options: Optional[Dict[str, Any]] = None,
                 device: Optional[str] = None,
                 show_progress: bool = True) -> None:
        self._store = open_library(library)
        names = known_experts(
            self._store.names if experts is None else experts,
            self._store.names)
        if expert is not None:
            known_experts([expert], names)
        self.expert = expert
        self._experts = self._store.open(names)
        cfg, ways = config_and_ways(self._experts, expert, config)
        self._steps = choose_way(ways, task, expert)
        change_config(cfg, cfg_options or {}, expert, ood_policy, fusion,
                      vocabulary)
        init_default_scope('mmseg')
        if not MMLogger.check_instance_created('mmengine'):
            # not a line for each weight that a head starts from
            MMLogger.get_instance('mmengine', log_level='WARNING')
        super().__init__(
            cfg, device=device, scope='mmseg', show_progress=show_progress)
        labels = self.model.heads.labels
        self.colours = choose_class_colours(labels(name) for name in names)

    def __call__(self,
                 inputs: Any,
                 return_datasamples: bool = False,
                 batch_size: int = 1,
                 return_vis: bool = False,
                 skip_broken: bool = False,
                 rgb: bool = False,
                 expert: Optional[str] = None,
                 opacity: float = OPACITY) -> Dict[str, Any]:
        """Predict all images and keep the results in memory.

        Args:
            inputs (Any): A file, a folder, a glob pattern, a video, an
                array, or a list of these, see :func:`list_sources`.
            return_datasamples (bool): Whether predictions are mmseg's
                ``SegDataSample``. Defaults to False: :class:`Prediction`.
            batch_size (int): Images that are read and predicted at a time.
                Defaults to 1.
            return_vis (bool): Whether to draw overlays. Defaults to False.
            skip_broken (bool): Whether to go on after an image that cannot
                be read. Defaults to False: an error names it.
            rgb (bool): Whether arrays are RGB. Defaults to False: BGR, as
                OpenCV reads them.
            expert (str, optional): As for the class. Defaults to that.
            opacity (float): Of the overlays' colours. Defaults to 0.55.

        Returns:
            dict: ``predictions``, always a list; ``visualization``, a list
            of (H, W, 3) RGB overlays, empty without ``return_vis``; and
            ``broken``, the reason by the name of each image that was skipped.
        """
        broken: Optional[Dict[str, str]] = {} if skip_broken else None
        sources = list_sources(inputs, rgb)
        found: Iterable[Outcome] = self._checked(sources, batch_size, expert,
                                                 broken)
        if self.show_progress:
            found = track(
                found, description='Inference', total=count_images(sources))
        outcomes = list(found)
        predictions = [self._prediction(o, expert) for o in outcomes]
        drawn = self.visualize(
            sources, predictions, opacity=opacity) if return_vis else []
        preds = [o.sample
                 for o in outcomes] if return_datasamples else predictions
        return dict(self.postprocess(preds, drawn), broken=broken or {})

    def stream(
            self,
            inputs: Any,
            batch_size: int = 1,
            rgb: bool = False,
            expert: Optional[str] = None,
            broken: Optional[Dict[str, str]] = None) -> Iterator[Prediction]:
        """Predict images one after another; none stays in memory.

        Args:
            inputs (Any): As for a call, as are the other arguments.
            batch_size (int): Defaults to 1.
            rgb (bool): Defaults to False.
            expert (str, optional): Defaults to that of the class.
            broken (dict[str, str], optional): Takes up the reason by the
                name of each image that cannot be read. Defaults to None:
                such an image is an error, after all before it came out.

        Yields:
            Prediction: In the order of the inputs.

        Raises:
            ValueError: Before anything is predicted, if an input is missing
                or no image, or an argument out of range.
        """
        found = self._checked(
            list_sources(inputs, rgb), batch_size, expert, broken)
        return (self._prediction(o, expert) for o in found)

    def overlay(self,
                prediction: Prediction,
                opacity: float = OPACITY,
                fixed_legend: bool = False) -> np.ndarray:
        """(H, W, 3) RGB picture of a prediction over its image.

        Args:
            prediction (Prediction): Of this inferencer.
            opacity (float): Of the colours. Defaults to 0.55.
            fixed_legend (bool): Whether all classes of all experts are in
                the legend, so that frames of a video have one size. Defaults
                to False.
        """
        return draw_overlay(
            prediction.image(),
            prediction.labels,
            prediction.classes,
            self.colours,
            prediction.captions(),
            opacity,
            legend=list(self.colours) if fixed_legend else None)

    def forward(self,
                inputs: List[Dict[str, Any]],
                expert: Optional[str] = None) -> List[SegDataSample]:
        """Predict loaded images; those of one size form a batch.

        Args:
            inputs (list[dict]): What the pipeline made of each.
            expert (str, optional): See :meth:`__call__`.
        """
        chosen = expert or self.expert
        with self.model.forced(chosen) if chosen else contextlib.nullcontext():
            return predict_by_size(self.model, inputs, self.collate_fn)

    def visualize(self,
                  inputs: list,
                  preds: List[Prediction],
                  opacity: float = OPACITY) -> List[np.ndarray]:
        """An overlay per prediction; ``inputs`` is not looked at."""
        return [self.overlay(prediction, opacity) for prediction in preds]

    def postprocess(self, preds: list,
                    visualization: List[np.ndarray]) -> Dict[str, Any]:
        """Predictions and overlays as mmengine wants them returned."""
        return dict(predictions=preds, visualization=visualization)

    @property
    def expert_names(self) -> List[str]:
        """list[str]: Experts that are loaded."""
        return list(self.model.expert_names)

    @property
    def settings(self) -> Dict[str, Any]:
        """dict: What decides on the predictions, as JSON can say it."""
        index = (self._store.root / INDEX).read_bytes()
        how = repr((self.cfg.model.to_dict(), self._steps))
        return dict(
            library=str(self._store.root.resolve()),
            library_checksum=hashlib.sha256(index).hexdigest(),
            experts=self.expert_names,
            expert=self.expert,
            config_checksum=hashlib.sha256(how.encode()).hexdigest())

    # -- building --------------------------------------------------------

    def _init_model(self, cfg: Config, weights: Any,
                    device: str) -> ExpertSegmentor:
        model = build_model(cfg, self._store, self._experts, device)
        if model.gate.needs_task_label and self.expert is None:
            raise ValueError(
                f'the gate of the config, {type(model.gate).__name__}, has '
                'to be told the true task of each image: force an expert, or '
                "name another gate in cfg_options, as model.gate.type="
                "'PrototypeGate'")
        return model

    def _init_pipeline(self, cfg: Config) -> Compose:
        return Compose(self._steps)

    def _init_collate(self, cfg: Config) -> Callable:
        return pseudo_collate

    def _init_visualizer(self, cfg: Config) -> None:
        """Overlays need no global state."""

    # -- predicting ------------------------------------------------------

    def _checked(self, sources: List[Any], batch_size: int,
                 expert: Optional[str],
                 broken: Optional[Dict[str, str]]) -> Iterator[Outcome]:
        """Refuse what cannot work before anything is predicted."""
        if batch_size < 1:
            raise ValueError(f'batch_size must be >= 1, got {batch_size}')
        if expert is not None:
            known_experts([expert], self.expert_names)
        if broken is None:
            check_images(sources)
        return predict_images(
            single_images(sources), batch_size,
            partial(load_image, pipeline=self.pipeline),
            partial(self.forward, expert=expert), broken)

    def _prediction(self, outcome: Outcome,
                    expert: Optional[str]) -> Prediction:
        return Prediction.of(
            outcome.source,
            outcome.sample,
            forced=(expert or self.expert) is not None,
            seconds=outcome.seconds)


BASE, NOTHING = 'base, without an expert', 'no prediction'


@dataclass
class InferenceReport:
    """What a folder holds, and what it took.

    Args:
        images (Counter): Predicted images, and frames, per expert, ``BASE``
            or ``NOTHING``; those of earlier runs are among them.
        ood (Counter): Those of them that the gate flagged.
        predicted (int): Images of this run.
        seconds (float): That reading and predicting them took.
        broken (dict[str, str]): Why an image was skipped, by its name.
    """
    images: Counter = field(default_factory=Counter)
    ood: Counter = field(default_factory=Counter)
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
        report.ood[_speaker(line)] += line['ood']
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
