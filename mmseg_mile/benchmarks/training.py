# SPDX-License-Identifier: Apache-2.0
"""A training step of an expert against full fine-tuning and PEFT."""
from __future__ import annotations

from typing import Any, Dict, List, Sequence, Type

from mmengine.config import ConfigDict

from .benchmark_models import load_model_config
from .peak_memory import peak_training_bytes
from .ratio_plot import Bar
from .report import Report, goal_of, model_name, range_text
from .settings import Settings
from .timing import Spread, interleaved_seconds, ratios
from .train_contenders import (CONTENDERS, FullFineTuning, OurExpert,
                               OurLaterStages, TrainContender, draw_source)

TIME_GOALS: Dict[Type[TrainContender], Dict[str, float]] = {
    OurExpert: dict(segformer_b0=0.60, segformer_b2=0.75),
    OurLaterStages: dict(segformer_b0=0.50, segformer_b2=0.65)
}
MEMORY_GOALS: Dict[Type[TrainContender], Dict[str, float]] = {
    OurExpert: dict(segformer_b0=0.60, segformer_b2=0.60)
}
MAX_LOSS_DIFFERENCE = 1e-4
_REFERENCE = FullFineTuning.name
_COLUMNS = dict(
    model='model',
    contender='contender',
    trainable='trained values',
    milliseconds='ms per step',
    ratio_text='time / stock (quartiles)',
    goal='goal',
    mebibytes='peak MiB',
    memory_ratio='memory / stock',
    memory_goal='goal memory',
    loss='loss',
    loss_difference='loss differs',
    note='note')


def benchmark_training(configs: Sequence[str], settings: Settings) -> Report:
    """Forward, backward and AdamW step on one batch.

    The loss of every contender that starts from the same expert is compared
    first, in fp32 and without dropout, with that of the merged checkpoint
    in plain MMSegmentation. Memory is measured in processes of their own,
    see :func:`peak_training_bytes`.

    Args:
        configs (Sequence[str]): Files whose model is an ``ExpertSegmentor``.
        settings (Settings): Of the benchmark.

    Returns:
        Report: Its ``failures`` name every contender of another loss.
    """
    rows: List[Dict[str, Any]] = []
    failures: List[str] = []
    with settings.computing():
        for config in configs:
            rows += measure(config, settings, failures)
    bars = []
    for row in rows:
        bars.append(
            Bar(f'{row["model"]}: time', row['contender'], row['ratio'],
                row['ratio_lower'], row['ratio_upper'], row['goal']))
    for row in rows:
        bars.append(
            Bar(f'{row["model"]}: peak memory',
                row['contender'],
                row['memory_ratio'],
                goal=row['memory_goal']))
    return Report(
        'train', f'Training step, batch of {settings.batch}, '
        f'{settings.size} px, {settings.dtype}', settings, _COLUMNS, rows,
        bars, 'relative to full fine-tuning of stock MMSegmentation', failures)


def measure(path: str, settings: Settings,
            failures: List[str]) -> List[Dict[str, Any]]:
    """Compare, then time, all contenders of one config.

    Args:
        path (str): File of the config.
        settings (Settings): Of the benchmark.
        failures (list[str]): Appended to.

    Returns:
        list[dict]: One row per contender.
    """
    config = load_model_config(path, settings)
    contenders = [
        kind(config, settings) for kind in CONTENDERS if kind.fits(config)
    ]
    losses = {c.name: _losses(c) for c in contenders}
    name = model_name(path)
    for contender in contenders:
        mine, reference = losses[contender.name]
        # written so that NaN fails
        if contender.must_equal and not (abs(mine - reference)
                                         <= MAX_LOSS_DIFFERENCE * reference):
            failures.append(f'{name}, {contender.name}: loss {mine}, the '
                            f'merged checkpoint has {reference}')
            contender.note = f'WRONG LOSS {contender.note}'
    seconds = interleaved_seconds({c.name: c.step
                                   for c in contenders}, settings)
    peaks = {
        c.name: peak_training_bytes(path, c.name, settings)
        for c in contenders
    }
    return [
        dict(
            model=name,
            **_row(c, seconds, peaks),
            goal=goal_of(TIME_GOALS.get(type(c), {}), path),
            memory_goal=goal_of(MEMORY_GOALS.get(type(c), {}), path),
            loss=losses[c.name][0],
            loss_difference=abs(losses[c.name][0] - losses[c.name][1]),
            note=c.note) for c in contenders
    ]


def _losses(contender: TrainContender) -> List[float]:
    """Its loss, and that of the checkpoint with its expert merged in.

    The contender is left ready for its first step.
    """
    config: ConfigDict = contender.config
    source = draw_source(config, contender.settings)
    reference = FullFineTuning(config, contender.settings)
    reference.prepare(source)
    contender.prepare(source)
    return [contender.loss(), reference.loss()]


def _row(contender: TrainContender, seconds: Dict[str, List[float]],
         peaks: Dict[str, int]) -> Dict[str, Any]:
    name = contender.name
    ratio = ratios(seconds, _REFERENCE)[name]
    return dict(
        contender=name,
        trainable=contender.num_trainable,
        milliseconds=round(1e3 * Spread.of(seconds[name]).median, 1),
        ratio=ratio.median,
        ratio_lower=ratio.lower,
        ratio_upper=ratio.upper,
        ratio_text=range_text(ratio),
        seconds=seconds[name],
        mebibytes=round(peaks[name] / 2**20),
        memory_ratio=peaks[name] / peaks[_REFERENCE])
