# SPDX-License-Identifier: Apache-2.0
"""What a routing says about each image."""
from __future__ import annotations

import torch

from mmseg_mile.structures import Routing


def routing(*rows: list) -> Routing:
    """Route images to experts a, b and c with these weights."""
    weights = torch.tensor(rows)
    return Routing(('a', 'b', 'c'), weights, torch.zeros_like(weights),
                   torch.zeros(len(rows), dtype=torch.bool))


def test_length_is_the_number_of_images():
    assert len(routing([1., 0, 0], [0, 1, 0])) == 2


def test_top_expert_has_the_largest_weight():
    assert routing([.2, .3, .5]).top_expert(0) == 'c'


def test_mixture_leaves_out_experts_without_weight():
    assert routing([.25, 0, .75]).mixture(0) == {'a': .25, 'c': .75}


def test_some_images_are_taken_in_the_order_given():
    whole = Routing(('a', 'b'),
                    torch.eye(2)[[0, 1, 0]],
                    torch.arange(6.).view(3, 2),
                    torch.tensor([False, True, False]),
                    ood_score=torch.tensor([0., 2., 1.]))
    taken = whole.take([2, 1])
    assert taken.expert_names == ('a', 'b') and len(taken) == 2
    assert [taken.top_expert(i) for i in (0, 1)] == ['a', 'b']
    assert taken.distances.tolist() == [[4, 5], [2, 3]]
    assert taken.ood.tolist() == [False, True]
    assert taken.ood_score.tolist() == [1, 2]
    assert len(whole) == 3


def test_images_of_one_expert_form_one_group():
    hard = routing([0, 1., 0], [1, 0, 0], [0, 1, 0])
    assert hard.groups() == [({'b': 1.0}, [0, 2]), ({'a': 1.0}, [1])]


def test_images_with_other_weights_of_the_same_experts_are_kept_apart():
    soft = routing([.5, .5, 0], [.25, .75, 0], [.5, .5, 0])
    assert [indices for _, indices in soft.groups()] == [[0, 2], [1]]


def test_image_without_experts_is_spoken_for_by_the_nearest_one():
    none = Routing(('a', 'b', 'c'), torch.zeros(2, 3),
                   torch.tensor([[3., 1, 2], [torch.nan] * 3]),
                   torch.tensor([True, True]))
    assert [none.mixture(i) for i in (0, 1)] == [{}, {}]
    # without distances: the first one learned
    assert [none.top_expert(i) for i in (0, 1)] == ['b', 'a']


def test_images_that_get_no_prediction_are_taken_along():
    whole = Routing(('a', ), torch.tensor([[1.], [0.]]), torch.zeros(2, 1),
                    torch.tensor([False, True]), torch.tensor([False, True]))
    assert whole.take([1, 0]).abstains.tolist() == [True, False]
    assert routing([1., 0, 0]).take([0]).abstains is None


def test_details_of_a_method_are_taken_along():
    whole = Routing(('a', ),
                    torch.ones(2, 1),
                    torch.zeros(2, 1),
                    torch.zeros(2, dtype=torch.bool),
                    details={'per_layer': torch.arange(6).view(2, 3)})
    assert whole.take([1]).details['per_layer'].tolist() == [[3, 4, 5]]
    assert routing([1., 0, 0]).take([0]).details == {}
