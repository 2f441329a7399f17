# SPDX-License-Identifier: Apache-2.0
"""Our experts in PEFT's layers."""
from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from mmseg_mile.benchmarks.peft_layers import (complete_dilation,
                                               has_packed_attention,
                                               peft_config, peft_targets)


class Attention(nn.Module):
    """A packed attention and a linear layer."""

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(4, 1)
        self.fc = nn.Linear(4, 4)


def test_packed_attention_is_adapted_as_a_whole():
    targets = ['attn.q_proj', 'attn.k_proj', 'attn.out_proj', 'fc']
    assert peft_targets(Attention(), targets) == ['attn', 'fc']


def test_packed_attention_is_found():
    assert has_packed_attention(Attention())
    assert not has_packed_attention(nn.Linear(4, 4))


def test_forgotten_dilation_is_set():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=2, dilation=2))
    inject_adapter_in_model(LoraConfig(r=2, target_modules=['0']), model)
    assert complete_dilation(model) == 1
    assert complete_dilation(model) == 0
    model(torch.zeros(1, 3, 8, 8))


def test_experts_without_adapters_have_no_peft_config():
    with pytest.raises(ValueError, match='lora is None: PEFT has no adapter'):
        peft_config(Attention(), [], dict(r=1, lora_alpha=1), False)
