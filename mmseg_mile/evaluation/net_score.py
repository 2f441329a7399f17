# SPDX-License-Identifier: Apache-2.0
"""Accuracy, size and work of a model in one number."""
from __future__ import annotations

import math
from typing import Optional


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
