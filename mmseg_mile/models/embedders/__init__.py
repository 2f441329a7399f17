# SPDX-License-Identifier: Apache-2.0
"""Image embeddings for the gate."""
from .feature_statistics_embedder import FeatureStatisticsEmbedder
from .thumbnail_embedder import ThumbnailEmbedder

__all__ = ['FeatureStatisticsEmbedder', 'ThumbnailEmbedder']
