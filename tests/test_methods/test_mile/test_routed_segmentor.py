# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts, images for none, and experts left out."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.gates.base_gate import BaseGate
from mmseg_mile.structures import Routing

SAME = ('road', 'sky')
NAMES = ('day', 'night', 'fog')


class SaidGate(BaseGate):
    """Routes as it was told."""

    def __init__(self, weights, ood=None, distances=None):
        super().__init__()
        self.weights = torch.tensor(weights)
        count = len(self.weights)
        self.ood = torch.tensor(ood or [False] * count)
        self.distances = torch.tensor(distances or [[1., 2., 3.]] * count)

    def route(self, embeddings, tasks):
        """Whatever the images are."""
        return Routing(NAMES, self.weights, self.distances, self.ood)


@pytest.fixture(scope='module')
def kin_once(request):
    """Three experts of one label space."""
    toys = request.getfixturevalue('module_toys')
    model = toys.model()
    for name in NAMES:
        toys.learn(model, name, classes=SAME)
    return model.eval()


@pytest.fixture
def kin(kin_once):
    """The model, its options as built."""
    fusion, ood = kin_once.fusion, kin_once.ood_policy
    yield kin_once
    kin_once.fusion, kin_once.ood_policy = fusion, ood


def features_of(model, toys, mixture, names):
    """Input and features of a batch under a mixture, {} for the base."""
    inputs = model.data_preprocessor(toys.batch(*names))['inputs']
    with torch.no_grad(), model.backbone.using(mixture):
        return inputs, model.extract_feat(inputs)


def logits_by_hand(model, toys, mixture, heads, names):
    """Predict with averaged heads, from their tensors."""
    inputs, features = features_of(model, toys, mixture, names)
    states = {n: model.heads[n].state for n in heads}
    head = model.new_head(2).eval()
    head.load_state_dict({
        key:
        sum(w * states[n][key]
            for n, w in heads.items()) if value.is_floating_point() else value
        for key, value in states[next(iter(heads))].items()
    })
    meta = [dict(img_shape=(32, 32))] * len(inputs)
    with torch.no_grad():
        return head.predict(features, meta, None)


def test_mixture_fuses_adapters_and_heads(kin, toys):
    mixtures = [[.2, .3, .5], [0., .6, .4]]
    with kin.gated(SaidGate(mixtures)):
        found = toys.predict(kin, 'day', 'fog')
    for index, weights in enumerate(mixtures):
        mixture = {n: w for n, w in zip(NAMES, weights) if w}
        wanted = logits_by_hand(kin, toys, mixture, mixture, ('day', 'fog'))
        torch.testing.assert_close(
            found[index].seg_logits.data, wanted[index], rtol=1e-4, atol=1e-5)
        assert found[index].mixture == pytest.approx(mixture)
    assert [f.expert for f in found] == ['fog', 'night']


def test_only_heads_of_the_heaviest_experts_classes_are_averaged(
        learned, toys):
    # each of the three has classes of its own
    with learned.gated(SaidGate([[.3, .3, .4]])):
        found, = toys.predict(learned, 'day')
    mixture = dict(day=.3, night=.3, fog=.4)
    inputs, features = features_of(learned, toys, mixture, ['day'])
    head = learned.heads.module('fog', learned.device)
    with torch.no_grad():
        wanted = head.predict(features, [dict(img_shape=(32, 32))], None)
    torch.testing.assert_close(found.seg_logits.data, wanted[0])
    assert found.classes == learned.heads.labels('fog').classes


def test_late_fusion_averages_the_probabilities_of_the_experts(kin, toys):
    kin.fusion = 'logits'
    with kin.gated(SaidGate([[.25, 0, .75], [1., 0, 0]])):
        mixed, single = toys.predict(kin, 'day', 'night')
    alone = {}
    for name in NAMES:
        with kin.forced(name):
            alone[name] = [s.seg_logits.data for s in toys.predict(
                kin, 'day', 'night')]  # yapf: disable
    wanted = (.25 * alone['day'][0].softmax(0) +
              .75 * alone['fog'][0].softmax(0))
    # the toys' head has the resolution of the image
    torch.testing.assert_close(mixed.seg_logits.data.exp(), wanted)
    assert torch.equal(single.pred_sem_seg.data[0], alone['day'][1].argmax(0))


def test_late_fusion_of_other_label_spaces_leaves_them_out(learned, toys):
    learned.fusion = 'logits'
    with learned.gated(SaidGate([[.3, .3, .4]])):
        found, = toys.predict(learned, 'day')
    with learned.forced('fog'):
        wanted, = toys.predict(learned, 'day')
    assert torch.equal(found.pred_sem_seg.data, wanted.pred_sem_seg.data)


