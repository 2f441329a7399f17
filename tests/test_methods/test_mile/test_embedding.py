# SPDX-License-Identifier: Apache-2.0
"""Embedding a whole set of images."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.gates.embedders import perturbed_image
from mmseg_mile.methods.mile import expert_segmentor as embedding
from mmseg_mile.methods.mile.expert_segmentor import (check_embedder,
                                                      embed_images)


def test_batches_come_out_in_order(fresh, toys):
    loader = [toys.batch('day', 'night'), toys.batch('fog')]
    embeddings = embed_images(fresh, loader)
    assert embeddings.shape == (3, 8)
    fog = fresh.data_preprocessor(toys.batch('fog'))['inputs']
    torch.testing.assert_close(embeddings[2:],
                               fresh.embedder(fresh.backbone, fog))


def test_gate_that_wants_copies_gets_them(monkeypatch, fresh, toys):
    loader = [toys.batch('day', 'night'), toys.batch('fog')]
    plain = embed_images(fresh, loader)
    monkeypatch.setattr(type(fresh.gate), 'num_views', 3)
    looks = embed_images(fresh, loader)
    assert looks.shape == (3, 3, 8)
    assert torch.equal(looks[:, 0], plain)
    images = [perturbed_image(i, 1) for b in loader for i in b['inputs']]
    copies = fresh.data_preprocessor(dict(inputs=images))['inputs']
    torch.testing.assert_close(looks[:, 2],
                               fresh.embedder(fresh.backbone, copies))


def test_images_are_seen_as_in_a_test_while_an_expert_trains(fresh, toys):
    loader = toys.loader('day')
    before = embed_images(fresh, loader)
    fresh.begin_task(toys.task('day'), loader)
    toys.train(fresh, 'day')
    assert torch.equal(embed_images(fresh, loader), before)
    assert fresh.training and fresh.backbone.training


def test_images_of_several_processes_come_out_in_order(monkeypatch, fresh,
                                                       toys):
    batches = [toys.batch(name) for name in ('day', 'night', 'fog')]
    whole = embed_images(fresh, batches)
    monkeypatch.setattr(embedding, 'all_gather_object',
                        lambda mine: [mine, whole[1:2]])
    assert torch.equal(embed_images(fresh, batches[::2]), whole)


@pytest.mark.parametrize('has_image', [True, False])
def test_a_process_may_have_no_image(monkeypatch, fresh, toys, has_image):
    batch = toys.batch('day')
    day = embed_images(fresh, [batch])
    monkeypatch.setattr(
        embedding, 'all_gather_object', lambda mine: [mine, None]
        if has_image else [day, mine])
    loader = [batch] if has_image else []
    assert torch.equal(embed_images(fresh, loader), day)


@pytest.mark.parametrize('look', [embed_images, check_embedder])
def test_looking_at_images_draws_no_random_numbers(fresh, toys, look):
    before = torch.get_rng_state()
    loader = torch.utils.data.DataLoader([toys.batch('day')], batch_size=None)
    look(fresh, loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_checking_an_embedder_needs_no_other_process(monkeypatch, fresh, toys):
    monkeypatch.setattr(embedding, 'all_gather_object', None)
    check_embedder(fresh, [toys.batch('day')])
    check_embedder(fresh, [])


def test_checking_an_embedder_asks_the_gate_too(toys):
    model = toys.model(gate=dict(type='AutoencoderGate', hidden=8))
    with pytest.raises(ValueError, match='gate.hidden 8 must be less than'):
        model.begin_task(toys.task('day'), toys.loader('day'))
    assert model.expert_names == () and not model.backbone.experts.names
