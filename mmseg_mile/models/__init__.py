# SPDX-License-Identifier: Apache-2.0
"""Backbones with experts, gates, embedders and segmentors."""
from .backbones import LoRAExpertBackbone
from .embedders import FeatureStatisticsEmbedder, ThumbnailEmbedder
from .gates import (AutoencoderGate, BaseGate, ConvAutoencoderGate, FixedGate,
                    LastGate, MismatchedGate, NoExpertGate, OracleGate,
                    PrototypeGate, RandomGate, SemLAGate)
from .heads import LevelwiseSegformerHead
from .segmentors import ContinualSegmentor, ExpertSegmentor

__all__ = [
    'AutoencoderGate', 'BaseGate', 'ContinualSegmentor', 'ConvAutoencoderGate',
    'ExpertSegmentor', 'FeatureStatisticsEmbedder', 'FixedGate', 'LastGate',
    'LevelwiseSegformerHead', 'LoRAExpertBackbone', 'MismatchedGate',
    'NoExpertGate', 'OracleGate', 'PrototypeGate', 'RandomGate', 'SemLAGate',
    'ThumbnailEmbedder'
]
