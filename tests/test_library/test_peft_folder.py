# SPDX-License-Identifier: Apache-2.0
"""LoRA folders of plain PEFT, read and written."""
from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from mmseg_mile.adapters.targets import lora_scaling
from mmseg_mile.library.peft_folder import read_peft_folder, write_peft_folder

LORA = dict(r=2, lora_alpha=6, lora_dropout=0.0, use_rslora=False)


def network():
    """A layer whose name ends another one's."""
    return nn.ModuleDict(
        dict(
            fc=nn.Linear(3, 4),
            block=nn.ModuleDict(dict(fc=nn.Linear(4, 4))),
            norm=nn.BatchNorm1d(4)))


def adapter_of(*layers, rank=2):
    sizes = {'fc': (3, 4), 'block.fc': (4, 4)}
    return {
        f'{layer}.lora_{x}.weight': torch.randn(shape)
        for layer in layers
        for x, shape in (('A', (rank, sizes[layer][0])),
                         ('B', (sizes[layer][1], rank)))
    }


def save_by_peft(folder, **settings):
    """An adapter of all layers, every B of it drawn."""
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
    adapted.save_pretrained(folder)
    return adapted


def updates(adapter):
    """``s B A`` of each layer."""
    scaling = lora_scaling(adapter.lora_config)
    return {
        key[:-len('.lora_A.weight')]:
        scaling * adapter.lora[key.replace('lora_A', 'lora_B')] @ value
        for key, value in adapter.lora.items() if 'lora_A' in key
    }


@pytest.mark.parametrize('settings', [
    dict(),
    dict(use_rslora=True),
    dict(rank_pattern={'block.fc': 4}),
    dict(rank_pattern={'block.fc': 1}, alpha_pattern={'block.fc': 5}),
], ids=str)  # yapf: disable
def test_updates_are_those_that_peft_computes(tmp_path, settings):
    adapted = save_by_peft(tmp_path, **settings)
    adapter = read_peft_folder(tmp_path, network().state_dict())
    modules = adapted.base_model.model
    got = updates(adapter)
    assert set(got) == {'fc', 'block.fc'}
    for layer, update in got.items():
        torch.testing.assert_close(
            update,
            modules.get_submodule(layer).get_delta_weight('default'))
    ranks = {len(v) for k, v in adapter.lora.items() if 'lora_A' in k}
    assert ranks == {adapter.lora_config['r']}


def test_adapter_of_half_precision_is_read_as_peft_loads_it(tmp_path):
    save_by_peft(tmp_path)
    path = tmp_path / 'adapter_model.safetensors'
    save_file({k: v.half() for k, v in load_file(path).items()}, path)
    adapter = read_peft_folder(tmp_path, network().state_dict())
    assert {v.dtype for v in adapter.lora.values()} == {torch.float32}


@pytest.mark.parametrize('prefix', [
    '', 'base_model.model.', 'base_model.model.backbone.',
    'base_model.model.backbone.backbone.'
])
def test_keys_of_every_wrapping_are_understood(tmp_path, prefix):
    save_by_peft(tmp_path)
    path = tmp_path / 'adapter_model.safetensors'
    plain = {
        key.removeprefix('base_model.model.'): value
        for key, value in load_file(path).items()
    }
    save_file({prefix + key: value for key, value in plain.items()}, path)
    adapter = read_peft_folder(tmp_path, network().state_dict())
    assert set(adapter.lora) == set(plain)


def test_written_adapter_reaches_the_named_layers_only(tmp_path):
    net, lora = network(), adapter_of('fc')
    write_peft_folder(tmp_path, LORA, lora, {}, net.state_dict(), 'a' * 64)
    adapted = PeftModel.from_pretrained(net, tmp_path)
    assert not hasattr(adapted.base_model.model['block']['fc'], 'lora_A')
    torch.testing.assert_close(
        adapted.base_model.model['fc'].get_delta_weight('default'),
        3 * lora['fc.lora_B.weight'] @ lora['fc.lora_A.weight'])


def test_norm_layers_are_saved_whole(tmp_path):
    net = network()
    norm = {
        f'norm.{key}': value + 1
        for key, value in net['norm'].state_dict().items()
    }
    write_peft_folder(tmp_path, LORA, adapter_of('fc'), norm, net.state_dict(),
                      'a' * 64)
    adapted = PeftModel.from_pretrained(net, tmp_path)
    loaded = adapted.base_model.model['norm'].modules_to_save['default']
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, norm[f'norm.{key}'])


def test_what_is_read_is_what_was_written(tmp_path):
    lora = adapter_of('fc', 'block.fc')
    norm = {'norm.weight': torch.randn(4)}
    write_peft_folder(tmp_path, LORA, lora, norm,
                      network().state_dict(), 'a' * 64)
    adapter = read_peft_folder(tmp_path, network().state_dict())
    assert adapter.lora_config == LORA
    assert adapter.config.base_fingerprint == 'a' * 64
    for wanted, got in ((lora, adapter.lora), (norm, adapter.others)):
        assert set(wanted) == set(got)
        assert all(torch.equal(wanted[k], got[k]) for k in wanted)


def test_same_expert_is_written_in_the_same_bytes(tmp_path):
    lora = adapter_of('fc', 'block.fc')
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        write_peft_folder(tmp_path / name, LORA, lora, {},
                          network().state_dict(), 'a' * 64)
    for path in (tmp_path / 'a').iterdir():
        assert path.read_bytes() == (tmp_path / 'b' / path.name).read_bytes()


def test_pickle_is_not_read(tmp_path):
    save_by_peft(tmp_path)
    (tmp_path / 'adapter_model.safetensors').rename(tmp_path /
                                                    'adapter_model.bin')
    with pytest.raises(ValueError, match='safe_serialization=True.*pickle'):
        read_peft_folder(tmp_path, {})


@pytest.mark.parametrize('key, message', [
    ('fc.lora_magnitude_vector', 'no factor of a linear'),
    ('emb.lora_embedding_A', 'no factor of a linear'),
    ('other.lora_A.weight', "no pair .*'other'"),
])
def test_keys_that_are_no_pair_are_refused(tmp_path, key, message):
    save_by_peft(tmp_path)
    path = tmp_path / 'adapter_model.safetensors'
    save_file({
        **load_file(path), f'base_model.model.{key}': torch.zeros(2, 2)
    }, path)
    with pytest.raises(ValueError, match=message):
        read_peft_folder(tmp_path, network().state_dict())


def test_folder_without_any_pair_is_refused(tmp_path):
    save_by_peft(tmp_path)
    save_file({'norm.weight': torch.zeros(4)},
              tmp_path / 'adapter_model.safetensors')
    with pytest.raises(ValueError, match='for any layer'):
        read_peft_folder(tmp_path, network().state_dict())


def test_broken_tensors_are_refused(tmp_path):
    save_by_peft(tmp_path)
    path = tmp_path / 'adapter_model.safetensors'
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match='adapter_model.safetensors'):
        read_peft_folder(tmp_path, network().state_dict())
