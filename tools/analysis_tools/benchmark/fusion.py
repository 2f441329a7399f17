# SPDX-License-Identifier: Apache-2.0
"""Prediction with fused experts against stock MMSegmentation and PEFT."""
from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, Dict, Iterator, List, Sequence, Tuple, Type

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from mmseg.models import EncoderDecoder
from mmseg.registry import TASK_UTILS
from mmseg.structures import SegDataSample
from mmseg_mile.adapters.adapter import mix_norm
from mmseg_mile.adapters.adapter_library import TensorSlots
from mmseg_mile.apis.export import export_expert
from mmseg_mile.methods.prediction import blank_samples
from mmseg_mile.structures import Routing
from .harness import (Difference, Report, Settings, Spread, compare,
                      interleaved_seconds, model_name, range_text, ratios)
from .prediction import (Contender, Ours, Stock, Subject, make_subject,
                         prepare_all)
from .training import (OUT_PROJ_NOTE, complete_dilation, has_packed_attention,
                       load_adapter, peft_targets)

_FUSED = 'fused'

# So warm that every expert has a share, and another one in every run.
_TAU = 1.0
_TAU_STEP = 0.01


class PlainStock(Stock):
    """Plain MMSegmentation: one checkpoint for the whole batch."""

    def prepare(self) -> None:
        """Export the first expert only."""
        first = self.subject.experts[0]
        self._model = self.subject.stock()
        self._states = {
            first.name: export_expert(self.subject.model,
                                      first.name)['state_dict']
        }
        self._load(first)

    @torch.no_grad()
    def outputs(self) -> List[SegDataSample]:
        """Of the one checkpoint; see :meth:`mixed` for what is right."""
        return self.predict(self.subject.inputs)

    @torch.no_grad()
    def mixed(self, routing: Routing) -> List[SegDataSample]:
        """Prediction of a mixture, image by image: the reference.

        The weights of a checkpoint are linear in those of its expert, so a
        weighted mean of checkpoints, taken in float64, is the checkpoint of
        the mixture.

        Args:
            routing (Routing): Of the batch.
        """
        found = []
        for index, image in enumerate(self.subject.inputs):
            self._model.load_state_dict(
                _mean_checkpoint(self.subject, routing.mixture(index)))
            found += self.predict(image[None])
        self._load(self.subject.experts[0])
        return found


class Fusing(Contender):
    """Retrieves experts for each image as SemLA does.

    The weights are others in every run: nothing that was merged for one run
    serves the next, as with a stream of images.
    """

    must_equal = True
    #: Experts per image; None for all.
    top_k: Any = None

    def prepare(self) -> None:
        """Give SemLA's gate the experts' prototypes."""
        subject = self.subject
        count = len(subject.experts)
        own = min(self.top_k or count, count)
        metric = subject.config.gate.get('metric', 'mahalanobis')
        self._gate: Any = TASK_UTILS.build(
            dict(
                type='SemLAGate', top_k=own, metric=metric, relative=True,
                tau=_TAU))  # yapf: disable
        for expert in subject.experts:
            self._gate.load_state(expert.name, expert.parts['prototypes'])
        self._runs = 0
        _check_weightings(self.routing(), own)

    @torch.no_grad()
    def routing(self) -> Routing:
        """That of :meth:`outputs`."""
        with self.retrieving(0):
            return self.subject.model.route(self.subject.inputs)

    @contextlib.contextmanager
    def retrieving(self, run: int) -> Iterator[None]:
        """Route with SemLA's gate, and with the weights of a run."""
        self._gate.tau = _TAU + _TAU_STEP * run
        with self.subject.model.gated(self._gate):
            yield

    def run(self) -> List[SegDataSample]:
        """With weights that no other run has."""
        self._runs += 1
        with self.retrieving(self._runs):
            return super().run()

    def outputs(self) -> List[SegDataSample]:
        """With the weights of :meth:`routing`."""
        with self.retrieving(0):
            return super().outputs()


class OursAllFused(Fusing, Ours):
    """A batch of images that mix all experts, each with its own weights."""

    name = 'ours, all experts fused'


class OursFiveFused(OursAllFused):
    """The same with SemLA's five nearest."""

    name = 'ours, 5 nearest fused'
    top_k = 5


