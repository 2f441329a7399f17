# SPDX-License-Identifier: Apache-2.0
"""ONNX graphs run, and the sizes of images for which they are right."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional, Tuple

import torch
from torch import Tensor

from mmseg.models import EncoderDecoder
from .export_check import SIZE, Difference, Output, drawn_images, stock_output

Run = Callable[[Tensor], Output]
#: Of a backbone's coarsest stage, in pixels.
_STRIDE = 32
# Neither has a common factor with the strides and windows of backbones.
_ODD_SIZE = (141, 187)


class OnnxRun:
    """A graph of :func:`write_onnx` in ONNX Runtime, on the CPU.

    Args:
        path (Path): The graph.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        self._session: Any = onnxruntime.InferenceSession(
            str(path), options, providers=['CPUExecutionProvider'])

    def __call__(self, images: Tensor) -> Output:
        """Predict (B, K, H, W) images as a loader gives them, BGR."""
        if images.shape[1] == 3:
            images = images[:, [2, 1, 0]]
        logits, labels = self._session.run(['logits', 'labels'],
                                           dict(image=images.float().numpy()))
        return Output(torch.from_numpy(logits), torch.from_numpy(labels))


@dataclass(frozen=True)
class Sizes:
    """Which images a graph takes.

    Args:
        only (tuple[int, int], optional): The one H, W.
        multiple (int): Of which height and width must be.
    """
    only: Optional[Tuple[int, int]] = None
    multiple: int = 1

    def __str__(self) -> str:
        if self.only:
            return '{} x {} pixels'.format(*self.only)
        if self.multiple > 1:
            return f'height and width multiples of {self.multiple}'
        return 'any size'

    def cut(self, images: Tensor) -> Tensor:
        """The upper left part of (B, K, H, W) images that a graph takes.

        Raises:
            ValueError: If they are too small.
        """
        height, width = self.only or (side // self.multiple * self.multiple
                                      for side in images.shape[2:])
        part = images[:, :, :height, :width]
        if not part.numel() or part.shape[2:] != (height, width):
            raise ValueError(
                'the image is {} x {} pixels where the model is given it, '
                'too small for a graph of {}: name a larger one'.format(
                    *images.shape[2:], self))
        return part


def supported_sizes(run: Run, model: EncoderDecoder,
                    only: Optional[Tuple[int,
                                         int]], tolerance: float) -> Sizes:
    """Sizes for which a graph gives the output of its model.

    A graph may be wrong, without an error, for sizes other than the one it
    was written at, where the model decides by the size what to do.

    Args:
        run (Callable): Runs the graph, see :class:`OnnxRun`.
        model (EncoderDecoder): What it was made of.
        only (tuple[int, int], optional): H, W that it was written for.
        tolerance (float): See :class:`Difference`.

    Raises:
        ValueError: If it is wrong for another number of images, or another
            size of multiples of 32.
    """

    def differs(count: int, size: Tuple[int, int]) -> Optional[Difference]:
        images = drawn_images(model, count, size)
        found = _difference(run, model, images)
        return None if found.within(tolerance) else found

    wrong = differs(1, only or SIZE)
    if wrong:
        raise ValueError(f'the ONNX graph is wrong for a single image: {wrong}'
                         '. This model cannot be exported')
    if only:
        return Sizes(only)
    wrong = differs(1, (SIZE[0] + _STRIDE, SIZE[1] - _STRIDE))
    if wrong:
        raise ValueError(f'the ONNX graph is right at one size alone: {wrong}'
                         '. Write it for the size that you need: --size H W')
    return Sizes(multiple=_STRIDE if differs(1, _ODD_SIZE) else 1)


def _difference(run: Run, model: EncoderDecoder, images: Tensor) -> Difference:
    mine = stock_output(model, images)
    words = '{} drawn image(s) ({} x {} pixels)'.format(
        len(images), *images.shape[2:])
    try:
        return Difference.of(mine, run(images), words)
    except Exception:  # of ONNX Runtime; a wrong shape inside the graph
        return Difference(float('inf'), 1.0, 1.0, words)
