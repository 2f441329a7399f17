# SPDX-License-Identifier: Apache-2.0
"""Which weights a base may have, and how it is told from others."""
from __future__ import annotations

import runpy
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

from mmseg.registry import MODELS
from mmseg_mile.adapters.base_weights import fingerprint, weights_only

TRAIN = Path(__file__).resolve().parents[2] / 'tools' / 'train.py'


@pytest.fixture
def checkpoint(resnet, tmp_path):
    """Write a checkpoint of the small CNN, some of it changed."""

    def write(change=lambda state: None, **config):
        torch.manual_seed(5)
        state = MODELS.build({**resnet, **config}).state_dict()
        change(state)
        path = tmp_path / 'base.pth'
        torch.save(dict(state_dict=state), path)
        return state, dict(type='Pretrained', checkpoint=str(path))

    return write


def pretrained(make, init_cfg, **options):
    """Build the wrapper over a checkpoint."""
    backbone = make(change=dict(init_cfg=init_cfg), **options)
    backbone.init_weights()
    return backbone


def test_fingerprint_depends_on_names_types_shapes_and_values():
    state = {'a': torch.zeros(2, 3)}
    others = [{'b': torch.zeros(2, 3)}, {'a': torch.zeros(3, 2)},
              {'a': torch.zeros(2, 3, dtype=torch.int32)},
              {'a': torch.full((2, 3), -0.0)}, {}]  # yapf: disable
    prints = {fingerprint(s) for s in [state, *others]}
    assert len(prints) == 6


def test_fingerprint_does_not_depend_on_order_or_strides():
    a, b = torch.randn(2, 3, 4, 5), torch.tensor(3)
    strided = a.to(memory_format=torch.channels_last)
    assert fingerprint({'a': a, 'b': b}) == fingerprint({'b': b, 'a': strided})


# -- pretrained weights ------------------------------------------------------


def test_pretrained_checkpoint_is_loaded_as_it_is(make, checkpoint):
    state, init_cfg = checkpoint()
    backbone = pretrained(make, init_cfg)
    assert backbone.fingerprint() == fingerprint(state)
    assert not any(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize('as_list', [False, True])
def test_checkpoint_that_lacks_weights_is_refused(make, checkpoint, as_list):
    _, init_cfg = checkpoint(lambda state: state.pop('layer1.0.conv1.weight'))
    with pytest.raises(
            ValueError, match=r'base.pth.*lacks 1 weights.*layer1.0.conv1'):
        pretrained(make, [init_cfg] if as_list else init_cfg)


def test_checkpoint_of_another_width_is_refused(make, checkpoint):
    # mmengine would warn and leave these weights as drawn
    _, init_cfg = checkpoint(base_channels=8)
    with pytest.raises(ValueError, match='in another shape'):
        pretrained(make, init_cfg)


def test_checkpoint_of_an_old_torch_needs_no_batch_counter(make, checkpoint):

    def drop(state):
        for key in [k for k in state if 'num_batches_tracked' in k]:
            del state[key]

    pretrained(make, checkpoint(drop)[1])


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_stock_checkpoint_loads_into_the_wrapper_and_back(
        make, checkpoint, prefix):
    state, _ = checkpoint()
    backbone = make()
    model = torch.nn.ModuleDict(dict(backbone=backbone))
    (model if prefix else backbone).load_state_dict(
        {
            prefix + k: v
            for k, v in state.items()
        }, strict=True)
    assert fingerprint(backbone.base_state()) == fingerprint(state)


# -- the base of a library ---------------------------------------------------


def other_base(backbone):
    """Tensors that differ in one weight, and their fingerprint."""
    state = {k: v.clone() for k, v in backbone.base_state().items()}
    state['layer1.0.conv1.weight'] += 1
    return state, fingerprint(state)


def test_base_of_a_library_is_refused_over_another_pretrained_one(
        make, checkpoint):
    backbone = pretrained(make, checkpoint()[1])
    mine, (state, stored) = backbone.fingerprint(), other_base(backbone)
    with pytest.raises(
            ValueError, match=f'{stored[:16]}.*{mine[:16]}.*base.pth'):
        backbone.load_base(state, stored)
    assert backbone.fingerprint() == mine


def test_base_trained_on_the_first_task_replaces_the_pretrained_one(
        make, checkpoint):
    backbone = pretrained(make, checkpoint()[1], base_training='first_task')
    state, stored = other_base(backbone)
    backbone.load_base(state, stored)
    assert backbone.fingerprint() == stored


def test_base_of_another_network_is_refused(make, checkpoint):
    state, _ = checkpoint(base_channels=8)
    with pytest.raises(ValueError, match='does not fit ResNetV1c'):
        make().load_base(state, fingerprint(state))


# -- checkpoints that hold more than weights ---------------------------------


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


@pytest.mark.parametrize('prefix', [{}, dict(prefix='backbone')])
def test_pretrained_base_that_brings_code_is_refused(make, pickled, harm,
                                                     prefix):
    init_cfg = dict(type='Pretrained', checkpoint=pickled, **prefix)
    with pytest.raises(
            ValueError, match=f"checkpoint '{pickled}' .* would run code"):
        pretrained(make, init_cfg)
    assert not harm.exists()
    # the restriction ends with the loading, and the pickle does run
    torch.load(pickled, weights_only=False)
    assert harm.exists()


@pytest.mark.parametrize('name', [
    '{pickled}', 'http://host/a.pth', 'open-mmlab://resnet50_v1c',
    'mmcls://mobilenet_v2'
])
def test_nothing_that_brings_code_is_read_where_weights_are(
        make, monkeypatch, pickled, harm, name):
    # as torch.hub reads what it has downloaded
    monkeypatch.setattr(
        'mmengine.runner.checkpoint.load_url',
        lambda url, **kwargs: torch.load(pickled, weights_only=False))
    with pytest.raises(ValueError, match='a checkpoint .* would run code'):
        with weights_only('a checkpoint'):
            # what Runner.load_from and Runner.resume call
            load_checkpoint(make(), name.format(pickled=pickled))
    assert not harm.exists()


def test_loaders_of_mmengine_stay_its_own():
    assert {load.__module__
            for load in CheckpointLoader._schemes.values()
            } == {'mmengine.runner.checkpoint'}


@pytest.mark.integration
@pytest.mark.parametrize('method', ['ExpertSegmentor', 'FineTuneSegmentor'])
def test_training_tool_runs_no_code_of_a_checkpoint(method, tiny_config, quick,
                                                    forget_runner, tmp_path,
                                                    pickled, harm,
                                                    monkeypatch):
    cfg = tiny_config(tmp_path / 'run', ('day', ))
    stock = cfg.model.backbone.backbone
    stock.init_cfg = dict(type='Pretrained', checkpoint=pickled)
    if method == 'FineTuneSegmentor':
        head, norm = cfg.model.decode_head, cfg.model.data_preprocessor
        cfg.model = dict(
            type=method,
            backbone=stock,
            decode_head=head,
            data_preprocessor=norm,
            test_cfg=dict(mode='whole'))
    cfg.dump(tmp_path / 'tiny.py')
    forget_runner()
    monkeypatch.setattr(sys, 'argv', ['train.py', str(tmp_path / 'tiny.py')])
    with quick(), pytest.raises(ValueError, match='would run code'):
        runpy.run_path(str(TRAIN), run_name='__main__')
    assert not harm.exists()


def test_checkpoint_of_mmengine_is_weights(tmp_path):
    path = tmp_path / 'iter_2.pth'
    written = dict(
        meta=dict(epoch=0, iter=2, seed=np.int64(3), time='today'),
        state_dict=dict(a=torch.ones(2)),
        message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1.0], [1]))))
    torch.save(written, path)
    with weights_only():
        read = CheckpointLoader.load_checkpoint(str(path))
    assert read['meta'] == written['meta']
    assert read['message_hub']['log_scalars']['loss'].current() == 1


