# SPDX-License-Identifier: Apache-2.0
"""Experts of three label sets, one text head, tiny random weights."""
from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from test_methods.test_semla import tiny_san
from tiny import (DAY, DUSK, NIGHT, TINY_MODEL, batch_of, learn_task,
                  loader_of, train)

from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg_mile.gates.simple_gates import NoExpertGate
from mmseg_mile.structures import Task

CLASSES = ('road', 'traffic light', 'sky')
SIZE = (48, 64)
# as many classes as night has, of which one has another name
FOG = Task('fog', ('mist', 'road'), ((4, 4, 4), (2, 2, 2)), {}, {})
STREAM = (DAY, NIGHT, FOG)
VOCABULARY = ('lamp', 'road', 'unicorn', 'sky')


@pytest.fixture(autouse=True)
def mmseg_scope():
    """Losses are looked up in mmseg's registries."""
    init_default_scope('mmseg')


# -- head --------------------------------------------------------------------


def head_of(num_classes=3, **options):
    """A head for texts of 16 values, in eval mode."""
    return MODELS.build(
        dict(tiny_san.HEAD, num_classes=num_classes, **options)).eval()


def named_head(san):
    """A head of CLASSES."""
    head = head_of()
    head.name_classes(san.embed_classes(CLASSES))
    return head


