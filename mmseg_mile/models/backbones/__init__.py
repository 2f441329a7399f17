# SPDX-License-Identifier: Apache-2.0
"""Backbones with experts."""
from . import checkpoint_safety  # noqa: F401  guards mmengine's loaders
from .lora_expert_backbone import LoRAExpertBackbone
from .side_adapter_clip import SideAdapterCLIP

__all__ = ['LoRAExpertBackbone', 'SideAdapterCLIP']
