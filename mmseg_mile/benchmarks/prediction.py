# SPDX-License-Identifier: Apache-2.0
"""Routed prediction against stock MMSegmentation and PEFT."""
from __future__ import annotations

import copy
from typing import Any, Dict, List, Optional, Sequence, Tuple, Type

from .benchmark_models import (build_expert_segmentor, load_model_config,
                               preprocess, quiet)
from .comparison import Difference, compare
from .contenders import (Base, Contender, Ours, OursLowRank, Stock, Subject,
                         prepare_all)
from .domain_images import domain_images
from .drawn_experts import ExpertDrawer
from .peft_contenders import PeftMixedBatch, PeftTwoPasses
from .ratio_plot import Bar
from .report import Report, goal_of, model_name, range_text
from .settings import Settings
from .timing import Spread, interleaved_seconds, ratios

GOALS = dict(
    segformer_b0=0.70,
    segformer_b2=0.85,
    swin_t=1.10,
    resnet50=1.10,
    mobilenet_v2=1.10)
CONTENDERS: Tuple[Type[Contender], ...] = (Stock, Ours, OursLowRank, Base,
                                           PeftTwoPasses, PeftMixedBatch)
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
        f'{settings.mode}', settings, _COLUMNS, rows, [
            Bar(row['model'], row['contender'], row['ratio'],
                row['ratio_lower'], row['ratio_upper'], row['goal'])
            for row in rows
        ], 'time relative to stock MMSegmentation', failures)


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
