# SPDX-License-Identifier: Apache-2.0
"""Scores of a stream, as pure functions of its score matrix.

``R[i, j]`` is the mIoU in per cent on task j after learning task i; tasks
count from 0 to T - 1, and NaN means not evaluated. No function edits its
input. A score whose formula needs a cell that was not evaluated is NaN: a
mean over fewer tasks would pass for the score. The scores that compare
tasks are NaN for a stream of one task.
"""
from __future__ import annotations

import math
from typing import Dict, NamedTuple, Optional

import numpy as np
from numpy.typing import ArrayLike


def average_miou(matrix: ArrayLike) -> float:
    """Mean over all tasks at the end, ``mean_j R[T-1, j]``.

    In per cent, higher is better. The usual "average mIoU" of continual
    segmentation.

    Example: ``[[60, nan], [50, 70]]`` -> (50 + 70) / 2 = 60.
    """
    return _mean(_square(matrix)[-1])


def harmonic_mean_miou(matrix: ArrayLike) -> float:
    """Harmonic mean at the end, ``T / sum_j (1 / R[T-1, j])``.

    In per cent, higher is better; one weak task weighs more than in the
    average, and one task at 0 makes it 0. Used by SemLA (CVPR 2025).

    Example: ``[[60, nan], [30, 60]]`` -> 2 / (1/30 + 1/60) = 40.
    """
    last = _square(matrix)[-1]
    if np.isnan(last).any():
        return float('nan')
    return float(len(last) / np.sum(1 / last)) if last.all() else 0.0


def backward_transfer(matrix: ArrayLike) -> float:
    """Change of earlier tasks by later ones, from learning to the end.

    ``mean_{j < T-1} (R[T-1, j] - R[j, j])`` in points of mIoU; negative
    means loss, positive means that later tasks helped. Lopez-Paz and
    Ranzato, "Gradient Episodic Memory", NeurIPS 2017.

    Example: ``[[60, nan], [50, 70]]`` -> 50 - 60 = -10.
    """
    scores = _square(matrix)
    return _mean(scores[-1, :-1] - np.diagonal(scores)[:-1])


def forward_transfer(matrix: ArrayLike,
                     reference: Optional[ArrayLike] = None) -> float:
    """Zero-shot mIoU on each task just before it is learned.

    ``mean_{j >= 1} (R[j-1, j] - b_j)`` in points of mIoU, higher is better.
    The reference ``b`` is 0 unless given. Lopez-Paz and Ranzato (NeurIPS
    2017), who take the score of an untrained model as ``b``.

    Args:
        matrix (ArrayLike): (T, T) scores.
        reference (ArrayLike, optional): (T,) scores of a model that has
            not seen the task; entry 0 is not used. Defaults to None.

    Example: ``[[60, 40], [50, 70]]`` -> 40; with reference ``[5, 10]`` ->
    40 - 10 = 30.
    """
    scores = _square(matrix)
    base = np.zeros(len(scores)) if reference is None else _vector(
        'reference', reference, len(scores))
    return _mean(np.diagonal(scores, offset=1) - base[1:])


def forgetting(matrix: ArrayLike) -> float:
    """Best earlier score minus the last one; negative means gain.

    ``mean_{j < T-1} (max_{j <= i < T-1} R[i, j] - R[T-1, j])`` in points of
    mIoU, lower is better. The last row is not part of the maximum, so that
    a gain shows, and neither are the rows before task j was learned; rows
    that were not evaluated are passed over. Chaudhry et al., "Riemannian
    Walk for Incremental Learning", ECCV 2018.

    Example: ``[[60, nan], [65, 50]]`` -> 60 - 65 = -5.
    """
    scores = _square(matrix)
    learned = np.where(np.tri(len(scores), dtype=bool), scores, np.nan)
    # fmax passes over NaN and, unlike nanmax, does not warn of an empty
    # column.
    best = np.fmax.reduce(learned[:-1, :-1], axis=0, initial=np.nan)
    return _mean(best - scores[-1, :-1])


