# SPDX-License-Identifier: Apache-2.0
"""A stock segmentor as an ONNX graph."""
from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

from mmseg.models import EncoderDecoder
from mmseg.models.backbones.swin import ShiftWindowMSA

# Shape legend: B images, C classes, K channels, H x W, N windows of all
# images, w side of a window

Size = Tuple[int, int]
#: (B, K, H, W) images, as a loader gives them, to (B, C, H, W) logits and
#: (B, H, W) int64 labels.
Run = Callable[[Tensor], Tuple[Tensor, Tensor]]

#: H, W of drawn images: each stage of a backbone sees more than one pixel.
SIZE = (128, 160)
#: Of a backbone's coarsest stage, in pixels.
_STRIDE = 32
# Neither has a common factor with the strides and windows of backbones.
_ODD_SIZE = (141, 187)
_PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
_NOISY = ('torch.onnx', 'onnxscript', 'onnx_ir')


def check_onnx() -> None:
    """Raise unless a model can be written as ONNX and run.

    Raises:
        ValueError: Naming the packages that are missing.
    """
    missing = [p for p in _PACKAGES if importlib.util.find_spec(p) is None]
    if missing:
        raise ValueError(f'ONNX needs {", ".join(missing)}: pip install '
                         f'{" ".join(missing)}')


