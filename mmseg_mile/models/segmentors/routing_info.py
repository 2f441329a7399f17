# SPDX-License-Identifier: Apache-2.0
"""What a prediction says of how it came about."""
from __future__ import annotations

from typing import Any, Dict

from mmseg_mile.structures import Routing
from .expert_heads import LabelSpace


def routing_info(routing: Routing, index: int,
                 labels: LabelSpace) -> Dict[str, Any]:
    """Metainfo of the prediction for one image.

    Args:
        routing (Routing): Of its batch.
        index (int): Position of the image.
        labels (LabelSpace): Of the expert whose head spoke.

    Returns:
        dict: ``expert``, the heaviest one, None for the base alone and for
        no prediction; ``mixture``, weights above zero; ``classes`` and
        ``palette``; ``distances`` per expert; ``unfamiliar``, and
        ``unfamiliarity``, None where the gate does not measure it;
        ``abstained``, whether there is no prediction.
    """
    mixture = routing.mixture(index)
    return dict(
        expert=routing.top_expert(index) if mixture else None,
        classes=labels.classes,
        palette=labels.palette,
        mixture=mixture,
        distances=dict(
            zip(routing.expert_names, routing.distances[index].tolist())),
        unfamiliar=bool(routing.unfamiliar[index]),
        unfamiliarity=None if routing.unfamiliarity is None else float(
            routing.unfamiliarity[index]),
        abstained=routing.abstains is not None
        and bool(routing.abstains[index]))