def stability(matrix: ArrayLike) -> float:
    """Share of its score that an old task keeps; 1 means nothing lost.

    ``mean_{j < T-1} R[T-1, j] / R[j, j]``, a ratio, higher is better. MILE
    names stability without a definition; this is the reading that needs no
    other run.

    Example: ``[[60, nan], [45, 70]]`` -> 45 / 60 = 0.75.
    """
    scores = _square(matrix)
    learned = np.diagonal(scores)[:-1]
    return _mean(scores[-1, :-1] / np.where(learned == 0, np.nan, learned))


def plasticity(matrix: ArrayLike) -> float:
    """Score of each task at its turn, ``mean_j R[j, j]``.

    In per cent, higher is better. MILE names plasticity without a
    definition; this is the reading that needs no other run.

    Example: ``[[60, nan], [50, 70]]`` -> (60 + 70) / 2 = 65.
    """
    return _mean(np.diagonal(_square(matrix)))


def oracle_gap(routed: ArrayLike, oracle: ArrayLike) -> float:
    """Points that the gate's mistakes cost at the end.

    ``mean_j (O[T-1, j] - R[T-1, j])`` in points of mIoU, where ``O`` was
    routed by the true task; lower is better, negative means that the gate
    found better experts than the task's own.

    Example: oracle ``[[60, nan], [58, 70]]`` and routed ``[[60, nan],
    [56, 69]]`` -> (2 + 1) / 2 = 1.5.
    """
    routed, oracle = _square(routed), _square(oracle)
    if routed.shape != oracle.shape:
        raise ValueError('routed and oracle must be of one shape, got '
                         f'{routed.shape} and {oracle.shape}')
    return _mean(oracle[-1] - routed[-1])


def mismatch_drop(oracle_row: ArrayLike, forced: ArrayLike) -> float:
    """Points that a wrong expert costs, so whether routing matters at all.

    ``mean_j (O_j - mean_{k != j} F[j, k])`` in points of mIoU, where
    ``F[j, k]`` is the mIoU on task j with expert k forced and ``O`` the
    mIoU with each task's own expert. Near 0 means that any expert would do.

    Args:
        oracle_row (ArrayLike): (T,) mIoU with the right expert.
        forced (ArrayLike): (T, T) mIoU, rows tasks, columns forced experts;
            the diagonal is not used.

    Example: oracle row ``[60, 70]`` and forced ``[[nan, 40], [55, nan]]``
    -> ((60 - 40) + (70 - 55)) / 2 = 17.5.
    """
    forced = _square(forced, 'forced')
    num_tasks = len(forced)
    own = _vector('oracle_row', oracle_row, num_tasks)
    others = forced[~np.eye(num_tasks, dtype=bool)]
    if not len(others):
        return float('nan')
    return _mean(own - others.reshape(num_tasks, num_tasks - 1).mean(axis=1))


def all_scores(routed: ArrayLike,
               oracle: ArrayLike,
               forced: Optional[ArrayLike] = None) -> Dict[str, float]:
    """Every score of the matrices that ``results.json`` holds, by name.

    Args:
        routed (ArrayLike): (T, T) scores without a task label.
        oracle (ArrayLike): (T, T) scores, routed by the true task.
        forced (ArrayLike, optional): (T, T) scores with a forced expert;
            ``mismatch_drop`` is NaN without it. Defaults to None.
    """
    drop = float('nan')
    if forced is not None:
        drop = mismatch_drop(_square(oracle)[-1], forced)
    return dict(
        average_miou=average_miou(routed),
        backward_transfer=backward_transfer(routed),
        forward_transfer=forward_transfer(routed),
        forgetting=forgetting(routed),
        stability=stability(routed),
        plasticity=plasticity(routed),
        oracle_gap=oracle_gap(routed, oracle),
        mismatch_drop=drop,
        harmonic_mean_miou=harmonic_mean_miou(routed))


def _square(matrix: ArrayLike, name: str = 'score matrix') -> np.ndarray:
    scores = np.array(matrix, dtype=float)
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or (
            not scores.size):
        raise ValueError(
            f'{name} must be square with one row and one column per task, '
            f'got shape {scores.shape}')
    return scores


