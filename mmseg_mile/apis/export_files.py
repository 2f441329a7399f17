# SPDX-License-Identifier: Apache-2.0
"""Experts of a library as files for other programs, compared with ours."""
from __future__ import annotations

import contextlib
import copy
import inspect
import io
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch import Tensor

from mmseg.apis import init_model
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS
from mmseg_mile.library.edits import AnyPath, open_library
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.version import __version__
from .export import (Experts, as_mixture, export_expert, head_expert,
                     stock_config)
from .export_check import (SIZE, TOLERANCE, Difference, Output, compare,
                           drawn_images, loaded_image, stock_output)
from .library_model import Ways, build_model, config_and_ways
from .onnx_export import (OnnxRun, Sizes, add_metadata, check_onnx,
                          supported_sizes, write_onnx)

# Fields that say what a gate's choice leads to, those of later days included.
_ROUTING_KEYS = set(inspect.signature(ExpertSegmentor.__init__).parameters) - {
    'backbone', 'decode_head', 'fusion', 'kwargs'
}


class ExportSource:
    """A model with the experts of a mixture, and how it loads images.

    Args:
        library (str | Path): Folder of a library, or work dir of a run.
        experts (str | Mapping[str, float]): See :func:`export_expert`.
        config (str | Path | Config, optional): Config of the model. Defaults
            to None: the one that the library carries.

    Raises:
        ValueError: If there is no such library or expert, the mixture is no
            single model, or the config is missing or of a method without
            experts.
    """

    def __init__(self,
                 library: AnyPath,
                 experts: Experts,
                 config: Any = None) -> None:
        self.mixture = as_mixture(experts)
        store = open_library(library)
        chosen = store.open(list(self.mixture))
        init_default_scope('mmseg')
        first = max(self.mixture, key=lambda name: self.mixture[name])
        told = any('config' in each.provenance for each in chosen)
        # merged and imported ones do not say what others of the library do
        tellers = chosen if told else store.open(store.names)
        cfg, ways = config_and_ways(tellers, first, config)
        self.model = build_model(_to_compare(cfg), store, chosen, 'cpu')
        self.speaker = head_expert(self.model, self.mixture)
        self.pipeline = _pipeline(ways, self.speaker)
        #: See :func:`stock_config`.
        self.config = stock_config(cfg.model, self.model, self.mixture,
                                   self.pipeline)

    def checkpoint(self) -> Any:
        """See :func:`export_expert`."""
        return export_expert(self.model, self.mixture)


def _to_compare(cfg: Config) -> Config:
    """The config of a model in which the mixture is given.

    No gate chooses, so the gate's and the embedder's weights, which may be
    CLIP's, are not asked for; and what is exported is float32.
    """
    cfg = copy.deepcopy(cfg)
    name = (cfg.get('model') or {}).get('type')
    kind = MODELS.get(str(name))
    if kind is None or not issubclass(kind, ExpertSegmentor):
        raise ValueError('the config has no experts to export: its model.type '
                         f"is {name!r}, not 'ExpertSegmentor'")
    for key in _ROUTING_KEYS & cfg.model.keys():
        del cfg.model[key]
    cfg.model.gate = dict(type='OracleGate')
    cfg.model.embedder = dict(type='FeatureStatisticsEmbedder', stages=(0, ))
    cfg.model.predict_dtype = 'float32'
    cfg.model.keep_logits = True
    return cfg


def _pipeline(ways: Ways, speaker: str) -> Optional[List[Any]]:
    """How an expert loads images; None where that is not known."""
    found = list(ways.values())
    if speaker in ways:
        return ways[speaker]
    fusable = all(other == found[0] for other in found[1:])
    return found[0] if found and fusable else None


_CHECKPOINT, _ONNX = '.pth', '.onnx'


class Exported(NamedTuple):
    """What :func:`export_files` made.

    Args:
        files (list[Path]): The model, and beside a checkpoint its config.
        mixture (dict[str, float]): The experts in it.
        difference (Difference): Of its output to theirs.
        notes (list[str]): What else a user must know.
    """
    files: List[Path]
    mixture: Dict[str, float]
    difference: Difference
    notes: List[str]


