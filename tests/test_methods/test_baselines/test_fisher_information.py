# SPDX-License-Identifier: Apache-2.0
"""How much each parameter matters, by hand."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.methods.baselines.ewc_segmentor import (evenly_spaced,
                                                        fisher_diagonal,
                                                        fitted,
                                                        quadratic_penalty)


def batches(*sizes):
    numbers = iter(range(100))
    return [dict(inputs=[next(numbers) for _ in range(n)]) for n in sizes]


def chosen(loader, num_images):
    return [image['inputs'] for image in evenly_spaced(loader, num_images)]


def test_images_are_taken_one_by_one_over_the_whole_loader():
    assert chosen(batches(2, 2, 2), 3) == [[0], [2], [4]]
    assert chosen(batches(1, 1, 1, 1, 1), 2) == [[0], [3]]


def test_few_images_are_all_taken():
    assert chosen(batches(2, 1), 10) == [[0], [1], [2]]


def test_gradients_are_squared_image_by_image():
    # loss = x w, so the gradients are 1 and -3: mean square 5. The square of
    # the mean gradient would be 1.
    weight = torch.tensor([2.0], requires_grad=True)
    fisher = fisher_diagonal([dict(x=1.0), dict(x=-3.0)], lambda image:
                             (image['x'] * weight).sum(), dict(weight=weight))
    assert fisher['weight'].tolist() == [5.0]


def test_fisher_of_a_coin_is_known():
    # Three heads, one tail, softmax of (w, 0) at w = log 3, so p = 3/4:
    # gradients p - 1 and p, mean square (3 (1/4)^2 + (3/4)^2) / 4 = p (1 - p)
    weight = torch.tensor(3.0).log().requires_grad_()
    fisher = fisher_diagonal(
        [dict(y=0), dict(y=0), dict(y=0),
         dict(y=1)], lambda image: -torch.stack((weight, weight.new_zeros(
             ()))).log_softmax(0)[image['y']], dict(weight=weight))
    assert fisher['weight'].item() == pytest.approx(3 / 16)


def test_parameter_that_the_loss_ignores_does_not_matter():
    used, unused = (torch.ones(2, requires_grad=True) for _ in range(2))
    fisher = fisher_diagonal([{}], lambda image: used.sum(),
                             dict(used=used, unused=unused))
    assert fisher['used'].tolist() == [1, 1]
    assert fisher['unused'].tolist() == [0, 0]


def test_it_works_where_gradients_are_off():
    weight = torch.ones(1, requires_grad=True)
    with torch.no_grad():
        fisher = fisher_diagonal([{}], lambda image: (2 * weight).sum(),
                                 dict(weight=weight))
    assert fisher['weight'].tolist() == [4.0]


def test_penalty_of_two_parameters():
    # 1/2 (2 (1 - 0)^2 + 1/2 (3 - 1)^2) = 1/2 (2 + 2)
    penalty = quadratic_penalty(
        dict(a=torch.tensor([1.0]), b=torch.tensor([3.0])),
        dict(a=torch.tensor([0.0]), b=torch.tensor([1.0])),
        dict(a=torch.tensor([2.0]), b=torch.tensor([0.5])))
    assert penalty.item() == 2.0


def test_penalty_pulls_back_by_importance():
    theta = torch.tensor([1.0, 3.0], requires_grad=True)
    quadratic_penalty(
        dict(theta=theta), dict(theta=torch.tensor([0.0, 1.0])),
        dict(theta=torch.tensor([2.0, 0.5]))).backward()
    # F (theta - anchor)
    assert theta.grad.tolist() == [2.0, 1.0]


def test_new_rows_of_a_classifier_do_not_matter_yet():
    parameters = {
        'body': torch.ones(2),
        'head.weight': torch.ones(3, 1),
        'head.bias': torch.ones(3)
    }
    fisher = {
        'body': torch.tensor([1.0, 2.0]),
        'head.weight': torch.tensor([[3.0], [4.0]]),
        'head.bias': torch.tensor([5.0, 6.0])
    }
    result = fitted(fisher, parameters, 'head.')
    assert result['body'].tolist() == [1, 2]
    assert result['head.weight'].tolist() == [[3], [4], [0]]
    assert result['head.bias'].tolist() == [5, 6, 0]


def test_parameters_that_were_drawn_anew_are_left_out():
    result = fitted({'body': torch.ones(2)}, {'body': torch.ones(3)}, 'head.')
    assert result == {}


def test_information_is_laid_out_as_its_parameter():
    parameter = torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)
    result = fitted({'w': torch.rand(2, 3, 4, 4)}, {'w': parameter}, 'head.')
    assert result['w'].stride() == parameter.stride()
