# SPDX-License-Identifier: Apache-2.0
"""Methods that learn a stream: the contract, and a room for each."""
from .baselines import (AutoencoderGate, ConvAutoencoderGate, EWCSegmentor,
                        FineTuneSegmentor, JointSegmentor, LwFSegmentor,
                        MDILSegmentor, SharedLoRASegmentor,
                        SingleTaskSegmentor)
from .care import BiLevelMoEBackbone, CaRESegmentor
from .continual_segmentor import ContinualSegmentor
from .heads import LevelwiseSegformerHead
from .mile import ExpertSegmentor
from .mle_sam import SensorExpertSegmentor, SensorPreProcessor, SensorRouter
from .semla import (CLIPEmbedder, OpenVocabularyExpertSegmentor,
                    OpenVocabularyHead, SemLAGate, SideAdapterCLIP)

__all__ = [
    'AutoencoderGate', 'BiLevelMoEBackbone', 'CLIPEmbedder', 'CaRESegmentor',
    'ContinualSegmentor', 'ConvAutoencoderGate', 'EWCSegmentor',
    'ExpertSegmentor', 'FineTuneSegmentor', 'JointSegmentor',
    'LevelwiseSegformerHead', 'LwFSegmentor', 'MDILSegmentor',
    'OpenVocabularyExpertSegmentor', 'OpenVocabularyHead', 'SemLAGate',
    'SensorExpertSegmentor', 'SensorPreProcessor', 'SensorRouter',
    'SharedLoRASegmentor', 'SideAdapterCLIP', 'SingleTaskSegmentor'
]
