# SPDX-License-Identifier: Apache-2.0
"""What a network said before, and how far it is from that."""
from __future__ import annotations

import math

import pytest
import torch
from tiny import DAY, batch_of, one_model, train

from mmseg_mile.methods.baselines.lwf_segmentor import (Teacher,
                                                        distillation_loss)


def pixel(*values):
    return torch.tensor(values).log().view(1, -1, 1, 1)


def test_divergence_of_two_given_distributions():
    # KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 log 2 + 1/2 log 2/3 = 1/2 log 4/3
    loss = distillation_loss(pixel(0.25, 0.75), pixel(0.5, 0.5), 1.0)
    assert loss.item() == pytest.approx(math.log(4 / 3) / 2)


def test_temperature_flattens_both_and_its_square_restores_the_size():
    # at T = 2, softmax(log p / 2) is p^(1/2) / sum p^(1/2): (1/16, 9/16)
    # becomes (1/4, 3/4), (1/2, 1/2) stays
    loss = distillation_loss(pixel(1 / 16, 9 / 16), pixel(0.5, 0.5), 2.0)
    assert loss.item() == pytest.approx(4 * math.log(4 / 3) / 2)


def test_equal_answers_cost_nothing():
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    # the same distribution, other logits
    loss = distillation_loss(logits, logits.detach() + 7.0, 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits))


def test_divergence_is_never_negative():
    # which the public code of MDIL does not give
    logits, wanted = torch.randn(2, 500, 3, 4, 5).unbind(0)
    for mine, theirs in zip(logits, wanted):
        assert distillation_loss(mine[None], theirs[None], 1.0) > 0


def test_gradient_is_the_difference_of_the_distributions():
    logits = pixel(0.25, 0.75).requires_grad_()
    distillation_loss(logits, pixel(0.5, 0.5), 1.0).backward()
    torch.testing.assert_close(logits.grad.flatten(),
                               torch.tensor([-0.25, 0.25]))


def test_pixels_are_averaged():
    wanted = pixel(0.5, 0.5).expand(1, 2, 1, 2)
    logits = torch.cat((pixel(0.5, 0.5), pixel(0.25, 0.75)), dim=3)
    loss = distillation_loss(logits, wanted, 1.0)
    assert loss.item() == pytest.approx(math.log(4 / 3) / 4)


def test_new_classes_are_not_asked_for():
    wanted = pixel(0.5, 0.5)
    logits = torch.cat((pixel(0.5, 0.5), torch.full((1, 1, 1, 1), 9.0)), dim=1)
    assert distillation_loss(logits, wanted, 1.0).item() == 0


@pytest.fixture
def model():
    model = one_model('FineTuneSegmentor')
    model.begin_task(DAY, [])
    train(model, DAY)
    return model


def images_of(model):
    return model.data_preprocessor(batch_of(DAY, 9), False)['inputs']


def test_teacher_says_what_the_model_said(model):
    teacher = Teacher(model)
    images = images_of(model)
    with torch.no_grad():
        before = model.eval()._forward(images)
    train(model, DAY)
    assert torch.equal(teacher(images), before)


def test_teacher_neither_trains_nor_remembers_gradients(model):
    teacher = Teacher(model)
    assert not teacher(images_of(model)).requires_grad
    assert not any(p.requires_grad or p.grad is not None
                   for p in teacher._model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert model.training
