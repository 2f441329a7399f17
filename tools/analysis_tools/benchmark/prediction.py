# SPDX-License-Identifier: Apache-2.0
"""Routed prediction against stock MMSegmentation and PEFT."""
from __future__ import annotations

import copy
from abc import ABCMeta, abstractmethod
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple, Type

import torch
from mmengine.config import ConfigDict
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from mmseg.models import EncoderDecoder
from mmseg.registry import TASK_UTILS
from mmseg.structures import SegDataSample
from mmseg_mile.apis.export import export_expert
from mmseg_mile.methods.continual_segmentor import ContinualSegmentor
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.methods.prediction import blank_samples
from mmseg_mile.structures import Expert, Routing
from .harness import (Difference, Report, Settings, Spread, compare, goal_of,
                      interleaved_seconds, model_name, raised, range_text,
                      ratios)
from .models import (ExpertDrawer, build_expert_segmentor, build_stock,
                     check_mixing, domain_images, load_model_config,
                     preprocess, quiet, stock_model_config, training_images)
from .training import (OUT_PROJ_NOTE, complete_dilation, has_packed_attention,
                       load_adapter, peft_config)


@dataclass
class Subject:
    """Model and images that all contenders of one config share.

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
        """Preparation that happens once, before images arrive."""

    @abstractmethod
    def predict(self, inputs: Tensor) -> List[SegDataSample]:
        """Label maps of (B, 3, H, W) normalised images."""

    @torch.no_grad()
    def run(self) -> List[SegDataSample]:
        """The timed part: the subject's batch, in its dtype."""
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


class _PeftContender(Contender):
    """The stock model with one PEFT adapter per expert in its backbone."""

    may_raise = True

    def prepare(self) -> None:
        """Inject and fill the adapters; fit a gate at full resolution."""
        subject = self.subject
        model = subject.model
        self._stock: EncoderDecoder = subject.stock()
        self._stock.backbone.load_state_dict(model.backbone.base_state())
        if has_packed_attention(self._stock.backbone):
            self.note = OUT_PROJ_NOTE
        else:
            self.must_equal = True
        config = peft_config(self._stock.backbone, model.backbone.targets,
                             model.backbone.lora_config,
                             model.backbone.train_norm)
        first = subject.experts[0].name
        self._peft = get_peft_model(
            self._stock.backbone, config, adapter_name=first)
        for expert in subject.experts:
            if expert.name != first:
                self._peft.add_adapter(expert.name, config)
            load_adapter(self._peft, expert, expert.name)
        self._peft.to(subject.settings.device)
        self._stock.backbone = self._peft
        self._stock.eval()
        self._repair_dilation()
        self._heads = {
            e.name: {
                k: v.to(subject.settings.device)
                for k, v in e.parts['head'].items()
            }
            for e in subject.experts
        }
        self._fit_gate(subject)
        with torch.no_grad():
            check_mixing(self.route(subject.inputs), len(subject.experts))

    def route(self, inputs: Tensor) -> Routing:
        """The extra pass: no adapters, full resolution, then the gate."""
        return self._gate.route(self._embed(inputs), [None] * len(inputs))

    def load_head(self, expert: str) -> None:
        """Decode with an expert's head; nothing is copied."""
        self._stock.decode_head.load_state_dict(
            self._heads[expert], assign=True)

    def _repair_dilation(self) -> None:
        """PEFT's layer of a dilated convolution has no dilation."""
        try:
            with torch.no_grad():
                self._peft(self.subject.inputs[:1])
        except RuntimeError as error:
            if not complete_dilation(self._peft):
                raise
            self.note = f'as documented it {raised(error)}; timed with ' \
                'the dilation of lora_A set by hand'

    def _embed(self, inputs: Tensor) -> Tensor:
        """(B, D), what our embedder computes, from a whole pass."""
        with self._peft.disable_adapter():
            outputs = self._peft(inputs)
        chosen = self.subject.config.embedder.get('stages')
        kept = outputs if chosen is None else [outputs[i] for i in chosen]
        maps = [x.float().flatten(2) for x in kept]
        return torch.cat(
            [v for x in maps for v in (x.mean(2), x.std(2, unbiased=False))],
            1)

    @torch.no_grad()
    def _fit_gate(self, subject: Subject) -> None:
        self._gate = TASK_UTILS.build(copy.deepcopy(subject.config.gate))
        for index, expert in enumerate(subject.experts):
            batches = training_images(subject.images, index, subject.settings)
            self._gate.fit(
                expert.name,
                torch.cat([
                    self._embed(
                        preprocess(subject.model, torch.stack(b['inputs'])))
                    for b in batches
                ]))


