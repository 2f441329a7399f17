# SPDX-License-Identifier: Apache-2.0
"""What is Expert Gate's own; the rest is in test_reconstruction_gate.py."""
from __future__ import annotations

import pytest
import torch

from mmseg.registry import TASK_UTILS
from mmseg_mile.methods.baselines.autoencoder_gates import AutoencoderGate


def test_code_has_a_hundred_units_unless_said_otherwise():
    gate = TASK_UTILS.build(dict(type='AutoencoderGate', num_steps=1))
    gate.fit('day', torch.randn(4, 120))
    assert gate.state('day')['encoder.weight'].shape == (100, 120)


def test_code_as_wide_as_the_embedding_is_refused_before_any_training():
    with pytest.raises(ValueError, match='gate.hidden 100 must be less than'):
        AutoencoderGate().check_embeddings(torch.randn(4, 100))
    AutoencoderGate().check_embeddings(torch.randn(4, 101))


def test_code_without_units_is_refused():
    with pytest.raises(ValueError, match='gate.hidden must be >= 1, got 0'):
        AutoencoderGate(hidden=0)
