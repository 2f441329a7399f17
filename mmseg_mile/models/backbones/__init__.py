# SPDX-License-Identifier: Apache-2.0
"""Backbones with experts."""
from .lora_expert_backbone import LoRAExpertBackbone

__all__ = ['LoRAExpertBackbone']
