# SPDX-License-Identifier: Apache-2.0
"""Merged experts against the fusion that a gate would make."""
from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import assert_close, disturb, features

from mmseg_mile.adapters.targets import lora_scaling
from mmseg_mile.library.edits import (merge_experts, remove_expert,
                                      verify_library)


def delta(expert, layer):
    """``s B A`` of a layer in float64, as a matrix."""
    down, up = (
        expert.parts['adapter'][f'{layer}.lora_{x}.weight'].flatten(
            1).double() for x in 'AB')
    return lora_scaling(expert.configs['adapter']) * up @ down


def layers_of(expert):
    return [
        k[:-len('.lora_A.weight')] for k in expert.parts['adapter']
        if '.lora_A' in k
    ]


def test_every_update_is_the_weighted_sum(library):
    merged = merge_experts(library.store.root, ['day', 'night', 'fog'], 'all',
                           [0.5, 0.3, 0.4])
    parts = [library.store.load(name) for name in ('day', 'night', 'fog')]
    new = library.store.load('all')
    assert merged.rank == new.configs['adapter']['r'] == 6
    for layer in layers_of(parts[0]):
        wanted = sum(w * delta(part, layer)
                     for w, part in zip((0.5, 0.3, 0.4), parts))
        torch.testing.assert_close(
            delta(new, layer), wanted, rtol=0, atol=1e-7)


def test_merged_backbone_is_the_one_that_a_gate_fuses(library, image):
    merge_experts(library.store.root, ['day', 'night'], 'both', [0.3, 0.7])
    model = library.loaded()
    with model.backbone.using({'day': 0.3, 'night': 0.7}):
        fused = features(model.backbone, image)
    with model.backbone.using('both'):
        assert_close(features(model.backbone, image), fused)
    with model.backbone.using('night'):
        other = features(model.backbone, image)
    assert max(float((a - b).abs().max()) for a, b in zip(fused, other)) > 0.01


def test_cut_merge_loses_what_it_says(library):
    merged = merge_experts(
        library.store.root, ['day', 'night'], 'both', rank=1)
    parts = [library.store.load(name) for name in ('day', 'night')]
    new = library.store.load('both')
    assert new.configs['adapter']['r'] == 1
    for layer in layers_of(parts[0]):
        whole = (0.5 * sum(delta(part, layer) for part in parts)).numpy()
        singular = torch.linalg.svdvals(torch.from_numpy(whole))
        lost = float(singular[1:].norm() / singular.norm())
        assert merged.residuals[layer].relative == pytest.approx(lost, 1e-6)
        left = delta(new, layer) - torch.from_numpy(whole)
        assert float(left.norm() / singular.norm()) == pytest.approx(
            lost, abs=1e-5)


def test_head_is_the_heaviest_experts_or_the_named_ones(cnn):
    root = cnn.store.root
    assert merge_experts(root, ['day', 'fog'], 'a', [0.4, 0.6]).head == 'fog'
    assert merge_experts(root, ['day', 'fog'], 'b').head == 'day'
    assert merge_experts(
        root, ['day', 'fog'], 'c', [0.4, 0.6], head='day').head == 'day'
    for name, source in (('a', 'fog'), ('b', 'day'), ('c', 'day')):
        assert torch.equal(
            cnn.store.load(name).parts['head']['conv_seg.weight'],
            cnn.store.load(source).parts['head']['conv_seg.weight'])


def test_norm_layers_are_averaged_with_weights_of_sum_one(cnn):
    merge_experts(cnn.store.root, ['day', 'fog'], 'both', [1.0, 3.0])
    day, fog, both = (
        cnn.store.load(name).parts['norm']['stem.1.running_var']
        for name in ('day', 'fog', 'both'))
    torch.testing.assert_close(both, 0.25 * day + 0.75 * fog)


def test_images_of_the_parts_go_to_the_merged_expert_alone(cnn):
    whole = cnn.loaded().gate
    probes = torch.cat(
        [whole.state(n)['centroids'] for n in whole.expert_names])
    before = whole.distances(probes)
    merge_experts(cnn.store.root, ['day', 'night'], 'both')
    for name in ('day', 'night'):
        remove_expert(cnn.store.root, name)
    gate = cnn.loaded().gate
    assert gate.expert_names == ('fog', 'both')
    after = gate.distances(probes)
    torch.testing.assert_close(after[:, 1], before[:, :2].amin(1))
    routing = gate.route(probes, [None] * 3)
    assert [routing.top_expert(i) for i in range(3)] == ['both', 'both', 'fog']


def test_merged_expert_tells_its_parts_and_leaves_them_alone(cnn):
    before = {p: p.read_bytes() for p in cnn.store.root.glob('*/*')}
    merge_experts(cnn.store.root, ['day', 'fog'], 'both', [0.25, 0.75])
    origin = cnn.store.load('both').provenance['merged_from']
    assert [(p['expert'], p['weight'], p['provenance']['seed'])
            for p in origin] == [('day', 0.25, 0), ('fog', 0.75, 2)]
    assert all(p.read_bytes() == content for p, content in before.items())
    assert verify_library(cnn.store.root) == []
    assert merge_experts(cnn.store.root, ['both', 'night'], 'all').rank == 6


def test_training_goes_on_from_a_cut_merge(cnn):
    merge_experts(cnn.store.root, ['day', 'fog'], 'both', rank=2)
    model = cnn.loaded()
    config = model.backbone.lora_config
    config.update(lora_alpha=2)
    model.backbone.add_expert('new', 'both')
    model.backbone.train_expert('new')
    disturb({
        k: v.data
        for k, v in model.backbone.named_parameters() if v.requires_grad
    })
    model.backbone.finish_training()


@pytest.mark.parametrize('changes, message', [
    (dict(weights=[1.0]), '--weights must be one number above 0 for each'),
    (dict(weights=[1.0, 0.0]), '--weights must be one number above 0'),
    (dict(weights=[1.0, float('nan')]), '--weights must be one number'),
    (dict(rank=0), '--rank must be from 1 to 4, .* got 0'),
    (dict(rank=5), '--rank must be from 1 to 4, .* got 5'),
    (dict(head='fog'), r"--head must be one of .*\['day', 'night'\].*'fog'"),
    (dict(new='fog'), "has an expert 'fog'"),
    (dict(names=['day', 'noon']), "no expert 'noon'"),
    (dict(names=['day', 'day']), 'name each expert to merge once'),
    (dict(names=[]), 'name each expert to merge once'),
])  # yapf: disable
def test_bad_arguments_are_refused_by_name(cnn, changes, message):
    arguments = dict(names=['day', 'night'], new='both')
    before = cnn.store.names
    with pytest.raises(ValueError, match=message):
        merge_experts(cnn.store.root, **{**arguments, **changes})
    assert cnn.store.names == before


def test_experts_without_adapter_have_nothing_to_merge(cnn):
    for name in ('day', 'night'):
        cnn.store.save(
            dataclasses.replace(
                cnn.store.load(name),
                parts=dict(cnn.store.load(name).parts, adapter={})))
    with pytest.raises(ValueError, match='has an adapter: there is nothing'):
        merge_experts(cnn.store.root, ['day', 'night'], 'both')
