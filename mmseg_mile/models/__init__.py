# SPDX-License-Identifier: Apache-2.0
"""Backbones with experts, gates, embedders and segmentors."""
from .backbones import LoRAExpertBackbone
from .embedders import FeatureStatisticsEmbedder
from .gates import (BaseGate, FixedGate, LastGate, OracleGate, PrototypeGate,
                    RandomGate)
from .heads import LevelwiseSegformerHead
from .segmentors import ContinualSegmentor, ExpertSegmentor

__all__ = [
    'BaseGate', 'ContinualSegmentor', 'ExpertSegmentor',
    'FeatureStatisticsEmbedder', 'FixedGate', 'LastGate',
    'LevelwiseSegformerHead', 'LoRAExpertBackbone', 'OracleGate',
    'PrototypeGate', 'RandomGate'
]
