# SPDX-License-Identifier: Apache-2.0
"""One forward for images of several experts.

That it equals merged weights is tested over many backbones in
``test_backbone_families.py``.
"""
from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

from mmseg_mile.adapters.adapter import Adapter
from mmseg_mile.adapters.adapter_library import TensorSlots
from mmseg_mile.adapters.low_rank_pass import LowRankPass, low_rank_terms


class Net(nn.Module):
    """A convolution, a norm layer and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Give (B, H' W', 4)."""
        return self.fc(self.norm(self.conv(x)).flatten(2).transpose(1, 2))


class SequenceFirst(Net):
    """The same with positions before images, as some transformers do."""

    def forward(self, x: Tensor) -> Tensor:
        """Give (H' W', B, 4)."""
        x = self.norm(self.conv(x)).flatten(2)
        return self.fc(x.permute(2, 0, 1))


class SequenceFirstNorm(Net):
    """A norm layer that sees positions before images."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        """Give (H' W', B, 4)."""
        return self.last(super().forward(x).transpose(0, 1))


class Mixing(Net):
    """Takes the mean of the batch off each image."""

    def forward(self, x: Tensor) -> Tensor:
        """Give (B, H' W', 4)."""
        return super().forward(x - x.mean(0))


def adapter(value: float, *, rank: int = 2, norm: bool = False) -> Adapter:
    """An adapter of both layers, and if asked for of the norm layer."""
    lora = {
        'conv.lora_A.weight': torch.randn(rank, 3, 3, 3),
        'conv.lora_B.weight': torch.randn(4, rank, 1, 1),
        'fc.lora_A.weight': torch.randn(rank, 4),
        'fc.lora_B.weight': torch.randn(4, rank)
    }
    own = {'norm.bias': torch.full((4, ), value)} if norm else {}
    return Adapter(lora, own, value)


@pytest.fixture
def net() -> Net:
    """A frozen network in eval mode."""
    return Net().eval().requires_grad_(False)


def run(net: Net, mixtures: list) -> Tensor:
    """One pass over as many images as the mixtures have."""
    count = sum(number for _, number in mixtures)
    low_rank = LowRankPass(net, ['conv', 'fc'])
    return low_rank(torch.randn(count, 3, 8, 8), mixtures, TensorSlots(net))


def test_factors_of_a_single_expert_are_not_copied():
    own = adapter(3.0)
    term = low_rank_terms([(0.5, own)])['fc']
    assert term.down is own.lora['fc.lora_A.weight']
    assert term.up is own.lora['fc.lora_B.weight']
    assert term.scale == 1.5


@pytest.mark.parametrize('layer', ['conv', 'fc'])
def test_factors_of_several_experts_make_the_weighted_sum(layer):
    mixture = [(0.25, adapter(2.0)), (0.75, adapter(-1.0, rank=3))]
    term = low_rank_terms(mixture)[layer]
    assert len(term.down) == 5
    wanted = sum(w * a.scaling * a.lora[f'{layer}.lora_B.weight'].flatten(
        1) @ a.lora[f'{layer}.lora_A.weight'].flatten(1) for w, a in mixture)
    got = term.scale * term.up.flatten(1) @ term.down.flatten(1)
    torch.testing.assert_close(got, wanted)


def test_layer_that_one_of_two_experts_adapts_gets_its_share():
    one, two = adapter(2.0), adapter(2.0)
    for kind in 'AB':
        del two.lora[f'conv.lora_{kind}.weight']
    terms = low_rank_terms([(0.25, one), (0.75, two)])
    assert set(terms) == {'conv', 'fc'}
    assert terms['conv'].scale == 0.5 and len(terms['conv'].down) == 2


@pytest.mark.parametrize('kind, layer', [
    (SequenceFirst, 'fc'),
    (SequenceFirstNorm, 'last'),
    (Mixing, 'conv'),
])  # yapf: disable
def test_backbone_that_takes_no_images_apart_is_refused(kind, layer):
    with pytest.raises(
            ValueError,
            match=rf"'low_rank' cannot serve {kind.__name__}: \[.*'{layer}'"
            r".*\] do not keep .* use executor='merged'"):
        LowRankPass(kind().eval(), ['conv', 'fc'])


def test_base_has_its_own_layers_back(net):
    before = dict(net.named_modules())
    values = {k: v.clone() for k, v in net.state_dict().items()}
    run(net, [([(1.0, adapter(1.0, norm=True))], 1), ([], 2)])
    assert dict(net.named_modules()) == before
    assert all(torch.equal(v, values[k]) for k, v in net.state_dict().items())


def test_base_has_its_own_layers_back_when_a_pass_fails(net):
    before, wrong = dict(net.named_modules()), adapter(1.0)
    wrong.lora['fc.lora_A.weight'] = torch.randn(2, 9)
    with pytest.raises(RuntimeError):
        run(net, [([(1.0, wrong)], 2)])
    assert dict(net.named_modules()) == before


def test_building_a_pass_leaves_the_base_alone(net):
    before = dict(net.named_modules())
    LowRankPass(net, ['conv', 'fc'])
    assert dict(net.named_modules()) == before
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_adapters_leave_memory_with_their_last_owner(net):
    own = adapter(1.0, norm=True)
    kept = [weakref.ref(v) for v in (*own.lora.values(), *own.norm.values())]
    low_rank = LowRankPass(net, ['conv', 'fc'])
    low_rank(torch.randn(1, 3, 8, 8), [([(1.0, own)], 1)], TensorSlots(net))
    del own
    assert not any(tensor() is not None for tensor in kept)
