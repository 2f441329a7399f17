# SPDX-License-Identifier: Apache-2.0
"""Leave-one-out scores that nobody computed, for hand computation."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmseg_mile.evaluation.leave_one_out import Leak, LeaveOneOut, LeftOutRun
from mmseg_mile.evaluation.left_out_methods import (COMPARED, OOD_POLICIES,
                                                    ORACLE, removals,
                                                    tau_method)
from mmseg_mile.evaluation.left_out_score import LeftOutScore

TARGETS = ('fog', 'rain', 'city')
FAMILIES = dict(fog=('fog', 'rain'), rain=('fog', 'rain'), city=('city', ))
LEAKS = (Leak(('fog', ), 'base',
              ('fog', )), Leak(('fog', 'rain'), 'base', ('fog', )),
         Leak(('rain', ), 'experts', ('city', ), False))


def fabricated(
        mious: Mapping[tuple[str, str], Sequence[float]],
        seeds: Sequence[int] = (0, ),
        leaks: Sequence[Leak] = (),
        taus: Sequence[float] = (),
        families: Mapping[str, tuple[str, ...]] = FAMILIES) -> LeaveOneOut:
    """Every cell of three targets of ten images each.

    Args:
        mious: By scope and method, (3,) mIoU of the first seed; the n-th
            further seed has ``2 n`` more. 50 for cells that are not named.
        seeds: Of the runs.
        leaks: Of every run.
        taus: Temperatures of a sweep.
        families: Of the targets.

    One image of ten is flagged where nothing is removed, else eight.
    """
    runs = []
    for index, seed in enumerate(seeds):
        found = {}
        for column, target in enumerate(TARGETS):
            for scope, removed in removals(target, families[target]).items():
                flagged = 8 if removed else 1
                for method in (*COMPARED, *OOD_POLICIES,
                               *map(tau_method, taus)):
                    if method == ORACLE and scope != 'none':
                        continue
                    values = mious.get((scope, method), (50, ) * 3)
                    score = LeftOutScore(
                        target, removed, method, 10,
                        10 - flagged * (method == OOD_POLICIES[2]), flagged,
                        values[column] + 2.0 * index, dict(road=50.0))
                    found.setdefault((target, removed, method), score)
        runs.append(LeftOutRun(seed, tuple(leaks), tuple(found.values())))
    return LeaveOneOut('street', 'MILE', TARGETS, families,
                       dict(top_k=5, tau=0.4), tuple(runs))
