# SPDX-License-Identifier: Apache-2.0
"""One expert, or a mixture of several, for plain mmseg or as ONNX."""
from __future__ import annotations

import contextlib
import copy
import inspect
import io
import math
import tempfile
from functools import partial
from pathlib import Path
from typing import (Any, Dict, List, Mapping, NamedTuple, Optional, Sequence,
                    Tuple, Union)

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch import Tensor
from torch.nn import functional as F

from mmseg.apis import init_model
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS, TRANSFORMS
from mmseg_mile.adapters.targets import probe_images
from mmseg_mile.library.edits import AnyPath, open_library
from mmseg_mile.methods.mile.expert_heads import heaviest
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.methods.prediction import blank_samples
from mmseg_mile.version import __version__
from .library_model import build_model, config_and_pipelines, has_config
from .onnx_export import (SIZE, Run, Size, add_metadata, check_onnx, open_onnx,
                          supported_sizes, write_onnx)

# Shape legend: B images, C classes, K channels, H x W

#: The name of an expert, or weights of several.
Experts = Union[str, Mapping[str, float]]
#: (B, C, H, W) logits and (B, H, W) int64 labels.
Output = Tuple[Tensor, Tensor]
#: Largest difference of logits, relative to the largest one, that rounding
#: explains.
TOLERANCE = 1e-4
#: Heads of ours and the stock ones with the same weights.
STOCK_HEADS = {'LevelwiseSegformerHead': 'SegformerHead'}
# Fields of a model that only training, or its start, looks at.
_TRAINING_KEYS = ('auxiliary_head', 'pretrained', 'init_cfg')
_CHECKPOINT, _ONNX = '.pth', '.onnx'


def export_expert(model: ExpertSegmentor, experts: Experts) -> Dict[str, Any]:
    """A checkpoint that stock mmseg loads strictly.

    Adapters are merged into copies of the base's weights, so the exported
    model has none and predicts what the expert, or the mixture, predicts, up
    to rounding. Of a mixture, adapters, norm layers and heads are mixed as
    the segmentor mixes them for an image.

    Args:
        model (ExpertSegmentor): Holds the experts.
        experts (str | Mapping[str, float]): An expert, or weights of several
            as :func:`as_mixture` reads them.

    Returns:
        dict: ``state_dict`` under stock keys, and ``meta`` with the classes
        and palette where ``mmseg.apis.init_model`` looks for them.

    Raises:
        ValueError: If an expert is unknown, a weight is out of range, or the
            mixture is no single model.
    """
    mixture = as_mixture(experts)
    _check_fusable(model, mixture)
    expert = heaviest(mixture)
    labels = model.heads.labels(expert)
    backbone = copy.deepcopy(model.backbone.backbone)
    tensors = {
        **dict(backbone.named_parameters()),
        **dict(backbone.named_buffers())
    }
    with torch.no_grad():
        merged = model.backbone.experts.merged(mixture, tensors)
        for key, value in merged.items():
            tensors[key].copy_(value)
    state = {
        f'backbone.{key}': value.detach().cpu().contiguous()
        for key, value in backbone.state_dict().items()
    }
    for key, value in model.heads.fused_state(mixture).items():
        # of one expert, these are the model's own
        state[f'decode_head.{key}'] = value.detach().cpu().clone()
    meta = dict(
        dataset_meta=dict(
            classes=list(labels.classes),
            palette=[list(c) for c in labels.palette]),
        expert=expert,
        mixture=mixture,
        base_fingerprint=model.backbone.fingerprint())
    return dict(meta=meta, state_dict=state)


