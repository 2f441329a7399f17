# SPDX-License-Identifier: Apache-2.0
"""Several experts as one checkpoint of plain MMSegmentation."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import PALETTE

from mmseg_mile.adapters.adapter import lora_delta
from mmseg_mile.apis import export_expert
from mmseg_mile.apis.export import as_mixture

MIXTURE = {'day': 0.5, 'night': 0.3, 'fog': 0.2}


def test_weights_are_divided_by_their_sum():
    assert as_mixture({'day': 3, 'fog': 1}) == {'day': 0.75, 'fog': 0.25}
    assert as_mixture('day') == {'day': 1.0}


@pytest.mark.parametrize('weights', [
    {},
    {'day': 0.0},
    {'day': 1.0, 'fog': -1.0},
    {'day': float('nan')},
    {'day': float('inf')},
])  # yapf: disable
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match='a weight above 0'):
        as_mixture(weights)


def test_backbone_is_the_base_plus_the_weighted_updates(pristine):
    library = pristine('cnn')
    key = 'layer2.0.conv1'
    expected = library.store.load_base()[0][f'{key}.weight'].clone()
    for name, weight in MIXTURE.items():
        adapter = library.model.backbone.experts[name]
        expected += weight * adapter.scaling * lora_delta(
            adapter.lora[f'{key}.lora_A.weight'],
            adapter.lora[f'{key}.lora_B.weight'])
    state = export_expert(library.model, MIXTURE)['state_dict']
    torch.testing.assert_close(state[f'backbone.{key}.weight'], expected)


@pytest.mark.parametrize('key', [
    'decode_head.conv_seg.weight', 'decode_head.convs.0.bn.running_var',
    'backbone.stem.1.running_mean'
])
def test_heads_and_norms_are_averaged(pristine, key):
    model = pristine('cnn').model
    single = {
        name: export_expert(model, name)['state_dict'][key]
        for name in MIXTURE
    }
    assert not torch.equal(single['day'], single['night'])
    mean = sum(weight * single[name] for name, weight in MIXTURE.items())
    mixed = export_expert(model, MIXTURE)['state_dict'][key]
    torch.testing.assert_close(mixed, mean)


@pytest.mark.parametrize('kind', ['cnn', 'mit'])
def test_mixture_has_the_keys_of_one_expert(pristine, kind):
    model = pristine(kind).model
    assert (export_expert(model,
                          MIXTURE)['state_dict'].keys() == export_expert(
                              model, 'day')['state_dict'].keys())


def test_mixture_of_one_is_that_expert(pristine):
    model = pristine('mit').model
    single = export_expert(model, 'fog')['state_dict']
    mixed = export_expert(model, {'fog': 4.0})['state_dict']
    assert all(torch.equal(value, mixed[key]) for key, value in single.items())


def test_mixture_says_what_it_is_made_of(pristine):
    meta = export_expert(pristine('mit').model, {
        'day': 1.0,
        'night': 3.0
    })['meta']
    assert meta['expert'] == 'night'
    assert meta['mixture'] == {'day': 0.25, 'night': 0.75}


def test_unknown_expert_of_a_mixture_is_named(pristine):
    with pytest.raises(ValueError, match="unknown expert 'rain'"):
        export_expert(pristine('mit').model, {'day': 0.5, 'rain': 0.5})


def test_heads_of_other_classes_are_named(library):
    model = library.build()
    model.backbone.load_base(*library.store.load_base())
    day, night, fog = (e.load() for e in library.store.open(MIXTURE))
    other = replace(night, classes=('sky', 'road', 'van'), palette=PALETTE)
    model.import_experts([day, other, fog])
    with pytest.raises(ValueError, match=r"heads of \['night'\] .* 'day'"):
        export_expert(model, MIXTURE)
    export_expert(model, {'day': 0.6, 'fog': 0.4})


def test_experts_that_predict_one_by_one_are_refused(library):
    library.config.fusion = 'logits'
    model = library.loaded()
    with pytest.raises(ValueError, match="model.fusion is 'logits'"):
        export_expert(model, MIXTURE)
    export_expert(model, 'day')
