# SPDX-License-Identifier: Apache-2.0
"""What is PSS's own; the rest is in test_reconstruction_gate.py."""
from __future__ import annotations

import pytest
import torch

from mmseg.registry import TASK_UTILS
from mmseg_mile.gates.embedders import ThumbnailEmbedder
from mmseg_mile.methods.baselines.autoencoder_gates import ConvAutoencoderGate


def test_defaults_fit_the_embedder_s():
    gate = TASK_UTILS.build(dict(type='ConvAutoencoderGate', num_steps=1))
    thumbnails = ThumbnailEmbedder()(None, torch.randn(2, 3, 96, 128))
    gate.check_embeddings(thumbnails)
    gate.fit('day', thumbnails)
    state = gate.state('day')
    assert state['down.0.weight'].shape == (8, 3, 3, 3)
    assert state['up.2.weight'].shape == (32, 16, 4, 4)
    # 48x64 halved three times, in 32 channels
    assert state['encoder.weight'].shape == (64, 32 * 6 * 8)
    assert state['mean'].shape == (3, )


def test_embeddings_of_another_embedder_are_refused_before_any_training():
    with pytest.raises(
            ValueError,
            match=r'\(3, 48, 64\) has 9216 values, an embedding 48: use '
            r".*'ThumbnailEmbedder', size=\(48, 64\)"):
        ConvAutoencoderGate().check_embeddings(torch.randn(4, 48))


@pytest.mark.parametrize('options, message', [
    (dict(image_shape=(3, 48, 60)), r'= 8, got \(3, 48, 60\)'),
    (dict(image_shape=(48, 64)), r'image_shape must be channels, height'),
    (dict(image_shape=(0, 48, 64)), r'got \(0, 48, 64\)'),
    (dict(channels=()), r'gate.channels must be >= 1, got \(\)'),
    (dict(channels=(8, 0)), r'gate.channels must be >= 1, got \(8, 0\)'),
    (dict(hidden=0), r'gate.hidden must be >= 1, got \[0\]'),
])  # yapf: disable
def test_wrong_value_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        ConvAutoencoderGate(**options)
