# SPDX-License-Identifier: Apache-2.0
"""Folders of plain PEFT, to and from the tensors of an expert."""
from __future__ import annotations

import json
from dataclasses import fields

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from tiny import assert_close, features
from torch import nn

from mmseg_mile.adapters.targets import lora_scaling
from mmseg_mile.library.peft_exchange import (OUT_PROJ_COUNT, Pair,
                                              export_peft, pack_pairs,
                                              read_peft_folder, unpack_pairs,
                                              write_peft_folder)

PARTS = ('q_proj', 'k_proj', 'v_proj', 'out_proj')
LORA = dict(r=2, lora_alpha=6, lora_dropout=0.0, use_rslora=False)

# -- attention ----------------------------------------------------------------


@pytest.fixture
def base():
    """State dict of an attention of width 4 beside a linear layer."""
    return nn.ModuleDict(
        dict(attn=nn.MultiheadAttention(4, 2), fc=nn.Linear(4,
                                                            4))).state_dict()


def pair():
    return Pair(torch.randn(2, 4), torch.randn(4, 2), 2.0)


def assert_equal(mine, theirs):
    assert set(mine) == set(theirs)
    for name, one in mine.items():
        assert torch.equal(one.down, theirs[name].down), name
        assert torch.equal(one.up, theirs[name].up), name
        assert one.scaling == theirs[name].scaling


@pytest.mark.parametrize('parts', [PARTS, PARTS[:1], PARTS[1:3], PARTS[3:]],
                         ids='+'.join)  # yapf: disable
def test_unpacking_undoes_packing_bit_for_bit(base, parts):
    pairs = {f'attn.{part}': pair() for part in parts}
    pairs['fc'] = pair()
    assert_equal(unpack_pairs(pack_pairs(pairs, base, 2), ['attn'], 2), pairs)


def test_projections_of_one_a_stay_at_their_rank(base):
    down = torch.randn(2, 4)
    pairs = {f'attn.{part}': pair()._replace(down=down) for part in PARTS}
    packed = pack_pairs(pairs, base, 2)
    assert packed['attn'].down.shape == (2, 4)
    assert_equal(unpack_pairs(packed, ['attn'], 2), pairs)


def test_peft_adds_the_update_of_an_output_projection_twice():
    """Where this fails, PEFT has changed: set OUT_PROJ_COUNT."""
    attention = nn.MultiheadAttention(4, 2, bias=False, batch_first=True)
    x = torch.randn(1, 3, 4)
    holder = nn.ModuleDict(dict(attn=attention))
    inject_adapter_in_model(
        LoraConfig(r=2, lora_alpha=2, target_modules=['attn']), holder)
    layer = holder['attn'].base_layer.out_proj
    nn.init.normal_(layer.lora_B['default'].weight)
    delta = layer.get_delta_weight('default').detach()
    plain = nn.MultiheadAttention(4, 2, bias=False, batch_first=True)
    plain.load_state_dict({
        'in_proj_weight':
        holder['attn'].in_proj_weight.detach(),
        'out_proj.weight':
        layer.base_layer.weight.detach() + OUT_PROJ_COUNT * delta
    })
    torch.testing.assert_close(holder['attn'](x, x, x)[0], plain(x, x, x)[0])
    assert delta.abs().max() > 0.1


# -- reading ------------------------------------------------------------------


def network():
    """A layer whose name ends another one's."""
    return nn.ModuleDict(
        dict(
            fc=nn.Linear(3, 4),
            block=nn.ModuleDict(dict(fc=nn.Linear(4, 4))),
            norm=nn.BatchNorm1d(4)))


@pytest.fixture
def saved(tmp_path):
    """``saved(config={}, tensors={}, **settings)``: PEFT's folder, changed.

    Every B of it is drawn. Returns the adapted network.
    """

    def save(config=None, tensors=None, **settings):
        adapted = get_peft_model(
            network(),
            LoraConfig(**{
                **LORA,
                **dict(target_modules=['fc']),
                **settings
            }))
        for key, value in adapted.named_parameters():
            if 'lora_B' in key:
                nn.init.normal_(value)
        adapted.save_pretrained(tmp_path)
        path = tmp_path / 'adapter_config.json'
        path.write_text(
            json.dumps({
                **json.loads(path.read_text()),
                **(config or {})
            }))
        path = tmp_path / 'adapter_model.safetensors'
        save_file({**load_file(path), **(tensors or {})}, path)
        return adapted.base_model.model

    return save


@pytest.fixture
def read(tmp_path):
    return lambda: read_peft_folder(tmp_path, network().state_dict())


