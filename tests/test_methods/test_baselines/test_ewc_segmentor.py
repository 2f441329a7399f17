# SPDX-License-Identifier: Apache-2.0
"""Elastic weight consolidation: by hand, and on one small network."""
from __future__ import annotations

import copy

import pytest
import torch
from mmengine.structures import PixelData
from tiny import (DAY, DUSK, NIGHT, batch_of, learn_task, loader_of, one_model,
                  train)

from mmseg_mile.methods.baselines.ewc_segmentor import (evenly_spaced,
                                                        fisher_diagonal,
                                                        grown_fisher,
                                                        quadratic_penalty)

STEM = 'backbone.stem.0.weight'

# -- by hand -----------------------------------------------------------------


@pytest.mark.parametrize('sizes, num_images, wanted', [
    ((2, 2, 2), 3, [0, 2, 4]),
    ((1, 1, 1, 1, 1), 2, [0, 3]),
    ((2, 1), 10, [0, 1, 2]),
])
def test_images_are_taken_one_by_one_over_the_whole_loader(
        sizes, num_images, wanted):
    numbers = iter(range(100))
    loader = [dict(inputs=[next(numbers) for _ in range(n)]) for n in sizes]
    chosen = [image['inputs'] for image in evenly_spaced(loader, num_images)]
    assert chosen == [[number] for number in wanted]


def test_fisher_of_a_coin_is_known():
    # Three heads, one tail, softmax of (w, 0) at w = log 3, so p = 3/4:
    # gradients p - 1 and p, mean square (3 (1/4)^2 + (3/4)^2) / 4 = p (1 - p)
    weight = torch.tensor(3.0).log().requires_grad_()
    unused = torch.ones(2, requires_grad=True)

    def loss(image):
        logits = torch.stack((weight, torch.tensor(0.0)))
        return -logits.log_softmax(0)[image['y']]

    with torch.no_grad():
        fisher = fisher_diagonal([dict(y=y) for y in (0, 0, 0, 1)], loss,
                                 dict(weight=weight, unused=unused))
    assert fisher['weight'].item() == pytest.approx(3 / 16)
    assert fisher['unused'].tolist() == [0, 0]


def test_penalty_pulls_back_by_importance():
    theta = torch.tensor([1.0, 3.0], requires_grad=True)
    penalty = quadratic_penalty(
        dict(theta=theta), dict(theta=torch.tensor([0.0, 1.0])),
        dict(theta=torch.tensor([2.0, 0.5])))
    penalty.backward()
    # 1/2 (2 (1 - 0)^2 + 1/2 (3 - 1)^2), and F (theta - anchor)
    assert penalty.item() == 2.0
    assert theta.grad.tolist() == [2.0, 1.0]


def test_new_rows_of_a_classifier_do_not_matter_yet():
    body = torch.ones(1, 3, 4, 4).to(memory_format=torch.channels_last)
    parameters = {'body': body, 'head.bias': torch.ones(3),
                  'drawn anew': torch.ones(3)}  # yapf: disable
    fisher = {'body': torch.rand(1, 3, 4, 4), 'drawn anew': torch.ones(2),
              'head.bias': torch.tensor([5.0, 6.0])}  # yapf: disable
    result = grown_fisher(fisher, parameters, 'head.')
    assert result['head.bias'].tolist() == [5, 6, 0]
    assert torch.equal(result['body'], fisher['body'])
    assert result['body'].stride() == body.stride()
    assert 'drawn anew' not in result


# -- on a network ------------------------------------------------------------


@pytest.fixture
def learned():
    model = one_model('EWCSegmentor')
    learn_task(model, DAY)
    return model


def losses_of(model, task):
    return model.loss(**model.data_preprocessor(batch_of(task, 1), True))


def test_moving_one_weight_costs_its_importance(learned):
    first = one_model('EWCSegmentor')
    first.begin_task(DAY, [])
    assert 'loss_ewc' not in losses_of(first, DAY)
    learned.ewc_weight = 6.0
    fisher = learned._fisher[STEM][0, 0, 0, 0].item()
    learned.begin_task(DUSK, [])
    assert losses_of(learned, DUSK)['loss_ewc'].item() == 0
    with torch.no_grad():
        learned.get_parameter(STEM)[0, 0, 0, 0] += 2.0
    # 6 / 2 * F * 2^2
    assert fisher > 0
    assert losses_of(learned, DUSK)['loss_ewc'].item() == pytest.approx(
        12 * fisher, rel=1e-4)


def test_importance_is_the_mean_square_of_the_images_gradients(learned):
    squares = []
    for batch in loader_of(DAY):
        learned.zero_grad()
        data = learned.data_preprocessor(batch, False)
        learned.loss(**data)['decode.loss_ce'].backward()
        squares.append(learned.get_parameter(STEM).grad.square())
    torch.testing.assert_close(
        learned._fisher[STEM], torch.stack(squares).mean(0), rtol=1e-4, atol=0)


