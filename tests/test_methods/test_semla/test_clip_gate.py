# SPDX-License-Identifier: Apache-2.0
"""Experts that are chosen by what CLIP sees."""
from __future__ import annotations

import copy

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

STREAM = ('day', 'night', 'fog')
BGR_MEAN = [100.0, 110.0, 120.0]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A saved CLIP of one layer and random weights."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=8)
    path = tmp_path_factory.mktemp('clip')
    CLIPVisionModelWithProjection(config).save_pretrained(path)
    return path


def build(toys, folder, **options):
    """The tiny model with CLIP at its gate."""
    embedder = dict(type='CLIPEmbedder', model=str(folder), **options)
    return toys.model(embedder=embedder, gate=dict(type='SemLAGate'))


@pytest.fixture(scope='module')
def learned_once(toys, folder):
    """Three tasks, learned; never changed."""
    model = build(toys, folder)
    for name in STREAM:
        toys.learn(model, name)
    return model


def test_images_go_to_their_experts(learned, toys):
    samples = toys.predict(learned, 'fog', 'day', 'night')
    assert [s.expert for s in samples] == ['fog', 'day', 'night']


def test_normalisation_is_known_from_the_preprocessor(learned):
    embedder = learned.embedder
    assert embedder.mean == (127.5, ) * 3 and embedder.std == (64.0, ) * 3
    assert embedder.channel_order == 'bgr'


def test_another_normalisation_of_the_segmentor_changes_no_embedding(
        learned, toys, folder):
    other = toys.model(
        embedder=dict(type='CLIPEmbedder', model=str(folder)),
        data_preprocessor=dict(
            toys.config['data_preprocessor'],
            mean=BGR_MEAN[::-1],
            std=[50.0] * 3,
            bgr_to_rgb=True))
    embeddings = []
    for model in (learned, other):
        images = model.data_preprocessor(toys.batch(*STREAM))['inputs']
        embeddings.append(model.embedder(model.backbone, images))
    torch.testing.assert_close(*embeddings, rtol=1e-4, atol=1e-5)


def test_clip_is_no_part_of_the_segmentor(learned, toys):
    plain = toys.model()
    learned.embedder(None, torch.zeros(1, 3, 32, 32))
    for model in (learned, copy.deepcopy(learned)):
        assert set(model.backbone.state_dict()) == set(
            plain.backbone.state_dict())
        assert not any(
            type(module).__name__.startswith('CLIP')
            for module in model.modules())
    assert set(learned.kept_state()) == set(plain.kept_state())


def test_weights_that_are_not_there_stop_the_first_task(
        toys, folder, tmp_path):
    (tmp_path / 'config.json').write_text((folder / 'config.json').read_text())
    model = build(toys, tmp_path)
    with pytest.raises(ValueError, match='embedder.model=.* cannot load it'):
        model.begin_task(toys.task('day'), toys.loader('day'))


def test_config_that_contradicts_the_preprocessor_is_refused(toys, folder):
    with pytest.raises(ValueError, match='embedder.mean=.*leave it out'):
        build(toys, folder, mean=BGR_MEAN, std=[64.0] * 3)
