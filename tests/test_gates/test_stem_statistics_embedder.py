# SPDX-License-Identifier: Apache-2.0
"""Statistics of a base's first layer, computed by hand."""
from __future__ import annotations

import pytest
import torch
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from mmseg.registry import MODELS, TASK_UTILS
from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone
from mmseg_mile.gates.embedders import StemStatisticsEmbedder


class Tokens(nn.Module):
    """A patch embedding of one token per pixel, as mmseg's give it."""

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Tokens and their grid."""
        return x.flatten(2).transpose(1, 2), tuple(x.shape[2:])


@MODELS.register_module(force=True)
class StemmedBackbone(nn.Module):
    """A stem of one convolution, and all that lies behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 1, 1, bias=False)
        self.patches = Tokens()
        self.behind = nn.Conv2d(1, 1, 1)
        self.runs = 0

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Note that the whole was run."""
        self.runs += 1
        return (self.behind(self.stem(x)), )


@pytest.fixture
def backbone() -> LoRAExpertBackbone:
    """The stem doubles the image."""
    wrapper = LoRAExpertBackbone(
        dict(type='StemmedBackbone'), lora=dict(r=1, lora_alpha=1))
    wrapper.backbone.stem.weight.data.fill_(2)
    wrapper.backbone.runs = 0
    return wrapper


def image() -> Tensor:
    """Columns of 1, 5 and of 3, 7: half as large, columns of 3 and of 5."""
    row = torch.cat(
        [torch.tensor([1., 5]).repeat(16),
         torch.tensor([3., 7]).repeat(16)])
    return row.expand(64, 64)[None, None]


# Doubled: 2, 10, 6, 14, of mean 8 and squared deviation 36, 4, 4, 36.
FULL = [8.0, 20**0.5]
# Doubled: 6 and 10.
HALF = [8.0, 2.0]


@pytest.mark.parametrize('scales, wanted', [
    ((1.0, ), FULL),
    ((0.5, ), HALF),
    ((1.0, 0.5), FULL + HALF),
    ((0.5, 1.0), HALF + FULL),
])
def test_statistics_stand_scale_by_scale(backbone, scales, wanted):
    embedding = StemStatisticsEmbedder('stem', scales)(backbone, image())
    torch.testing.assert_close(embedding, torch.tensor([wanted]))


def test_nothing_behind_the_stem_is_run(backbone):
    StemStatisticsEmbedder('stem')(backbone, image())
    assert backbone.backbone.runs == 0


def test_tokens_are_positions_of_a_map(backbone):
    embedding = StemStatisticsEmbedder('patches', (1.0, ))(backbone, image())
    torch.testing.assert_close(embedding, torch.tensor([FULL]) / 2)


def test_images_of_a_batch_are_embedded_on_their_own(backbone):
    embed = StemStatisticsEmbedder('stem')
    batch = torch.cat([image(), 3 * image()])
    torch.testing.assert_close(
        embed(backbone, batch),
        torch.cat([embed(backbone, x[None]) for x in batch]))


def test_embedding_never_moves_when_experts_come(backbone):
    embed = StemStatisticsEmbedder('stem')
    before = embed(backbone, image())
    backbone.add_expert('day')
    backbone.experts['day'].lora['stem.lora_B.weight'].fill_(1)
    backbone.train_expert('day')
    backbone.train()
    assert torch.equal(embed(backbone, image()), before)
    with backbone.using('day'):
        assert torch.equal(embed(backbone, image()), before)


@pytest.mark.parametrize('config, module, channels', [
    (dict(type='MobileNetV2'), 'conv1', 32),
    (dict(type='ResNetV1c', depth=18, stem_channels=8), 'stem', 8),
    (dict(
        type='MixVisionTransformer',
        embed_dims=8,
        num_layers=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2]), 'layers.0.0', 8),
])
def test_networks_that_are_shipped_have_a_stem(config, module, channels):
    init_default_scope('mmseg')
    wrapper = LoRAExpertBackbone(config, lora=dict(r=1, lora_alpha=1)).eval()
    embedding = StemStatisticsEmbedder(module)(wrapper,
                                               torch.rand(2, 3, 64, 64))
    assert embedding.shape == (2, 4 * channels)
    assert not torch.equal(*embedding)


@pytest.mark.parametrize('module, message', [
    ('conv9', r"'conv9' is no module of the base, a StemmedBackbone; its own "
     r"are \['stem', 'patches', 'behind'\]"),
    ('', 'embedder.module is empty'),
])
def test_module_that_is_not_there_is_refused(backbone, module, message):
    with pytest.raises(ValueError, match=message):
        StemStatisticsEmbedder(module)(backbone, image())


def test_module_that_takes_no_image_is_refused(backbone):
    with pytest.raises(ValueError, match="'stem' does not take images of 3"):
        StemStatisticsEmbedder('stem')(backbone, torch.zeros(1, 3, 64, 64))


def test_module_that_gives_no_map_is_refused(backbone):
    backbone.backbone.flat = nn.Flatten()
    with pytest.raises(ValueError, match="'flat' gives neither"):
        StemStatisticsEmbedder('flat')(backbone, image())


@pytest.mark.parametrize('scales', [(), (0.0, ), (1.0, 1.5)])
def test_scales_out_of_range_are_refused(scales):
    with pytest.raises(ValueError, match=r'embedder.scales must be one or'):
        StemStatisticsEmbedder(scales=scales)


def test_config_builds_it():
    embed = TASK_UTILS.build(
        dict(type='StemStatisticsEmbedder', module='stem', scales=[1.0]))
    assert (embed.module, embed.scales) == ('stem', (1.0, ))
