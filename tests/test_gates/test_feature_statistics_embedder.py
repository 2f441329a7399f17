# SPDX-License-Identifier: Apache-2.0
"""Embeddings whose values can be computed by hand."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmseg.registry import MODELS, TASK_UTILS
from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone
from mmseg_mile.gates.embedders import FeatureStatisticsEmbedder


@MODELS.register_module(force=True)
class DoublingBackbone(nn.Module):
    """Two levels: the image, and twice the image; or only the first."""

    def __init__(self, levels: int = 2) -> None:
        super().__init__()
        self.levels = levels
        self.conv = nn.Conv2d(2, 2, 1, bias=False)
        self.sizes: list = []

    def forward(self, x: Tensor) -> tuple[Tensor, ...] | Tensor:
        """Note the size; a single level comes without a tuple."""
        self.sizes.append(tuple(x.shape[2:]))
        x = self.conv(x)
        return (x, 2 * x) if self.levels == 2 else x


@pytest.fixture
def backbone() -> LoRAExpertBackbone:
    """The doubling backbone with an identity for a convolution."""
    return make()


def make(levels: int = 2) -> LoRAExpertBackbone:
    """Wrap the backbone."""
    wrapper = LoRAExpertBackbone(
        dict(type='DoublingBackbone', levels=levels),
        lora=dict(r=1, lora_alpha=1))
    wrapper.backbone.conv.weight.data.copy_(torch.eye(2)[..., None, None])
    wrapper.backbone.sizes.clear()
    return wrapper


def image() -> Tensor:
    """First channel 1 and 3 (mean 2, deviation 1), second constant 5."""
    first = torch.tensor([1.0, 3.0]).repeat(32, 16)
    return torch.stack([first, torch.full((32, 32), 5.0)])[None]


@pytest.mark.parametrize('options, wanted', [
    (dict(), [2, 5, 1, 0, 4, 10, 2, 0]),
    (dict(stages=(0, )), [2, 5, 1, 0]),
    (dict(stages=(1, 0), statistics=('mean', )), [4, 10, 2, 5]),
    (dict(stages=(-1, ), statistics=['std']), [2, 0]),
    (dict(stages=(0, ), statistics=('std', 'mean')), [2, 5, 1, 0]),
])  # yapf: disable
def test_statistics_stand_stage_by_stage(backbone, options, wanted):
    embedding = FeatureStatisticsEmbedder(**options)(backbone, image())
    torch.testing.assert_close(embedding, torch.tensor([wanted]).float())


def test_images_of_a_batch_are_embedded_on_their_own(backbone):
    embed = FeatureStatisticsEmbedder()
    batch = torch.cat([image(), 3 * image()])
    torch.testing.assert_close(
        embed(backbone, batch),
        torch.cat([embed(backbone, x[None]) for x in batch]))


def test_embedding_never_moves_when_experts_come(backbone):
    embed = FeatureStatisticsEmbedder()
    before = embed(backbone, image())
    backbone.add_expert('day')
    backbone.experts['day'].lora['conv.lora_B.weight'].fill_(1)
    backbone.train_expert('day')
    backbone.train()
    assert not torch.equal(backbone(image())[0], image())
    assert torch.equal(embed(backbone, image()), before)
    with backbone.using('day'):
        assert torch.equal(embed(backbone, image()), before)


def test_embedding_records_no_gradient(backbone):
    backbone.add_expert('day')
    backbone.train_expert('day')
    assert not FeatureStatisticsEmbedder()(backbone, image()).requires_grad


def test_backbone_that_returns_one_tensor_has_one_stage():
    embedding = FeatureStatisticsEmbedder()(make(levels=1), image())
    assert embedding.tolist() == [[2, 5, 1, 0]]


@pytest.mark.parametrize('scale, size, seen', [
    (1.0, (64, 128), (64, 128)),
    (0.5, (64, 128), (32, 64)),
    (0.25, (64, 256), (32, 64)),
    (0.5, (16, 96), (16, 48)),
])  # yapf: disable
def test_gate_sees_a_smaller_copy_of_at_least_32_pixels(
        backbone, scale, size, seen):
    FeatureStatisticsEmbedder(scale=scale)(backbone, torch.ones(1, 2, *size))
    assert backbone.backbone.sizes == [seen]


def test_smaller_copy_is_averaged_over_areas(backbone):
    x = image().repeat(1, 1, 2, 2)
    embedding = FeatureStatisticsEmbedder(stages=(0, ), scale=0.5)(backbone, x)
    # neighbours 1 and 3 fall together, so that nothing deviates
    torch.testing.assert_close(embedding, torch.tensor([[2., 5, 0, 0]]))


@pytest.mark.parametrize('stage', [2, -3])
def test_stage_out_of_range_is_refused(backbone, stage):
    embed = FeatureStatisticsEmbedder(stages=(0, stage))
    with pytest.raises(
            ValueError, match=rf'stages \[{stage}\] do not exist.*0 to 1'):
        embed(backbone, image())


@pytest.mark.parametrize('options, message', [
    (dict(statistics=()), 'embedder.statistics must be some of'),
    (dict(statistics=('max', )), r"statistics .* got \('max',\)"),
    (dict(stages=()), 'embedder.stages is empty'),
    (dict(scale=0), r'embedder.scale must be in \(0, 1\], got 0'),
    (dict(scale=1.5), 'embedder.scale .* got 1.5'),
])  # yapf: disable
def test_argument_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FeatureStatisticsEmbedder(**options)


def test_config_builds_it():
    config = dict(type='FeatureStatisticsEmbedder', stages=[0], scale=0.5)
    assert TASK_UTILS.build(config).stages == (0, )