def as_mixture(experts: Experts) -> Dict[str, float]:
    """Weights that sum to 1, as a gate's do.

    Args:
        experts (str | Mapping[str, float]): An expert, or weights above 0,
            which are divided by their sum.

    Raises:
        ValueError: If there is none, or a weight is not above 0.
    """
    weights = {experts: 1.0} if isinstance(experts, str) else dict(experts)
    if not weights or not all(w > 0 and math.isfinite(w)
                              for w in weights.values()):
        raise ValueError('name one expert or more, each with a weight above '
                         f'0, got {weights}')
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _check_fusable(model: ExpertSegmentor, mixture: Mapping[str,
                                                            float]) -> None:
    """Refuse experts that are unknown, or cannot be one model."""
    for name in mixture:
        model.heads.labels(name)
    if len(mixture) > 1 and model.fusion != 'weights':
        raise ValueError(
            f'model.fusion is {model.fusion!r}, by which {list(mixture)} '
            'predict one by one: that is no single model. Export each alone, '
            "or give a config with model.fusion='weights'")
    fusable = model.heads.fusable(mixture)
    others = [name for name in mixture if name not in fusable]
    if others:
        raise ValueError(
            f'the heads of {others} cannot be averaged with that of '
            f'{heaviest(mixture)!r}, the heaviest: they have other classes or '
            'are built in another way. Leave them out, or make one expert of '
            'all with `tools/experts.py merge --head`, which takes the head '
            'of one, and export that')


def stock_model_config(model_config: Mapping[str, Any],
                       auxiliary: bool = False) -> ConfigDict:
    """The config of plain mmseg that matches one of ours.

    Args:
        model_config (Mapping[str, Any]): The ``model`` field of a method
            whose backbone holds experts.
        auxiliary (bool): Whether to keep auxiliary heads, which only
            training uses. Defaults to False.
    """
    known = inspect.signature(EncoderDecoder.__init__).parameters
    stock = {
        key: copy.deepcopy(value)
        for key, value in model_config.items() if key in known and
        (key not in _TRAINING_KEYS or (auxiliary and key == 'auxiliary_head'))
    }
    backbone = dict(stock['backbone']['backbone'])
    for key in _TRAINING_KEYS:
        backbone.pop(key, None)
    head = stock['decode_head']
    head['type'] = STOCK_HEADS.get(head['type'], head['type'])
    return ConfigDict(dict(stock, type='EncoderDecoder', backbone=backbone))


def stock_config(model_config: Mapping[str, Any],
                 model: ExpertSegmentor,
                 experts: Experts,
                 pipeline: Optional[Sequence[Any]] = None) -> Config:
    """The config of the exported model, for ``mmseg.apis.init_model``.

    Args:
        model_config (Mapping[str, Any]): The ``model`` field that built
            ``model``.
        model (ExpertSegmentor): Holds the experts.
        experts (str | Mapping[str, float]): See :func:`export_expert`.
        pipeline (Sequence[dict], optional): Steps from an image file to the
            input of the model. Defaults to None: the config has none.

    Returns:
        Config: With ``model``, the default scope, and the pipeline where
        ``inference_model`` and ``MMSegInferencer`` of ``mmseg.apis`` look
        for it; and an import of this package if the pipeline has a step of
        ours, such as :class:`LoadSingleChannelImage`, without which
        ``init_model`` works all the same.

    Raises:
        ValueError: If plain mmseg does not know the backbone or the head.
    """
    head = model.heads[heaviest(as_mixture(experts))].config
    stock = stock_model_config(dict(model_config, decode_head=head))
    for part in (stock.backbone, stock.decode_head):
        if _is_ours(MODELS, part):
            raise ValueError(
                f'{part["type"]} is a class of mmseg_mile without a stock '
                'counterpart: this model cannot be exported')
    content: Dict[str, Any] = dict(default_scope='mmseg', model=stock)
    if pipeline is not None:
        steps = copy.deepcopy(list(pipeline))
        content.update(
            test_pipeline=steps,
            test_dataloader=dict(dataset=dict(pipeline=steps)),
            visualizer=dict(type='SegLocalVisualizer'))
        if any(_is_ours(TRANSFORMS, step) for step in pipeline):
            content['custom_imports'] = dict(
                imports=['mmseg_mile'], allow_failed_imports=True)
    return Config(content)


def _is_ours(registry: Any, part: Mapping[str, Any]) -> bool:
    kind = registry.get(part['type'])
    return kind is not None and kind.__module__.startswith('mmseg_mile.')


class Exported(NamedTuple):
    """Files of :func:`export_files`.

    Args:
        files (list[Path]): The model, and beside a checkpoint its config.
        mixture (dict[str, float]): The experts in it.
        notes (list[str]): What else a user must know.
    """
    files: List[Path]
    mixture: Dict[str, float]
    notes: List[str]


