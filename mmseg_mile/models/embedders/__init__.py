# SPDX-License-Identifier: Apache-2.0
"""Image embeddings for the gate."""
from .clip_embedder import CLIPEmbedder
from .feature_statistics_embedder import FeatureStatisticsEmbedder
from .stem_statistics_embedder import StemStatisticsEmbedder
from .thumbnail_embedder import ThumbnailEmbedder

__all__ = [
    'CLIPEmbedder', 'FeatureStatisticsEmbedder', 'StemStatisticsEmbedder',
    'ThumbnailEmbedder'
]
