# SPDX-License-Identifier: Apache-2.0
"""Domains held out in turn, on clouds of embeddings and on a tiny base."""
from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from tiny import TINY_MODEL

from mmseg.registry import MODELS
from mmseg_mile.apis.gate_study import Split
from mmseg_mile.apis.held_out_study import (FLAGS, embed_all, embedders_of,
                                            held_out_study, held_out_table,
                                            hold_out)


@pytest.fixture(scope='module')
def model():
    """A CNN of four stages behind a stem of eight channels."""
    init_default_scope('mmseg')
    return MODELS.build(copy.deepcopy(ConfigDict(TINY_MODEL))).eval()


def cloud(x, y, num=200):
    """Draw embeddings to learn from, and others to score."""
    images = torch.tensor([x, y]) + torch.randn(2 * num, 2)
    return Split(images[:num], images[num:])


@pytest.mark.parametrize('flag', FLAGS)
def test_domain_far_from_the_others_is_noticed(flag):
    domains = dict(a=cloud(0., 0.), b=cloud(30., 0.), c=cloud(0., 30.))
    found = hold_out(domains, **FLAGS[flag])
    assert list(found.scores) == ['a', 'b', 'c']
    assert found.routed == 1
    for scores in found.scores.values():
        assert scores.auroc == scores.detected == 1
        assert scores.fpr95 == 0
        assert scores.false_alarms < 0.05


def test_domain_like_another_one_is_not_noticed():
    domains = dict(a=cloud(0., 0.), twin=cloud(0., 0.), far=cloud(50., 0.))
    scores = hold_out(domains).scores
    # half of the familiar images are of 'far', all of them look like theirs
    assert scores['a'].auroc == pytest.approx(0.5, abs=0.1)
    assert scores['a'].detected < 0.05
    assert scores['far'].auroc == 1


def test_share_that_is_kept_is_that_of_the_gate():
    domains = dict(a=cloud(0., 0., 500), b=cloud(30., 0., 500))
    alarms = [
        hold_out(domains, ood_quantile=q).scores['a'].false_alarms
        for q in (0.99, 0.8)
    ]
    assert alarms[0] < 0.04 < 0.12 < alarms[1] < 0.28


def test_one_domain_cannot_be_held_out():
    with pytest.raises(ValueError, match=r"takes two at least, got \['a'\]"):
        hold_out(dict(a=cloud(0., 0.)))


def test_embeddings_of_one_pass_are_those_of_each_embedder(model):
    images = [torch.rand(3, 64, 64) * 255 for _ in range(3)]
    embedders = embedders_of(model, 'stem')
    found = embed_all(model, embedders, [dict(inputs=[i]) for i in images])
    for name, embedder in embedders.items():
        wanted = torch.cat([
            embedder(model.backbone,
                     model.data_preprocessor(dict(inputs=[i]))['inputs'])
            for i in images
        ])
        assert torch.equal(found[name], wanted)
    assert found['first layer, full and half'].shape == (3, 32)
    assert torch.equal(
        found['first layer, full and half'],
        torch.cat([found['first layer, full'], found['first layer, half']], 1))


def test_first_layer_is_left_out_unless_it_is_named(model):
    names = list(embedders_of(model))
    assert names[-1] == 'as configured'
    assert not any('first layer' in name for name in names)
    assert list(embedders_of(model, None, names[1:3])) == names[1:3]


def test_unknown_embedding_is_refused(model):
    with pytest.raises(ValueError, match="no embedding 'first layer, full'"):
        embedders_of(model, None, ['first layer, full'])


def test_table_has_a_row_per_embedding_flag_and_share():
    far = dict(a=cloud(0., 0., 50), b=cloud(90., 0., 50))
    near = dict(a=cloud(0., 0., 50), b=cloud(0., 0., 50))
    table = held_out_table({'far': far, 'near': near}, [1.0, 0.5])
    rows = [dict(zip(table.field_names, row)) for row in table.rows]
    assert len(rows) == 2 * len(FLAGS) * 2
    assert [row['quantile'] for row in rows[:2]] == [1.0, 0.5]
    first = rows[0]
    assert (first['embedding'], first['flag']) == ('far', 'Euclidean')
    assert first['values'] == 2 and first['routed %'] == '100.0'
    assert first['a'].startswith('1.000 / 0 / ')
    assert first['a'].endswith(' / 100')
    assert first['mean AUROC'] == '1.000' and first['detected %'] == '100'


def test_study_embeds_and_scores_all_domains(model):
    dark, bright = ([
        dict(inputs=[torch.rand(3, 64, 64) * 40 + shift]) for _ in range(12)
    ] for shift in (0, 200))
    images = dict(
        dark=(dark[::2], dark[1::2]), bright=(bright[::2], bright[1::2]))
    embedders = embedders_of(model, 'stem', ['first layer, full'])
    table = held_out_study(model, images, embedders, [0.99])
    assert len(table.rows) == len(FLAGS)
    own = dict(zip(table.field_names, table.rows[-1]))
    assert own['flag'] == 'own' and own['values'] == 16
    assert own['dark'].startswith('1.000 / 0 / ')