def export_files(library: AnyPath,
                 out: AnyPath,
                 experts: Experts,
                 config: Any = None,
                 image: Optional[AnyPath] = None,
                 size: Optional[Tuple[int, int]] = None,
                 tolerance: float = TOLERANCE) -> Exported:
    """Write an expert, or a mixture, for plain mmseg or as ONNX.

    What is written is read again, and its output compared with ours; if they
    differ, nothing is left.

    Args:
        library (str | Path): Folder of a library, or work dir of a run.
        out (str | Path): ``NAME.pth`` for a checkpoint, to which its config
            ``NAME.py`` is added; or ``NAME.onnx``, see :func:`write_onnx`.
        experts (str | Mapping[str, float]): An expert, or weights of
            several, which are divided by their sum.
        config (str | Path | Config, optional): Config of the model. Defaults
            to None: the one that the library carries.
        image (str | Path, optional): Image to compare outputs on. Defaults
            to None: drawn ones.
        size (tuple[int, int], optional): H, W of the only images that an
            ONNX model takes. Defaults to None: as many sizes as give the
            right output.
        tolerance (float): Of the logits, relative to the largest one.
            Defaults to 1e-4.

    Raises:
        ValueError: If an argument is out of range, packages are missing, or
            the exported model predicts something else.
    """
    path = Path(out)
    _check_arguments(path, size, tolerance)
    source = ExportSource(library, experts, config)
    images = None if image is None else loaded_image(image, source.pipeline)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
            prefix='.export_', dir=path.parent) as folder:
        file = Path(folder) / path.name
        write = _write_onnx if path.suffix == _ONNX else _write_checkpoint
        written = write(source, file, size, tolerance)
        words = 'the image' if image else '2 drawn images'
        if images is None:
            images = drawn_images(source.model, 2, size or SIZE)
        difference = compare(source.model, source.mixture, written.run,
                             written.sizes.cut(images), words)
        difference.check(tolerance, path.name)
        for each in written.files:
            os.replace(each, path.with_suffix(each.suffix))
    return Exported([path.with_suffix(f.suffix) for f in written.files],
                    source.mixture, difference, written.notes)


def _check_arguments(path: Path, size: Optional[Tuple[int, int]],
                     tolerance: float) -> None:
    if path.suffix not in (_CHECKPOINT, _ONNX):
        raise ValueError('out must end in .pth, for a checkpoint of mmseg, or '
                         f'in .onnx, got {path.name!r}')
    if path.suffix == _ONNX:
        check_onnx()
    elif size is not None:
        raise ValueError('size is for ONNX: a checkpoint takes images of any '
                         'size that its backbone takes')
    config = path.with_suffix('.py')
    if path.suffix == _CHECKPOINT and config.exists() and not path.exists():
        raise ValueError(f'{config}, where the config would be written, '
                         'exists and is of no earlier export: choose another '
                         'name')
    if size is not None and min(size) < 1:
        raise ValueError(f'size must be a height and a width, got {size}')
    if not tolerance > 0:
        raise ValueError(f'tolerance must be above 0, got {tolerance}')


class _Written(NamedTuple):
    """Files that were written, and a way to run them."""
    files: List[Path]
    run: Callable[[Tensor], Output]
    sizes: Sizes
    notes: List[str]


def _write_checkpoint(source: ExportSource, file: Path, *_: Any) -> _Written:
    config = file.with_suffix('.py')
    stock = _stock(source, file, config)
    notes = ['load it with mmseg.apis.init_model(config, checkpoint)']
    if source.pipeline is None:
        notes.append('the config has no test_pipeline: the library does not '
                     'say how this expert loads images')
    return _Written([file, config], partial(stock_output, stock), Sizes(),
                    notes)


def _write_onnx(source: ExportSource, file: Path,
                size: Optional[Tuple[int, int]], tolerance: float) -> _Written:
    stock = _stock(source, file.with_suffix('.pth'), file.with_suffix('.py'))
    facts = onnx_facts(source)
    notes = []
    if facts['test_cfg'].get('mode') == 'slide':
        notes.append('the graph predicts one window: sliding it over a large '
                     'image, as test_cfg in its metadata says, is up to you')
    # that the graph is compared with
    for model in (source.model, stock):
        model.test_cfg = ConfigDict(mode='whole')
    write_onnx(stock, file, size)
    run = OnnxRun(file)
    sizes = supported_sizes(run, stock, size, tolerance)
    add_metadata(file, dict(facts, sizes=str(sizes)))
    notes.insert(
        0, f'input `image`, colours as RGB in 0 to 255, {sizes}; '
        'outputs `logits` and `labels`; classes and more are in the '
        'metadata')
    return _Written([file], run, sizes, notes)


def _stock(source: ExportSource, checkpoint: Path,
           config: Path) -> EncoderDecoder:
    """Write both files, and read them as a user of mmseg would."""
    torch.save(source.checkpoint(), checkpoint)
    source.config.dump(config)
    with contextlib.redirect_stdout(io.StringIO()):
        return init_model(str(config), str(checkpoint), 'cpu')


def onnx_facts(source: ExportSource) -> Dict[str, Any]:
    """What a program that runs a graph must know of it.

    Args:
        source (ExportSource): What it is made of.

    Returns:
        dict: For :func:`add_metadata`.
    """
    meta = source.checkpoint()['meta']
    settings: Any = source.model.data_preprocessor
    normalises = settings._enable_normalize
    return dict(
        meta.pop('dataset_meta'),
        **meta,
        input='float32, 0 to 255, colours as RGB; normalised in the graph',
        mean=settings.mean.flatten().tolist() if normalises else None,
        std=settings.std.flatten().tolist() if normalises else None,
        test_cfg=dict(source.config.model.get('test_cfg') or {}),
        pipeline=source.pipeline,
        mmseg_mile=__version__)