class PeftTwoPasses(_PeftContender):
    """Embed without adapters, then ``set_adapter`` for each group."""

    name = 'PEFT, two passes'

    def predict(self, inputs: Tensor) -> List[SegDataSample]:
        """Each group of images with its adapter and head."""
        outputs: List[Any] = [None] * len(inputs)
        for mixture, indices in self.route(inputs).groups():
            expert = max(mixture, key=lambda n: mixture[n])
            self._peft.set_adapter(expert)
            self.load_head(expert)
            group = inputs[indices]
            for index, sample in zip(
                    indices, self._stock.predict(group, blank_samples(group))):
                outputs[index] = sample
        return outputs


class PeftMixedBatch(_PeftContender):
    """Embed without adapters, then one pass with ``adapter_names``."""

    name = 'PEFT, mixed batch'

    def prepare(self) -> None:
        """As two passes, with a backbone and a head that hear names."""
        super().prepare()
        self._backbone = _NamedBackbone(self._peft)
        self._stock.backbone = self._backbone
        self._decoder = _GroupedHead(self)
        self._plain_head = self._stock.decode_head

    def predict(self, inputs: Tensor) -> List[SegDataSample]:
        """All images at once, heads group by group."""
        routing = self.route(inputs)
        self._backbone.names = [
            routing.top_expert(i) for i in range(len(routing))
        ]
        self._decoder.routing = routing
        self._stock.decode_head = self._decoder
        try:
            return self._stock.predict(inputs, blank_samples(inputs))
        finally:
            self._stock.decode_head = self._plain_head

    def decode(self, expert: str, features: List[Tensor], metas: List[dict],
               test_cfg: Any) -> Tensor:
        """Logits of one group of images."""
        self._plain_head.load_state_dict(self._heads[expert], assign=True)
        return self._plain_head.predict(features, metas, test_cfg)


class _NamedBackbone(nn.Module):
    """Hands the adapter of each image to PEFT."""

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.model = model
        self.names: List[str] = []

    def forward(self, x: Tensor) -> Any:
        return self.model(x, adapter_names=self.names)


class _GroupedHead(nn.Module):
    """Decodes each group of images with its expert's head."""

    def __init__(self, contender: PeftMixedBatch) -> None:
        super().__init__()
        self.contender = contender
        self.routing: Any = None

    def predict(self, features: Sequence[Tensor], metas: List[dict],
                test_cfg: Any) -> Tensor:
        """As mmseg's heads: (B, classes, H, W) logits."""
        logits: List[Any] = [None] * len(features[0])
        for mixture, indices in self.routing.groups():
            expert = max(mixture, key=lambda n: mixture[n])
            group = self.contender.decode(
                expert, [level[indices] for level in features],
                [metas[i] for i in indices], test_cfg)
            for index, image in zip(indices, group):
                logits[index] = image
        return torch.stack(logits)


GOALS = dict(
    segformer_b0=0.70,
    segformer_b2=0.85,
    swin_t=1.10,
    resnet50=1.10,
    mobilenet_v2=1.10)
CONTENDERS: Tuple[Type[Contender],
                  ...] = (Stock, Ours, Base, PeftTwoPasses, PeftMixedBatch)
_COLUMNS = dict(
    model='model',
    contender='contender',
    milliseconds='ms per batch',
    ratio_text='time / stock (quartiles)',
    peft_text='time / PEFT two passes',
    goal='goal',
    logits_text='logits differ (of scale)',
    labels_text='labels differ',
    note='note')


