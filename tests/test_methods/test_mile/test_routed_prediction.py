# SPDX-License-Identifier: Apache-2.0
"""Predicting with experts: who predicts an image, and what comes of it."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.gates.base_gate import BaseGate
from mmseg_mile.gates.simple_gates import FixedGate, OracleGate
from mmseg_mile.methods import prediction
from mmseg_mile.structures import Routing

SAME = ('road', 'sky')
STREAM = ('day', 'night', 'fog')
MIXED = ('night', 'day', 'fog', 'night')
SLIDE = dict(mode='slide', crop_size=(16, 24), stride=(12, 12))
SOFT = dict(
    type='PrototypeGate', metric='euclidean', top_k=2, temperature=50.0)


class SaidGate(BaseGate):
    """Routes as it was told."""

    def __init__(self, weights, ood=None, distances=None):
        super().__init__()
        count = len(weights)
        self.said = Routing(
            STREAM,
            torch.tensor(weights),
            torch.tensor(distances or [[1., 2., 3.]] * count),
            torch.tensor(ood or [False] * count),
            ood_score=torch.tensor([1.25] * count) if ood else None)

    def route(self, embeddings, tasks):
        """Whatever the images are."""
        return self.said


@pytest.fixture(scope='module')
def kin_once(toys):
    """Three experts of one label space."""
    model = toys.model()
    for name in STREAM:
        toys.learn(model, name, classes=SAME)
        # values that a head of its own would have
        head = model.heads[name].state
        head['conv_seg.weight'] += torch.randn_like(head['conv_seg.weight'])
    return model.eval()


@pytest.fixture
def kin(kin_once):
    """The model, its options as built."""
    yield kin_once
    kin_once.fusion, kin_once.ood_policy = 'weights', 'nearest'
    kin_once.origins['fog'].pop('trained_base', None)


@pytest.fixture
def rebuilt(toys, learned_once):
    """``rebuilt(**changes)``: another model around the learned experts."""

    def build(backbone=None, **changes):
        backbone = dict(toys.config['backbone'], **(backbone or {}))
        model = toys.model(backbone=backbone, **changes)
        model.import_experts([learned_once.export_expert(n) for n in STREAM])
        return model.eval()

    return build


def logits(sample):
    """The scores of a prediction."""
    return sample.seg_logits.data


def by_hand(model, toys, mixture, heads, names):
    """Logits with averaged heads, from their tensors."""
    inputs = model.data_preprocessor(toys.batch(*names))['inputs']
    states = {n: model.heads[n].state for n in heads}
    first = states[next(iter(heads))]
    head = model.new_head(len(first['conv_seg.bias'])).eval()
    head.load_state_dict({
        key:
        sum(w * states[n][key]
            for n, w in heads.items()) if value.is_floating_point() else value
        for key, value in first.items()
    })
    with torch.no_grad(), model.backbone.using(mixture):
        return head.predict(
            model.extract_feat(inputs), [dict(img_shape=(32, 32))], None)


# -- one expert an image -----------------------------------------------------


def test_each_image_is_predicted_by_its_expert(learned, toys):
    samples = toys.predict(learned, *MIXED)
    assert tuple(s.expert for s in samples) == MIXED
    for name, sample in zip(MIXED, samples):
        task = toys.task(name)
        assert (sample.classes, sample.palette) == (task.classes, task.palette)
        assert logits(sample).shape == (task.num_classes, 32, 32)
        assert sample.mixture == {name: 1} and sample.head_expert == name
        assert set(sample.distances) == set(STREAM)
        assert min(sample.distances, key=sample.distances.get) == name
        assert not sample.ood and sample.ood_score < 1


@pytest.mark.parametrize('gate', [None, SOFT])
@pytest.mark.parametrize('mode', [dict(mode='whole'), SLIDE])
@pytest.mark.parametrize('pixels', [1, 1 << 18])
def test_mixed_batch_equals_each_image_alone(toys, rebuilt, monkeypatch, gate,
                                             mode, pixels):
    monkeypatch.setattr(prediction, '_CPU_PIXELS', pixels)
    model = rebuilt(test_cfg=mode, **(dict(gate=gate) if gate else {}))
    batch = toys.batch(*MIXED)
    for index, sample in enumerate(model.test_step(batch)):
        alone, = model.test_step({
            k: v[index:index + 1]
            for k, v in batch.items()
        })
        assert alone.expert == sample.expert == MIXED[index]
        assert len(sample.mixture) == (2 if gate else 1)
        torch.testing.assert_close(logits(alone), logits(sample))
        assert torch.equal(alone.pred_sem_seg.data, sample.pred_sem_seg.data)


def test_images_of_one_expert_share_a_forward(learned, toys):
    seen, stem = [], learned.backbone.backbone.stem
    stem.register_forward_hook(lambda _, x, __: seen.append(len(x[0])))
    toys.predict(learned, *MIXED)
    # the gate's pass, then one group per expert in order of appearance
    assert seen == [4, 2, 1, 1]
    with learned.forced('day'):
        toys.predict(learned, *MIXED)
    # no gate looks
    assert seen[4:] == [4]


def test_sliding_window_routes_once_per_image(toys, rebuilt):
    slide = rebuilt(
        test_cfg=dict(mode='slide', crop_size=(16, 16), stride=(16, 16)))
    sizes, embed, windows = [], slide.embedder, []
    slide.embedder = lambda backbone, x: (sizes.append(tuple(x.shape)),
                                          embed(backbone, x))[1]
    slide.backbone.register_forward_hook(
        lambda _, x, __: windows.append(tuple(x[0].shape[2:])))
    samples = toys.predict(slide, 'night', 'day')
    assert [s.expert for s in samples] == ['night', 'day']
    assert sizes == [(2, 3, 32, 32)] and windows == 8 * [(16, 16)]


def test_images_may_differ_in_size_and_need_no_data_samples(learned, toys):
    batch = toys.batch('day', 'night')
    batch['data_samples'][0].set_metainfo(dict(ori_shape=(48, 64)))
    large, small = learned.test_step(batch)
    assert large.pred_sem_seg.data.shape == (1, 48, 64)
    assert small.pred_sem_seg.data.shape == (1, 32, 32)
    inputs = learned.data_preprocessor(toys.batch('night', 'day'))['inputs']
    found = learned.predict(inputs)
    assert [s.expert for s in found] == ['night', 'day']
    assert found[0].pred_sem_seg.data.shape == (1, 32, 32)


def test_image_unlike_all_tasks_is_flagged(learned, toys):
    batch = toys.batch('day', 'day')
    batch['inputs'][1] = torch.zeros_like(batch['inputs'][1])
    batch['inputs'][1][0] = 255
    near, far = learned.test_step(batch)
    assert (near.ood, far.ood) == (False, True)


def test_nothing_predicts_before_a_task_is_learned(toys, fresh):
    with pytest.raises(ValueError, match='the gate has learned no task yet'):
        toys.predict(fresh, 'day')


# -- other gates -------------------------------------------------------------


def test_forced_expert_predicts_every_image(learned, toys):
    with learned.forced('night'):
        samples = toys.predict(learned, 'day', 'night')
    assert [s.expert for s in samples] == ['night', 'night']
    assert samples[0].classes == toys.task('night').classes
    assert samples[0].ood_score is None
    assert toys.predict(learned, 'day')[0].expert == 'day'
    with pytest.raises(ValueError, match="'snow', which is no expert"):
        with learned.forced('snow'):
            toys.predict(learned, 'day')


def test_other_gate_rules_inside_its_block_only(learned, toys):
    gate, oracle = learned.gate, OracleGate()
    for name in STREAM:
        oracle.fit(name, None)
    batch = toys.batch('day')
    batch['data_samples'][0].set_metainfo(dict(task='fog'))
    with learned.gated(oracle):
        assert learned.test_step(batch)[0].expert == 'fog'
    with pytest.raises(KeyError), learned.gated(FixedGate('day')):
        raise KeyError
    assert learned.gate is gate


# -- mixtures ----------------------------------------------------------------


def test_mixture_fuses_adapters_and_heads(kin, toys):
    mixtures = [[.2, .3, .5], [0., .6, .4]]
    with kin.gated(SaidGate(mixtures)):
        found = toys.predict(kin, 'day', 'fog')
    for index, weights in enumerate(mixtures):
        mixture = {n: w for n, w in zip(STREAM, weights) if w}
        wanted = by_hand(kin, toys, mixture, mixture, ('day', 'fog'))
        torch.testing.assert_close(
            logits(found[index]), wanted[index], rtol=1e-4, atol=1e-5)
        assert found[index].mixture == pytest.approx(mixture)
    assert [f.expert for f in found] == ['fog', 'night']


@pytest.mark.parametrize('fusion', ['weights', 'logits'])
def test_heads_of_other_classes_than_the_heaviest_are_left_out(
        learned, toys, fusion):
    learned.fusion = fusion
    mixture = dict(day=.3, night=.3, fog=.4)
    with learned.gated(SaidGate([list(mixture.values())])):
        found, = toys.predict(learned, 'day')
    adapters = mixture if fusion == 'weights' else dict(fog=1)
    wanted = by_hand(learned, toys, adapters, dict(fog=1), ['day'])[0]
    assert torch.equal(found.pred_sem_seg.data[0], wanted.argmax(0))
    assert found.classes == learned.heads.labels('fog').classes


def test_late_fusion_averages_the_probabilities_of_the_experts(kin, toys):
    kin.fusion = 'logits'
    batch = toys.batch('day', 'night')
    data = kin.data_preprocessor(batch)['inputs']
    for sample in batch['data_samples']:
        # the resolution of the head
        sample.set_metainfo(dict(img_shape=(8, 8), ori_shape=(8, 8)))
    with kin.gated(SaidGate([[.25, 0, .75], [1., 0, 0]])):
        mixed, single = kin.predict(data, batch['data_samples'])
    alone = {}
    for name in ('day', 'fog'):
        with torch.no_grad(), kin.backbone.using(name):
            head = kin.heads.fused({name: 1.0}, kin.device)
            alone[name] = head(kin.extract_feat(data))
    wanted = (.25 * alone['day'][0].softmax(0) +
              .75 * alone['fog'][0].softmax(0))
    torch.testing.assert_close(logits(mixed).exp(), wanted)
    torch.testing.assert_close(logits(single), alone['day'][1])


# -- images that the gate flags ----------------------------------------------


@pytest.mark.parametrize('trained_base, head', [(False, 'night'),
                                                (True, 'fog')])
def test_base_predicts_with_a_head_that_it_knows(kin, toys, trained_base,
                                                 head):
    kin.ood_policy = 'base'
    # wherever it stands in the order
    kin.origins['fog']['trained_base'] = trained_base
    gate = SaidGate([[1., 0, 0]] * 2, [True, False], [[3., 1., 2.]] * 2)
    with kin.gated(gate):
        alone, routed = toys.predict(kin, 'night', 'night')
    wanted = by_hand(kin, toys, {}, {head: 1.0}, ('night', ))[0]
    torch.testing.assert_close(logits(alone), wanted)
    assert (alone.expert, alone.mixture) == (None, {})
    assert (alone.head_expert, alone.ood_score) == (head, 1.25)
    assert (routed.expert, routed.mixture) == ('day', {'day': 1.0})
    assert alone.ood and not alone.abstained


def test_abstention_names_no_class(kin, toys):
    kin.ood_policy = 'abstain'
    batch = toys.batch('night', 'day')
    batch['data_samples'][0].set_metainfo(dict(ori_shape=(48, 64)))
    with kin.gated(SaidGate([[1., 0, 0]] * 2, [True, False])):
        silent, spoken = kin.test_step(batch)
    assert silent.abstained and silent.expert is None and silent.classes
    assert silent.pred_sem_seg.data.shape == (1, 48, 64)
    assert (silent.pred_sem_seg.data == 255).all()
    assert not spoken.abstained
    assert (spoken.pred_sem_seg.data < 2).all()


def test_flagged_image_is_fused_late_if_asked_for(kin, toys):
    kin.ood_policy = 'fuse'
    with kin.gated(SaidGate([[1., 0, 0]] * 2, [True, False])):
        found, familiar = toys.predict(kin, 'night', 'night')
    assert list(found.mixture) == list(STREAM)
    assert found.expert == 'day'
    assert familiar.mixture == dict(day=1)
    kin.ood_policy, kin.fusion = 'nearest', 'logits'
    with kin.gated(SaidGate([list(found.mixture.values())] * 2)):
        wanted, _ = toys.predict(kin, 'night', 'night')
    torch.testing.assert_close(logits(found), logits(wanted))


def test_all_images_of_a_batch_may_go_different_ways(kin, toys):
    kin.ood_policy = 'base'
    gate = SaidGate([[0., 1, 0], [1., 0, 0], [.5, .5, 0], [0., 1, 0]],
                    [False, True, False, False])
    with kin.gated(gate):
        found = toys.predict(kin, *['day'] * 4)
    assert [f.expert for f in found] == ['night', None, 'day', 'night']
    assert all(f.pred_sem_seg.data.shape == (1, 32, 32) for f in found)


# -- what prediction leaves alone --------------------------------------------


@pytest.mark.parametrize('name', ['float32', 'bfloat16'])
def test_predicting_changes_nothing_that_a_checkpoint_holds(
        toys, rebuilt, name):
    model = rebuilt(dict(merge_cache_size=1), predict_dtype=name)
    modules = dict(model.backbone.named_modules())
    head, width = model.decode_head, model.num_classes

    def state():
        heads = [model.heads[name].state for name in STREAM]
        return [v for part in (model.state_dict(), *heads)
                for v in part.values()]  # yapf: disable

    before = [v.clone() for v in state()]
    first = toys.predict(model, *MIXED)
    for _ in range(20):
        again = toys.predict(model, *MIXED)
    assert all(map(torch.equal, state(), before))
    assert all(map(torch.equal, map(logits, again), map(logits, first)))
    assert dict(model.backbone.named_modules()) == modules
    assert model.decode_head is head and model.num_classes == width


def test_autocast_leaves_merged_weights_in_full_precision(toys, rebuilt):
    model = rebuilt()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        toys.predict(model, *MIXED)
    for got, wanted in zip(
            toys.predict(model, *MIXED), toys.predict(rebuilt(), *MIXED)):
        assert torch.equal(logits(got), logits(wanted))
