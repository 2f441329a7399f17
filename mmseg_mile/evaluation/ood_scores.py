# SPDX-License-Identifier: Apache-2.0
"""How well a score tells images of unknown domains from those of known ones.

Everywhere a larger score means a stranger image, and an image is flagged
where its score is above the threshold. The positives are the out-of-distribution
images.
"""
from __future__ import annotations

import math
from typing import NamedTuple, Sequence, Union

import numpy as np

Scores = Union[Sequence[float], np.ndarray]


class FlagScores(NamedTuple):
    """Of one domain held out.

    Args:
        auroc (float): See :func:`auroc`; 0.5 is chance.
        fpr95 (float): See :func:`false_positive_rate`, at 0.95.
        false_alarms (float): Share of familiar images that are flagged.
        detected (float): Share of out-of-distribution images that are flagged.
    """
    auroc: float
    fpr95: float
    false_alarms: float
    detected: float


def flag_scores(familiar: Scores,
                ood: Scores,
                threshold: float = 1.0) -> FlagScores:
    """All scores at once.

    Args:
        familiar (Sequence[float]): Scores of images of known domains.
        ood (Sequence[float]): Scores of images of unknown ones.
        threshold (float): Images above it are flagged. Defaults to 1.

    Returns:
        FlagScores: In 0 to 1.

    Raises:
        ValueError: If there is no image of a kind, or a score is NaN.
    """
    return FlagScores(
        auroc(familiar, ood), false_positive_rate(familiar, ood),
        flagged(familiar, threshold), flagged(ood, threshold))


def auroc(familiar: Scores, ood: Scores) -> float:
    """Chance that an out-of-distribution image scores above a familiar one.

    The area under the receiver operating characteristic, as the share of
    all pairs that are in the right order; a tie is half a pair.

    Args:
        familiar (Sequence[float]): Scores of images of known domains.
        ood (Sequence[float]): Scores of images of unknown ones.

    Returns:
        float: 0 to 1; 0.5 is chance, below it the score is upside down.

    Raises:
        ValueError: If there is no image of a kind, or a score is NaN.

    Example: familiar 1, 2, 3 and out-of-distribution 2, 4: of six pairs four are in
    order and one is a tie -> 4.5 / 6 = 0.75.
    """
    known, strange = _checked(familiar), _checked(ood)
    below = np.searchsorted(known, strange, 'left').sum()
    up_to = np.searchsorted(known, strange, 'right').sum()
    return float(below + up_to) / (2 * len(known) * len(strange))


def false_positive_rate(familiar: Scores,
                        ood: Scores,
                        detected: float = 0.95) -> float:
    """Share of familiar images flagged by a flag that finds most strangers.

    The flag is set where it finds the wanted share of out-of-distribution images and
    raises the fewest alarms: at the score of the ``ceil(detected M)``-th
    strangest of M, which itself is found. Familiar images that tie with it
    are alarms.

    Args:
        familiar (Sequence[float]): Scores of images of known domains.
        ood (Sequence[float]): Scores of images of unknown ones.
        detected (float): Share to be found, in (0, 1]. Defaults to 0.95,
            which makes it FPR95.

    Returns:
        float: 0 to 1, lower is better.

    Raises:
        ValueError: If there is no image of a kind, a score is NaN or the
            share is out of range.

    Example: familiar 1, 2, 3, 4 and out-of-distribution 3, 5: 95 % of two are both,
    so the flag is set at 3 -> 2 / 4 = 0.5.
    """
    if not 0 < detected <= 1:
        raise ValueError(f'detected must be in (0, 1], got {detected}')
    known, strange = _checked(familiar), _checked(ood)
    # rounded first: 0.95 * 20 is a little above 19 in floating point
    count = math.ceil(round(detected * len(strange), 9))
    return float(np.mean(known >= strange[len(strange) - count]))


def flagged(scores: Scores, threshold: float = 1.0) -> float:
    """Share of images whose score is above the threshold.

    Of familiar images it is the rate of false alarms, of out-of-distribution ones
    the rate of detection. A flag is reliable where false alarms on new
    images of known domains come as often as was configured, which is
    ``1 - gate.ood_quantile``.

    Args:
        scores (Sequence[float]): Of images of one kind.
        threshold (float): Defaults to 1, a gate's limit.

    Returns:
        float: 0 to 1.

    Raises:
        ValueError: If there is no image, or a score is NaN.

    Example: 0.5, 1, 1.5, 3 at the threshold 1 -> 2 / 4 = 0.5.
    """
    return float(np.mean(_checked(scores) > threshold))


def _checked(scores: Scores) -> np.ndarray:
    """Sorted, as float64."""
    values = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    if not len(values) or np.isnan(values).any():
        raise ValueError(
            'scores of familiar and of out-of-distribution images must be one number '
            f'per image, at least one of each; got {values[-3:].tolist()}: '
            'take a gate that measures how out-of-distribution an image is, and '
            'domains that have images')
    return values
