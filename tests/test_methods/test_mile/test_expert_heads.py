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
    night = heads.module('night', CPU)
    assert torch.equal(night.conv_seg.weight,
                       heads['night'].state['conv_seg.weight'])
    fog = heads.module('fog', CPU)
    assert fog is night
    assert torch.equal(fog.conv_seg.weight,
                       heads['fog'].state['conv_seg.weight'])
    assert heads.module('day', CPU) is not night


def test_module_is_ready_to_predict(learned):
    assert not learned.heads.module('day', CPU).training


def test_kept_values_are_copies(learned, toys):
    task, head = toys.task('day'), learned.new_head(2)
    learned.heads.keep(task, head, learned.heads['day'].config)
    head.conv_seg.weight.data.fill_(7)
    assert not (learned.heads['day'].state['conv_seg.weight'] == 7).any()


def test_removed_head_is_gone(learned):
    learned.heads.remove('day')
    assert learned.heads.names == ('night', 'fog')


@pytest.mark.parametrize('use', [
    lambda heads: heads['snow'], lambda heads: heads.remove('snow'),
    lambda heads: heads.module('snow', CPU),
    lambda heads: heads.labels('snow')
])  # yapf: disable
def test_unknown_expert_is_refused(learned, use):
    with pytest.raises(ValueError, match="'snow'; experts:.*'night'"):
        use(learned.heads)


def test_stored_head_that_does_not_fit_is_refused(learned, fresh):
    expert = learned.export_expert('day')
    head = expert.parts['head']
    expert.parts['head'] = {k: v for k, v in head.items() if 'seg' not in k}
    with pytest.raises(
            ValueError, match="head of expert 'day' does not fit .*conv_seg"):
        fresh.heads.add(expert, CPU)
    assert fresh.heads.names == ()


@pytest.fixture
def stored(learned_once, toys, tmp_path):
    """The head of 'day' in a folder."""
    store = ExpertStore(tmp_path)
    store.save_base({}, 'b' * 64)
    expert = learned_once.export_expert('day')
    expert.base_fingerprint = 'b' * 64
    store.save(expert)
    return store.open(['day'])[0]


def test_stored_head_is_read_when_it_speaks(learned_once, stored):
    cache = ExpertCache()
    heads = ExpertHeads(cache)
    heads.add(stored, CPU)
    assert heads.names == ('day', )
    assert heads.labels('day').classes == ('road', 'sky')
    assert cache.num_bytes == 0
    state = heads.module('day', CPU).state_dict()
    for key, value in learned_once.heads['day'].state.items():
        assert torch.equal(state[key], value)
    assert cache.num_bytes == heads['day'].num_bytes() > 0


def test_head_of_a_changed_file_is_refused_when_it_speaks(stored, tmp_path):
    heads = ExpertHeads(ExpertCache())
    heads.add(stored, CPU)
    (tmp_path / 'day' / 'head.safetensors').write_bytes(b'other')
    with pytest.raises(ValueError, match='day/head.safetensors'):
        heads.module('day', CPU)


def test_reading_a_head_does_not_disturb_the_one_that_speaks(learned, stored):
    night = learned.heads.module('night', CPU)
    before = {k: v.clone() for k, v in night.state_dict().items()}
    stored.configs['head'] = learned.heads['night'].config
    stored.classes = learned.heads['night'].classes
    learned.heads.add(stored, CPU)
    with pytest.raises(ValueError, match="'day' does not fit .*conv_seg"):
        learned.heads['day']
    after = night.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_head_without_an_output_per_class_is_refused_at_once(stored):
    stored.classes = ('road', 'sky', 'lamp')
    heads = ExpertHeads(ExpertCache())
    with pytest.raises(ValueError, match='names 3 classes but its head has 2'):
        heads.add(stored, CPU)
    assert heads.names == ()


def fusable(heads, **options):
    """Give all heads one label space, and their configs these options."""
    for name in heads.names:
        head = heads['night'] if name == 'day' else heads[name]
        config = dict(head.config, **options.get(name, {}))
        heads._cache[('head', name)] = dataclasses.replace(
            head, config=config, state=dict(head.state))
        heads._labels[name] = heads.labels('night')


def test_fused_head_is_the_weighted_mean(learned):
    heads = learned.heads
    fusable(heads)
    module = heads.fused(dict(night=0.25, fog=0.75), CPU)
    for key, value in module.state_dict().items():
        night, fog = (heads[n].state[key] for n in ('night', 'fog'))
        wanted = night
        if value.is_floating_point():
            wanted = 0.25 * night + 0.75 * fog
        torch.testing.assert_close(value, wanted)
    assert not module.training


def test_weights_of_the_heads_that_speak_sum_to_one(learned):
    # day and fog have classes of their own
    assert learned.heads.fusable(dict(day=.2, night=.3, fog=.5)) == {'fog': 1}
    fusable(learned.heads)
    found = learned.heads.fusable(dict(night=.2, fog=.3))
    assert found == pytest.approx(dict(night=.4, fog=.6))


def test_of_equal_weights_the_first_one_speaks(learned):
    assert learned.heads.fusable(dict(night=.5, fog=.5)) == {'night': 1}


def test_heads_that_were_only_trained_otherwise_are_alike(learned):
    fusable(learned.heads, fog=dict(loss_decode=dict(), dropout_ratio=0.5))
    assert set(learned.heads.fusable(dict(night=.5,
                                          fog=.5))) == {'night', 'fog'}


def test_heads_of_another_build_are_not_averaged(learned):
    fusable(learned.heads, fog=dict(in_index=0))
    assert learned.heads.fusable(dict(night=.6, fog=.4)) == {'night': 1}


def test_head_of_one_expert_is_not_copied(learned):
    state = learned.heads.fused_state(dict(fog=1.0))
    assert state is learned.heads['fog'].state
