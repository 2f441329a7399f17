# SPDX-License-Identifier: Apache-2.0
"""Elastic weight consolidation on one small network."""
from __future__ import annotations

import copy
import json
from functools import partial

import pytest
import torch
from mmengine.structures import PixelData
from run_comparison import differences
from tiny import (DAY, DUSK, NIGHT, StopAt, batch_of, learn_task, loader_of,
                  one_model, one_model_config, train)

from mmseg_mile.methods.baselines.ewc_segmentor import quadratic_penalty

STEM = 'backbone.stem.0.weight'


@pytest.fixture
def model():
    return one_model('EWCSegmentor')


@pytest.fixture
def learned(model):
    learn_task(model, DAY)
    return model


def losses_of(model, task):
    data = model.data_preprocessor(batch_of(task, 1), True)
    return model.loss(**data)


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def distance(one, other):
    return sum((one[n] - other[n]).square().sum().item() for n in one
               if n.startswith('backbone'))**0.5


def learned_twice(kind, **changes):
    model = one_model(kind, **changes)
    for task in (DAY, NIGHT):
        learn_task(model, task)
    return model


def test_first_task_has_nothing_to_defend(model):
    model.begin_task(DAY, [])
    assert 'loss_ewc' not in losses_of(model, DAY)


def test_staying_costs_nothing(learned):
    learned.begin_task(DUSK, [])
    losses = losses_of(learned, DUSK)
    assert losses['loss_ewc'].item() == 0
    assert 'decode.loss_ce' in losses


def test_moving_one_weight_costs_its_importance(learned):
    learned.ewc_weight = 6.0
    fisher = learned._fisher[STEM][0, 0, 0, 0].item()
    learned.begin_task(DUSK, [])
    with torch.no_grad():
        learned.get_parameter(STEM)[0, 0, 0, 0] += 2.0
    # 6 / 2 * F * 2^2
    assert losses_of(learned, DUSK)['loss_ewc'].item() == pytest.approx(
        12 * fisher, rel=1e-4)
    assert fisher > 0


def test_importance_is_the_mean_square_of_the_images_gradients(learned):
    squares = []
    for batch in loader_of(DAY):
        learned.zero_grad()
        data = learned.data_preprocessor(batch, False)
        learned.loss(**data)['decode.loss_ce'].backward()
        squares.append(learned.get_parameter(STEM).grad.square())
    assert len(squares) == 4
    torch.testing.assert_close(
        learned._fisher[STEM], torch.stack(squares).mean(0), rtol=1e-4, atol=0)


def test_importance_of_tasks_adds_up(learned):
    first = copy.deepcopy(learned._fisher)
    for gamma in (1.0, 0.25):
        model = copy.deepcopy(learned)
        model.begin_task(DUSK, [])
        model.gamma = 0.0
        model.end_task(DUSK, loader_of(DUSK))
        own = copy.deepcopy(model._fisher)
        model._fisher = copy.deepcopy(first)
        model.gamma = gamma
        model.end_task(DUSK, loader_of(DUSK))
        torch.testing.assert_close(model._fisher[STEM],
                                   own[STEM] + gamma * first[STEM])


def test_new_class_is_free(learned):
    learned.begin_task(NIGHT, [])
    assert learned.classes == ('sky', 'road', 'lamp')
    with torch.no_grad():
        learned.decode_head.conv_seg.weight += 1.0
    losses_of(learned, NIGHT)['loss_ewc'].backward()
    per_class = learned.decode_head.conv_seg.weight.grad.abs().amax((1, 2, 3))
    assert (per_class > 0).tolist() == [True, True, False]


def test_its_importance_counts_after_its_first_task(learned):
    learn_task(learned, NIGHT)
    rows = learned._fisher['decode_head.conv_seg.weight'].amax((1, 2, 3))
    assert (rows > 0).tolist() == [True, True, True]


def test_anchor_is_where_the_last_task_ended(learned):
    learn_task(learned, DUSK)
    ended = weights(learned)
    learned.begin_task(NIGHT, [])
    assert torch.equal(learned._anchor[STEM], ended[STEM])


def test_estimating_leaves_statistics_mode_and_random_state(learned):
    learned.begin_task(DUSK, [])
    learned.train()
    before = copy.deepcopy(dict(learned.named_buffers()))
    state = torch.get_rng_state()
    images = torch.utils.data.DataLoader(
        loader_of(DUSK), batch_size=None, shuffle=True)
    learned.end_task(DUSK, images)
    assert learned.training
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in learned.named_buffers():
        assert torch.equal(value, before[name])


