# SPDX-License-Identifier: Apache-2.0
import importlib.util
from pathlib import Path

import pytest
import torch
from mmengine.registry import init_default_scope
from safetensors.torch import save_file
from torch.nn import functional as F

from mmseg.registry import MODELS

SCRIPT = (
    Path(__file__).parents[2] / 'tools' / 'model_converters' /
    'dinov2_to_mmseg.py')
WIDTH, HEADS, DEPTH, PATCH = 12, 3, 2, 7


def load_script():
    """The script as a module, as ``python SCRIPT`` runs it."""
    spec = importlib.util.spec_from_file_location('dinov2_converter', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def dinov2():
    """Weights of a ViT of two blocks and a grid of 2 x 3, DINOv2's keys."""
    shapes = {
        'cls_token': (1, 1, WIDTH),
        'pos_embed': (1, 1 + 6, WIDTH),
        'mask_token': (1, WIDTH),
        'patch_embed.proj.weight': (WIDTH, 3, PATCH, PATCH),
        'patch_embed.proj.bias': (WIDTH, ),
        'norm.weight': (WIDTH, ),
        'norm.bias': (WIDTH, ),
    }
    layers = {
        'attn.qkv': (3 * WIDTH, WIDTH),
        'attn.proj': (WIDTH, WIDTH),
        'mlp.fc1': (4 * WIDTH, WIDTH),
        'mlp.fc2': (WIDTH, 4 * WIDTH)
    }
    for block in (f'blocks.{n}.' for n in range(DEPTH)):
        for norm in ('norm1', 'norm2'):
            shapes[f'{block}{norm}.weight'] = (WIDTH, )
            shapes[f'{block}{norm}.bias'] = (WIDTH, )
        for layer, shape in layers.items():
            shapes[f'{block}{layer}.weight'] = shape
            shapes[f'{block}{layer}.bias'] = shape[:1]
        shapes[f'{block}ls1.gamma'] = shapes[f'{block}ls2.gamma'] = (WIDTH, )
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def reference(w, images):
    """Patch tokens after each block, the last one normalised: the formulas."""

    def norm(x, name):
        return F.layer_norm(x, (WIDTH, ), w[f'{name}.weight'],
                            w[f'{name}.bias'], 1e-6)

    def linear(x, name):
        return x @ w[f'{name}.weight'].T + w[f'{name}.bias']

    x = F.conv2d(images, w['patch_embed.proj.weight'],
                 w['patch_embed.proj.bias'], PATCH)
    grid = x.shape[2:]
    cls = w['cls_token'].expand(len(x), 1, WIDTH)
    x = torch.cat([cls, x.flatten(2).transpose(1, 2)], 1) + w['pos_embed']
    outputs = []
    for block in (f'blocks.{n}.' for n in range(DEPTH)):
        qkv = linear(norm(x, f'{block}norm1'), f'{block}attn.qkv')
        q, k, v = (
            part.unflatten(2, (HEADS, -1)).transpose(1, 2)
            for part in qkv.chunk(3, dim=2))
        weights = (q @ k.transpose(2, 3) / (WIDTH / HEADS)**0.5).softmax(3)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        x = x + w[f'{block}ls1.gamma'] * linear(mixed, f'{block}attn.proj')
        hidden = F.gelu(linear(norm(x, f'{block}norm2'), f'{block}mlp.fc1'))
        x = x + w[f'{block}ls2.gamma'] * linear(hidden, f'{block}mlp.fc2')
        outputs.append(x)
    outputs[-1] = norm(x, 'norm')
    return [out[:, 1:].transpose(1, 2).unflatten(2, grid) for out in outputs]


def vision_transformer(path):
    init_default_scope('mmseg')
    backbone = MODELS.build(
        dict(
            type='VisionTransformer',
            img_size=(2 * PATCH, 3 * PATCH),
            patch_size=PATCH,
            patch_bias=True,
            embed_dims=WIDTH,
            num_layers=DEPTH,
            num_heads=HEADS,
            out_indices=tuple(range(DEPTH)),
            final_norm=True,
            norm_cfg=dict(type='LN', eps=1e-6),
            init_cfg=dict(type='Pretrained', checkpoint=str(path))))
    backbone.init_weights()
    backbone.eval()
    return backbone


@pytest.mark.parametrize('ending', ['pth', 'safetensors'])
def test_converted_dinov2_computes_what_its_formulas_say(
        dinov2, tmp_path, ending):
    source, out = tmp_path / f'dinov2.{ending}', tmp_path / 'mmseg.pth'
    (torch.save if ending == 'pth' else save_file)(dinov2, source)
    load_script().main([str(source), str(out)])
    backbone = vision_transformer(out)
    assert set(torch.load(out)) == set(backbone.state_dict())
    images = torch.randn(2, 3, 2 * PATCH, 3 * PATCH)
    with torch.no_grad():
        for mine, wanted in zip(
                backbone(images), reference(dinov2, images), strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)


def test_weights_with_keys_of_mmseg_become_single_precision(dinov2, tmp_path):
    convert = load_script().convert
    once = convert(dinov2)
    twice = convert({name: value.half() for name, value in once.items()})
    assert twice.keys() == once.keys()
    for name, value in twice.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, once[name].half().float())


def test_vit_without_layer_scale_is_renamed_only(dinov2):
    plain = {k: v for k, v in dinov2.items() if '.ls' not in k}
    weights = load_script().convert(plain)
    assert torch.equal(weights['layers.1.attn.attn.out_proj.weight'],
                       plain['blocks.1.attn.proj.weight'])


@pytest.mark.parametrize('name', [
    'register_tokens', 'blocks.0.mlp.w12.weight', 'blocks.0.attn.q_norm.weight'
])
def test_weights_without_a_place_are_refused(dinov2, name):
    with pytest.raises(ValueError, match=name):
        load_script().convert({**dinov2, name: torch.zeros(1)})


def test_file_of_more_than_tensors_is_refused(dinov2, tmp_path):
    torch.save(dict(model=dinov2, epoch=3), tmp_path / 'run.pth')
    with pytest.raises(ValueError, match="'epoch'"):
        load_script().main(
            [str(tmp_path / 'run.pth'),
             str(tmp_path / 'out.pth')])