def _vector(name: str, values: ArrayLike, length: int) -> np.ndarray:
    vector = np.array(values, dtype=float)
    if vector.shape != (length, ):
        raise ValueError(f'{name} must hold one value for each of {length} '
                         f'tasks, got shape {vector.shape}')
    return vector


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float('nan')


def net_score(average_miou: float, params: float,
              macs: Optional[float]) -> float:
    """``20 log10(a^2 / (p^0.5 m^0.5))``, higher is better.

    Wong, "NetScore: Towards Universal Metrics for Large-Scale Performance
    Analysis of Deep Neural Networks", ICIAR 2019, with its exponents; CLoRA
    (arXiv 2507.19887) compares continual methods by it. Here the accuracy is
    the average mIoU, and the parameters are those that have to be kept.

    Args:
        average_miou (float): a, in per cent.
        params (float): Values that are kept; p is their number in millions.
        macs (float, optional): Multiply-adds of one image's prediction; m is
            their number in billions.

    Returns:
        float: NaN where a value is unknown or not above zero.

    Example: 50 %, 4 million values, 1 billion multiply-adds ->
    20 log10(2500 / 2) = 61.9.
    """
    values = (average_miou, params, math.nan if macs is None else macs)
    if not all(value > 0 for value in values):
        return math.nan
    millions, billions = params / 1e6, values[2] / 1e9
    return 20 * math.log10(average_miou**2 / math.sqrt(millions * billions))


class Spread(NamedTuple):
    """Mean and sample standard deviation over some seeds."""
    mean: float
    deviation: float
    num_seeds: int


def spread(values: ArrayLike) -> Spread:
    """Mean and sample standard deviation of n seeds.

    ``sqrt(sum_s (x_s - mean)^2 / (n - 1))``, in the unit of the values. One
    seed says nothing of the spread, so its deviation is NaN; so are both
    where one of the seeds has no value, since a mean over fewer seeds would
    pass for that of all.

    Example: ``[50, 54]`` -> mean 52, deviation sqrt((4 + 4) / 1) = 2.83.
    """
    seeds = np.array(values, dtype=float)
    deviation = float(seeds.std(ddof=1)) if len(seeds) > 1 else math.nan
    return Spread(float(seeds.mean()), deviation, len(seeds))


def delta_m(scores: ArrayLike, reference: ArrayLike) -> float:
    """Mean relative change against one model per task.

    ``(100 / T) sum_j (m_j - b_j) / b_j`` in per cent, higher is better and
    0 means as good as models that share nothing. ``m_j`` is the mIoU on task
    j at the end of the stream, ``b_j`` that of a model trained for task j
    alone. MDIL (Garg et al., WACV 2022), which reports the drop, hence with
    the other sign for a method that loses.

    Args:
        scores (ArrayLike): (T,) mIoU in per cent.
        reference (ArrayLike): (T,) mIoU in per cent.

    Returns:
        float: NaN if a value is not known or a reference is 0.

    Example: scores ``[45, 77]`` against ``[50, 70]`` -> (-10 + 10) / 2 = 0;
    ``[45, 70]`` -> -5.

    Raises:
        ValueError: If the shapes differ.
    """
    own, base = np.array(scores, dtype=float), np.array(reference, dtype=float)
    if own.ndim != 1 or own.shape != base.shape or not own.size:
        raise ValueError('scores and reference must hold one value per task, '
                         f'got shapes {own.shape} and {base.shape}')
    base = np.where(base == 0, np.nan, base)
    return float(100 * ((own - base) / base).mean())


def growth_per_task(kept: ArrayLike) -> float:
    """Growth by each task after the first one, ``(k_T - k_1) / (T - 1)``.

    In the unit of ``kept``, lower is better; 0 for a method that keeps one
    model whatever comes. The first task is left out, as it pays for the
    network that all tasks share.

    Args:
        kept (ArrayLike): (T,) what has to be kept after each task.

    Returns:
        float: NaN for a single task.

    Example: ``[100, 110, 124]`` -> (124 - 100) / 2 = 12.
    """
    sizes = np.array(kept, dtype=float)
    if sizes.ndim != 1 or len(sizes) < 2:
        return math.nan
    return float((sizes[-1] - sizes[0]) / (len(sizes) - 1))
