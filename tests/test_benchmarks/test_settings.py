# SPDX-License-Identifier: Apache-2.0
"""What can be asked of a benchmark."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.benchmarks import Settings


@pytest.mark.parametrize('field, value, message', [
    ('size', 100, 'multiple of 32, got 100'),
    ('rounds', 0, 'at least 1, got 0'),
    ('experts', 5, 'exceed --batch, 4, got 5'),
    ('dtype', 'fp8', "('fp32', 'bf16'), got 'fp8'"),
    ('mode', 'tta', "('whole', 'slide'), got 'tta'"),
    ('threads', 0, 'at least 1, got 0'),
])
def test_value_out_of_range_is_refused(field, value, message):
    with pytest.raises(ValueError) as error:
        Settings(**{field: value})
    assert f'--{field}' in str(error.value)
    assert message in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason='has a CUDA device')
def test_missing_device_is_refused():
    with pytest.raises(ValueError, match='--device.*no CUDA device'):
        Settings(device='cuda')


def test_windows_are_half_the_image():
    assert Settings(
        size=512, mode='slide').test_cfg == dict(
            mode='slide', crop_size=(256, 256), stride=(192, 192))


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with Settings(threads=before + 1).computing():
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_autocast_follows_the_dtype():
    x = torch.ones(2, 2)
    with Settings(dtype='bf16').autocast():
        assert (x @ x).dtype == torch.bfloat16
    with Settings(dtype='fp32').autocast():
        assert (x @ x).dtype == torch.float32


def test_environment_says_what_ran():
    where = Settings(threads=3).environment()
    assert where['threads'] == 3
    assert where['device'] == 'cpu'
    assert where['cpu']
    assert {'torch', 'peft', 'mmseg'} <= set(where['versions'])
