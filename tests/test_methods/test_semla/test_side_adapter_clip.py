# SPDX-License-Identifier: Apache-2.0
"""SAN before its classes, and its parts, against mmseg's own."""
from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import mmcv
import pytest
import torch
from mmengine.registry import init_default_scope
from test_methods.test_semla import tiny_san

import mmseg.models.decode_heads.san_head as san_head
from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone
from mmseg_mile.gates.embedders import FeatureStatisticsEmbedder
from mmseg_mile.methods.semla import side_adapter_clip

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


def small_images():
    """What the image encoder gets."""
    return torch.nn.functional.interpolate(
        images(), scale_factor=0.5, mode='bilinear')


@torch.no_grad()
def test_masks_and_embeddings_are_those_of_mmsegs_own(san, stock):
    head = stock.decode_head
    features = stock.image_encoder(small_images())
    masks, biases = head.side_adapter_network(images(), features, [])
    embeds = head.rec_with_attnbias(biases[-1], features[-1])
    _, got_masks, got_embeds = san(images())
    torch.testing.assert_close(got_masks, masks[-1])
    torch.testing.assert_close(got_embeds, embeds.mT, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_image_embedding_is_clips_own(san, stock):
    patches, token = stock.image_encoder(small_images())[-1]
    recognition = stock.decode_head.rec_with_attnbias
    # CLIP, without any mask beside the class token
    tokens = torch.cat([token[None], patches.flatten(2).permute(2, 0, 1)])
    for layer in recognition.layers:
        tokens = layer(tokens)
    wanted = recognition.proj(recognition.ln_post(tokens[0]))
    got = san(images())[0][..., 0]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    embed = FeatureStatisticsEmbedder(stages=(0, ), statistics=('mean', ))
    backbone = LoRAExpertBackbone(tiny_san.SAN, lora=None)
    assert embed(backbone, images()).shape == (2, tiny_san.TEXT)


# -- weights -----------------------------------------------------------------


def from_checkpoint(path, state):
    """The backbone with the weights of a file."""
    torch.save(dict(state_dict=state), path)
    backbone = LoRAExpertBackbone(
        dict(
            tiny_san.SAN,
            init_cfg=dict(type='Pretrained', checkpoint=str(path))),
        lora=dict(r=1, lora_alpha=1))
    backbone.init_weights()
    return backbone


def test_checkpoint_of_mmsegs_own_loads_as_it_is(san, tmp_path):
    loaded = from_checkpoint(tmp_path / 'san.pth', tiny_san.stock_state(san))
    state = loaded.base_state()
    assert all(torch.equal(state[k], v) for k, v in san.state_dict().items())


def test_checkpoint_of_clip_alone_is_refused(san, tmp_path):
    clip = {k: v for k, v in tiny_san.stock_state(san).items()
            if 'side_adapter' not in k}  # yapf: disable
    with pytest.raises(ValueError, match='side_adapter_network'):
        from_checkpoint(tmp_path / 'clip.pth', clip)


def test_of_clip_only_the_position_embedding_ever_trains():
    backbone = LoRAExpertBackbone(
        tiny_san.SAN, dict(r=1, lora_alpha=1), base_training='first_task')
    assert not any(p.requires_grad for p in backbone.parameters())
    backbone.train_base()
    trains = {n.partition('.')[0] for n, p in
              backbone.backbone.named_parameters() if p.requires_grad
              and n != 'image_encoder.pos_embed'}  # yapf: disable
    assert trains == {'side_adapter_network'}
    assert backbone.backbone.image_encoder.pos_embed.requires_grad


def test_adapters_sit_on_the_way_of_an_image_only():
    backbone = LoRAExpertBackbone(tiny_san.SAN, dict(r=1, lora_alpha=1))
    assert {name.partition('.')[0] for name in backbone.targets} == {
        'image_encoder', 'side_adapter_network', 'rec_with_attnbias'
    }  # yapf: disable
    with pytest.raises(ValueError, match='forward is never called'):
        LoRAExpertBackbone(
            tiny_san.SAN,
            dict(
                r=2,
                lora_alpha=2,
                target_modules=r'text_encoder\..*\.(q|v)_proj'))


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


# -- class names -------------------------------------------------------------


@torch.no_grad()
def test_class_embeddings_are_those_of_mmsegs_own(san, stock):
    torch.testing.assert_close(
        san.embed_classes(CLASSES), stock.text_encoder())
    network = copy.deepcopy(san)
    network.text_encoder.texts.clear()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        in_full = network.embed_classes(CLASSES)
    assert torch.equal(in_full, san.embed_classes(CLASSES))


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


@pytest.mark.parametrize('classes, message', [
    ((), 'at least one class'),
    (('road', ' '), "class names must be texts, got ' '"),
    (('road', 3), 'class names must be texts, got 3'),
    (('road', 'sky', 'road'), "class 'road' is named twice"),
    (('road ' * 80, ), 'is too long for CLIP'),
])  # yapf: disable
def test_names_that_mean_nothing_are_refused(san, classes, message):
    with pytest.raises(ValueError, match=message):
        san.embed_classes(classes)


# -- point sampling ----------------------------------------------------------


def test_centres_of_pixels_have_their_values():
    maps = torch.tensor([[[[1.0, 3.0]]]])
    points = torch.tensor([[[0.25, 0.5], [0.75, 0.5], [0.5, 0.5]]])
    found = side_adapter_clip.point_sample(maps, points)
    assert found.tolist() == [[[1, 3, 2]]]


@pytest.mark.parametrize('options', [{}, dict(align_corners=True)])
def test_values_at_points_are_those_of_mmcvs_own(options):
    # from its file; the package may lack its compiled part
    path = Path(mmcv.__file__).parent / 'ops' / 'point_sample.py'
    spec = importlib.util.spec_from_file_location('stock_point_sample', path)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    maps, points = torch.randn(2, 3, 5, 7), torch.rand(2, 11, 2)
    torch.testing.assert_close(
        side_adapter_clip.point_sample(maps, points, **options),
        theirs.point_sample(maps, points, **options))


def test_what_mmcv_provides_is_left_alone(monkeypatch):
    theirs = object()
    monkeypatch.setattr(san_head, 'point_sample', theirs)
    side_adapter_clip.provide_point_sample()
    assert san_head.point_sample is theirs
