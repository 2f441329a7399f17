# SPDX-License-Identifier: Apache-2.0
"""Prediction with fused experts against stock MMSegmentation and PEFT."""
from __future__ import annotations

from typing import Any, Dict, List, Sequence, Tuple, Type

from .comparison import Difference, compare
from .contenders import Contender, Ours, prepare_all
from .fusion_contenders import (Fusing, OursAllFused, OursFiveFused,
                                OursLowRankFused, PlainStock)
from .peft_fusion import PeftAllFused, PeftFiveFused
from .prediction import make_subject
from .ratio_plot import Bar
from .report import Report, model_name, range_text
from .settings import Settings
from .timing import Spread, interleaved_seconds, ratios

GOAL = 1.5
# Here weights are not bit by bit those of the reference, and what a network
# makes of their rounding is its own: stock MobileNetV2 in float32 differs from
# itself in float64 by 7e-5.
MAX_LOGITS_DIFFERENCE = 3e-4
CONTENDERS: Tuple[Type[Contender],
                  ...] = (PlainStock, Ours, OursFiveFused, OursAllFused,
                          OursLowRankFused, PeftFiveFused, PeftAllFused)
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
        f'{settings.dtype}, {settings.mode}', settings, _COLUMNS, rows, [
            Bar(row['model'], row['contender'], row['ratio'],
                row['ratio_lower'], row['ratio_upper'], row['goal'])
            for row in rows
        ], 'time relative to stock MMSegmentation', failures)


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