@pytest.mark.parametrize('settings', [
    dict(),
    dict(use_rslora=True),
    dict(rank_pattern={'block.fc': 4}),
    dict(rank_pattern={'block.fc': 1}, alpha_pattern={'block.fc': 5}),
    dict(alpha_pattern={'fc': 1}),
], ids=str)  # yapf: disable
def test_updates_are_those_that_peft_computes(saved, read, settings):
    modules = saved(**settings)
    adapter = read()
    scaling = lora_scaling(adapter.config)
    layers = [k[:-len('.lora_A.weight')] for k in adapter.lora if '_A' in k]
    assert sorted(layers) == ['block.fc', 'fc']
    for layer in layers:
        down, up = (adapter.lora[f'{layer}.lora_{x}.weight'] for x in 'AB')
        assert len(down) == adapter.config['r']
        torch.testing.assert_close(
            scaling * up @ down,
            modules.get_submodule(layer).get_delta_weight('default'))


@pytest.mark.parametrize('config, base', [
    ({}, None),
    (dict(base_model_name_or_path='x/y'), None),
    (dict(revision='a' * 64), 'a' * 64),
])  # yapf: disable
def test_settings_version_and_base_are_told(saved, read, config, base):
    saved(dict(config, peft_version='0.17.0'), lora_dropout=0.1)
    adapter = read()
    assert adapter.config == dict(LORA, lora_dropout=0.1)
    assert adapter.peft_version == '0.17.0'
    assert adapter.base_fingerprint == base


@pytest.mark.parametrize('value', [(), (None, )], ids=['missing', 'null'])
def test_fields_without_a_value_have_the_defaults_of_peft(
        saved, read, tmp_path, value):
    saved(r=8, lora_alpha=8)
    wanted = read()
    path = tmp_path / 'adapter_config.json'
    kept = {
        key: item
        for key, item in json.loads(path.read_text()).items()
        if key in ('peft_type', 'target_modules')
    }
    absent = {field.name for field in fields(LoraConfig)} - set(kept)
    path.write_text(
        json.dumps({
            **kept,
            **{
                k: v
                for v in value
                for k in absent
            }
        }))
    found = read()
    assert found.config == wanted.config == dict(LORA, r=8, lora_alpha=8)
    assert set(found.lora) == set(wanted.lora)


def test_half_precision_is_read_as_peft_loads_it(saved, read, tmp_path):
    saved()
    path = tmp_path / 'adapter_model.safetensors'
    save_file({k: v.half() for k, v in load_file(path).items()}, path)
    assert {v.dtype for v in read().lora.values()} == {torch.float32}


@pytest.mark.parametrize('prefix', [
    '', 'base_model.model.', 'base_model.model.backbone.',
    'base_model.model.backbone.backbone.'
])
def test_keys_of_every_wrapping_are_understood(saved, read, tmp_path, prefix):
    saved()
    path = tmp_path / 'adapter_model.safetensors'
    plain = {
        key.removeprefix('base_model.model.'): value
        for key, value in load_file(path).items()
    }
    save_file({prefix + key: value for key, value in plain.items()}, path)
    assert set(read().lora) == set(plain)


KEY = 'base_model.model.'
ZERO = torch.zeros(2, 2)


@pytest.mark.parametrize('change, message', [
    (dict(config=dict(use_dora=True)), 'use_dora=.*more than'),
    (dict(config=dict(lora_bias=True)), 'lora_bias=.*more than'),
    (dict(config=dict(trainable_token_indices=[1])), 'trainable_token_ind'),
    (dict(config=dict(target_parameters=['a'])), 'target_parameters=.*more'),
    (dict(config=dict(layer_replication=[[0, 1]])), 'layer_replication=.*mo'),
    (dict(config=dict(something_of_tomorrow='on')), 'something_of_tomorrow'),
    (dict(config=dict(init_lora_weights='pissa')), 'pissa.*path_initial_mod'),
    (dict(config=dict(init_lora_weights='olora')), 'olora.*path_initial_mod'),
    (dict(config=dict(bias='all')), "bias='all'"),
    (dict(config=dict(peft_type='LOHA')), 'is no LoRA adapter'),
    (dict(config=dict(peft_type=None)), 'is no LoRA adapter'),
    (dict(config=dict(r=0)), 'adapter_config.json.*integer >= 1, got 0'),
    (dict(config=dict(lora_dropout='x')), "config.json: .*dropout .* got 'x'"),
    (dict(config=dict(alpha_pattern={'fc': None})),
     'adapter_config.json: lora.lora_alpha must be > 0, got None'),
    (dict(config=dict(r=3)), "rank 2 for '.*fc', adapter_config.json says 3"),
    (dict(tensors={KEY + 'fc.lora_magnitude_vector': ZERO}), 'no factor of'),
    (dict(tensors={KEY + 'emb.lora_embedding_A': ZERO}), 'no factor of a lin'),
    (dict(tensors={KEY + 'other.lora_A.weight': ZERO}), "no pair .*'other'"),
], ids=str)  # yapf: disable
def test_what_an_expert_cannot_hold_is_refused_by_name(saved, read, change,
                                                       message):
    saved(**change)
    with pytest.raises(ValueError, match=message):
        read()


