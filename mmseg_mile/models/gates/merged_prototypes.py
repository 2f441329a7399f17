# SPDX-License-Identifier: Apache-2.0
"""Statistics of several tasks as those of one."""
from __future__ import annotations

from typing import Dict, Sequence

import torch
from torch import Tensor

from .prototypes import Prototypes, pack


def merge_prototypes(states: Sequence[Dict[str, Tensor]],
                     pooled: bool = False) -> Dict[str, Tensor]:
    """What a gate would know had it seen the images of all tasks as one.

    Counts, means and scatter of all images follow from those of the parts.
    By default every centroid stays a centroid, so that an image is as near
    to the merged task as to the nearest of its parts. ``pooled`` makes one
    mean of them, which is the fit of a gate with one prototype per task to
    the images of all parts together. What was calibrated is no sum: that of
    the part with the widest limit is kept.

    Args:
        states (Sequence[dict[str, Tensor]]): As gates store them; all empty
            for gates without statistics.
        pooled (bool): Whether one centroid is wanted.

    Returns:
        dict[str, Tensor]: Statistics for the same gate.

    Raises:
        ValueError: If they are of no known form, or of different sizes.
    """
    if not any(states):
        return {}
    try:
        parts = [Prototypes.from_state(state) for state in states]
    except ValueError as error:
        raise ValueError(
            f'the statistics of these experts cannot be merged: {error}. '
            'Merge experts whose gate is a PrototypeGate.') from error
    sizes = sorted({part.size for part in parts})
    if len(sizes) > 1:
        raise ValueError(f'the prototypes of these experts have {sizes} '
                         'values: they come from different embedders, and '
                         'no gate could compare them.')
    counts = torch.cat([part.counts for part in parts])
    centroids = torch.cat([part.centroids for part in parts])
    scatter = torch.stack([part.scatter.double() for part in parts]).sum(0)
    if pooled:
        mean = counts @ centroids / counts.sum()
        offsets = centroids - mean
        scatter = scatter + pack(offsets.T @ (counts[:, None] * offsets))
        centroids, counts = mean[None], counts.sum()[None]
    drifts = [part.drift for part in parts]
    known = all(drift.numel() for drift in drifts)
    drift = torch.stack(drifts).double().sum(0) if known else torch.zeros(0)
    reach = max((part.reach for part in parts), key=_if_known)
    # an old part, with no limit of its own, leaves the merged task without
    widest = max(parts, key=lambda part: _if_known(part.limit))
    return Prototypes(centroids, counts, scatter.float(), reach, widest.usual,
                      widest.limit, drift.float()).state()


def _if_known(limit: Tensor) -> float:
    """A limit by its size; inf is of one image, and flags nothing."""
    if limit.isnan():
        return torch.inf
    return float(limit) if limit.isfinite() else -torch.inf
