# SPDX-License-Identifier: Apache-2.0
"""The order of a dataset that several processes share."""
from __future__ import annotations

from typing import List, Sequence, TypeVar

T = TypeVar('T')


def interleave(shares: Sequence[Sequence[T]]) -> List[T]:
    """Restore a dataset's order from the shares of W processes.

    Process r of W draws the items r, r + W, r + 2 W, ..., as mmengine's
    ``DefaultSampler`` without shuffling deals them out.

    Args:
        shares (Sequence[Sequence]): One per process, by rank; earlier ones
            may be longer by one.

    Raises:
        ValueError: If the shares cannot be those of one dataset.
    """
    total, count = sum(map(len, shares)), len(shares)
    dealt = [len(range(rank, total, count)) for rank in range(count)]
    if [len(share) for share in shares] != dealt:
        raise ValueError(
            f'{count} processes hold {[len(s) for s in shares]} items, a '
            f'dataset of {total} items is dealt out as {dealt}: use '
            "dict(type='DefaultSampler', shuffle=False, round_up=False)")
    return [shares[k % count][k // count] for k in range(total)]
