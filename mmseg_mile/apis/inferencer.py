# SPDX-License-Identifier: Apache-2.0
"""Prediction from a library of experts and nothing else."""
from __future__ import annotations

import contextlib
import hashlib
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import (Any, Dict, Iterable, Iterator, List, Optional, Sequence,
                    Tuple, Union)

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from rich.progress import track

from mmseg.structures import SegDataSample
from mmseg_mile.files import locked, printable
from mmseg_mile.library.edits import AnyPath, open_library
from mmseg_mile.library.expert_store import INDEX
from mmseg_mile.visualization.overlay import (OOD_COLOUR, OPACITY, Caption,
                                              choose_class_colours,
                                              draw_overlay)
from .images import ImageSource, Source, VideoFile, check_images, list_sources
from .library_model import (build_model, change_config, choose_pipeline,
                            config_and_pipelines, known_experts)
from .predictions import Prediction, PredictionFolder

# In what torch says without a class of its own.
_NO_MEMORY = ("can't allocate memory", 'not enough memory', 'bad_alloc')


class MILEInferencer:
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
        ood_policy (str, optional): Prediction of an image that the gate
            flags, see :class:`ExpertSegmentor`. Defaults to None: as the
            library's config says.
        fusion (str, optional): Fusion of the experts of a mixture, see
            :class:`ExpertSegmentor`. Defaults to None: as the config says.
        vocabulary (Sequence[str], optional): Classes to label all images in,
            of an :class:`OpenVocabularyExpertSegmentor`. Defaults to None:
            those of the experts.
        task (str, optional): The expert whose pipeline loads the images,
            where they differ, such as for colour and thermal. Defaults to
            None: that of ``expert``, else the common one.
        config (str | Path | Config, optional): Config of the model. Needed
            only where the library has none; it may run code. Defaults to
            None.
        cfg_options (dict, optional): Settings of the config to change, as
            ``{'model.gate.top_k': 3}``. Defaults to None.
        device (str, optional): Such as 'cpu'. Defaults to None: a GPU where
            there is one.
        show_progress (bool): Whether calls draw a bar. Defaults to True.

    Raises:
        ValueError: If there is no library, an expert is unknown, pipelines
            of experts differ and none is named, a setting has no effect, or
            the config does not fit.

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
        init_default_scope('mmseg')
        if not MMLogger.check_instance_created('mmengine'):
            # not a line for each weight that a head starts from
            MMLogger.get_instance('mmengine', log_level='WARNING')
        self._store = open_library(library)
        names = known_experts(
            self._store.names if experts is None else experts,
            self._store.names)
        if expert is not None:
            known_experts([expert], names)
        self.expert = expert
        self.show_progress = show_progress
        opened = self._store.open(names)
        self.cfg, pipelines = config_and_pipelines(opened, expert, config)
        self._steps = choose_pipeline(pipelines, task, expert)
        change_config(
            self.cfg,
            cfg_options or {},
            expert,
            ood_policy=ood_policy,
            fusion=fusion,
            vocabulary=vocabulary and list(vocabulary))
        self.model = build_model(self.cfg, self._store, opened, device
                                 or get_device())
        gate = self.model.gate
        if expert is None and (self.model.needs_task_label or
                               (gate is not None and gate.needs_task_label)):
            raise ValueError(
                f'the gate of the config, {type(gate).__name__}, has to be '
                'told the true task of each image: force an expert, or name '
                "another gate in cfg_options, as model.gate.type="
                "'PrototypeGate'")
        first = self._steps[0]
        # arrays need no file where images are read by mmcv's loader; others,
        # as of single-channel images, read a path
        self._takes_arrays = (
            first['type'] == 'LoadImageFromFile'
            and first.get('color_type', 'color').startswith('color'))
        if self._takes_arrays:
            first = dict(first, type='InferencerLoader')
        self._pipeline = Compose([first, *self._steps[1:]])
        #: RGB triple per class name, the same in pictures of all experts.
        self.colours = choose_class_colours(
            (e.classes, e.palette) for e in opened)

    @property
    def expert_names(self) -> List[str]:
        """list[str]: Experts that are loaded."""
        return list(self.model.expert_names)

    @property
    def settings(self) -> Dict[str, Any]:
        """dict: All that decides on the predictions, as JSON can say it."""
        index = (self._store.root / INDEX).read_bytes()
        config = repr((self.cfg.model.to_dict(), self._steps))
        return dict(
            library=str(self._store.root.resolve()),
            library_checksum=hashlib.sha256(index).hexdigest(),
            experts=self.expert_names,
            expert=self.expert,
            config_checksum=hashlib.sha256(config.encode()).hexdigest())

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
                be read, or predicted in the memory that there is. Defaults
                to False: an error names it.
            rgb (bool): Whether arrays are RGB. Defaults to False: BGR, as
                OpenCV reads them.
            expert (str, optional): As for the class. Defaults to that.
            opacity (float): Of the overlays' colours. Defaults to 0.55.

        Returns:
            dict: As mmengine's inferencers: ``predictions``, always a list;
            ``visualization``, a list of (H, W, 3) RGB overlays, empty
            without ``return_vis``; and ``broken``, the reason by the name of
            each image that was skipped.
        """
        broken: Dict[str, str] = {}
        sources = list_sources(inputs, rgb)
        found: Iterable = self._predict(sources, batch_size, expert,
                                        broken if skip_broken else None)
        if self.show_progress:
            found = _with_bar(found, sources)
        predictions, samples, drawn = [], [], []
        for prediction, sample in found:
            predictions.append(prediction)
            if return_datasamples:
                samples.append(sample)
            if return_vis:
                drawn.append(self.overlay(prediction, opacity))
        return dict(
            predictions=samples if return_datasamples else predictions,
            visualization=drawn,
            broken=broken)

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
                name of each image that is skipped. Defaults to None: such
                an image is an error, after all before it came out.

        Yields:
            Prediction: In the order of the inputs.

        Raises:
            ValueError: Before anything is predicted, if an input is missing
                or no image, or an argument out of range.
        """
        found = self._predict(
            list_sources(inputs, rgb), batch_size, expert, broken)
        return (prediction for prediction, _ in found)

    def overlay(self,
                prediction: Prediction,
                opacity: float = OPACITY,
                fixed_legend: bool = False) -> np.ndarray:
        """(H, W, 3) RGB picture of a prediction over its image.

        Args:
            prediction (Prediction): Of this inferencer.
            opacity (float): Of the colours. Defaults to 0.55.
            fixed_legend (bool): Whether all classes are in the legend, so
                that frames of a video have one size. Defaults to False.
        """
        # those of a vocabulary may be of no expert
        colours = choose_class_colours([
            (list(self.colours), list(self.colours.values())),
            (prediction.classes, prediction.palette)
        ])
        captions = [
            Caption(prediction.title, bold=True),
            Caption(prediction.note, OOD_COLOUR)
            if prediction.ood else Caption(prediction.note)
        ]
        legend = None
        if fixed_legend:
            legend = self.cfg.model.get('vocabulary') or list(self.colours)
        return draw_overlay(prediction.image(), prediction.labels,
                            prediction.classes, colours, captions, opacity,
                            legend)

    def _predict(
        self, sources: Sequence[Source], batch_size: int,
        expert: Optional[str], broken: Optional[Dict[str, str]]
    ) -> Iterator[Tuple[Prediction, SegDataSample]]:
        """Refuse what cannot work before anything is predicted."""
        if batch_size < 1:
            raise ValueError(f'batch_size must be >= 1, got {batch_size}')
        if expert is not None:
            known_experts([expert], self.expert_names)
        if broken is None:
            check_images(sources)
        images = chain.from_iterable(source.frames() for source in sources)
        return self._batches(images, batch_size, expert or self.expert, broken)

    def _batches(
        self, images: Iterator[ImageSource], batch_size: int,
        expert: Optional[str], broken: Optional[Dict[str, str]]
    ) -> Iterator[Tuple[Prediction, SegDataSample]]:
        """Read and predict ``batch_size`` images at a time."""
        while True:
            start = time.perf_counter()
            batch = list(islice(images, batch_size))
            if not batch:
                return
            # by position in the batch
            loaded: Dict[int, Dict[str, Any]] = {}
            errors: Dict[int, ValueError] = {}
            for index, source in enumerate(batch):
                try:
                    loaded[index] = self._load(source)
                except ValueError as error:
                    errors[index] = error
                    if broken is None:
                        break
            samples = self._forward(loaded, expert, errors)
            seconds = (time.perf_counter() - start) / max(1, len(samples))
            for index, source in enumerate(batch):
                if index in samples:
                    sample = samples[index]
                    yield Prediction.from_sample(sample, source, expert
                                                 is not None, seconds), sample
                elif broken is None:
                    raise errors[index]
                else:
                    broken[source.name] = str(errors[index])

    def _load(self, source: ImageSource) -> Dict[str, Any]:
        """An image through the pipeline.

        Raises:
            ValueError: If it cannot be read; names the file.
        """
        name = str(source.path or source.name)
        is_colour = source.array is not None and source.array.shape[2:] == (
            3, )
        try:
            if self._takes_arrays and is_colour:
                data = self._pipeline(dict(img=source.array))
            else:
                with source.file() as path:
                    data = self._pipeline(dict(img_path=str(path)))
        except Exception as error:
            raise ValueError(f'{printable(name)} cannot be read as an image: '
                             f'{type(error).__name__}: {error}') from error
        data['data_samples'].set_metainfo(dict(img_path=name))
        return data

    def _forward(self, loaded: Dict[int, Dict[str,
                                              Any]], expert: Optional[str],
                 errors: Dict[int, ValueError]) -> Dict[int, SegDataSample]:
        """Predict loaded images, those of one size as a batch.

        Args:
            loaded (dict[int, dict]): By position.
            expert (str, optional): Predicts all of them.
            errors (dict[int, ValueError]): Gets those that memory does not
                suffice for.
        """
        sizes: Dict[torch.Size, List[int]] = {}
        for index, data in loaded.items():
            sizes.setdefault(data['inputs'].shape, []).append(index)
        samples: Dict[int, SegDataSample] = {}
        forced = self.model.forced(expert) if expert else (
            contextlib.nullcontext())
        with torch.no_grad(), forced:
            for indices in sizes.values():
                batch = pseudo_collate([loaded[i] for i in indices])
                try:
                    samples.update(zip(indices, self.model.test_step(batch)))
                except (MemoryError, RuntimeError) as error:
                    if not _is_out_of_memory(error):
                        raise
                    errors.update({
                        i: _too_large(loaded[i], len(indices))
                        for i in indices
                    })
        return samples


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        words in str(error) for words in _NO_MEMORY)


