# SPDX-License-Identifier: Apache-2.0
"""What an imported adapter lacks, and how one is told to give it."""
from __future__ import annotations

import pytest
import torch
from mmengine.config import Config

from mmseg_mile.apis.expert_import import ImportSource


@pytest.fixture
def source(cnn):
    return ImportSource(cnn.store.root, Config(dict(model=cnn.config)))


def test_head_comes_from_the_expert_that_is_named(source, cnn):
    assert torch.equal(
        source.head('fog').state['conv_seg.weight'],
        cnn.store.load('fog').parts['head']['conv_seg.weight'])


@pytest.mark.parametrize('arguments', [(), ('fog', 'a.pth')])
def test_head_without_one_source_says_what_there_is(source, arguments):
    with pytest.raises(ValueError, match='--head-from.*--head-checkpoint'):
        source.head(*arguments)


def test_prototypes_of_an_expert_are_taken_as_they_are(source, cnn):
    state = source.prototypes('new', expert='fog')
    assert torch.equal(state['centroids'],
                       cnn.store.load('fog').parts['prototypes']['centroids'])


@pytest.mark.parametrize('arguments', [{}, dict(images='a', expert='fog')],
                         ids=['none', 'both'])  # yapf: disable
def test_prototypes_without_one_source_say_what_there_is(source, arguments):
    with pytest.raises(ValueError, match='--images.*--prototypes-from'):
        source.prototypes('new', **arguments)


def test_gate_without_statistics_asks_for_none(cnn):
    cnn.config['gate'] = dict(type='OracleGate')
    source = ImportSource(cnn.store.root, Config(dict(model=cnn.config)))
    assert source.prototypes('new') == {}


def test_config_of_a_method_without_experts_is_refused(cnn):
    model = dict(
        type='FineTuneSegmentor',
        backbone=cnn.config['backbone']['backbone'],
        decode_head=cnn.config['decode_head'],
        data_preprocessor=cnn.config['data_preprocessor'])
    with pytest.raises(ValueError, match="model.type is 'FineTuneSegmentor'"):
        ImportSource(cnn.store.root, Config(dict(model=model)))