def test_base_speaks_with_the_head_of_the_nearest_expert(kin, toys):
    kin.ood_policy = 'base'
    gate = SaidGate([[1., 0, 0]] * 2, [True, False], [[3., 1., 2.]] * 2)
    with kin.gated(gate):
        alone, routed = toys.predict(kin, 'night', 'night')
    wanted = logits_by_hand(kin, toys, {}, dict(night=1.0), ('night', ))[0]
    torch.testing.assert_close(alone.seg_logits.data, wanted)
    assert (alone.expert, alone.mixture) == (None, {})
    assert (routed.expert, routed.mixture) == ('day', {'day': 1.0})
    assert alone.ood and not alone.abstained


def test_base_that_learned_the_first_task_speaks_with_its_head(kin, toys):
    kin.ood_policy = 'base'
    kin.backbone.base_training = 'first_task'
    try:
        with kin.gated(SaidGate([[1., 0, 0]], [True], [[3., 1., 2.]])):
            alone, = toys.predict(kin, 'night')
    finally:
        kin.backbone.base_training = 'none'
    wanted = logits_by_hand(kin, toys, {}, dict(day=1.0), ('night', ))[0]
    torch.testing.assert_close(alone.seg_logits.data, wanted)


def test_abstention_names_no_class(kin, toys):
    kin.ood_policy = 'abstain'
    with kin.gated(SaidGate([[1., 0, 0]] * 2, [True, False])):
        silent, spoken = toys.predict(kin, 'night', 'day')
    assert silent.abstained and silent.expert is None
    assert silent.pred_sem_seg.data.shape == (1, 32, 32)
    assert (silent.pred_sem_seg.data == 255).all()
    assert not spoken.abstained
    assert (spoken.pred_sem_seg.data < 2).all()


def test_abstention_has_the_size_of_the_original_image(kin, toys):
    kin.ood_policy = 'abstain'
    batch = toys.batch('day')
    batch['data_samples'][0].set_metainfo(dict(ori_shape=(48, 64)))
    with kin.gated(SaidGate([[1., 0, 0]], [True])):
        silent, = kin.test_step(batch)
    assert silent.pred_sem_seg.data.shape == (1, 48, 64)


def test_flagged_image_is_fused_late_if_asked_for(kin, toys):
    kin.ood_policy = 'fuse'
    gate = SaidGate([[1., 0, 0]] * 2, [True, False])
    with kin.gated(gate):
        found, familiar = toys.predict(kin, 'night', 'night')
    assert list(found.mixture) == list(NAMES)
    assert found.expert == 'day'
    assert familiar.mixture == dict(day=1)
    kin.ood_policy, kin.fusion = 'nearest', 'logits'
    with kin.gated(SaidGate([list(found.mixture.values())] * 2)):
        wanted, _ = toys.predict(kin, 'night', 'night')
    torch.testing.assert_close(found.seg_logits.data, wanted.seg_logits.data)


def test_all_images_of_a_batch_may_go_different_ways(kin, toys):
    kin.ood_policy = 'base'
    gate = SaidGate([[0., 1, 0], [1., 0, 0], [.5, .5, 0], [0., 1, 0]],
                    [False, True, False, False])
    with kin.gated(gate):
        found = toys.predict(kin, *['day'] * 4)
    assert [f.expert for f in found] == ['night', None, 'day', 'night']
    assert all(f.pred_sem_seg.data.shape == (1, 32, 32) for f in found)


def test_expert_that_is_left_out_is_not_chosen(kin, toys):
    with kin.without(['night']):
        inside = toys.predict(kin, 'night')
    outside = toys.predict(kin, 'night')
    assert inside[0].expert in ('day', 'fog')
    assert set(inside[0].distances) == {'day', 'fog'}
    assert outside[0].expert == 'night'


def test_distances_without_an_expert_are_those_of_never_having_had_it(toys):
    gate = dict(type='PrototypeGate', metric='mahalanobis')
    both, one = toys.model(gate=gate), toys.model(gate=gate)
    for name in ('day', 'fog'):
        toys.learn(both, name, classes=SAME)
    toys.learn(one, 'day', classes=SAME)
    with both.without(['fog']):
        found, = toys.predict(both, 'fog')
    wanted, = toys.predict(one, 'fog')
    assert found.distances == wanted.distances


@pytest.mark.parametrize(('names', 'message'), [
    (NAMES, 'no expert is left to predict with'),
    (('snow', ), "not learned task 'snow'"),
])
def test_leaving_out_what_cannot_be_is_refused(kin, names, message):
    with pytest.raises(ValueError, match=message), kin.without(names):
        pass
    assert kin.gate.expert_names == NAMES


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(fusion='mean'), r"model.fusion must be one of .* got 'mean'"),
    (dict(ood_policy='guess'), r"model.ood_policy must be .* got 'guess'"),
])
def test_option_that_there_is_not_is_refused(toys, changes, message):
    with pytest.raises(ValueError, match=message):
        toys.model(**changes)
