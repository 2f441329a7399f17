# SPDX-License-Identifier: Apache-2.0
"""Taking over experts that were stored."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.structures import Expert

X = torch.linspace(-2, 2, 2 * 3 * 32 * 32).view(2, 3, 32, 32).sin()


def out_of(backbone, name):
    """Give the last level of an expert."""
    with torch.no_grad(), backbone.using(name):
        return backbone(X)[-1]


def stored(backbone, name, **changes):
    """Give an expert as a library keeps it."""
    adapter = backbone.experts[name].clone()
    values = dict(
        name=name,
        classes=('road', 'sky'),
        palette=((0, 0, 0), (1, 1, 1)),
        lora_config=backbone.lora_config,
        lora=adapter.lora,
        norm=adapter.norm,
        head={},
        head_config={},
        prototypes={},
        base_fingerprint=backbone.fingerprint())
    return Expert(**{**values, **changes})


def test_stored_expert_is_taken_over_bit_for_bit(make, learned):
    source, backbone = make(train_norm=True), make(train_norm=True)
    learned(source, 'one')
    backbone.load_expert(stored(source, 'one'))
    assert torch.equal(out_of(backbone, 'one'), out_of(source, 'one'))


def test_stored_expert_brings_its_own_rank_and_scaling(make, learned):
    source, backbone = make(lora=dict(r=3, lora_alpha=9)), make()
    learned(source, 'one')
    backbone.load_expert(stored(source, 'one'))
    assert torch.equal(out_of(backbone, 'one'), out_of(source, 'one'))


@pytest.mark.parametrize('use', [
    lambda b: b.add_expert('two', init_from='one'),
    lambda b: b.train_expert('one')
])  # yapf: disable
def test_training_an_expert_of_other_lora_settings_is_refused(
        make, learned, use):
    source, backbone = make(lora=dict(r=3, lora_alpha=9)), make()
    learned(source, 'one')
    backbone.load_expert(stored(source, 'one'))
    with pytest.raises(ValueError, match=r"rank \[3\], scaling 3 .* 2, 2 and"):
        use(backbone)


def test_expert_of_another_base_is_refused_with_both_fingerprints(
        make, learned):
    backbone = make()
    learned(backbone, 'one')
    mine = backbone.fingerprint()
    expert = stored(backbone, 'one', base_fingerprint='f' * 64)
    with pytest.raises(ValueError, match=f'{"f" * 16}, this.*{mine[:16]}'):
        backbone.load_expert(expert)


def test_expert_that_does_not_fit_is_refused(make, learned):
    backbone = make()
    learned(backbone, 'one')
    expert = stored(backbone, 'one')
    expert.lora.pop('layer1.0.conv1.lora_B.weight')
    with pytest.raises(ValueError, match='layer1.0.conv1.lora_B.weight'):
        backbone.load_expert(expert)