def export_files(library: AnyPath,
                 out: AnyPath,
                 experts: Experts,
                 config: Union[AnyPath, Config, None] = None,
                 size: Optional[Size] = None,
                 tolerance: float = TOLERANCE) -> Exported:
    """Write an expert, or a mixture, for plain mmseg or as ONNX.

    What is written is read again, and its output for drawn images compared
    with ours; if they differ, nothing is left.

    Args:
        library (str | Path): Folder of a library, or work dir of a run.
        out (str | Path): ``NAME.pth`` for a checkpoint, to which its config
            ``NAME.py`` is added; or ``NAME.onnx``, see :func:`write_onnx`.
        experts (str | Mapping[str, float]): An expert, or weights of
            several, which are divided by their sum.
        config (str | Path | Config, optional): Config of the model. Defaults
            to None: the one that the library carries.
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
    _check_target(path, size)
    mixture = as_mixture(experts)
    model, cfg = _load(library, mixture, config)
    checkpoint = export_expert(model, mixture)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
            prefix='.export_', dir=path.parent) as folder:
        file = Path(folder, path.name)
        stock = _write_stock(checkpoint, cfg, file.with_suffix('.pth'))
        if path.suffix == _ONNX:
            run, notes = _write_graph(stock, checkpoint['meta'], cfg, file,
                                      size, tolerance)
            # the graph predicts one window, and is compared with one
            model.test_cfg = stock.test_cfg
            files = [file]
        else:
            run, notes = partial(predict, stock), _notes(cfg)
            files = [file, file.with_suffix('.py')]
        images = drawn_images(model, 2, size or SIZE)
        wrong = difference(
            predict(model, images, mixture), run(images), tolerance)
        if wrong:
            raise ValueError(
                f'the exported {path.name} does not predict what the experts '
                f'predict: {wrong}\nNothing was written. If your images bear '
                f'it, allow more than --tolerance {tolerance:g}')
        kept = [file.replace(path.parent / file.name) for file in files]
    return Exported(kept, mixture, notes)


def _check_target(path: Path, size: Optional[Size]) -> None:
    if path.suffix == _ONNX:
        check_onnx()
        return
    if path.suffix != _CHECKPOINT:
        raise ValueError('out must end in .pth, for a checkpoint of mmseg, or '
                         f'in .onnx, got {path.name!r}')
    if size is not None:
        raise ValueError('size is for ONNX: a checkpoint takes images of any '
                         'size that its backbone takes')
    config = path.with_suffix('.py')
    if config.exists() and not path.exists():
        raise ValueError(f'{config}, where the config would be written, '
                         'exists and is of no earlier export: choose another '
                         'name')


def _load(library: AnyPath, mixture: Mapping[str, float],
          config: Any) -> Tuple[ExpertSegmentor, Config]:
    """The model of a library, which keeps logits, and the stock config.

    The config has a ``test_pipeline`` where that of the heaviest expert is
    known.
    """
    init_default_scope('mmseg')
    store = open_library(library)
    opened = store.open(list(mixture))
    expert = heaviest(mixture)
    # merged and imported ones do not say what others of the library do
    asked = opened if any(map(has_config, opened)) else store.open(store.names)
    cfg, pipelines = config_and_pipelines(asked, expert, config)
    found = list(pipelines.values())
    shared = found[0] if found and found.count(
        found[0]) == len(found) else None
    # the mixture is given: weights of gate and embedder are not asked for
    if 'gate' in cfg.model:
        # assigned, as `update` merges into what is there
        cfg.model.gate = dict(type='OracleGate')
        cfg.model.embedder = dict(
            type='FeatureStatisticsEmbedder', stages=(0, ))
        cfg.model.ood_policy, cfg.model.child_averaging = 'nearest', None
    cfg.model.predict_dtype, cfg.model.keep_logits = 'float32', True
    model: Any = build_model(cfg, store, opened, 'cpu')
    return model, stock_config(cfg.model, model, mixture,
                               pipelines.get(expert, shared))


def _write_stock(checkpoint: Dict[str, Any], cfg: Config,
                 file: Path) -> EncoderDecoder:
    """Write checkpoint and config, and read them as a user of mmseg would."""
    torch.save(checkpoint, file)
    cfg.dump(file.with_suffix('.py'))
    with contextlib.redirect_stdout(io.StringIO()):
        return init_model(str(file.with_suffix('.py')), str(file), 'cpu')


def _notes(cfg: Config) -> List[str]:
    notes = ['load it with mmseg.apis.init_model(config, checkpoint)']
    if any(step['type'] == 'LoadImageFromFile'
           for step in cfg.get('test_pipeline', [])):
        notes[0] += ' or mmseg.apis.MMSegInferencer(config, checkpoint)'
    if 'test_pipeline' not in cfg:
        notes.append('the config has no test_pipeline: the library does not '
                     'say how this expert loads images')
    return notes


def _write_graph(stock: EncoderDecoder, meta: Dict[str, Any], cfg: Config,
                 file: Path, size: Optional[Size],
                 tolerance: float) -> Tuple[Run, List[str]]:
    """Write a graph with its metadata, right at the sizes that it names."""
    stock.test_cfg = ConfigDict(mode='whole')
    write_onnx(stock, file, drawn_images(stock, 2, size or SIZE), bool(size))
    run = open_onnx(file)

    def wrong_at(size: Size) -> str:
        images = drawn_images(stock, 1, size)
        try:
            return difference(predict(stock, images), run(images), tolerance)
        except Exception as error:  # of ONNX Runtime; a shape in the graph
            return f'{type(error).__name__}: {error}'

    sizes = supported_sizes(wrong_at, size)
    settings: Any = stock.data_preprocessor
    normalises = settings._enable_normalize
    test_cfg = dict(cfg.model.get('test_cfg') or {})
    facts = dict(meta)
    facts.update(
        facts.pop('dataset_meta'),
        sizes=sizes,
        input='float32, 0 to 255, colours as RGB; normalised in the graph',
        mean=settings.mean.flatten().tolist() if normalises else None,
        std=settings.std.flatten().tolist() if normalises else None,
        test_cfg=test_cfg,
        pipeline=cfg.get('test_pipeline'),
        mmseg_mile=__version__)
    add_metadata(file, facts)
    notes = [
        f'input `image`, colours as RGB in 0 to 255, {sizes}; outputs '
        '`logits` and `labels`; classes and more are in the metadata'
    ]
    if test_cfg.get('mode') == 'slide':
        notes.append('the graph predicts one window: sliding it over a large '
                     'image, as test_cfg in its metadata says, is up to you')
    return run, notes


def drawn_images(model: EncoderDecoder,
                 count: int,
                 size: Size = SIZE) -> Tensor:
    """(count, K, H, W) random pixels as a loader gives them, always the same.

    Args:
        model (EncoderDecoder): Its backbone says how many channels.
        count (int): Number of images.
        size (tuple[int, int]): H, W.
    """
    backbone: Any = getattr(model.backbone, 'backbone', model.backbone)
    return 127.5 * (1 + F.interpolate(probe_images(backbone, count), size))


@torch.no_grad()
def predict(model: Any,
            images: Tensor,
            mixture: Optional[Mapping[str, float]] = None) -> Output:
    """Logits and labels at the size of the images that a model is given.

    Args:
        model (EncoderDecoder): Of plain mmseg, or one that keeps logits.
        images (Tensor): (B, K, H, W), not normalised.
        mixture (Mapping[str, float], optional): Weights of the experts that
            predict. Defaults to None: the model has none, or chooses.

    Returns:
        tuple[Tensor, Tensor]: (B, C, H, W) and (B, H, W) int64.
    """
    data = dict(inputs=list(images), data_samples=blank_samples(images))
    inputs = model.data_preprocessor(data, False)['inputs']
    if mixture is None:
        found = model.predict(inputs)
    else:
        found = blank_samples(inputs)
        model.predict_mixture(inputs, found, mixture, heaviest(mixture))
    return (torch.stack([s.seg_logits.data for s in found]),
            torch.stack([s.pred_sem_seg.data[0] for s in found]).long())


def difference(mine: Output, theirs: Output, tolerance: float) -> str:
    """Complaint about logits that differ for the same images, or ''.

    Args:
        mine (tuple[Tensor, Tensor]): Of :func:`predict`.
        theirs (tuple[Tensor, Tensor]): Of an exported model.
        tolerance (float): Of the logits, relative to the largest one.
    """
    atol = tolerance * float(mine[0].abs().max())
    try:
        torch.testing.assert_close(theirs[0], mine[0], rtol=0, atol=atol)
    except AssertionError as error:
        return str(error)
    return ''
