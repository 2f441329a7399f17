# SPDX-License-Identifier: Apache-2.0
"""Finished experts under another gate."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.library.expert_store import ExpertStore

STREAM = ('day', 'night', 'fog')


@pytest.fixture
def store(learned_once, toys, tmp_path):
    """The library of a model with the Euclidean gate."""
    for name in STREAM:
        learned_once.save_task(toys.task(name), tmp_path / 'library', {})
    return ExpertStore(tmp_path / 'library')


@pytest.fixture
def adopt(toys, store):
    """``adopt(**changes)`` gives a model with all experts of the library."""

    def build(**changes):
        torch.manual_seed(99)
        model = toys.model(**changes)
        model.backbone.load_base(*store.load_base())
        for name in STREAM:
            expert, = store.open([name])
            model.reuse_expert(toys.task(name), toys.loader(name), expert)
        return model.eval()

    return build


def test_adopted_experts_predict_what_they_did(adopt, learned_once, toys):
    model = adopt(gate=dict(type='LastGate'))
    for name in STREAM:
        with model.forced(name), learned_once.forced(name):
            mine, theirs = (
                toys.predict(m, 'day')[0] for m in (model, learned_once))
        assert torch.equal(mine.seg_logits.data, theirs.seg_logits.data)
        assert mine.classes == theirs.classes


def test_own_gate_is_fitted_to_the_images(adopt, learned_once, toys):
    model = adopt(gate=dict(type='PrototypeGate', metric='mahalanobis'))
    assert model.gate.expert_names == STREAM
    assert [s.expert for s in toys.predict(model, *STREAM)] == list(STREAM)
    same = adopt()
    for name in STREAM:
        for key, value in learned_once.gate.state(name).items():
            torch.testing.assert_close(same.gate.state(name)[key], value)


def test_gate_that_looks_at_no_image_gets_none(adopt, toys):
    model = toys.model(gate=dict(type='LastGate'))
    model.embedder = None
    model = adopt(gate=dict(type='LastGate'))
    assert toys.predict(model, 'day')[0].expert == 'fog'


def test_autoencoders_route_between_adopted_experts(adopt, toys):
    model = adopt(
        embedder=dict(type='ThumbnailEmbedder', size=(4, 4)),
        gate=dict(type='AutoencoderGate', hidden=3, num_steps=200))
    assert [s.expert for s in toys.predict(model, *STREAM)] == list(STREAM)


def test_adopted_experts_are_kept_with_their_new_prototypes(
        adopt, toys, store, tmp_path):
    model = adopt(gate=dict(type='PrototypeGate', num_prototypes=2))
    for name in STREAM:
        model.save_task(toys.task(name), tmp_path / 'mine', {})
    mine = ExpertStore(tmp_path / 'mine')
    for name in STREAM:
        new, old = mine.load(name), store.load(name)
        for part in ('adapter', 'norm', 'head'):
            got, wanted = new.parts[part], old.parts[part]
            assert got and set(got) == set(wanted)
            assert all(torch.equal(got[k], wanted[k]) for k in got)
        assert len(new.parts['prototypes']['counts']) == 2


def test_expert_of_another_base_is_refused(toys, store):
    torch.manual_seed(99)
    model = toys.model()
    model.backbone.backbone.layer1[0].conv1.weight.data.add_(1)
    expert, = store.open(['day'])
    with pytest.raises(ValueError, match="'day' was trained on the base"):
        model.reuse_expert(toys.task('day'), toys.loader('day'), expert)


@pytest.mark.parametrize('change, message', [
    (dict(lora=dict(r=4, lora_alpha=8)), r'rank \[2\]'),
    (dict(lora=dict(r=2, lora_alpha=8)), 'scaling 2 and'),
    (dict(train_norm=False), 'train_norm=False'),
    (dict(lora=None), 'it has an adapter'),
])  # yapf: disable
def test_expert_of_other_settings_is_refused(toys, adopt, change, message):
    with pytest.raises(ValueError, match=message):
        adopt(backbone=dict(toys.config['backbone'], **change))


def test_start_is_not_asked_for_where_experts_are_adopted(toys):
    model = toys.model(gate=dict(type='OracleGate'), init_from='nearest')
    tasks = [toys.task(name) for name in STREAM]
    with pytest.raises(ValueError, match='OracleGate has not'):
        model.check_stream(tasks)
    model.reuses_experts = True
    model.check_stream(tasks)
