# SPDX-License-Identifier: Apache-2.0
"""SAN before its classes: against mmseg's own, and under adapters."""
from __future__ import annotations

import copy
import pickle

import pytest
import tiny_san
import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope

from mmseg.registry import MODELS
from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone
from mmseg_mile.gates.embedders import FeatureStatisticsEmbedder
from mmseg_mile.methods.semla.side_adapter_clip import SideAdapterCLIP
from mmseg_mile.structures import Routing

CLASSES = ('road', 'traffic light', 'sky')


@pytest.fixture(autouse=True)
def mmseg_scope():
    """mmcv's layers ask for activations of mmseg."""
    init_default_scope('mmseg')


@pytest.fixture(scope='module')
def san():
    """A tiny network; never changed."""
    return tiny_san.build_san()


@pytest.fixture(scope='module')
def stock(san):
    """mmseg's own model with the same weights."""
    return tiny_san.build_stock(san, CLASSES)


def images(count=2, height=48, width=64):
    """Noise of two scales."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(count, 3, 3, 4, generator=generator)
    fine = torch.randn(count, 3, height, width, generator=generator)
    return torch.nn.functional.interpolate(coarse, (height, width)) + fine


@torch.no_grad()
def test_masks_and_embeddings_are_those_of_mmsegs_own(san, stock):
    x = images()
    head, small = stock.decode_head, torch.nn.functional.interpolate(
        x, scale_factor=0.5, mode='bilinear')
    features = stock.image_encoder(small)
    masks, biases = head.side_adapter_network(x, features, [])
    embeds = head.rec_with_attnbias(biases[-1], features[-1])
    _, got_masks, got_embeds = san(x)
    torch.testing.assert_close(got_masks, masks[-1])
    torch.testing.assert_close(got_embeds, embeds.mT, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_image_embedding_is_clips_own(san, stock):
    x = images()
    small = torch.nn.functional.interpolate(
        x, scale_factor=0.5, mode='bilinear')
    patches, token = stock.image_encoder(small)[-1]
    recognition = stock.decode_head.rec_with_attnbias
    # CLIP, without any mask beside the class token
    tokens = torch.cat([token[None], patches.flatten(2).permute(2, 0, 1)])
    for layer in recognition.layers:
        tokens = layer(tokens)
    wanted = recognition.proj(recognition.ln_post(tokens[0]))
    torch.testing.assert_close(san(x)[0][..., 0], wanted, rtol=1e-4, atol=1e-5)
    gate = FeatureStatisticsEmbedder(stages=(0, ), statistics=('mean', ))
    got = gate(LoRAExpertBackbone(tiny_san.SAN, lora=None), x)
    assert got.shape == (2, tiny_san.TEXT)


@torch.no_grad()
def test_class_embeddings_are_those_of_mmsegs_own(san, stock):
    torch.testing.assert_close(
        san.embed_classes(CLASSES), stock.text_encoder())


def test_checkpoint_of_mmsegs_own_loads_as_it_is(san, tmp_path):
    path = tmp_path / 'san.pth'
    torch.save(dict(state_dict=tiny_san.stock_state(san)), path)
    config = dict(
        tiny_san.SAN, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    loaded = LoRAExpertBackbone(config, dict(r=1, lora_alpha=1))
    loaded.init_weights()
    state = loaded.base_state()
    for key, value in san.state_dict().items():
        assert torch.equal(state[key], value)


def test_checkpoint_of_clip_alone_is_refused(san, tmp_path):
    path = tmp_path / 'clip.pth'
    torch.save(
        {
            key: value
            for key, value in tiny_san.stock_state(san).items()
            if 'side_adapter' not in key
        }, path)
    config = dict(
        tiny_san.SAN, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    backbone = LoRAExpertBackbone(config, dict(r=1, lora_alpha=1))
    with pytest.raises(ValueError, match='side_adapter_network'):
        backbone.init_weights()


def test_supervised_layers_are_there_in_training_only(san):
    network = copy.deepcopy(san)
    assert len(network(images())) == 3
    network.train()
    outputs = network(images())
    assert [tuple(x.shape[1:]) for x in outputs] == [
        (16, 1), (6, 6, 8), (16, 6), (6, 6, 8), (16, 6)
    ]  # yapf: disable


def test_names_are_encoded_once_and_again_with_other_weights(san):
    network = copy.deepcopy(san)
    network.text_encoder.texts.clear()
    calls, encode = [], network.text_encoder.encode_text
    network.text_encoder.encode_text = lambda *args, **kwargs: (calls.append(
        len(args[0])), encode(*args, **kwargs))[1]
    first = network.embed_classes(['road', 'sky'])
    assert calls == [2, 2]
    both = network.embed_classes(['sky', 'car', 'road'])
    # two prompts of the new name
    assert calls == [2, 2, 1, 1]
    assert torch.equal(both[[2, 0, 3]], first)
    state = {k: v + 0.5 for k, v in network.state_dict().items()}
    network.load_state_dict(state)
    assert not torch.allclose(network.embed_classes(['road', 'sky']), first)
    assert torch.equal(san.embed_classes(['road', 'sky']), first)


def test_names_are_encoded_in_full_precision(san):
    wanted = copy.deepcopy(san).embed_classes(CLASSES)
    network = copy.deepcopy(san)
    network.text_encoder.texts.clear()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(network.embed_classes(CLASSES), wanted)


def test_network_can_be_pickled(san):
    again = pickle.loads(pickle.dumps(san))
    assert torch.equal(again(images())[1], san(images())[1])


@pytest.mark.parametrize('classes, message', [
    ((), 'at least one class'),
    (('road', ''), "class names must be texts, got ''"),
    (('road', 3), 'class names must be texts, got 3'),
    (('road', 'sky', 'road'), "class 'road' is named twice"),
    (('road ' * 80, ), 'is too long for CLIP'),
])  # yapf: disable
def test_names_that_mean_nothing_are_refused(san, classes, message):
    with pytest.raises(ValueError, match=message):
        san.embed_classes(classes)


@pytest.mark.parametrize('changes, message', [
    (dict(san_cfg=dict(tiny_san.SAN_CFG, num_queries=5)),
     'num_queries=5 must equal maskgen_cfg.sos_token_num=6'),
    (dict(image_encoder=dict(tiny_san.IMAGE_ENCODER, output_cls_token=False)),
     'output_cls_token must be True'),
    (dict(text_encoder=dict(tiny_san.TEXT_ENCODER, vocabulary=['road'])),
     'text_encoder.vocabulary does not belong here'),
    (dict(text_encoder=dict(tiny_san.TEXT_ENCODER, dataset_name='ade')),
     'text_encoder.dataset_name does not belong here'),
    (dict(text_encoder=dict(tiny_san.TEXT_ENCODER, cat_bg=False)),
     'text_encoder.cat_bg must be True'),
    (dict(maskgen_cfg=dict(tiny_san.MASKGEN_CFG, cross_attn=True)),
     'maskgen_cfg.cross_attn must be False, got True'),
    (dict(maskgen_cfg=dict(
        tiny_san.MASKGEN_CFG, sos_token_format='learnable_token')),
     "maskgen_cfg.sos_token_format must be 'cls_token'"),
])  # yapf: disable
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_san.build_san(**changes)


def adapted():
    """The network with one expert, its adapters still without effect."""
    torch.manual_seed(0)
    backbone = LoRAExpertBackbone(tiny_san.SAN, dict(r=2, lora_alpha=2))
    san = tiny_san.build_san()
    backbone.load_base(san.state_dict(), '')
    backbone.add_expert('day')
    return backbone.eval()


def test_adapters_sit_on_the_way_of_an_image_only():
    parts = {name.partition('.')[0] for name in adapted().targets}
    assert parts == {
        'image_encoder', 'side_adapter_network', 'rec_with_attnbias'
    }  # yapf: disable


@torch.no_grad()
def test_every_adapter_moves_what_is_predicted():
    backbone = adapted()
    names = list(backbone.targets)
    assert len(names) > 40
    x = images(1)
    with backbone.base():
        before = backbone(x)
    for name in names:
        backbone.add_expert(name)
        up = backbone.experts[name].lora[f'{name}.lora_B.weight']
        up.copy_(torch.randn(up.shape))
        with backbone.using(name):
            after = backbone(x)
        assert any(not torch.allclose(a, b, atol=1e-4)
                   for a, b in zip(before[1:], after[1:])), name


def test_text_encoder_as_target_is_refused():
    with pytest.raises(ValueError, match='forward is never called'):
        LoRAExpertBackbone(
            tiny_san.SAN,
            dict(
                r=2,
                lora_alpha=2,
                target_modules=r'text_encoder\..*\.(q|v)_proj'))


@torch.no_grad()
def test_experts_per_image_are_those_of_each_alone():
    backbone = adapted()
    for name in ('night', 'fog'):
        backbone.add_expert(name)
        for key, value in backbone.experts[name].lora.items():
            if 'lora_B' in key:
                value.copy_(0.3 * torch.randn(value.shape))
    x = images(3)
    names = ('day', 'night', 'fog')
    weights = torch.tensor([[0, 1.0, 0], [0.2, 0.3, 0.5], [0, 0, 1]])
    nothing = torch.zeros(3, 3)
    routing = Routing(names, weights, nothing, torch.zeros(3).bool())
    with backbone.using(routing):
        together = backbone(x)
    for index in range(3):
        with backbone.using(routing.mixture(index)):
            alone = backbone(x[index:index + 1])
        for a, b in zip(together, alone):
            torch.testing.assert_close(
                a[index:index + 1], b, rtol=1e-3, atol=1e-4)


def test_of_clip_only_the_position_embedding_ever_trains():
    backbone = LoRAExpertBackbone(
        tiny_san.SAN, dict(r=1, lora_alpha=1), base_training='first_task')
    assert not any(p.requires_grad for p in backbone.parameters())
    backbone.train_base()
    trains = {n for n, p in backbone.backbone.named_parameters()
              if p.requires_grad}  # yapf: disable
    assert 'image_encoder.pos_embed' in trains
    assert {n.partition('.')[0] for n in trains - {'image_encoder.pos_embed'}
            } == {'side_adapter_network'}  # yapf: disable
    backbone.finish_training()
    assert not any(p.requires_grad for p in backbone.parameters())


def test_random_weights_are_drawn_everywhere():
    network = MODELS.build(copy.deepcopy(ConfigDict(tiny_san.SAN)))
    network.init_weights()
    assert isinstance(network, SideAdapterCLIP)
    for name, value in network.state_dict().items():
        assert value.isfinite().all() and value.abs().max() < 10, name