class PeftAllFused(Fusing, Contender):
    """``add_weighted_adapter('cat')``, predict, delete, image by image.

    As SemLA (arXiv 2503.21780) does it, on the stock backbone. Retrieval,
    and the means of heads and of norm layers, which PEFT cannot mix, are
    ours.
    """

    name = 'PEFT per image, all experts'
    may_raise = True

    def prepare(self) -> None:
        """Inject and fill one adapter per expert."""
        super().prepare()
        subject = self.subject
        ours = subject.model.backbone
        self._stock: EncoderDecoder = subject.stock()
        self._stock.backbone.load_state_dict(ours.base_state())
        if has_packed_attention(self._stock.backbone):
            self.must_equal, self.note = False, OUT_PROJ_NOTE
        self._norms = TensorSlots(self._stock.backbone)
        # names in a set are compared, a pattern would be tried on each
        config = LoraConfig(
            target_modules=peft_targets(self._stock.backbone, ours.targets),
            **ours.lora_config)
        first, *others = subject.experts
        self._peft: Any = get_peft_model(
            self._stock.backbone, config, adapter_name=first.name)
        for expert in others:
            self._peft.add_adapter(expert.name, config)
        for expert in subject.experts:
            parts = dict(adapter=expert.parts['adapter'])
            load_adapter(self._peft, dataclasses.replace(expert, parts=parts),
                         expert.name)
        if complete_dilation(self._peft):
            self.note = 'dilation of lora_A set by hand'
        self._stock.backbone = self._peft
        self._stock.to(subject.settings.device).eval()

    def predict(self, inputs: Tensor) -> List[SegDataSample]:
        """Each image with an adapter that is made for it."""
        routing = self.subject.model.route(inputs)
        samples = []
        for index in range(len(inputs)):
            image = inputs[index:index + 1]
            samples += self._predict_one(image, routing.mixture(index))
        return samples

    def _predict_one(self, image: Tensor, mixture: Any) -> List[SegDataSample]:
        model = self.subject.model
        self._peft.base_model.add_weighted_adapter(
            list(mixture), list(mixture.values()), _FUSED, 'cat')
        self._peft.base_model.set_adapter(_FUSED)
        complete_dilation(self._peft)
        self._stock.decode_head.load_state_dict(
            model.heads.fused_state(mixture), assign=True)
        adapters = [(w, model.backbone.experts[n]) for n, w in mixture.items()]
        norm = mix_norm(model.backbone.tensors, adapters)
        try:
            with self._norms.holding(norm):
                return self._stock.predict(image, blank_samples(image))
        finally:
            self._peft.base_model.delete_adapter(_FUSED)


class PeftFiveFused(PeftAllFused):
    """The same with SemLA's five nearest."""

    name = 'PEFT per image, 5 nearest'
    top_k = 5


def _mean_checkpoint(subject: Subject,
                     mixture: Dict[str, float]) -> Dict[str, Tensor]:
    mean: Dict[str, Tensor] = {}
    for name, weight in mixture.items():
        state = export_expert(subject.model, name)['state_dict']
        for key, value in state.items():
            if not value.is_floating_point():
                mean.setdefault(key, value)
            elif key in mean:
                mean[key] += weight * value.double()
            else:
                mean[key] = weight * value.double()
    return mean


def _check_weightings(routing: Routing, count: int) -> None:
    """Raise unless each image mixes ``count`` experts in its own way.

    Raises:
        AssertionError: Naming what was found instead.
    """
    groups = routing.groups()
    sizes = [len(mixture) for mixture, _ in groups]
    if sizes != [count] * len(routing):
        raise AssertionError(
            f'each of {len(routing)} images must mix {count} experts in its '
            f'own way, the gate made {len(groups)} mixtures of {sizes}: this '
            'would measure something else')


GOAL = 1.5
# Here weights are not bit by bit those of the reference, and what a network
# makes of their rounding is its own: stock MobileNetV2 in float32 differs from
# itself in float64 by 7e-5.
MAX_LOGITS_DIFFERENCE = 3e-4
CONTENDERS: Tuple[Type[Contender],
                  ...] = (PlainStock, Ours, OursFiveFused, OursAllFused,
                          PeftFiveFused, PeftAllFused)
