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
        labels (LabelSpace): Of the expert that spoke.

    Returns:
        dict: As :meth:`ExpertSegmentor.predict` describes it.
    """
    return dict(
        expert=routing.top_expert(index),
        classes=labels.classes,
        palette=labels.palette,
        mixture=routing.mixture(index),
        distances=dict(
            zip(routing.expert_names, routing.distances[index].tolist())),
        unfamiliar=bool(routing.unfamiliar[index]))
