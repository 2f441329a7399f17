# SPDX-License-Identifier: Apache-2.0
"""Incremental domains and modalities for MMSegmentation.

Importing the package registers its components with ``mmseg.registry``;
configs do so by ``custom_imports = dict(imports=['mmseg_mile'])``.
"""
from . import adapters, datasets, engine, gates, methods, visualization
from .version import __version__

__all__ = [
    '__version__', 'adapters', 'datasets', 'engine', 'gates', 'methods',
    'visualization'
]
