# SPDX-License-Identifier: Apache-2.0
"""CaRE: bi-level routing mixture of experts inside the blocks."""
from .bilevel_moe_backbone import BiLevelMoEBackbone
from .care_segmentor import CaRESegmentor

__all__ = ['BiLevelMoEBackbone', 'CaRESegmentor']
