# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters: targets, injection for training, merging to predict."""
from .adapter_library import AdapterLibrary
from .attention import LinearMultiheadAttention, replace_attention
from .config import check_lora_config, lora_scaling
from .injection import LoRAInjection
from .merging import Adapter, lora_delta, merge_adapters
from .targets import resolve_targets

__all__ = [
    'Adapter', 'AdapterLibrary', 'LinearMultiheadAttention', 'LoRAInjection',
    'check_lora_config', 'lora_delta', 'lora_scaling', 'merge_adapters',
    'replace_attention', 'resolve_targets'
]
