# SPDX-License-Identifier: Apache-2.0
"""LoRA experts beside a frozen backbone."""
from .adapter import Adapter
from .attention import LinearMultiheadAttention
from .lora_expert_backbone import LoRAExpertBackbone

__all__ = ['Adapter', 'LinearMultiheadAttention', 'LoRAExpertBackbone']
