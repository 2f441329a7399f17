# SPDX-License-Identifier: Apache-2.0
"""Which weights a base may have, and how it is told from others."""
from __future__ import annotations

import pytest
import torch

from mmseg.registry import MODELS
from mmseg_mile.adapters.base_weights import fingerprint


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


def pretrained(make, init_cfg):
    """Build the wrapper over a checkpoint."""
    backbone = make(change=dict(init_cfg=init_cfg))
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


def test_backbone_without_a_checkpoint_is_drawn_at_random(make):
    make().init_weights()


def test_stock_checkpoint_loads_into_the_wrapper_and_back(make, checkpoint):
    state, _ = checkpoint()
    backbone = make()
    backbone.load_state_dict(state, strict=True)
    assert fingerprint(backbone.base_state()) == fingerprint(state)


def test_own_checkpoint_loads_into_the_wrapper(make):
    source, backbone = make(), make()
    source.backbone.layer1[0].conv1.weight.data.zero_()
    backbone.load_state_dict(source.state_dict(), strict=True)
    assert backbone.fingerprint() == source.fingerprint()


def test_stock_checkpoint_of_a_whole_model_loads_at_a_prefix(make, checkpoint):
    state, _ = checkpoint()
    model = torch.nn.ModuleDict(dict(backbone=make()))
    model.load_state_dict({f'backbone.{k}': v for k, v in state.items()})
    assert model['backbone'].fingerprint() == fingerprint(state)


def test_base_of_a_library_is_taken_over(make, checkpoint):
    state, _ = checkpoint()
    backbone = make()
    backbone.load_base(state, fingerprint(state))
    assert backbone.fingerprint() == fingerprint(state)


def test_base_of_a_library_is_refused_over_another_pretrained_one(
        make, checkpoint):
    backbone = pretrained(make, checkpoint()[1])
    other = {k: v.clone() for k, v in backbone.base_state().items()}
    other['layer1.0.conv1.weight'] += 1
    stored, mine = fingerprint(other), backbone.fingerprint()
    with pytest.raises(
            ValueError, match=f'{stored[:16]}.*{mine[:16]}.*base.pth'):
        backbone.load_base(other, stored)
    assert backbone.fingerprint() == mine


def test_base_trained_on_the_first_task_replaces_the_pretrained_one(
        make, checkpoint):
    backbone = make(
        change=dict(init_cfg=checkpoint()[1]), base_training='first_task')
    backbone.init_weights()
    other = {k: v.clone() for k, v in backbone.base_state().items()}
    other['layer1.0.conv1.weight'] += 1
    backbone.load_base(other, fingerprint(other))
    assert backbone.fingerprint() == fingerprint(other)


def test_base_of_another_network_is_refused(make, checkpoint):
    state, _ = checkpoint(base_channels=8)
    with pytest.raises(ValueError, match='does not fit ResNetV1c'):
        make().load_base(state, fingerprint(state))