def test_importance_of_tasks_adds_up(learned):
    first = copy.deepcopy(learned._fisher)
    found = {}
    for gamma in (0.0, 0.25, 1.0):
        model = copy.deepcopy(learned)
        model.gamma = gamma
        model.begin_task(DUSK, [])
        model.end_task(DUSK, loader_of(DUSK))
        found[gamma] = model._fisher[STEM]
    for gamma in (0.25, 1.0):
        torch.testing.assert_close(found[gamma],
                                   found[0.0] + gamma * first[STEM])


def test_new_class_is_free_until_its_first_task_has_ended(learned):
    learned.begin_task(NIGHT, [])
    with torch.no_grad():
        learned.decode_head.conv_seg.weight += 1.0
    losses_of(learned, NIGHT)['loss_ewc'].backward()
    rows = learned.decode_head.conv_seg.weight.grad.abs().amax((1, 2, 3))
    assert (rows > 0).tolist() == [True, True, False]
    learned.end_task(NIGHT, loader_of(NIGHT))
    rows = learned._fisher['decode_head.conv_seg.weight'].amax((1, 2, 3))
    assert (rows > 0).tolist() == [True, True, True]


def test_estimating_leaves_everything_else_as_it_was(learned):
    learned.begin_task(DUSK, [])
    learned.train()
    buffers = copy.deepcopy(dict(learned.named_buffers()))
    state, images = torch.get_rng_state(), loader_of(DUSK)
    learned.end_task(
        DUSK,
        torch.utils.data.DataLoader(images, batch_size=None, shuffle=True))
    assert learned.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, buffers[k]) for k, v in learned.named_buffers())
    for mine, fresh in zip(images, loader_of(DUSK)):
        (sample, ), (wanted, ) = mine['data_samples'], fresh['data_samples']
        assert torch.equal(sample.gt_sem_seg.data, wanted.gt_sem_seg.data)


def test_labels_of_the_original_size_are_brought_to_the_images(learned):
    images, enlarged = loader_of(DAY), loader_of(DAY)
    for batch in enlarged:
        sample, = batch['data_samples']
        labels = sample.gt_sem_seg.data.repeat_interleave(2, 1)
        sample.gt_sem_seg = PixelData(data=labels.repeat_interleave(2, 2))
    other = copy.deepcopy(learned)
    learned.end_task(DAY, images)
    other.end_task(DAY, enlarged)
    assert torch.equal(learned._fisher[STEM], other._fisher[STEM])


def test_number_of_images_is_limited():
    limited = one_model('EWCSegmentor', fisher_images=2)
    limited.begin_task(DAY, [])
    all_of_two = copy.deepcopy(limited)
    all_of_two.fisher_images = 100
    images = loader_of(DAY)
    limited.end_task(DAY, images)
    all_of_two.end_task(DAY, images[::2])
    assert torch.equal(limited._fisher[STEM], all_of_two._fisher[STEM])


def test_defended_network_moves_less_than_an_undefended_one(learned):
    learned.begin_task(NIGHT, [])
    start = copy.deepcopy(learned.backbone.state_dict())
    moved = []
    for weight in (0.0, 10.0, 1000.0):
        model = copy.deepcopy(learned)
        model.ewc_weight = weight
        train(model, NIGHT, 8)
        moved.append(
            sum((p - start[n]).square().sum().item()
                for n, p in model.backbone.named_parameters()))
    assert moved[0] > moved[1] > moved[2]


def test_without_weight_it_is_fine_tuning():
    states = []
    for kind, changes in (('EWCSegmentor',
                           dict(ewc_weight=0.0, hold_statistics=False)),
                          ('FineTuneSegmentor', {})):
        model = one_model(kind, **changes)
        for task in (DAY, NIGHT):
            learn_task(model, task)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][k], v) for k, v in states[1].items())


def test_importance_counts_as_kept(learned):
    plain = one_model('FineTuneSegmentor')
    learn_task(plain, DAY)
    trained = sum(p.numel() for p in plain.parameters())
    mine, theirs = (m.kept_cost([]) for m in (learned, plain))
    assert mine['params'] - theirs['params'] == trained
    assert mine['bytes'] - theirs['bytes'] == 4 * trained


@pytest.mark.parametrize('name, value', [
    ('ewc_weight', -1.0),
    ('gamma', 1.5),
    ('gamma', -0.1),
    ('fisher_images', 0),
])
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f'model.{name} .*{value}'):
        one_model('EWCSegmentor', **{name: value})
