# SPDX-License-Identifier: Apache-2.0
"""Image embeddings for the gate."""
from .feature_statistics_embedder import FeatureStatisticsEmbedder

__all__ = ['FeatureStatisticsEmbedder']
