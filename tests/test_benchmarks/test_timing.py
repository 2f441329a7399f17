# SPDX-License-Identifier: Apache-2.0
"""Time side by side."""
from __future__ import annotations

import dataclasses

from mmseg_mile.benchmarks.timing import Spread, interleaved_seconds, ratios


def test_each_round_starts_with_another_run(settings):
    called = []
    runs = {n: (lambda n=n: called.append(n)) for n in 'abc'}
    seconds = interleaved_seconds(
        runs, dataclasses.replace(settings, rounds=3, warmup=1))
    assert ''.join(called) == 'abc' + 'abc' + 'bca' + 'cab'
    assert {n: len(v) for n, v in seconds.items()} == dict(a=3, b=3, c=3)


def test_ratios_are_taken_round_by_round():
    seconds = dict(stock=[1.0, 2.0, 4.0], ours=[0.5, 1.0, 2.0])
    assert ratios(seconds, 'stock')['ours'] == Spread(0.5, 0.5, 0.5)


def test_spread_has_median_and_quartiles():
    assert Spread.of([5.0, 1.0, 2.0, 3.0, 4.0]) == Spread(3.0, 2.0, 4.0)