@pytest.mark.parametrize('value', [torch.nan, torch.inf])
def test_adapter_that_diverged_is_refused_by_name(saved, read, tmp_path,
                                                  value):
    key = KEY + 'fc.lora_A.weight'
    saved(tensors={key: torch.full((2, 3), value)})
    path = tmp_path / 'adapter_model.safetensors'
    with pytest.raises(ValueError, match=f"{path}: '{key}' holds values that"):
        read()


@pytest.mark.parametrize('file, content, message', [
    ('adapter_config.json', None, 'adapter_config.json cannot be read'),
    ('adapter_config.json', b'{', 'adapter_config.json cannot be read'),
    ('adapter_config.json', b'[]', 'adapter_config.json is no LoRA adapter'),
    ('adapter_config.json', b'\xff', 'adapter_config.json cannot be read'),
    ('adapter_model.safetensors', None, 'safe_serialization=True.*pickle'),
    ('adapter_model.safetensors', b'PK', 'adapter_model.safetensors cannot'),
])  # yapf: disable
def test_broken_folder_is_refused_by_name(saved, read, tmp_path, file, content,
                                          message):
    saved()
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read()


def test_folder_without_any_pair_is_refused(saved, read, tmp_path):
    saved()
    save_file({'norm.weight': torch.zeros(4)},
              tmp_path / 'adapter_model.safetensors')
    with pytest.raises(ValueError, match='for any layer'):
        read()


# -- writing ------------------------------------------------------------------


@pytest.fixture
def written(make, tmp_path):
    """``written(layers, norm={}, folder=...)``: an expert in PEFT's form."""
    sizes = {'fc': (3, 4), 'block.fc': (4, 4)}

    def write(layers, norm=None, folder=tmp_path):
        lora = {
            f'{layer}.lora_{x}.weight': torch.randn(shape)
            for layer in layers
            for x, shape in (('A', (2, sizes[layer][0])),
                             ('B', (sizes[layer][1], 2)))
        }
        expert = make(
            'day',
            parts=dict(adapter=lora, norm=norm),
            configs=dict(adapter=LORA))
        folder.mkdir(exist_ok=True)
        write_peft_folder(folder, expert, network().state_dict())
        return lora

    return write


def test_written_adapter_reaches_the_named_layers_only(written, tmp_path):
    lora = written(['fc'])
    adapted = PeftModel.from_pretrained(network(), tmp_path).base_model.model
    assert not hasattr(adapted['block']['fc'], 'lora_A')
    torch.testing.assert_close(
        adapted['fc'].get_delta_weight('default'),
        3 * lora['fc.lora_B.weight'] @ lora['fc.lora_A.weight'])


def test_what_is_written_is_read_again_and_norm_layers_are_whole(
        written, read, tmp_path):
    norm = {
        f'norm.{key}': value + 1
        for key, value in network()['norm'].state_dict().items()
    }
    lora = written(['fc', 'block.fc'], norm)
    adapter = read()
    assert adapter.config == LORA
    assert adapter.base_fingerprint == 'b' * 64
    for wanted, got in ((lora, adapter.lora), (norm, adapter.others)):
        assert set(wanted) == set(got)
        assert all(torch.equal(wanted[k], got[k]) for k in wanted)
    adapted = PeftModel.from_pretrained(network(), tmp_path).base_model.model
    for key, value in adapted['norm'].modules_to_save['default'].state_dict(
    ).items():
        assert torch.equal(value, norm[f'norm.{key}'])


def test_plain_peft_gives_the_features_of_an_exported_expert(
        library, tmp_path, image):
    export_peft(library.store.root, 'night', tmp_path / 'lora')
    assert sorted(p.name for p in (tmp_path / 'lora').iterdir()) == [
        'adapter_config.json', 'adapter_model.safetensors'
    ]
    backbone = library.stock_backbone()
    base = features(backbone, image)
    adapted = PeftModel.from_pretrained(backbone, tmp_path / 'lora')
    adapted.eval()
    model = library.loaded()
    with model.backbone.using('night'):
        mine = features(model.backbone, image)
    assert_close(features(adapted, image), mine)
    # not that both do nothing
    assert max(float((a - b).abs().max()) for a, b in zip(mine, base)) > 0.1


def test_force_replaces_earlier_exports_only(cnn, tmp_path):
    for name in ('night', 'day'):
        export_peft(cnn.store.root, name, tmp_path / 'lora', force=True)
    with pytest.raises(ValueError, match='lora exists.*--force'):
        export_peft(cnn.store.root, 'day', tmp_path / 'lora')
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'me.jpg').write_bytes(b'')
    with pytest.raises(ValueError, match='more than a PEFT adapter'):
        export_peft(cnn.store.root, 'day', tmp_path / 'photos', force=True)
    assert (tmp_path / 'photos' / 'me.jpg').exists()


def test_expert_without_adapter_is_not_exported(store, make, tmp_path):
    store.save(make('fog', parts=dict(adapter={})))
    with pytest.raises(ValueError, match="'fog' has no adapter, only a head"):
        export_peft(store.root, 'fog', tmp_path / 'lora')
