# SPDX-License-Identifier: Apache-2.0
"""SemLA: retrieve and fuse adapters."""
from .clip_embedder import CLIPEmbedder
from .open_vocabulary import OpenVocabularyExpertSegmentor, OpenVocabularyHead
from .semla_gate import SemLAGate
from .side_adapter_clip import SideAdapterCLIP

__all__ = [
    'CLIPEmbedder', 'OpenVocabularyExpertSegmentor', 'OpenVocabularyHead',
    'SemLAGate', 'SideAdapterCLIP'
]