def benchmark_prediction(configs: Sequence[str], settings: Settings) -> Report:
    """Image to label map, a batch that mixes experts.

    Outputs are compared in fp32 before anything is timed: each image's with
    that of the stock checkpoint of its own expert.

    Args:
        configs (Sequence[str]): Files whose model is an ``ExpertSegmentor``.
        settings (Settings): Of the benchmark.

    Returns:
        Report: Its ``failures`` name every contender that had to predict
        what stock predicts and did not.
    """
    rows: List[Dict[str, Any]] = []
    failures: List[str] = []
    with settings.computing():
        for config in configs:
            subject = make_subject(config, settings)
            rows += measure(config, subject, failures)
    return Report(
        'predict', f'Image to label map, batch of {settings.batch} mixing '
        f'{settings.experts} experts, {settings.size} px, {settings.dtype}, '
        f'{settings.mode}', settings, _COLUMNS, rows, failures)


def make_subject(path: str,
                 settings: Settings,
                 count: Optional[int] = None) -> Subject:
    """A model with the experts that the batch mixes.

    Args:
        path (str): File of the config.
        settings (Settings): Of the benchmark.
        count (int, optional): How many experts it holds; the first ones are
            those of the batch. Defaults to None: no others.
    """
    config = load_model_config(path, settings)
    model = build_expert_segmentor(config, settings)
    images = domain_images(settings)
    drawer = ExpertDrawer(model, config, images, settings)
    experts = list(drawer.draw(count or settings.experts))
    with quiet():
        for expert in experts:
            model.import_expert(copy.deepcopy(expert))
    inputs = preprocess(model, images.to(settings.device))
    return Subject(config, settings, model, experts, images, inputs)


def measure(config: str, subject: Subject,
            failures: List[str]) -> List[Dict[str, Any]]:
    """Compare, then time, all contenders of one config.

    Args:
        config (str): For names and goals.
        subject (Subject): What is predicted.
        failures (list[str]): Appended to.

    Returns:
        list[dict]: One row per contender.
    """
    contenders, notes = prepare_all(CONTENDERS, subject)
    differences = _differences(contenders)
    name = model_name(config)
    for label, difference in differences.items():
        if contenders[label].must_equal and not difference.passed:
            failures.append(f'{name}, {label}: {difference}')
            notes[label] = f'WRONG OUTPUT {notes[label]}'
    seconds = interleaved_seconds({
        n: c.run
        for n, c in contenders.items()
    }, subject.settings)
    rows = []
    for kind in CONTENDERS:
        row = _row(kind.name, seconds, differences.get(kind.name))
        goal = goal_of(GOALS, config) if kind is Ours else None
        rows.append(dict(model=name, **row, goal=goal, note=notes[kind.name]))
    return rows


def _differences(contenders: Dict[str, Contender]) -> Dict[str, Difference]:
    """Of everything that uses the experts, to the stock checkpoints."""
    references = contenders[Stock.name].outputs()
    return {
        name: compare(contender.outputs(), references)
        for name, contender in contenders.items()
        if name not in (Stock.name, Base.name)
    }


def _row(name: str, seconds: Dict[str, List[float]],
         difference: Any) -> Dict[str, Any]:
    """Figures of one contender, None where there are none."""
    row: Dict[str, Any] = dict(
        contender=name,
        milliseconds=None,
        ratio=None,
        ratio_lower=None,
        ratio_upper=None)
    if name in seconds:
        ratio = ratios(seconds, Stock.name)[name]
        row.update(
            milliseconds=round(1e3 * Spread.of(seconds[name]).median, 1),
            ratio=ratio.median,
            ratio_lower=ratio.lower,
            ratio_upper=ratio.upper,
            ratio_text=range_text(ratio),
            seconds=seconds[name])
        if PeftTwoPasses.name in seconds:
            peft = ratios(seconds, PeftTwoPasses.name)[name]
            row.update(peft_ratio=peft.median, peft_text=f'{peft.median:.3f}')
    if difference is not None:
        row.update(
            logits_difference=difference.logits,
            label_difference=difference.labels,
            num_labels=difference.num_labels,
            logits_text=f'{difference.logits:.1e}',
            labels_text=f'{100 * difference.labels:.4f} %')
    return row