def samples(*levels):
    """Ground truth: an image per level, the upper half of that class."""
    found = []
    for level in levels:
        labels = torch.zeros(1, *SIZE, dtype=torch.long)
        labels[:, :SIZE[0] // 2] = level
        if level == 255:
            labels[:] = 255
        found.append(
            SegDataSample(
                gt_sem_seg=PixelData(data=labels),
                metainfo=dict(img_shape=SIZE)))
    return found


@torch.no_grad()
def test_label_is_the_text_that_lies_nearest_to_a_mask():
    head = head_of(2, in_channels=2)
    # road lies along the first axis, sky along the second
    head.name_classes(10 * torch.tensor([[1.0, 0], [0, 1], [-1, -1]]))
    # above, in the middle, below
    masks = torch.full((1, 3, 3, 1), -9.0)
    masks[0, range(3), range(3)] = 9.0
    embeds = torch.tensor([[[0.0, 1.0, -1.0], [1.0, 0.0, -1.0]]])
    inputs = [torch.zeros(1, 2, 1), masks, embeds]
    got = head.predict(inputs, [dict(img_shape=(3, 1))], None)
    assert got[0, :, :, 0].T.argmax(1)[:2].tolist() == [1, 0]
    assert got[0, 1, 0, 0] == pytest.approx(1.0, abs=1e-3)
    # the last one shows no class
    assert got[0, :, 2].max() < 1e-3


@torch.no_grad()
def test_prediction_is_mmsegs_own():
    san = tiny_san.build_san()
    stock = tiny_san.build_stock(san, CLASSES)
    x = torch.randn(2, 3, *SIZE)
    metas = [dict(img_shape=SIZE, ori_shape=SIZE)] * 2
    torch.testing.assert_close(
        named_head(san).predict(san(x), metas, None),
        stock.encode_decode(x, metas),
        rtol=1e-4,
        atol=1e-5)


@pytest.mark.parametrize('levels', [(1, 2), (2, 255), (255, 255)])
def test_losses_are_mmsegs_own(levels):
    san = tiny_san.build_san()
    stock = tiny_san.build_stock(san, CLASSES).train()
    head = named_head(san).train()
    x, truth = torch.randn(2, 3, *SIZE), samples(*levels)
    torch.manual_seed(5)
    wanted = stock.loss(x, truth)
    torch.manual_seed(5)
    got = head.loss(san.train()(x), truth, None)
    # mmseg numbers the supervised layer, we count it
    got = {f'decode.{k}'.replace('d0.', 'd1.'): v for k, v in got.items()}
    assert len(got) == 6
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('index', [1, 2])
def test_loss_of_what_is_no_number_is_none(index, value):
    san = tiny_san.build_san().train()
    inputs = [x.detach() for x in san(torch.randn(1, 3, *SIZE))]
    inputs[index][0, 0, 0] = value
    losses = named_head(san).train().loss(inputs, samples(1), None)
    assert not sum(losses.values()).isfinite()


def test_head_without_names_predicts_and_learns_nothing():
    inputs = [torch.zeros(1, 16, 1), torch.zeros(1, 4, 2, 2),
              torch.zeros(1, 16, 4)]  # yapf: disable
    head = head_of()
    assert not list(head.parameters())
    assert head.predict(inputs, [dict(img_shape=(2, 2))], None).isnan().all()
    assert sum(head.loss(inputs, samples(1), None).values()).isnan()


# -- segmentor ---------------------------------------------------------------


def build(**changes):
    """The model with the weights of the tiny network."""
    torch.manual_seed(7)
    config = dict(
        tiny_san.SEGMENTOR,
        data_preprocessor=TINY_MODEL['data_preprocessor'],
        test_cfg=dict(mode='whole'),
        init_from='base',
        keep_logits=True)
    model = MODELS.build(copy.deepcopy(ConfigDict({**config, **changes})))
    model.backbone.load_base(tiny_san.build_san().state_dict(), '')
    return model


@pytest.fixture(scope='module')
def learned_once(tmp_path_factory):
    """A model that learned three tasks of three label sets, and its files."""
    init_default_scope('mmseg')
    model, folder = build(), tmp_path_factory.mktemp('library')
    for task in STREAM:
        learn_task(model, task)
        model.save_task(task, folder, {})
    return model, folder


@pytest.fixture
def learned(learned_once):
    """A copy that a test may change."""
    return copy.deepcopy(learned_once[0])


def predict(model, task=NIGHT):
    """An image of a task, predicted."""
    return model.eval().test_step(batch_of(task, 5, 1))[0]


def logits(*args):
    return predict(*args).seg_logits.data


def test_training_changes_every_adapter_and_nothing_else():
    model = build()
    before = copy.deepcopy(model.backbone.state_dict())
    model.begin_task(DAY, loader_of(DAY))
    losses = train(model, DAY, 2)
    assert {'decode.loss_cls_ce', 'decode.d0.loss_mask_dice'} <= set(losses)
    model.end_task(DAY, loader_of(DAY))
    after = model.backbone.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    # B starts from zero, so that each has had a gradient
    lora = model.backbone.experts['day'].lora
    assert len(lora) > 80
    assert all(v.abs().max() > 0 for v in lora.values())


def test_each_expert_predicts_and_embeds_its_own_classes(learned):
    for task in STREAM:
        embeds = learned.texts.embed_classes(task.classes)
        (key, value), = learned.heads[task.name].state.items()
        assert key == 'class_embeds' and torch.equal(value, embeds)
        with learned.forced(task.name):
            sample = predict(learned, task)
        assert sample.classes == task.classes
        assert len(sample.seg_logits.data) == len(sample.classes)


def test_start_from_another_expert_keeps_the_names_of_its_own():
    model = build(init_from='previous')
    for task in (NIGHT, FOG):
        learn_task(model, task, 1)
    wanted = model.texts.embed_classes(FOG.classes)
    assert torch.equal(model.heads['fog'].state['class_embeds'], wanted)


def test_mixture_over_label_sets_has_the_classes_of_the_heaviest(learned):
    by_name = {task.name: task for task in STREAM}
    for task in STREAM:
        sample = predict(learned, task)
        assert len(sample.mixture) == 3
        assert sample.expert == max(sample.mixture, key=sample.mixture.get)
        assert sample.classes == by_name[sample.expert].classes


def test_mixture_is_the_network_with_all_adapters_added(learned):
    sample = predict(learned)
    by_hand = copy.deepcopy(learned)
    for name, weight in sample.mixture.items():
        expert = by_hand.backbone.experts[name]
        for target in expert.targets():
            layer = by_hand.texts.get_submodule(target)
            down, up = (
                expert.lora[f'{target}.lora_{x}.weight'].flatten(1)
                for x in 'AB')
            layer.weight.data += (weight * up @ down).view_as(layer.weight)
    gate = NoExpertGate()
    for name in by_hand.expert_names:
        gate.fit(name, torch.randn(4, tiny_san.TEXT))
    with by_hand.gated(gate), by_hand.using_vocabulary(sample.classes):
        wanted = predict(by_hand)
    assert wanted.expert is None
    torch.testing.assert_close(
        sample.seg_logits.data, wanted.seg_logits.data, rtol=1e-3, atol=1e-4)


# -- vocabulary --------------------------------------------------------------


def test_every_mixture_predicts_a_vocabulary(learned):
    with learned.using_vocabulary(VOCABULARY):
        sample = predict(learned)
    assert sample.classes == VOCABULARY and len(sample.mixture) == 3
    assert len(sample.seg_logits.data) == 4
    with learned.using_vocabulary(VOCABULARY[::-1]):
        torch.testing.assert_close(
            logits(learned).flip(0), sample.seg_logits.data)
    # as many classes as an expert has, and so the same module
    with learned.using_vocabulary(VOCABULARY[:2]):
        predict(learned)
    assert predict(learned).classes != VOCABULARY
    assert learned.heads['day'].classes == DAY.classes
    with pytest.raises(ValueError, match="unknown expert 'dawn'"):
        with learned.using_vocabulary(VOCABULARY):
            learned.heads.labels('dawn')


def test_late_fusion_takes_all_experts_in_a_vocabulary(learned):
    learned.fusion = 'logits'
    with learned.using_vocabulary(VOCABULARY):
        sample = predict(learned)
        wanted = 0
        for name, weight in sample.mixture.items():
            with learned.forced(name):
                wanted += weight * logits(learned).softmax(0)
    torch.testing.assert_close(
        sample.seg_logits.data.exp(), wanted, rtol=1e-3, atol=1e-4)


def test_base_alone_predicts_before_anything_is_learned():
    model = build(vocabulary=VOCABULARY)
    sample = predict(model)
    assert sample.classes == VOCABULARY and sample.expert is None
    assert sample.mixture == {} and sample.distances == {}
    assert not sample.ood and not sample.abstained
    stock = tiny_san.build_stock(tiny_san.build_san(), VOCABULARY)
    inputs = model.data_preprocessor(batch_of(NIGHT, 5, 1))['inputs']
    wanted = stock.encode_decode(inputs, [dict(img_shape=(32, 32))])
    torch.testing.assert_close(
        sample.seg_logits.data, wanted[0], rtol=1e-4, atol=1e-5)


def test_loaded_library_predicts_the_same_in_any_classes(learned_once):
    learned, folder = learned_once
    model = build(vocabulary=VOCABULARY)
    model.load_tasks(STREAM, folder)
    with learned.using_vocabulary(VOCABULARY):
        torch.testing.assert_close(logits(model), logits(learned))
    with model.using_vocabulary(['road']):
        assert predict(model).classes == ('road', )
    assert predict(model).classes == VOCABULARY
    # in the classes of its experts, it needs no look at the text encoder
    model.heads.vocabulary, calls = None, []
    model.texts.text_encoder.encode_text = calls.append
    torch.testing.assert_close(logits(model), logits(learned))
    assert not calls


def test_colours_are_those_of_the_experts_and_new_ones(learned):
    with learned.using_vocabulary(VOCABULARY):
        lamp, road, unicorn, sky = predict(learned).palette
    assert (lamp, road, sky) == ((3, 3, 3), (2, 2, 2), (1, 1, 1))
    assert len(unicorn) == 3 and unicorn not in (lamp, road, sky)
    many = learned.heads.label_space([f'thing {i}' for i in range(30)])
    assert len(set(many.palette)) == 30
    assert all(0 <= v <= 255 for colour in many.palette for v in colour)
    with learned.using_vocabulary(['sky'], [[1, 2, 3]]):
        assert predict(learned).palette == ((1, 2, 3), )


# -- refused -----------------------------------------------------------------


@pytest.mark.parametrize('changes, message', [
    (dict(decode_head=dict(
        type='FCNHead', in_channels=16, channels=8, num_classes=2)),
     'model.decode_head has no texts, got FCNHead'),
    (dict(backbone=dict(
        type='LoRAExpertBackbone',
        backbone=dict(type='ResNetV1c', depth=18),
        lora=dict(r=2, lora_alpha=4))),
     'model.backbone.backbone has no texts, got ResNetV1c'),
    (dict(backbone=dict(tiny_san.SEGMENTOR['backbone'], train_norm=True)),
     'train_norm must be False'),
    (dict(vocabulary=[]), 'at least one class'),
])  # yapf: disable
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


@pytest.mark.parametrize('arguments, message', [
    ((['road', ' '], ), "class names must be texts, got ' '"),
    ((['road'], [[1, 2, 3], [4, 5, 6]]), '1 classes need as many colours'),
])  # yapf: disable
def test_vocabulary_that_means_nothing_is_refused(learned, arguments, message):
    with pytest.raises(ValueError, match=message):
        with learned.using_vocabulary(*arguments):
            pass
    assert learned.heads.vocabulary is None


def test_task_whose_classes_have_no_names_is_refused_before_training():
    task = Task('day', ('road', ''), DAY.palette, {}, {})
    with pytest.raises(ValueError, match="task 'day': class names must be"):
        build().check_stream([DUSK, task])
