# SPDX-License-Identifier: Apache-2.0
"""Heads that are class names, with and without a vocabulary."""
from __future__ import annotations

import pytest
import tiny_san
import torch

from mmseg_mile.adapters.adapter_library import ExpertCache
from mmseg_mile.methods.continual_segmentor import build_head, head_config
from mmseg_mile.methods.semla.open_vocabulary import OpenVocabularyHeads
from mmseg_mile.structures import Task

CPU = torch.device('cpu')
MEANINGS = dict(road=1.0, sky=2.0, lamp=3.0)


def config(count):
    """The config of a head with so many classes."""
    return head_config(tiny_san.HEAD, count)


def embed(classes):
    """A constant per name, 9 for nothing."""
    values = [MEANINGS[name] for name in classes] + [9.0]
    return torch.tensor(values)[:, None].expand(-1, tiny_san.TEXT)


@pytest.fixture
def heads():
    """Day knows road and sky, night lamp and road."""
    heads = OpenVocabularyHeads(ExpertCache(None), config, embed)
    for name, classes in dict(
            day=('road', 'sky'), night=('lamp', 'road')).items():
        head = build_head(config(2), CPU)
        head.name_classes(embed(classes))
        palette = tuple((len(name), i, 0) for i in range(2))
        heads.keep(Task(name, classes, palette, {}, {}), head, config(2))
    return heads


def said(head):
    """The constants of a head's classes."""
    return head.class_embeds[:, 0].tolist()


def test_experts_speak_for_themselves(heads):
    assert said(heads.fused(dict(day=0.4, night=0.6), CPU)) == [3, 1, 9]
    assert heads.labels('day').classes == ('road', 'sky')
    assert heads.fusable(dict(day=0.4, night=0.6)) == dict(night=1.0)


def test_vocabulary_makes_all_alike(heads):
    heads.vocabulary = heads.space_of(['sky', 'lamp', 'road'])
    mixture = dict(day=0.2, night=0.2)
    assert said(heads.fused(mixture, CPU)) == [2, 3, 1, 9]
    assert heads.fusable(mixture) == dict(day=0.5, night=0.5)
    for name in mixture:
        assert heads.labels(name).classes == ('sky', 'lamp', 'road')


def test_vocabulary_leaves_the_experts_own_tensors_alone(heads):
    heads.vocabulary = heads.space_of(['sky', 'lamp'])
    # as many classes as an expert has, and so the same module
    heads.fused(dict(day=1.0), CPU)
    assert heads['day'].classes == ('road', 'sky')
    heads.vocabulary = None
    assert said(heads.fused(dict(day=1.0), CPU)) == [1, 2, 9]


def test_unknown_expert_has_no_labels_in_any_vocabulary(heads):
    heads.vocabulary = heads.space_of(['sky'])
    with pytest.raises(ValueError, match="unknown expert 'fog'"):
        heads.labels('fog')


def test_first_expert_that_knows_a_class_gives_its_colour(heads):
    space = heads.space_of(['sky', 'road', 'lamp'])
    assert space.palette == ((3, 1, 0), (3, 0, 0), (5, 0, 0))


def test_new_classes_get_colours_of_their_own(heads):
    names = [f'thing {i}' for i in range(30)]
    palette = heads.space_of(names).palette
    assert len(set(palette)) == 30
    assert all(0 <= v <= 255 for colour in palette for v in colour)
    assert palette == heads.space_of(names).palette


def test_colours_may_be_given(heads):
    space = heads.space_of(['sky'], [[1, 2, 3]])
    assert space == (('sky', ), ((1, 2, 3), ))
    with pytest.raises(ValueError, match='2 classes need as many colours'):
        heads.space_of(['sky', 'road'], [[1, 2, 3]])
