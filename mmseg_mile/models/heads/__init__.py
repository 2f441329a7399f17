# SPDX-License-Identifier: Apache-2.0
"""Decode heads."""
from .levelwise_segformer_head import LevelwiseSegformerHead
from .open_vocabulary_head import OpenVocabularyHead

__all__ = ['LevelwiseSegformerHead', 'OpenVocabularyHead']