_COLUMNS = dict(
    model='model',
    contender='contender',
    milliseconds='ms per batch',
    ratio_text='time / stock (quartiles)',
    goal='goal',
    logits_text='logits differ (of scale)',
    labels_text='labels differ',
    note='note')


def benchmark_fusion(configs: Sequence[str], settings: Settings,
                     library: int) -> Report:
    """Image to label map, each image with a mixture of its own.

    Outputs are compared in fp32 before anything is timed: each image's with
    that of the stock checkpoint that is the mean of its experts', in float64.

    Args:
        configs (Sequence[str]): Files whose model is an ``ExpertSegmentor``.
        settings (Settings): Of the benchmark.
        library (int): Experts that are mixed.

    Returns:
        Report: Its ``failures`` name every contender that had to predict
        what the mean predicts and did not.

    Raises:
        ValueError: If the library is smaller than what the batch mixes.
    """
    if library < max(2, settings.experts):
        raise ValueError(
            f'--library must be at least {max(2, settings.experts)}, got '
            f'{library}: experts are mixed, and the images belong to '
            f'{settings.experts} of them')
    rows: List[Dict[str, Any]] = []
    failures: List[str] = []
    with settings.computing():
        for config in configs:
            rows += measure(config, settings, library, failures)
    return Report(
        'fuse', f'Image to label map, batch of {settings.batch}, each image '
        f'with weights of its own for {library} experts, {settings.size} px, '
        f'{settings.dtype}, {settings.mode}', settings, _COLUMNS, rows,
        failures)


def measure(config: str, settings: Settings, library: int,
            failures: List[str]) -> List[Dict[str, Any]]:
    """Compare, then time, all contenders of one config.

    Args:
        config (str): File of the config.
        settings (Settings): Of the benchmark.
        library (int): Experts that are mixed.
        failures (list[str]): Appended to.

    Returns:
        list[dict]: One row per contender.
    """
    subject = make_subject(config, settings, library)
    contenders, notes = prepare_all(CONTENDERS, subject)
    name = model_name(config)
    differences = _differences(contenders)
    for label, difference in differences.items():
        if contenders[label].must_equal and not difference.within(
                MAX_LOGITS_DIFFERENCE):
            failures.append(f'{name}, {label}: {difference}')
            notes[label] = f'WRONG OUTPUT {notes[label]}'
    seconds = interleaved_seconds({
        n: c.run
        for n, c in contenders.items()
    }, settings)
    return [
        dict(
            model=name,
            contender=kind.name,
            **_timed(kind.name, seconds),
            **_compared(differences.get(kind.name)),
            goal=GOAL if kind is OursAllFused else None,
            note=notes[kind.name]) for kind in CONTENDERS
    ]


def _differences(contenders: Dict[str, Contender]) -> Dict[str, Difference]:
    """Of everything that mixes experts, to the mean of their checkpoints."""
    stock: Any = contenders[PlainStock.name]
    references: Dict[Any, Any] = {}
    found = {}
    for name, contender in contenders.items():
        if not isinstance(contender, Fusing):
            continue
        if contender.top_k not in references:
            references[contender.top_k] = stock.mixed(contender.routing())
        found[name] = compare(contender.outputs(), references[contender.top_k])
    return found


def _timed(name: str, seconds: Dict[str, List[float]]) -> Dict[str, Any]:
    if name not in seconds:
        return dict(
            milliseconds=None, ratio=None, ratio_lower=None, ratio_upper=None)
    ratio = ratios(seconds, PlainStock.name)[name]
    return dict(
        milliseconds=round(1e3 * Spread.of(seconds[name]).median, 1),
        ratio=ratio.median,
        ratio_lower=ratio.lower,
        ratio_upper=ratio.upper,
        ratio_text=range_text(ratio),
        seconds=seconds[name])


def _compared(difference: Any) -> Dict[str, Any]:
    if difference is None:
        return {}
    return dict(
        logits_difference=difference.logits,
        label_difference=difference.labels,
        num_labels=difference.num_labels,
        logits_text=f'{difference.logits:.1e}',
        labels_text=f'{100 * difference.labels:.4f} %')
