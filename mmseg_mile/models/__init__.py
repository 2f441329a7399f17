# SPDX-License-Identifier: Apache-2.0
"""Backbones with experts, gates, embedders and segmentors."""
from .backbones import LoRAExpertBackbone, SideAdapterCLIP
from .embedders import (CLIPEmbedder, FeatureStatisticsEmbedder,
                        StemStatisticsEmbedder, ThumbnailEmbedder)
from .gates import (AutoencoderGate, BaseGate, ConvAutoencoderGate, FixedGate,
                    LastGate, MismatchedGate, NoExpertGate, OracleGate,
                    PrototypeGate, RandomGate, SemLAGate)
from .heads import LevelwiseSegformerHead, OpenVocabularyHead
from .segmentors import (ContinualSegmentor, ExpertSegmentor,
                         OpenVocabularyExpertSegmentor)

__all__ = [
    'AutoencoderGate', 'BaseGate', 'CLIPEmbedder', 'ContinualSegmentor',
    'ConvAutoencoderGate', 'ExpertSegmentor', 'FeatureStatisticsEmbedder',
    'FixedGate', 'LastGate', 'LevelwiseSegformerHead', 'LoRAExpertBackbone',
    'MismatchedGate', 'NoExpertGate', 'OpenVocabularyExpertSegmentor',
    'OpenVocabularyHead', 'OracleGate', 'PrototypeGate', 'RandomGate',
    'SemLAGate', 'SideAdapterCLIP', 'StemStatisticsEmbedder',
    'ThumbnailEmbedder'
]
