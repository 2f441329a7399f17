# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters: targets, injection for training, merging to predict."""
from .adapter import Adapter
from .adapter_library import AdapterLibrary
from .attention import LinearMultiheadAttention, replace_attention
from .config import check_lora_config, lora_scaling
from .fused_start import fused_adapter
from .injection import LoRAInjection
from .low_rank_pass import LowRankPass
from .merging import lora_delta, merge_adapters
from .probe import probe_images
from .targets import resolve_targets
from .tensor_slots import TensorSlots

__all__ = [
    'Adapter', 'AdapterLibrary', 'LinearMultiheadAttention', 'LoRAInjection',
    'LowRankPass', 'TensorSlots', 'check_lora_config', 'fused_adapter',
    'lora_delta', 'lora_scaling', 'merge_adapters', 'probe_images',
    'replace_attention', 'resolve_targets'
]
