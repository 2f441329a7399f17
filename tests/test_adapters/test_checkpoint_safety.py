# SPDX-License-Identifier: Apache-2.0
"""A pickle that would run code is refused, whichever way it comes."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

from mmseg.registry import MODELS

TRUSTED = 'MMSEG_MILE_TRUSTED_CHECKPOINTS'


class Intruder:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return (Path.mkdir, (self.folder, ))


@pytest.fixture
def harm(tmp_path):
    """Where a folder appears once foreign code ran."""
    return tmp_path / 'code ran'


@pytest.fixture
def pickled(tmp_path, resnet, harm):
    """A checkpoint of the small CNN with code beside its weights."""
    path = tmp_path / 'stock.pth'
    state = MODELS.build(resnet).state_dict()
    torch.save(dict(state_dict=state, meta=Intruder(harm)), path)
    return str(path)


def test_pickle_of_the_test_does_run(pickled, harm):
    torch.load(pickled, weights_only=False)
    assert harm.exists()


@pytest.mark.parametrize('prefix', [{}, dict(prefix='backbone')])
def test_pretrained_base_that_brings_code_is_refused(make, pickled, harm,
                                                     prefix):
    backbone = make(
        change=dict(
            init_cfg=dict(type='Pretrained', checkpoint=pickled, **prefix)))
    with pytest.raises(ValueError, match=f'{TRUSTED}={pickled}'):
        backbone.init_weights()
    assert not harm.exists()


def test_checkpoint_of_a_whole_model_that_brings_code_is_refused(
        make, pickled, harm):
    # what Runner.load_from and Runner.resume call
    with pytest.raises(ValueError, match='would run code that it brings'):
        load_checkpoint(make(), pickled)
    assert not harm.exists()


@pytest.mark.parametrize('name', [
    'http://host/a.pth', 'https://host/a.pth', 'open-mmlab://resnet50_v1c',
    'mmcls://mobilenet_v2'
])
def test_download_that_brings_code_is_refused(monkeypatch, pickled, harm,
                                              name):
    # as torch.hub reads what it has downloaded
    monkeypatch.setattr(
        'mmengine.runner.checkpoint.load_url',
        lambda url, **kwargs: torch.load(pickled, weights_only=False))
    with pytest.raises(ValueError, match=f"checkpoint '{name}'"):
        CheckpointLoader.load_checkpoint(name)
    assert not harm.exists()


def test_checkpoint_that_is_trusted_by_name_is_read(make, pickled, harm,
                                                    monkeypatch):
    monkeypatch.setenv(TRUSTED, f'other.pth,{pickled}')
    backbone = make(
        change=dict(init_cfg=dict(type='Pretrained', checkpoint=pickled)))
    backbone.init_weights()
    assert harm.exists()


def test_trust_in_one_checkpoint_covers_no_other(pickled, harm, monkeypatch):
    monkeypatch.setenv(TRUSTED, f'{pickled}.bak,stock.pth')
    with pytest.raises(ValueError, match='would run code'):
        CheckpointLoader.load_checkpoint(pickled)
    assert not harm.exists()


def test_checkpoint_of_mmengine_is_read_without_trust(tmp_path):
    path = tmp_path / 'iter_2.pth'
    written = dict(
        meta=dict(epoch=0, iter=2, seed=np.int64(3), time='today'),
        state_dict=dict(a=torch.ones(2)),
        message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1.0], [1]))))
    torch.save(written, path)
    read = CheckpointLoader.load_checkpoint(str(path))
    assert read['meta'] == written['meta']
    assert read['message_hub']['log_scalars']['loss'].current() == 1


def test_restriction_ends_with_the_loading(pickled, harm):
    with pytest.raises(ValueError, match='would run code'):
        CheckpointLoader.load_checkpoint(pickled)
    torch.load(pickled, weights_only=False)
    assert harm.exists()


@pytest.mark.parametrize('length', [0, 10, 100, 1000])
def test_cut_checkpoint_is_refused_by_name(tmp_path, length):
    path = tmp_path / 'cut.pth'
    torch.save(dict(a=torch.randn(1000)), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=f"checkpoint '{path}' is "):
        CheckpointLoader.load_checkpoint(str(path))


def test_missing_checkpoint_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.pth'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'none.pth'))
