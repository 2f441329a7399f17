# SPDX-License-Identifier: Apache-2.0
"""Whether an exported model predicts what the experts predict."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import (Any, Callable, List, Mapping, NamedTuple, Optional,
                    Sequence, Tuple)

import torch
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from torch import Tensor
from torch.nn import functional as F

from mmseg.models import EncoderDecoder
from mmseg.structures import SegDataSample
from mmseg_mile.adapters.targets import probe_images
from mmseg_mile.gates.base_gate import BaseGate
from mmseg_mile.library.edits import AnyPath
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.structures import Routing

# Shape legend: B images, C classes, K channels, H x W

#: Largest difference of logits, relative to the largest one, that rounding
#: explains.
TOLERANCE = 1e-4
#: H, W of drawn images: each stage of a backbone sees more than one pixel.
SIZE = (128, 160)


class Output(NamedTuple):
    """What a model makes of images.

    Args:
        logits (Tensor): (B, C, H, W).
        labels (Tensor): (B, H, W) int64.
    """
    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Difference:
    """How far two outputs lie apart.

    Args:
        largest (float): Of the logits; infinite if there is no output.
        scale (float): The largest logit.
        labels (float): Share of the pixels that get another label.
        images (str): What was predicted.
    """
    largest: float
    scale: float
    labels: float
    images: str

    @classmethod
    def of(cls, mine: Output, theirs: Output, images: str) -> 'Difference':
        """Compare the outputs for the same images."""
        if mine.logits.shape != theirs.logits.shape:
            return cls(float('inf'), 1.0, 1.0, images)
        return cls(
            largest=float((mine.logits - theirs.logits).abs().max()),
            scale=float(mine.logits.abs().max()),
            labels=float((mine.labels != theirs.labels).float().mean()),
            images=images)

    def within(self, tolerance: float) -> bool:
        """Whether the logits agree, relative to the largest one."""
        return self.largest <= tolerance * self.scale

    def check(self, tolerance: float, exported: str) -> None:
        """Raise unless the logits agree.

        Args:
            tolerance (float): See :meth:`within`.
            exported (str): What the model was exported to.

        Raises:
            ValueError: With both numbers.
        """
        if not self.within(tolerance):
            raise ValueError(
                f'the exported {exported} does not predict what the experts '
                f'predict: {self}. Nothing was written. If your images bear '
                'it, allow more than --tolerance '
                f'{tolerance:g}')

    def __str__(self) -> str:
        return (f'on {self.images} the largest difference is '
                f'{self.largest:.2g}, of logits up to {self.scale:.3g}, and '
                f'{100 * self.labels:.4f} % of the label pixels differ')


def drawn_images(model: EncoderDecoder,
                 count: int,
                 size: Tuple[int, int] = SIZE) -> Tensor:
    """Images of random pixels, as a loader gives them.

    Args:
        model (EncoderDecoder): Its backbone says how many channels.
        count (int): How many.
        size (tuple[int, int]): H, W.

    Returns:
        Tensor: (count, K, H, W) in 0 to 255, always the same values.
    """
    backbone: Any = getattr(model.backbone, 'backbone', model.backbone)
    return 127.5 * (1 + F.interpolate(probe_images(backbone, count), size))


def loaded_image(path: AnyPath, pipeline: Optional[Sequence[Any]]) -> Tensor:
    """(1, K, H, W) of a file, as its expert loads it, not normalised.

    Raises:
        ValueError: If it cannot be read, or the way to is not known.
    """
    if not Path(path).is_file():
        raise ValueError(f'there is no image {path}')
    if pipeline is None:
        raise ValueError(
            'the library does not say how this expert loads images: leave '
            '--image out, or give a config that has it as a task (--config)')
    init_default_scope('mmseg')
    try:
        inputs = Compose(list(pipeline))(dict(img_path=str(path)))['inputs']
    except Exception as error:
        raise ValueError(f'--image {path} cannot be loaded as its expert '
                         f'loads images: {error}') from error
    return inputs[None]


def mixed_output(model: ExpertSegmentor, mixture: Mapping[str, float],
                 images: Tensor) -> Output:
    """What experts predict together.

    Args:
        model (ExpertSegmentor): Keeps logits.
        mixture (Mapping[str, float]): Their weights, of sum 1.
        images (Tensor): (B, K, H, W), not normalised.
    """
    with model.gated(_GivenMixture(mixture)):
        return stock_output(model, images)


@torch.no_grad()
def stock_output(model: EncoderDecoder, images: Tensor) -> Output:
    """What a model predicts at the size of the images that it is given.

    Args:
        model (EncoderDecoder): The model.
        images (Tensor): (B, K, H, W), not normalised.
    """
    samples = [SegDataSample() for _ in images]
    data = model.data_preprocessor(
        dict(inputs=list(images), data_samples=samples), False)
    return stack_samples(model.predict(data['inputs']))


def stack_samples(samples: List[SegDataSample]) -> Output:
    """The maps of a batch of predictions."""
    return Output(
        torch.stack([s.seg_logits.data for s in samples]),
        torch.stack([s.pred_sem_seg.data[0] for s in samples]).long())


def compare(model: ExpertSegmentor, mixture: Mapping[str, float],
            exported: Callable[[Tensor], Output], images: Tensor,
            words: str) -> Difference:
    """Predict with the experts and with what was made of them.

    Args:
        model (ExpertSegmentor): Holds the experts.
        mixture (Mapping[str, float]): Their weights, of sum 1.
        exported (Callable): Gets the images.
        images (Tensor): (B, K, H, W), not normalised.
        words (str): Names the images.
    """
    height, width = images.shape[2:]
    return Difference.of(
        mixed_output(model, mixture, images), exported(images),
        f'{words} ({height} x {width} pixels)')


class _GivenMixture(BaseGate):
    """The same weights for every image."""

    def __init__(self, mixture: Mapping[str, float]) -> None:
        super().__init__()
        self._mixture = dict(mixture)
        for name in mixture:
            self.fit(name, None)

    def route(self, embeddings: Optional[Tensor],
              tasks: Sequence[Optional[str]]) -> Routing:
        """See :meth:`BaseGate.route`."""
        row = torch.tensor(list(self._mixture.values()))
        weights = row.expand(len(tasks), -1)
        return Routing(self.expert_names, weights,
                       torch.full(weights.shape, torch.nan),
                       torch.zeros(len(tasks), dtype=torch.bool))