def _too_large(data: Dict[str, Any], num_images: int) -> ValueError:
    """The error of a loaded image that memory does not suffice for.

    It holds no traceback, which would keep what fills the memory.
    """
    height, width = data['inputs'].shape[-2:]
    fewer = f'lower batch_size, {num_images} here; ' * (num_images > 1)
    return ValueError(
        f'{printable(data["data_samples"].img_path)}: memory does not suffice '
        f'to predict {height} x {width} pixels: {fewer}make it smaller; '
        'predict in windows, which large networks need less for (cfg_options '
        'model.test_cfg.mode=slide model.test_cfg.crop_size=[512,512] '
        'model.test_cfg.stride=[384,384]); or skip it (skip_broken)')


def _with_bar(found: Iterable, sources: Sequence[Source]) -> Iterable:
    """A progress bar over the images, of open length where a video is."""
    counts = [source.num_frames for source in sources]
    return track(
        found,
        description='Inference',
        total=sum(counts) if all(counts) else None)


BASE, NOTHING = 'base, without an expert', 'no prediction'


@dataclass
class InferenceReport:
    """Contents of a folder of predictions, and their cost.

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
            read, or predicted in the memory that there is. Defaults to
            False.

    Returns:
        InferenceReport: Of the images that were asked for.

    Raises:
        ValueError: If an input is missing or no image, before anything is
            predicted or deleted, the folder is another run's, or another
            process writes it.
    """
    root = Path(out)
    sources = [
        source for source in list_sources(inputs) if source.path is None
        or root.resolve() not in source.path.resolve().parents
    ]
    if not sources:
        raise ValueError(f'all images lie in {root}, where the predictions '
                         'go: name another folder')
    if not skip_broken:
        check_images(sources)
    report = InferenceReport()
    root.mkdir(parents=True, exist_ok=True)
    with locked(root, wait=False):
        folder = PredictionFolder(root, inferencer.settings, overwrite)
        pending = folder.pending(sources)
        found = _infer_into(folder, inferencer, pending, batch_size,
                            report.broken if skip_broken else None)
        if inferencer.show_progress and pending:
            found = _with_bar(found, pending)
        for prediction in found:
            report.predicted += 1
            report.seconds += prediction.seconds
    for name in {source.name for source in sources}:
        for line in folder.lines.get(name, []):
            key = NOTHING if line['abstained'] else line['expert'] or BASE
            report.images[key] += 1
            report.ood[key] += line['ood']
    return report


def _infer_into(folder: PredictionFolder, inferencer: MILEInferencer,
                sources: Sequence[Source], batch_size: int,
                broken: Optional[Dict[str, str]]) -> Iterable[Prediction]:
    """Predictions, each when its files are written; videos come last."""
    images = [s for s in sources if isinstance(s, ImageSource)]
    if images:
        for prediction in inferencer.stream(images, batch_size, broken=broken):
            folder.keep(prediction, inferencer.overlay(prediction))
            yield prediction
    for video in (s for s in sources if isinstance(s, VideoFile)):
        with folder.video(video) as keep:
            for prediction in inferencer.stream(video, batch_size):
                keep(prediction,
                     inferencer.overlay(prediction, fixed_legend=True))
                yield prediction
