# SPDX-License-Identifier: Apache-2.0
"""Ways to predict a batch of images, ours and stock."""
from __future__ import annotations

from abc import ABCMeta, abstractmethod
from dataclasses import dataclass
from typing import Any, Dict, List, Sequence, Tuple, Type

import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn

from mmseg.models import EncoderDecoder
from mmseg.structures import SegDataSample
from mmseg_mile.apis import export_expert
from mmseg_mile.methods.continual_segmentor import ContinualSegmentor
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.structures import Expert
from .benchmark_models import build_stock, stock_model_config
from .domain_images import blank_samples
from .drawn_experts import check_mixing
from .report import raised
from .settings import Settings


@dataclass
class Subject:
    """What all contenders of one config share.

    Args:
        config (ConfigDict): From ``load_model_config``.
        settings (Settings): Of the benchmark.
        model (ExpertSegmentor): Ours, holding ``experts``.
        experts (Sequence[Expert]): The experts that the batch mixes.
        images (Tensor): (B, 3, H, W) uint8.
        inputs (Tensor): (B, 3, H, W), normalised, on the device.
    """
    config: ConfigDict
    settings: Settings
    model: ExpertSegmentor
    experts: Sequence[Expert]
    images: Tensor
    inputs: Tensor

    def expert_of(self, index: int) -> Expert:
        """The expert that image ``index`` belongs to."""
        return self.experts[index % len(self.experts)]

    def stock(self) -> EncoderDecoder:
        """Plain MMSegmentation for this config, random weights."""
        return build_stock(stock_model_config(self.config), self.settings)


class Contender(metaclass=ABCMeta):
    """One way from a batch of images to label maps.

    Args:
        subject (Subject): What is predicted.
    """

    #: Name in tables.
    name = ''
    #: Whether its output must be that of the stock checkpoints.
    must_equal = False
    #: Whether that it cannot run is a result of its own.
    may_raise = False
    #: What a reader of its figures must know.
    note = ''

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    @abstractmethod
    def prepare(self) -> None:
        """Whatever happens once, before images arrive."""

    @abstractmethod
    def predict(self, inputs: Tensor) -> List[SegDataSample]:
        """Label maps of (B, 3, H, W) normalised images."""

    @torch.no_grad()
    def run(self) -> List[SegDataSample]:
        """What is timed: the subject's batch, in its dtype."""
        with self.subject.settings.autocast():
            return self.predict(self.subject.inputs)

    @torch.no_grad()
    def outputs(self) -> List[SegDataSample]:
        """The same in fp32, with logits, to be compared."""
        return self.predict(self.subject.inputs)


def prepare_all(
        kinds: Sequence[Type[Contender]],
        subject: Subject) -> Tuple[Dict[str, Contender], Dict[str, str]]:
    """Contenders that run, and notes on all; PEFT may raise.

    Args:
        kinds (Sequence[type[Contender]]): Who competes.
        subject (Subject): What is predicted.

    Returns:
        tuple: Contenders and notes by name.
    """
    contenders: Dict[str, Contender] = {}
    notes: Dict[str, str] = {}
    for kind in kinds:
        contender = kind(subject)
        try:
            contender.prepare()
            contender.run()
        except (RuntimeError, TypeError, ValueError) as error:
            if not kind.may_raise:
                raise
            notes[kind.name] = raised(error)
        else:
            contenders[kind.name] = contender
            notes[kind.name] = contender.note
    return contenders, notes


class Stock(Contender):
    """Plain MMSegmentation: the exported checkpoint of one expert."""

    name = 'stock mmseg'

    def prepare(self) -> None:
        """Export every expert; the first one is timed."""
        subject = self.subject
        self._model = subject.stock()
        self._states: Dict[str, Any] = {
            e.name: export_expert(subject.model, e.name)['state_dict']
            for e in subject.experts
        }
        self._load(subject.experts[0])

    def predict(self, inputs: Tensor) -> List[SegDataSample]:
        """Every image with the one checkpoint."""
        return self._model.predict(inputs, blank_samples(inputs))

    def outputs(self) -> List[SegDataSample]:
        """Each image, alone, with the checkpoint of its own expert."""
        found = []
        with torch.no_grad():
            for index, image in enumerate(self.subject.inputs):
                self._load(self.subject.expert_of(index))
                found += self.predict(image[None])
        self._load(self.subject.experts[0])
        return found

    def _load(self, expert: Expert) -> None:
        self._model.load_state_dict(self._states[expert.name], strict=True)


class Ours(Contender):
    """Routed prediction as configured, the gate included."""

    name = 'ours, routed'
    must_equal = True

    @torch.no_grad()
    def prepare(self) -> None:
        """Make sure that the gate sends image i to its own expert."""
        check_mixing(
            self.subject.model.route(self.subject.inputs),
            self.subject.settings.experts)

    def predict(self, inputs: Tensor) -> List[SegDataSample]:
        """Each image with the expert that the gate chooses."""
        return self.subject.model.predict(inputs, blank_samples(inputs))

    def outputs(self) -> List[SegDataSample]:
        """With logits, which the model leaves out otherwise."""
        model = self.subject.model
        kept, model.keep_logits = model.keep_logits, True
        try:
            return super().outputs()
        finally:
            model.keep_logits = kept


class OursLowRank(Ours):
    """The same in one pass, with low-rank terms on each expert's images."""

    name = 'ours, low rank'

    def predict(self, inputs: Tensor) -> List[SegDataSample]:
        """As :class:`Ours`, with the other executor."""
        execution: Any = self.subject.model.backbone.execution
        kept, execution.executor = execution.executor, 'low_rank'
        try:
            return super().predict(inputs)
        finally:
            execution.executor = kept


class Base(Contender):
    """Ours without gate and adapters: the base and one head."""

    name = 'ours, base only'

    def prepare(self) -> None:
        """Decode with the first expert's head."""
        model, expert = self.subject.model, self.subject.experts[0]
        self._head: nn.Module = model.heads.fused({expert.name: 1.0},
                                                  model.device)
        model.set_decode_head(self._head, expert.classes, expert.palette)

    def predict(self, inputs: Tensor) -> List[SegDataSample]:
        """Every image with the frozen base."""
        model = self.subject.model
        with model.backbone.base():
            return ContinualSegmentor.predict(model, inputs,
                                              blank_samples(inputs))
