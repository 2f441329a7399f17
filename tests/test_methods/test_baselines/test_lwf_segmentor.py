# SPDX-License-Identifier: Apache-2.0
"""Learning without forgetting on one small network."""
from __future__ import annotations

import copy
import json
from functools import partial

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from run_comparison import differences
from tiny import (DAY, DUSK, NIGHT, StopAt, batch_of, learn_task, one_model,
                  one_model_config, train)

from mmseg_mile.methods.baselines.lwf_segmentor import distillation_loss


@pytest.fixture
def model():
    return one_model('LwFSegmentor')


@pytest.fixture
def learned(model):
    learn_task(model, DAY)
    return model


def losses_of(model, task):
    data = model.data_preprocessor(batch_of(task, 1), True)
    return model.loss(**data)


def answers(model, task):
    images = model.data_preprocessor(batch_of(task, 9, 4), False)['inputs']
    with torch.no_grad():
        return model.eval()._forward(images)


def test_first_task_has_nothing_to_distil(model):
    model.begin_task(DAY, [])
    assert 'loss_lwf' not in losses_of(model, DAY)


def test_unchanged_network_agrees_with_itself(learned):
    learned.begin_task(DUSK, [])
    losses = losses_of(learned.eval(), DUSK)
    assert losses['loss_lwf'].item() == pytest.approx(0, abs=1e-6)
    assert 'decode.loss_ce' in losses


def test_term_is_the_weighted_divergence_from_the_old_answers(learned):
    learned.lwf_weight, learned.temperature = 3.0, 4.0
    wanted = answers(learned, NIGHT)
    learned.begin_task(NIGHT, [])
    train(learned, NIGHT)
    data = learned.data_preprocessor(batch_of(NIGHT, 9, 4), True)
    term = learned.eval().loss(**data)['loss_lwf']
    expected = distillation_loss(answers(learned, NIGHT), wanted, 4.0)
    assert expected > 0
    torch.testing.assert_close(term, 3.0 * expected)


def test_other_losses_are_those_of_fine_tuning(learned):
    learned.begin_task(NIGHT, [])
    plain = one_model('FineTuneSegmentor')
    plain.set_decode_head(
        copy.deepcopy(learned.decode_head), learned.classes, learned.palette)
    plain.load_state_dict(learned.state_dict())
    plain._spaces, plain._task = learned._spaces, learned._task
    mine, theirs = (losses_of(m.eval(), NIGHT) for m in (learned, plain))
    del mine['loss_lwf']
    assert mine == theirs


def test_old_answers_are_those_before_the_task(learned):
    before = answers(learned, NIGHT)
    learned.begin_task(NIGHT, [])
    train(learned, NIGHT)
    images = learned.data_preprocessor(batch_of(NIGHT, 9, 4), False)['inputs']
    assert torch.equal(learned._teacher(images), before)
    assert before.shape[1] == 2 and learned.num_classes == 3


def test_old_network_is_no_part_of_the_model(learned):
    known = [n for n, _ in learned.named_parameters()]
    learned.begin_task(DUSK, [])
    assert [n for n, _ in learned.named_parameters()] == known
    assert not any('teacher' in key for key in learned.state_dict())


def test_old_network_is_gone_when_the_task_ends(learned):
    learned.begin_task(DUSK, [])
    train(learned, DUSK, 1)
    learned.end_task(DUSK, [])
    assert learned._teacher is None and learned._wanted is None


def test_defended_answers_move_less_than_undefended_ones():
    moved = {}
    for weight in (0.0, 1.0, 10.0):
        model = one_model('LwFSegmentor', lwf_weight=weight)
        learn_task(model, DAY)
        before = answers(model, NIGHT)
        model.begin_task(NIGHT, [])
        train(model, NIGHT, 8)
        moved[weight] = distillation_loss(answers(model, NIGHT), before,
                                          1.0).item()
    assert moved[10.0] < moved[1.0] < moved[0.0]


