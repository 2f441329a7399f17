# SPDX-License-Identifier: Apache-2.0
"""Experts of three label sets, one text head, tiny random weights."""
from __future__ import annotations

import copy
import json

import pytest
import tiny_san
import torch
from tiny import COLOUR_CLASSES, INFRARED_CLASSES, TINY_MODEL

from mmseg_mile.gates.simple_gates import NoExpertGate
from mmseg_mile.library.expert_store import ExpertStore

STREAM = ('day', 'night', 'fog')
VOCABULARY = ('lamp', 'road', 'unicorn', 'sky')
MODEL = tiny_san.SEGMENTOR


def build(toys, **changes):
    """The model with the weights of the tiny network."""
    model = toys.model(**{**MODEL, **changes})
    model.backbone.load_base(tiny_san.build_san().state_dict(), '')
    return model


@pytest.fixture(scope='module')
def learned_once(module_toys):
    """A model that learned three tasks of three label sets."""
    model = build(module_toys)
    for name in STREAM:
        module_toys.learn(model, name)
    return model


def logits(samples):
    """Scores of a batch."""
    return torch.stack([s.seg_logits.data for s in samples])


def weights_of(routed):
    """How many experts an image was mixed from."""
    return [len(sample.mixture) for sample in routed]


def test_training_changes_adapters_and_nothing_else(toys):
    model = build(toys)
    before = copy.deepcopy(model.state_dict())
    model.begin_task(toys.task('day'), toys.loader('day'))
    losses = toys.train(model, 'day', num_steps=2)
    assert {'decode.loss_cls_ce', 'decode.d0.loss_mask_dice'} <= set(losses)
    model.eval()
    model.end_task(toys.task('day'), toys.loader('day'))
    after = model.state_dict()
    for key in model.backbone.state_dict():
        assert torch.equal(after[f'backbone.{key}'], before[f'backbone.{key}'])
    # B starts from zero, so that each has had a gradient
    lora = model.backbone.experts['day'].lora
    assert len(lora) > 80
    assert all(v.abs().max() > 0 for v in lora.values())


