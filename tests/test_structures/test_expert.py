# SPDX-License-Identifier: Apache-2.0
"""The record of an expert."""
from __future__ import annotations

from mmseg_mile.structures import Expert


def test_experts_do_not_share_their_provenance():
    fields = dict(
        classes=('road', ),
        palette=((0, 0, 0), ),
        parts={},
        configs={},
        base_fingerprint='0')
    first, second = Expert('a', **fields), Expert('b', **fields)
    first.provenance['seed'] = 1
    assert second.provenance == {}
