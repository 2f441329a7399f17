# SPDX-License-Identifier: Apache-2.0
"""Gates, from embeddings of images to a routing, and embedders."""
from .base_gate import BaseGate
from .embedders import FeatureStatisticsEmbedder, ThumbnailEmbedder
from .prototype_gate import PrototypeGate
from .simple_gates import (FixedGate, MismatchedGate, NoExpertGate, OracleGate,
                           RandomGate)

__all__ = [
    'BaseGate', 'FeatureStatisticsEmbedder', 'FixedGate', 'MismatchedGate',
    'NoExpertGate', 'OracleGate', 'PrototypeGate', 'RandomGate',
    'ThumbnailEmbedder'
]