def test_training_lowers_the_loss(toys):
    model = build(toys)
    model.begin_task(toys.task('day'), toys.loader('day'))
    model.train()
    batch = toys.batch('day', 'day', 'day', 'day')
    data = model.data_preprocessor(batch, True)

    def loss():
        torch.manual_seed(0)
        return sum(model.loss(**data).values())

    first = loss()
    optimizer = torch.optim.Adam(
        [p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(10):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss() < 0.8 * first


def test_every_task_is_labelled_in_its_own_classes(learned, toys):
    for name in STREAM:
        with learned.forced(name):
            sample, = toys.predict(learned, name)
        assert sample.classes == toys.task(name).classes
        assert len(sample.seg_logits.data) == len(sample.classes)


def test_head_speaks_by_the_names_of_its_classes(learned, toys):
    """Night has day's classes in another order, and one more."""
    network = learned.backbone.backbone
    for name in STREAM:
        wanted = network.embed_classes(toys.task(name).classes)
        assert torch.equal(learned.heads[name].state['class_embeds'], wanted)


def test_start_from_another_expert_keeps_the_names_of_its_own(toys):
    model = build(toys, init_from='previous')
    toys.learn(model, 'night')
    # as many classes, of which one has another name
    toys.learn(model, 'fog')
    wanted = model.backbone.backbone.embed_classes(toys.task('fog').classes)
    assert torch.equal(model.heads['fog'].state['class_embeds'], wanted)


def test_mixture_over_label_sets_speaks_as_the_heaviest_expert(learned, toys):
    samples = toys.predict(learned, 'day', 'night', 'fog')
    assert weights_of(samples) == [3, 3, 3]
    for sample in samples:
        heaviest = max(sample.mixture, key=sample.mixture.get)
        assert sample.expert == heaviest
        assert sample.classes == toys.task(heaviest).classes


def test_mixture_is_the_network_with_all_adapters_added(learned, toys):
    sample, = toys.predict(learned, 'night')
    by_hand = copy.deepcopy(learned)
    network = by_hand.backbone.backbone
    for name, weight in sample.mixture.items():
        expert = by_hand.backbone.experts[name]
        for target in expert.targets():
            layer = network.get_submodule(target)
            down, up = (
                expert.lora[f'{target}.lora_{x}.weight'].flatten(1)
                for x in 'AB')
            layer.weight.data += (weight * up @ down).view_as(layer.weight)
    with by_hand.gated(no_expert(by_hand)), by_hand.speaking(sample.classes):
        wanted = toys.predict(by_hand, 'night')
    assert wanted[0].expert is None
    torch.testing.assert_close(
        sample.seg_logits.data,
        wanted[0].seg_logits.data,
        rtol=1e-3,
        atol=1e-4)


def no_expert(model):
    """A gate that sends every image to the base."""
    gate = NoExpertGate()
    for name in model.expert_names:
        gate.fit(name, torch.randn(4, tiny_san.TEXT))
    return gate


def test_vocabulary_is_spoken_by_every_mixture(learned, toys):
    with learned.speaking(VOCABULARY):
        samples = toys.predict(learned, 'day', 'night', 'fog')
        alone = [toys.predict(learned, 'day')[0]]
        torch.testing.assert_close(
            logits(alone), logits(samples[:1]), rtol=1e-3, atol=1e-4)
    assert all(s.classes == VOCABULARY for s in samples)
    assert logits(samples).shape[1] == 4
    assert weights_of(samples) == [3, 3, 3]
    assert toys.predict(learned, 'day')[0].classes != VOCABULARY


def test_order_of_the_vocabulary_is_that_of_the_scores(learned, toys):
    with learned.speaking(VOCABULARY):
        one = logits(toys.predict(learned, 'night'))
    with learned.speaking(VOCABULARY[::-1]):
        other = logits(toys.predict(learned, 'night'))
    torch.testing.assert_close(one.flip(1), other)


def test_late_fusion_needs_one_language_for_all(learned, toys):
    learned.fusion = 'logits'
    with learned.speaking(VOCABULARY):
        sample, = toys.predict(learned, 'night')
        single = []
        for name in sample.mixture:
            with learned.forced(name):
                single += toys.predict(learned, 'night')
    wanted = sum(w * s.seg_logits.data.softmax(0)
                 for w, s in zip(sample.mixture.values(), single))
    torch.testing.assert_close(
        sample.seg_logits.data.exp(), wanted, rtol=1e-3, atol=1e-4)


def test_base_alone_answers_before_anything_is_learned(toys):
    model = build(toys, vocabulary=VOCABULARY)
    sample, = toys.predict(model, 'day')
    assert sample.classes == VOCABULARY and sample.expert is None
    assert sample.mixture == {} and sample.distances == {}
    assert not sample.ood and not sample.abstained
    stock = tiny_san.build_stock(tiny_san.build_san(), VOCABULARY)
    inputs = model.data_preprocessor(toys.batch('day'))['inputs']
    wanted = stock.encode_decode(inputs, [dict(img_shape=(32, 32))])
    torch.testing.assert_close(
        sample.seg_logits.data, wanted[0], rtol=1e-4, atol=1e-5)


def test_vocabulary_of_the_config_holds_for_all_predictions(learned, toys):
    model = build(toys, vocabulary=VOCABULARY)
    for name in STREAM:
        model.import_expert(learned.export_expert(name))
    samples = toys.predict(model, 'day', 'fog')
    assert all(s.classes == VOCABULARY for s in samples)
    with learned.speaking(VOCABULARY):
        torch.testing.assert_close(
            logits(samples), logits(toys.predict(learned, 'day', 'fog')))
    with model.speaking(['road']):
        assert toys.predict(model, 'day')[0].classes == ('road', )
    assert toys.predict(model, 'day')[0].classes == VOCABULARY


def test_vocabulary_follows_the_base_that_is_loaded_later(toys):
    model = toys.model(**MODEL, vocabulary=VOCABULARY)
    toys.predict(model, 'day')
    model.backbone.load_base(tiny_san.build_san().state_dict(), '')
    wanted = build(toys, vocabulary=VOCABULARY)
    torch.testing.assert_close(
        logits(toys.predict(model, 'day')),
        logits(toys.predict(wanted, 'day')))


def test_left_out_task_is_labelled_by_the_others_in_its_classes(learned, toys):
    task = toys.task('fog')
    others = copy.deepcopy(learned.gate)
    others.remove('fog')
    with learned.gated(others), learned.speaking(task.classes, task.palette):
        sample, = toys.predict(learned, 'fog')
    assert set(sample.mixture) == {'day', 'night'}
    assert sample.classes == task.classes
    assert sample.palette == task.palette


def test_colours_are_those_of_the_experts_and_new_ones(learned, toys):
    with learned.speaking(VOCABULARY):
        sample, = toys.predict(learned, 'day')
    day, night = toys.task('day'), toys.task('night')
    lamp, road, unicorn, sky = sample.palette
    assert (road, sky) == day.palette
    assert lamp == night.palette[2]
    assert len(unicorn) == 3 and unicorn not in (lamp, road, sky)


def test_library_predicts_without_a_look_at_the_text_encoder(
        learned, toys, tmp_path):
    store = ExpertStore(tmp_path)
    store.save_base(learned.backbone.base_state(),
                    learned.backbone.fingerprint())
    for name in STREAM:
        store.save(learned.export_expert(name))
    model = toys.model(**MODEL)
    model.backbone.load_base(*store.load_base())
    model.import_experts(store.open(STREAM))
    calls = []
    model.backbone.backbone.text_encoder.encode_text = calls.append
    samples = toys.predict(model, *STREAM)
    assert not calls
    wanted = toys.predict(learned, *STREAM)
    for mine, theirs in zip(samples, wanted):
        assert mine.classes == theirs.classes
        torch.testing.assert_close(mine.seg_logits.data,
                                   theirs.seg_logits.data)


def test_expert_is_small(learned):
    expert = learned.export_expert('night')
    head = sum(v.numel() for v in expert.parts['head'].values())
    assert head == 4 * tiny_san.TEXT
    assert 'norm' not in expert.parts


@pytest.mark.parametrize('changes, message', [
    (dict(decode_head=dict(
        type='FCNHead', in_channels=16, channels=8, num_classes=2)),
     'model.decode_head has no texts, got FCNHead'),
    (dict(backbone=dict(
        type='LoRAExpertBackbone',
        backbone=dict(type='ResNetV1c', depth=18),
        lora=dict(r=2, lora_alpha=4))),
     'model.backbone.backbone has no texts, got ResNetV1c'),
    (dict(backbone=dict(MODEL['backbone'], train_norm=True)),
     'train_norm must be False'),
    (dict(vocabulary=['road', 'road']), "class 'road' is named twice"),
    (dict(vocabulary=[]), 'at least one class'),
])  # yapf: disable
def test_parts_that_do_not_fit_are_refused(toys, changes, message):
    with pytest.raises(ValueError, match=message):
        toys.model(**{**MODEL, **changes})


@pytest.mark.parametrize('arguments, message', [
    ((['road', ' '], ), "class names must be texts, got ' '"),
    ((['road'], [[1, 2, 3], [4, 5, 6]]), '1 classes need as many colours'),
])  # yapf: disable
def test_vocabulary_that_means_nothing_is_refused(learned, arguments, message):
    with pytest.raises(ValueError, match=message):
        with learned.speaking(*arguments):
            pass
    assert learned.heads.vocabulary is None


def test_task_whose_classes_have_no_names_is_refused_before_training(toys):
    task = toys.task('day', classes=('road', ''))
    with pytest.raises(ValueError, match="task 'day': class names must be"):
        build(toys).check_stream([task])


@pytest.mark.integration
def test_runner_learns_a_stream_of_two_label_sets(learn, tiny_config,
                                                  tmp_path):
    model = dict(
        MODEL,
        _delete_=True,
        data_preprocessor=TINY_MODEL['data_preprocessor'],
        test_cfg=dict(mode='whole'))
    cfg = tiny_config(
        tmp_path / 'run', ('day', 'infrared'), model=copy.deepcopy(model))
    run = learn(cfg)
    heads = run.runner.model.heads
    names = {name: heads.labels(name).classes for name in heads.names}
    assert names == dict(day=COLOUR_CLASSES, infrared=INFRARED_CLASSES)
    store = ExpertStore(run.work_dir / 'library')
    assert list(store.names) == ['day', 'infrared']
    # two columns of two rows
    results = json.loads((run.work_dir / 'results.json').read_text())
    assert all(v is not None for row in results['miou']['routed'] for v in row)
