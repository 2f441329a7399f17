# SPDX-License-Identifier: Apache-2.0
"""One module per kind of head, the values of every expert."""
from __future__ import annotations

import dataclasses

import pytest
import torch

from mmseg_mile.adapters.adapter_library import ExpertCache
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.methods.mile.expert_heads import ExpertHeads

CPU = torch.device('cpu')


def test_experts_of_one_config_share_a_module(learned):
    heads = learned.heads
    night = heads.fused(dict(night=1.0), CPU)
    assert torch.equal(night.conv_seg.weight,
                       heads['night'].state['conv_seg.weight'])
    fog = heads.fused(dict(fog=1.0), CPU)
    assert fog is night and not fog.training
    assert torch.equal(fog.conv_seg.weight,
                       heads['fog'].state['conv_seg.weight'])
    assert heads.fused(dict(day=1.0), CPU) is not night
    # the values themselves, not copies
    assert heads.fused_state(dict(fog=1.0)) is heads['fog'].state


def test_kept_values_are_copies(learned, toys):
    task, head = toys.task('day'), learned.new_head(2)
    learned.heads.keep(task, head, learned.heads['day'].config)
    head.conv_seg.weight.data.fill_(7)
    assert not (learned.heads['day'].state['conv_seg.weight'] == 7).any()


@pytest.mark.parametrize('use', [
    lambda heads: heads['snow'], lambda heads: heads.labels('snow'),
    lambda heads: heads.fused(dict(snow=1.0), CPU)
])  # yapf: disable
def test_unknown_expert_is_refused(learned, use):
    with pytest.raises(ValueError, match="'snow'; experts:.*'night'"):
        use(learned.heads)


# -- stored heads ------------------------------------------------------------


@pytest.fixture
def stored(learned_once, tmp_path):
    """The expert 'day' in a folder."""
    store = ExpertStore(tmp_path)
    store.save_base({}, 'b' * 64)
    expert = learned_once.export_expert('day')
    expert.base_fingerprint = 'b' * 64
    store.save(expert)
    return store.open(['day'])[0]


def test_stored_head_is_read_when_it_decodes(learned_once, stored):
    cache = ExpertCache()
    heads = ExpertHeads(cache)
    heads.add(stored, CPU)
    assert heads.names == ('day', )
    assert heads.labels('day').classes == ('road', 'sky')
    assert cache.num_bytes == 0
    state = heads.fused(dict(day=1.0), CPU).state_dict()
    for key, value in learned_once.heads['day'].state.items():
        assert torch.equal(state[key], value)
    assert cache.num_bytes == heads['day'].num_bytes() > 0


def test_reading_a_head_does_not_disturb_the_one_that_decodes(learned, stored):
    night = learned.heads.fused(dict(night=1.0), CPU)
    before = {k: v.clone() for k, v in night.state_dict().items()}
    stored.configs['head'] = learned.heads['night'].config
    stored.classes = learned.heads['night'].classes
    learned.heads.add(stored, CPU)
    with pytest.raises(ValueError, match="'day' does not fit .*conv_seg"):
        learned.heads['day']
    after = night.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_head_in_memory_that_does_not_fit_is_refused_at_once(learned, fresh):
    expert = learned.export_expert('day')
    head = expert.parts['head']
    expert.parts['head'] = {k: v for k, v in head.items() if 'seg' not in k}
    with pytest.raises(
            ValueError, match="head of expert 'day' does not fit .*conv_seg"):
        fresh.heads.add(expert, CPU)
    assert fresh.heads.names == ()


# -- mixtures ----------------------------------------------------------------


@pytest.fixture
def alike(learned):
    """``alike(fog=...)``: heads of one label space, configs changed so."""

    def make(**options):
        heads = learned.heads
        for name in heads.names:
            head = heads['night'] if name == 'day' else heads[name]
            config = dict(head.config, **options.get(name, {}))
            heads._cache[('head', name)] = dataclasses.replace(
                head, config=config, state=dict(head.state))
            heads._labels[name] = heads.labels('night')
        return heads

    return make


def test_fused_head_is_the_weighted_mean(alike):
    heads = alike()
    module = heads.fused(dict(night=0.25, fog=0.75), CPU)
    for key, value in module.state_dict().items():
        night, fog = (heads[n].state[key] for n in ('night', 'fog'))
        wanted = night
        if value.is_floating_point():
            wanted = 0.25 * night + 0.75 * fog
        torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize(
    'options, mixture, wanted',
    [
        (dict(), dict(night=.2, fog=.3), dict(night=.4, fog=.6)),
        # only trained otherwise, and built otherwise
        (dict(fog=dict(loss_decode=dict(), dropout_ratio=0.5)),
         dict(night=.5, fog=.5), dict(night=.5, fog=.5)),
        (dict(fog=dict(in_index=0)), dict(night=.6, fog=.4), dict(night=1)),
    ])
def test_heads_of_one_build_are_averaged(alike, options, mixture, wanted):
    assert alike(**options).fusable(mixture) == pytest.approx(wanted)


@pytest.mark.parametrize(
    'mixture, wanted',
    [
        (dict(day=.2, night=.3, fog=.5), 'fog'),
        # of equal weights, the first one
        (dict(night=.5, fog=.5), 'night'),
    ])
def test_heads_of_other_classes_are_left_out(learned, mixture, wanted):
    assert learned.heads.fusable(mixture) == {wanted: 1}
