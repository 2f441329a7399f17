# SPDX-License-Identifier: Apache-2.0
"""What becomes of images that no expert is for."""
from __future__ import annotations

from dataclasses import replace

from mmseg_mile.structures import Routing
from .inverse_distance import nearest_weights

POLICIES = ('nearest', 'fuse', 'base', 'abstain')


def check_policy(policy: str) -> str:
    """The policy, if there is one of this name.

    Raises:
        ValueError: If there is none.
    """
    if policy not in POLICIES:
        raise ValueError(f'model.unfamiliar must be one of {POLICIES}, got '
                         f'{policy!r}')
    return policy


def handle_unfamiliar(routing: Routing, policy: str) -> Routing:
    """The routing, changed for flagged images alone.

    Args:
        routing (Routing): What the gate said.
        policy (str): 'nearest': it stays. 'fuse': weights of the nearest
            experts, see :func:`nearest_weights`. 'base': no expert.
            'abstain': no prediction.

    Returns:
        Routing: Of the same images.

    Raises:
        ValueError: If experts are to be fused by distances that the gate
            does not measure.
    """
    flagged = routing.unfamiliar
    if policy == 'nearest' or not flagged.any():
        return routing
    weights = routing.weights.clone()
    where = flagged.to(weights.device)
    if policy == 'fuse':
        distances = routing.distances[flagged.to(routing.distances.device)]
        if distances.isnan().any():
            raise ValueError(
                "model.unfamiliar='fuse' weighs experts by distances, which "
                'the gate has not: use PrototypeGate or SemLAGate, or another '
                'policy')
        weights[where] = nearest_weights(distances).to(weights)
        return replace(routing, weights=weights)
    weights[where] = 0
    abstains = flagged if policy == 'abstain' else None
    return replace(routing, weights=weights, abstains=abstains)
