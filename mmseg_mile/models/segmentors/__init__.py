# SPDX-License-Identifier: Apache-2.0
"""Segmentors that learn streams."""
from .continual_segmentor import ContinualSegmentor
from .expert_segmentor import ExpertSegmentor
from .open_vocabulary_expert_segmentor import OpenVocabularyExpertSegmentor

__all__ = [
    'ContinualSegmentor', 'ExpertSegmentor', 'OpenVocabularyExpertSegmentor'
]
