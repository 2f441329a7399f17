# SPDX-License-Identifier: Apache-2.0
"""Taking over experts that were stored."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.library.expert_store import ExpertStore
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
        parts=dict(adapter=adapter.lora, norm=adapter.norm),
        configs=dict(adapter=backbone.lora_config),
        base_fingerprint=backbone.fingerprint())
    return Expert(**{**values, **changes})


def test_stored_expert_is_taken_over_bit_for_bit(make, learned):
    source, backbone = make(train_norm=True), make(train_norm=True)
    learned(source, 'one')
    backbone.load_experts([stored(source, 'one')])
    assert torch.equal(out_of(backbone, 'one'), out_of(source, 'one'))


def test_stored_expert_brings_its_own_rank_and_scaling(make, learned):
    source, backbone = make(lora=dict(r=3, lora_alpha=9)), make()
    learned(source, 'one')
    backbone.load_experts([stored(source, 'one')])
    assert torch.equal(out_of(backbone, 'one'), out_of(source, 'one'))


@pytest.mark.parametrize('use', [
    lambda b: b.add_expert('two', init_from='one'),
    lambda b: b.train_expert('one')
])  # yapf: disable
def test_training_an_expert_of_other_lora_settings_is_refused(
        make, learned, use):
    source, backbone = make(lora=dict(r=3, lora_alpha=9)), make()
    learned(source, 'one')
    backbone.load_experts([stored(source, 'one')])
    with pytest.raises(ValueError, match=r"rank \[3\], scaling 3 .* 2, 2 and"):
        use(backbone)


def test_expert_of_another_base_is_refused_with_both_fingerprints(
        make, learned):
    backbone = make()
    learned(backbone, 'one')
    mine = backbone.fingerprint()
    expert = stored(backbone, 'one', base_fingerprint='f' * 64)
    with pytest.raises(ValueError, match=f'{"f" * 16}, this.*{mine[:16]}'):
        backbone.load_experts([expert])


def test_expert_that_does_not_fit_is_refused(make, learned):
    backbone = make()
    learned(backbone, 'one')
    expert = stored(backbone, 'one')
    expert.parts['adapter'].pop('layer1.0.conv1.lora_B.weight')
    with pytest.raises(ValueError, match='layer1.0.conv1.lora_B.weight'):
        backbone.load_experts([expert])


@pytest.fixture
def on_disk(make, learned, tmp_path):
    """A backbone and, in a folder, its expert 'one'."""
    source = make(train_norm=True)
    learned(source, 'one')
    store = ExpertStore(tmp_path)
    store.save_base({}, source.fingerprint())
    store.save(stored(source, 'one'))
    return source, store


def test_expert_on_disk_is_read_when_it_is_first_used(make, on_disk):
    source, store = on_disk
    backbone = make(train_norm=True)
    backbone.load_experts(store.open(['one']))
    assert backbone.experts.names == ('one', )
    assert backbone.experts.cache.num_bytes == 0
    assert torch.equal(out_of(backbone, 'one'), out_of(source, 'one'))
    assert backbone.experts.cache.num_bytes > 0


def test_expert_that_was_dropped_comes_back_bit_for_bit(make, on_disk):
    backbone = make(train_norm=True, memory_budget_mb=0, merge_cache_size=1)
    expert, = on_disk[1].open(['one'])
    backbone.load_experts([expert])
    first = backbone.experts['one']
    backbone.add_expert('other')
    assert backbone.experts['one'] is not first
    again = backbone.experts['one']
    for part in ('lora', 'norm'):
        mine, theirs = getattr(again, part), getattr(first, part)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_changed_adapter_is_refused_by_name_on_first_use(make, on_disk):
    backbone, store = make(train_norm=True), on_disk[1]
    backbone.load_experts(store.open(['one']))
    path = store.root / 'one' / 'adapter_model.safetensors'
    path.write_bytes(path.read_bytes()[:-1] + b'?')
    with pytest.raises(ValueError, match='one/adapter_model.safetensors is'):
        out_of(backbone, 'one')


def test_expert_on_disk_that_does_not_fit_is_refused_on_first_use(
        make, on_disk):
    backbone = make(change=dict(base_channels=8))
    expert, = on_disk[1].open(['one'])
    expert.base_fingerprint = backbone.fingerprint()
    backbone.load_experts([expert])
    with pytest.raises(ValueError, match="'one' does not fit the layers"):
        out_of(backbone, 'one')


def test_one_expert_of_another_base_keeps_all_out(make, learned):
    backbone = make()
    source = make()
    learned(source, 'one', 'two')
    experts = [
        stored(source, 'one'),
        stored(source, 'two', base_fingerprint='f' * 64)
    ]
    with pytest.raises(ValueError, match="'two' was trained on the base"):
        backbone.load_experts(experts)
    assert backbone.experts.names == ()