def test_images_keep_their_labels(learned):
    loader = loader_of(DAY)
    labels = loader[0]['data_samples'][0].gt_sem_seg.data.clone()
    learned.begin_task(NIGHT, [])
    learned.end_task(NIGHT, loader)
    kept = loader[0]['data_samples'][0].gt_sem_seg.data
    assert torch.equal(kept, labels) and kept.dtype == torch.uint8


def test_labels_of_the_original_size_are_brought_to_the_images(model):
    model.begin_task(DAY, [])
    images, enlarged = loader_of(DAY), loader_of(DAY)
    for batch in enlarged:
        sample, = batch['data_samples']
        large = sample.gt_sem_seg.data.repeat_interleave(2,
                                                         1).repeat_interleave(
                                                             2, 2)
        sample.gt_sem_seg = PixelData(data=large)
    other = copy.deepcopy(model)
    model.end_task(DAY, images)
    other.end_task(DAY, enlarged)
    assert torch.equal(model._fisher[STEM], other._fisher[STEM])


def test_number_of_images_is_limited():
    limited = one_model('EWCSegmentor', fisher_images=2)
    limited.begin_task(DAY, [])
    all_of_two = copy.deepcopy(limited)
    all_of_two.fisher_images = 100
    images = loader_of(DAY)
    limited.end_task(DAY, images)
    all_of_two.end_task(DAY, images[::2])
    assert torch.equal(limited._fisher[STEM], all_of_two._fisher[STEM])


def test_defended_network_moves_less_than_an_undefended_one():
    moved = {}
    for weight in (0.0, 10.0, 1000.0):
        model = one_model('EWCSegmentor', ewc_weight=weight)
        learn_task(model, DAY)
        start = weights(model)
        model.begin_task(NIGHT, [])
        train(model, NIGHT, 8)
        moved[weight] = distance(weights(model), start)
    assert moved[1000.0] < moved[10.0] < moved[0.0]


def test_without_weight_it_is_fine_tuning():
    one, other = (learned_twice(
        'EWCSegmentor', ewc_weight=0.0,
        hold_statistics=False), learned_twice('FineTuneSegmentor'))
    for mine, theirs in zip(one.parameters(), other.parameters()):
        assert torch.equal(mine, theirs)


def test_importance_and_anchor_come_back_from_disk(learned, tmp_path):
    learned.save_task(DAY, tmp_path, {})
    other = one_model('EWCSegmentor')
    other.load_tasks([DAY], tmp_path)
    for model in (learned, other):
        torch.manual_seed(3)
        model.begin_task(NIGHT, [])
        train(model, NIGHT)
    assert learned._fisher.keys() == other._fisher.keys()
    for mine, theirs in zip(learned.parameters(), other.parameters()):
        assert torch.equal(mine, theirs)
    parameters = dict(learned.named_parameters())
    assert quadratic_penalty(parameters, learned._anchor, learned._fisher) > 0


def test_importance_counts_as_kept(learned, tmp_path):
    plain = one_model('FineTuneSegmentor')
    learn_task(plain, DAY)
    trained = sum(p.numel() for p in plain.parameters())
    mine, theirs = (m.kept_cost([]) for m in (learned, plain))
    assert mine['params'] - theirs['params'] == trained
    assert mine['bytes'] - theirs['bytes'] == 4 * trained


@pytest.mark.parametrize('changes', [
    dict(ewc_weight=-1.0),
    dict(gamma=1.5),
    dict(gamma=-0.1),
    dict(fisher_images=0),
])
def test_numbers_out_of_range_are_refused(changes):
    name, value = next(iter(changes.items()))
    with pytest.raises(ValueError, match=f'model.{name} .*{value}'):
        one_model('EWCSegmentor', **changes)


# -- on the tiny stream -------------------------------------------------------


@pytest.fixture(scope='module')
def config(short_stream):
    return partial(short_stream,
                   one_model_config('EWCSegmentor', ewc_weight=100.0))


@pytest.fixture(scope='module')
def run(learn, config, tmp_path_factory):
    return learn_task(config(tmp_path_factory.mktemp('ewc') / 'run'))


@pytest.mark.integration
def test_stream_is_learned_with_a_logged_penalty(run):
    results = json.loads((run.work_dir / 'results.json').read_text())
    assert results['method'] == 'EWC'
    assert all(None not in row for row in results['miou']['routed'])
    history = run.runner.message_hub.log_scalars['train/loss_ewc'].data[0]
    assert max(history) > 0


@pytest.mark.integration
@pytest.mark.parametrize('stop', [('night', 2), ('infrared', 0)])
def test_resumed_stream_equals_the_uninterrupted_one(run, config,
                                                     stop_and_resume, tmp_path,
                                                     stop):
    stop_and_resume(config, tmp_path / 'run', StopAt(*stop))
    assert differences(run.work_dir, tmp_path / 'run') == []