@pytest.mark.parametrize('length', [0, 10, 100, 1000])
def test_cut_checkpoint_is_refused_by_name(make, checkpoint, length):
    _, init_cfg = checkpoint()
    path = Path(init_cfg['checkpoint'])
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=f"checkpoint '{path}' is broken"):
        pretrained(make, init_cfg)


@pytest.mark.parametrize('name, advice', [
    ('none.pth', "'none.pth' cannot .*not be found.*: name a file .*--pretr"),
    ('https://host/a.pth', r'no network.*download https://host/a.pth else.*'),
    ('mmcls://nothing', r"'mmcls://nothing' cannot be loaded \('nothing'\)"),
    ('mmcls://mobilenet_v2',
     r"'mmcls://mob.*no network.*download https://.*/mobilenet_v2.*\.pth else"
     ),
])
def test_checkpoint_that_is_not_there_is_named(make, monkeypatch, name,
                                               advice):

    def fetch(url, **kwargs):
        raise URLError('no network')

    monkeypatch.setattr('mmengine.runner.checkpoint.load_url', fetch)
    with pytest.raises(ValueError, match=advice):
        pretrained(make, dict(type='Pretrained', checkpoint=name))


def test_prefix_that_the_checkpoint_lacks_is_named(make, checkpoint):
    init_cfg = dict(checkpoint()[1], prefix='backbone.')
    with pytest.raises(ValueError, match=r'base.pth.*\(backbone. is not in'):
        pretrained(make, init_cfg)


def test_checkpoint_fits_the_backbone_of_a_baseline(resnet, checkpoint):
    state, init_cfg = checkpoint()
    config = dict(
        type='FineTuneSegmentor',
        backbone=dict(resnet, init_cfg=init_cfg),
        decode_head=dict(
            type='FCNHead',
            in_channels=resnet['base_channels'] * 8,
            channels=8,
            num_classes=2))
    model = MODELS.build(config)
    model.init_weights()
    assert fingerprint(model.backbone.state_dict()) == fingerprint(state)
    checkpoint(lambda state: state.pop('layer1.0.conv1.weight'))
    with pytest.raises(ValueError, match='lacks 1 weights.*layer1.0.conv1'):
        MODELS.build(config).init_weights()