def test_saved_model_goes_on_as_the_one_that_was_not(learned, tmp_path):
    learned.save_task(DAY, tmp_path, {})
    other = one_model('LwFSegmentor')
    other.load_tasks([DAY], tmp_path)
    for model in (learned, other):
        torch.manual_seed(3)
        model.begin_task(NIGHT, [])
        train(model, NIGHT)
    for mine, theirs in zip(learned.parameters(), other.parameters()):
        assert torch.equal(mine, theirs)


def test_nothing_is_kept_but_the_weights(learned, tmp_path):
    plain = one_model('FineTuneSegmentor')
    learn_task(plain, DAY)
    learned.begin_task(DUSK, [])
    assert learned.kept_cost([]) == plain.kept_cost([])


# -- two learning rates -------------------------------------------------------

WRAPPER = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))


def rates(model):
    wrapper = build_optim_wrapper(model, model.optim_wrapper_config(WRAPPER))
    known = {id(p): n for n, p in model.named_parameters()}
    return {
        known[id(p)].split('.')[0]: pytest.approx(group['lr'])
        for group in wrapper.param_groups
        for p in group['params'] if id(p) in known
    }


def test_backbone_is_slower_from_the_second_task_on():
    model = one_model('LwFSegmentor', shared_lr_mult=0.01)
    model.begin_task(DAY, [])
    assert rates(model) == dict(backbone=0.1, decode_head=0.1)
    model.end_task(DAY, [])
    model.begin_task(NIGHT, [])
    assert rates(model) == dict(backbone=0.001, decode_head=0.1)


def test_one_rate_leaves_the_config_alone(learned):
    learned.begin_task(NIGHT, [])
    assert learned.optim_wrapper_config(WRAPPER) is WRAPPER


def test_rates_that_would_be_lost_are_refused_before_the_first_task():
    model = one_model('LwFSegmentor', shared_lr_mult=0.01)
    model.begin_task(DAY, [])
    with pytest.raises(ValueError, match='shared_lr_mult.*bias_lr_mult'):
        model.optim_wrapper_config(
            dict(WRAPPER, paramwise_cfg=dict(bias_lr_mult=2.0)))


@pytest.mark.parametrize('changes', [
    dict(lwf_weight=-1.0),
    dict(temperature=0.0),
    dict(shared_lr_mult=-0.1),
])
def test_numbers_out_of_range_are_refused(changes):
    name, value = next(iter(changes.items()))
    with pytest.raises(ValueError, match=f'model.{name} .*{value}'):
        one_model('LwFSegmentor', **changes)


def test_head_without_one_map_of_logits_is_refused():
    head = dict(
        type='DDRHead',
        in_channels=8,
        channels=8,
        num_classes=19,
        align_corners=False,
        loss_decode=[dict(type='CrossEntropyLoss', loss_name='loss_ce')] * 2)
    with pytest.raises(ValueError, match="one map of logits.*'DDRHead'"):
        one_model('LwFSegmentor', decode_head=head)


# -- on the tiny stream -------------------------------------------------------


@pytest.fixture(scope='module')
def config(short_stream):
    return partial(short_stream,
                   one_model_config('LwFSegmentor', shared_lr_mult=0.5))


@pytest.fixture(scope='module')
def run(learn, config, tmp_path_factory):
    return learn_task(config(tmp_path_factory.mktemp('lwf') / 'run'))


@pytest.mark.integration
def test_stream_is_learned_with_a_logged_term(run):
    results = json.loads((run.work_dir / 'results.json').read_text())
    assert results['method'] == 'LwF'
    assert all(None not in row for row in results['miou']['routed'])
    history = run.runner.message_hub.log_scalars['train/loss_lwf'].data[0]
    assert min(history) > 0


@pytest.mark.integration
def test_loop_asks_for_the_slower_rate(run):
    first, second = ({g['initial_lr']
                      for g in optimizer.param_groups}
                     for optimizer in run.diary.optimizers[:2])
    assert len(first) == 1 and len(second) == 2


@pytest.mark.integration
@pytest.mark.parametrize('stop', [('night', 2), ('infrared', 0)])
def test_resumed_stream_equals_the_uninterrupted_one(run, config,
                                                     stop_and_resume, tmp_path,
                                                     stop):
    stop_and_resume(config, tmp_path / 'run', StopAt(*stop))
    assert differences(run.work_dir, tmp_path / 'run') == []
