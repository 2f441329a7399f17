# SPDX-License-Identifier: Apache-2.0
"""What an adapter's config says, and what is refused."""
from __future__ import annotations

import json

import pytest
from peft import LoraConfig

from mmseg_mile.library.peft_folder import PeftConfig


@pytest.fixture
def written(tmp_path):
    """``written(**changes)``: a config as PEFT writes it, then changed."""

    def write(**changes):
        LoraConfig(
            r=4, lora_alpha=8, target_modules=['fc']).save_pretrained(tmp_path)
        path = tmp_path / 'adapter_config.json'
        content = dict(json.loads(path.read_text()), **changes)
        path.write_text(json.dumps(content))
        return PeftConfig(tmp_path)

    return write


def test_settings_are_those_an_expert_keeps(written):
    assert written(lora_dropout=0.1).lora_config == dict(
        r=4, lora_alpha=8, lora_dropout=0.1, use_rslora=False)


def test_scaling_is_alpha_over_rank_or_its_root(written):
    assert written().scaling('fc', 4) == 2
    assert written(use_rslora=True).scaling('fc', 4) == 4


def test_patterns_change_the_layers_that_they_match(written):
    config = written(rank_pattern={'fc': 2}, alpha_pattern={'b.fc': 1})
    assert config.scaling('a.fc', 2) == 4
    assert config.scaling('b.fc', 2) == 0.5
    assert config.scaling('conv', 4) == 2


def test_rank_of_the_tensors_must_be_the_configs(written):
    with pytest.raises(
            ValueError, match="'fc' the rank 4, its tensors have 3"):
        written().scaling('fc', 3)


def test_base_is_told_by_a_fingerprint_only(written):
    assert written().base_fingerprint is None
    assert written(base_model_name_or_path='x/y').base_fingerprint is None
    assert written(revision='a' * 64).base_fingerprint == 'a' * 64


def test_version_of_peft_is_told(written):
    assert written(peft_version='0.17.0').peft_version == '0.17.0'


@pytest.mark.parametrize('key, value', [
    ('use_dora', True),
    ('lora_bias', True),
    ('trainable_token_indices', [1]),
    ('target_parameters', ['a']),
    ('layer_replication', [[0, 1]]),
    ('something_of_tomorrow', 'on'),
])  # yapf: disable
def test_what_is_more_than_lora_is_refused_by_name(written, key, value):
    with pytest.raises(ValueError, match=f'{key}=.*more than'):
        written(**{key: value})


@pytest.mark.parametrize('start', ['pissa', 'olora', 'corda', 'pissa_niter_4'])
def test_start_that_changes_the_base_is_refused(written, start):
    with pytest.raises(ValueError, match=f'{start}.*path_initial_model'):
        written(init_lora_weights=start)


def test_bias_is_refused(written):
    with pytest.raises(ValueError, match="bias='all'"):
        written(bias='all')


@pytest.mark.parametrize('kind', ['LOHA', None])
def test_other_adapters_are_refused(written, kind):
    with pytest.raises(ValueError, match='is no LoRA adapter'):
        written(peft_type=kind)


def test_rank_that_makes_no_sense_is_refused(written):
    with pytest.raises(ValueError, match='integer >= 1, got 0'):
        written(r=0)


def test_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match='adapter_config.json cannot be read'):
        PeftConfig(tmp_path)


@pytest.mark.parametrize('text', ['{', '[]', '\xff'])
def test_broken_config_is_refused(tmp_path, text):
    path = tmp_path / 'adapter_config.json'
    path.write_bytes(text.encode('latin-1'))
    with pytest.raises(ValueError, match='adapter_config.json'):
        PeftConfig(tmp_path)
