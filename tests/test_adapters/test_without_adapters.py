# SPDX-License-Identifier: Apache-2.0
"""``lora=None``: experts that adapt no layer."""
from __future__ import annotations

import pytest
import torch

X = torch.linspace(-2, 2, 2 * 3 * 32 * 32).view(2, 3, 32, 32).sin()


def last_level(backbone, target=None):
    with torch.no_grad():
        if target is None:
            with backbone.base():
                return backbone(X)[-1]
        with backbone.using(target):
            return backbone(X)[-1]


def test_no_layer_is_a_target(make):
    assert make(lora=None).targets == []


def test_expert_is_the_base(make):
    backbone = make(lora=None)
    backbone.add_expert('one')
    backbone.add_expert('two', init_from='one')
    base = last_level(backbone)
    assert torch.equal(last_level(backbone, 'two'), base)
    assert torch.equal(last_level(backbone, dict(one=0.5, two=0.5)), base)


def test_training_an_expert_trains_nothing_of_the_backbone(make):
    backbone = make(lora=None)
    before = backbone.fingerprint()
    backbone.add_expert('one')
    backbone.train_expert('one')
    backbone.train()
    assert not any(p.requires_grad for p in backbone.parameters())
    out = backbone(X)[-1]
    torch.testing.assert_close(out, last_level(backbone))
    backbone.finish_training()
    assert backbone.fingerprint() == before


def test_expert_may_own_norm_layers_all_the_same(make):
    backbone = make(lora=None, train_norm=True)
    base = last_level(backbone)
    backbone.add_expert('one')
    backbone.train_expert('one')
    backbone.train()
    trained = {n for n, p in backbone.named_parameters() if p.requires_grad}
    assert trained and all('bn' in n or 'stem' in n or 'downsample' in n
                           for n in trained)  # yapf: disable
    backbone(X)
    backbone.finish_training()
    backbone.eval()
    # its running statistics moved, those of the base did not
    assert not torch.equal(last_level(backbone, 'one'), base)
    assert torch.equal(last_level(backbone), base)


def test_expert_with_layers_cannot_be_trained_on(make, learned):
    backbone = make(lora=None)
    other = make()
    learned(other, 'one')
    backbone.experts['one'] = other.experts['one'].clone()
    with pytest.raises(ValueError, match="'one' has .* layers of rank"):
        backbone.train_expert('one')


def test_lora_must_be_said_to_be_none(resnet):
    from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone
    with pytest.raises(TypeError, match='lora'):
        LoRAExpertBackbone(resnet)
