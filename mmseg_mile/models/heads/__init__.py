# SPDX-License-Identifier: Apache-2.0
"""Decode heads."""
from .levelwise_segformer_head import LevelwiseSegformerHead

__all__ = ['LevelwiseSegformerHead']