def write_onnx(model: EncoderDecoder, path: Path, example: Tensor,
               fixed: bool) -> None:
    """Write the graph of an :class:`OnnxSegmentor`.

    Input ``image``, outputs ``logits`` and ``labels``; any number of images.

    Args:
        model (EncoderDecoder): Plain mmseg.
        path (Path): The file.
        example (Tensor): (B, K, H, W), more than one image.
        fixed (bool): Whether the graph takes images of this H, W alone. Open
            sizes are not for every model, see :func:`supported_sizes`.

    Raises:
        ValueError: If the model has no such graph.
    """
    axes: Dict[int, Any] = {0: 'batch'}
    if not fixed:
        axes.update({2: 'height', 3: 'width'})
    graph = OnnxSegmentor(model)
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                graph, (example, ),
                str(path),
                input_names=['image'],
                output_names=['logits', 'labels'],
                dynamic_shapes=dict(image=axes),
                dynamo=True,
                external_data=False,
                verbose=False)
    except Exception as error:
        remedy = '' if fixed else ('. It may have one of a single size: give '
                                   '--size H W')
        raise ValueError(f'torch finds no ONNX graph of this model: {error}'
                         f'{remedy}') from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Spare the user what the exporter says of its own progress."""
    before = {name: logging.getLogger(name).level for name in _NOISY}
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


class OnnxSegmentor(nn.Module):
    """From images as files have them to logits and labels of their size.

    Normalisation is part of it, so that nobody has to know mean and std.

    Args:
        model (EncoderDecoder): Plain mmseg; it is copied.

    Raises:
        ValueError: If images are padded before they are predicted.
    """

    mean: Optional[Tensor]
    std: Tensor

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        settings: Any = model.data_preprocessor
        if settings.test_cfg:
            raise ValueError(
                'model.data_preprocessor.test_cfg pads images, which the '
                'graph would leave out: give a config without it (--config), '
                'and pad images yourself')
        self.model = with_exportable_layers(model).eval().requires_grad_(False)
        # a loader gives BGR, and the settings turn it into RGB or do not
        self.takes_bgr = not settings._channel_conversion
        normalises = settings._enable_normalize
        self.register_buffer('mean', settings.mean if normalises else None)
        self.register_buffer('std', settings.std if normalises else None)

    def forward(self, image: Tensor) -> Tuple[Tensor, Tensor]:
        """Predict.

        Args:
            image (Tensor): (B, K, H, W) float32 in 0 to 255, colours as RGB.

        Returns:
            tuple[Tensor, Tensor]: (B, C, H, W) logits and (B, H, W) int64
            labels.
        """
        shape = image.shape[2:]
        if self.takes_bgr and image.shape[1] == 3:
            image = image[:, [2, 1, 0]]
        if self.mean is not None:
            image = (image - self.mean) / self.std
        meta = dict(img_shape=shape, pad_shape=shape, ori_shape=shape)
        logits = self.model.encode_decode(image, [meta])
        if logits.shape[1] > 1:
            return logits, logits.argmax(1)
        logits = logits.sigmoid()
        return logits, (logits[:, 0] > self.model.decode_head.threshold).long()


def with_exportable_layers(model: EncoderDecoder) -> EncoderDecoder:
    """A copy with layers in place of those that a graph gets wrong.

    The exporter fixes the bins of adaptive pooling, and the number of images
    that Swin computes from its windows by division, at the size it sees; the
    graph would give wrong output for others, without an error.
    """
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(parent, name, MatrixPooling(child.output_size))
    blocks: Any = model.modules()
    for block in blocks:
        if isinstance(block, ShiftWindowMSA):
            block.window_reverse = partial(_join_windows, block.window_size)
    return model


class MatrixPooling(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as ``R x C^T``, its bins computed in the graph.

    Args:
        output_size (int | tuple): As in torch.
    """

    def __init__(self, output_size: Any) -> None:
        super().__init__()
        self.output_size = output_size if isinstance(
            output_size, tuple) else (output_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, *output_size)."""
        for axis, bins in zip((2, 3), self.output_size):
            if bins is not None:
                means = _bin_means(x.shape[axis], bins, x)
                x = means @ x if axis == 2 else x @ means.T
        return x


def _bin_means(length: int, bins: int, like: Tensor) -> Tensor:
    """(bins, length): row i averages ``floor(i L / n) .. ceil((i+1) L / n)``.

    """
    at = torch.arange(length, device=like.device)
    index = torch.arange(bins, device=like.device)[:, None]
    first = index * length // bins
    stop = ((index + 1) * length + bins - 1) // bins
    inside = ((at >= first) & (at < stop)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def _join_windows(side: int, windows: Tensor, height: int,
                  width: int) -> Tensor:
    """(N, w, w, C) -> (B, H, W, C), without asking for B."""
    channels = windows.shape[-1]
    grid = windows.view(-1, height // side, width // side, side, side,
                        channels)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, channels)


def add_metadata(path: Path, facts: Mapping[str, Any]) -> None:
    """Write facts into the graph's metadata, all but text as JSON.

    Args:
        path (Path): The graph.
        facts (Mapping[str, Any]): By name.

    Raises:
        ValueError: If the graph breaks a rule of ONNX.
    """
    import onnx
    model = onnx.load(str(path))
    onnx.helper.set_model_props(
        model, {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in facts.items()
        })
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ValueError(
            f'torch wrote a broken ONNX graph: {error}') from error
    onnx.save(model, str(path))


def open_onnx(path: Path) -> Run:
    """A graph of :func:`write_onnx` in ONNX Runtime, on the CPU."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    session: Any = onnxruntime.InferenceSession(
        str(path), options, providers=['CPUExecutionProvider'])

    def run(images: Tensor) -> Tuple[Tensor, Tensor]:
        if images.shape[1] == 3:
            images = images[:, [2, 1, 0]]
        logits, labels = session.run(['logits', 'labels'],
                                     dict(image=images.float().numpy()))
        return torch.from_numpy(logits), torch.from_numpy(labels)

    return run


def supported_sizes(wrong_at: Callable[[Size], str],
                    only: Optional[Size] = None) -> str:
    """Sizes of images for which a graph gives the output of its model.

    A graph may be wrong, without an error, for sizes other than the one it
    was written at, where the model decides by the size what to do.

    Args:
        wrong_at (Callable): Compares graph and model on a single image of an
            H, W, and says what is wrong, '' for nothing.
        only (tuple[int, int], optional): H, W that the graph was written
            for. Defaults to None: sizes were left open.

    Returns:
        str: In words.

    Raises:
        ValueError: If it is wrong for another number of images, or another
            size of multiples of 32.
    """
    wrong = wrong_at(only or SIZE)
    if wrong:
        raise ValueError(f'the ONNX graph is wrong for a single image: {wrong}'
                         '. This model cannot be exported')
    if only:
        return '{} x {} pixels'.format(*only)
    wrong = wrong_at((SIZE[0] + _STRIDE, SIZE[1] - _STRIDE))
    if wrong:
        raise ValueError(f'the ONNX graph is right at one size alone: {wrong}'
                         '. Write it for the size that you need: --size H W')
    if wrong_at(_ODD_SIZE):
        return f'height and width multiples of {_STRIDE}'
    return 'any size'
