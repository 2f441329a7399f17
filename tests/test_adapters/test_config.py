# SPDX-License-Identifier: Apache-2.0
"""The ``lora`` field of a config."""
from __future__ import annotations

import pytest

from mmseg_mile.adapters.targets import check_lora_config, lora_scaling


def test_arguments_for_peft_come_without_the_targets():
    checked = check_lora_config(
        dict(r=4, lora_alpha=8, target_modules=['qkv']))
    assert checked == dict(
        r=4, lora_alpha=8, lora_dropout=0.0, use_rslora=False)


@pytest.mark.parametrize('change, message', [
    (dict(rank=4), r"unknown keys \['rank'\]; allowed: .*'r'"),
    (dict(r=0), r'lora.r \(the rank\) must be an integer >= 1, got 0'),
    (dict(r=None), 'lora.r .* got None'),
    (dict(r=2.5), 'lora.r .* got 2.5'),
    (dict(r=True), 'lora.r .* got True'),
    (dict(lora_alpha=0), 'lora.lora_alpha must be > 0, got 0'),
    (dict(lora_alpha='8'), "lora.lora_alpha must be > 0, got '8'"),
    (dict(lora_dropout=1.0), r'lora.lora_dropout must be in \[0, 1\)'),
    (dict(lora_dropout=-0.1), 'lora.lora_dropout .* got -0.1'),
])  # yapf: disable
def test_wrong_value_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        check_lora_config({'r': 4, 'lora_alpha': 8, **change})


@pytest.mark.parametrize('field', ['r', 'lora_alpha'])
def test_rank_and_alpha_have_no_default(field):
    config = dict(r=4, lora_alpha=8)
    del config[field]
    with pytest.raises(ValueError, match=f'lora.{field} .*None'):
        check_lora_config(config)


def test_scaling_is_alpha_over_rank():
    assert lora_scaling(dict(r=4, lora_alpha=8)) == 2


def test_rank_stabilised_scaling_is_alpha_over_root_of_rank():
    assert lora_scaling(dict(r=4, lora_alpha=8, use_rslora=True)) == 4


def test_no_adapter_has_a_config_that_files_can_name():
    config = check_lora_config(None)
    assert config['r'] == 1 and lora_scaling(config) == 1
