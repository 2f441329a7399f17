# SPDX-License-Identifier: Apache-2.0
"""Embeddings on images whose statistics can be seen, and views of images."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmseg.registry import MODELS, TASK_UTILS
from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone
from mmseg_mile.gates.embedders import (PERTURBATIONS,
                                        FeatureStatisticsEmbedder,
                                        ThumbnailEmbedder, augmented_views,
                                        deviation, perturbed_image, small_copy)


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
    (dict(), [4, 10]),
    (dict(stages=None, statistics=('mean', 'std')),
     [2, 5, 1, 0, 4, 10, 2, 0]),
    (dict(stages=(0, ), statistics=('mean', 'std')), [2, 5, 1, 0]),
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
    assert embedding.tolist() == [[2, 5]]


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
    embedding = FeatureStatisticsEmbedder((0, ), ('mean', 'std'),
                                          0.5)(backbone, x)
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


def test_pixels_are_means_of_areas_channel_by_channel():
    image = torch.arange(16.).view(1, 1, 4, 4)
    images = torch.cat([image, image + 100], 1)
    # of rows 0 1 / 4 5, 2 3 / 6 7, ...
    means = [2.5, 4.5, 10.5, 12.5]
    got = ThumbnailEmbedder((2, 2))(None, images)
    assert got.tolist() == [means + [m + 100 for m in means]]


@pytest.mark.parametrize('height, width', [(96, 128), (48, 64), (37, 90),
                                           (20, 20)])
def test_images_of_any_size_give_as_many_values(height, width):
    embedder = TASK_UTILS.build(dict(type='ThumbnailEmbedder'))
    got = embedder(None, torch.rand(2, 3, height, width))
    assert got.shape == (2, 3 * 48 * 64)


def test_values_are_float32_whatever_the_images_are():
    got = ThumbnailEmbedder((2, 2))(None, torch.ones(1, 3, 4, 4).half())
    assert got.dtype is torch.float32


@pytest.mark.parametrize('size', [(48, ), (0, 64), (1, 2, 3)])
def test_wrong_thumbnail_size_is_refused(size):
    with pytest.raises(ValueError, match='embedder.size must be height and'):
        ThumbnailEmbedder(size)


@pytest.mark.parametrize('size, scale, wanted', [
    ((128, 256), 0.5, (64, 128)),
    ((128, 256), 0.125, (32, 32)),
    ((30, 256), 0.25, (30, 64)),
    ((65, 200), 0.5, (32, 100)),
])
def test_sides_shrink_to_no_less_than_32_pixels(size, scale, wanted):
    assert small_copy(torch.zeros(1, 3, *size), scale).shape[2:] == wanted


def test_pixels_are_averaged():
    image = torch.tensor([[0., 4], [2, 6]]).repeat(32, 32)[None, None]
    assert small_copy(image, 0.5).unique().tolist() == [3]


def test_image_of_the_size_wanted_is_not_copied():
    image = torch.rand(1, 3, 64, 64)
    assert small_copy(image, 1.0) is image


def test_deviation_is_that_of_torch():
    features = torch.rand(2, 3, 500) * torch.tensor([1e-3, 1, 100])[:, None]
    torch.testing.assert_close(
        deviation(features, features.mean(2)), features.std(2, unbiased=False))


def test_small_spread_about_a_large_mean_is_not_lost():
    features = 1000 + torch.tensor([[[-0.5, 0.5, 0.5, -0.5]]])
    assert deviation(features, features.mean(2)).tolist() == [[0.5]]


def test_constant_map_has_none():
    features = torch.full((1, 2, 7), 0.1)
    assert float(deviation(features, features.mean(2)).max()) < 1e-7


def noise_image(seed, dtype=torch.uint8, channels=3):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(channels, 24, 32, generator=generator)
    return (40 + 150 * values).to(dtype)


def roughness(image):
    return float((image[:, :, 1:] - image[:, :, :-1]).abs().mean())


def test_view_follows_from_the_image_and_its_number_alone():
    image = noise_image(0)
    first = perturbed_image(image)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(perturbed_image(image.clone()), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(perturbed_image(image, 1), first)
    assert not torch.equal(first, image)


def test_light_sharpness_and_noise_vary_from_image_to_image():
    images = [noise_image(seed).float() for seed in range(40)]
    copies = [perturbed_image(image) for image in images]
    gains = [float(c.mean() / i.mean()) for c, i in zip(copies, images)]
    assert 0.7 < min(gains) < 0.85 and 1.2 < max(gains) < 1.4
    # of white noise most is averaged away where it is softened
    ratios = [roughness(c) / roughness(i) for c, i in zip(copies, images)]
    assert min(ratios) < 0.4 < 0.7 < max(ratios)


def test_noise_is_added():
    # without texture of its own there is nothing to soften
    image = torch.zeros(1, 24, 32)
    image[:, 12:] = 100
    copy = perturbed_image(image)
    assert copy[:, :6].std() > 0


def test_only_what_is_named_changes():
    image = noise_image(0).float()
    light, soft, grain = (
        perturbed_image(image, 0, [kind]) for kind in PERTURBATIONS)
    # light: straight through the mean, so that correlation stays
    pixels = torch.stack([image.flatten(), light.flatten()])
    assert torch.corrcoef(pixels)[0, 1] > 0.9999
    assert not torch.allclose(light.mean(), image.mean(), rtol=0.01)
    assert torch.allclose(soft.mean(), image.mean(), rtol=0.01)
    assert roughness(soft) < roughness(image) < roughness(grain)
    assert torch.equal(
        perturbed_image(image, 0, PERTURBATIONS[::-1]), perturbed_image(image))


@pytest.mark.parametrize('dtype, channels', [(torch.uint8, 3),
                                             (torch.int16, 1),
                                             (torch.float32, 4)])
def test_type_and_shape_stay(dtype, channels):
    image = noise_image(1, dtype, channels)
    copy = perturbed_image(image)
    assert copy.dtype == dtype and copy.shape == image.shape


def test_integers_stay_in_their_range():
    bright = torch.full((3, 24, 32), 250, dtype=torch.uint8)
    bright[:, :, 16:] = 0
    copies = torch.stack([perturbed_image(bright, n) for n in range(16)])
    # what is brighter than white is white, and not black again
    assert copies[..., :12].max() == 255 and copies[..., :12].min() > 100
    assert copies[..., 20:].min() == 0 and copies[..., 20:].max() < 120


def test_views_are_the_batch_and_copies_of_it():
    batch = dict(
        inputs=[noise_image(0), noise_image(1)], data_samples=['a', 'b'])
    own, first, second = augmented_views(batch, 3)
    assert own is batch
    for number, view in enumerate((first, second)):
        assert view['data_samples'] == ['a', 'b']
        for image, copy in zip(batch['inputs'], view['inputs']):
            assert torch.equal(copy, perturbed_image(image, number))
    assert augmented_views(batch, 1) == [batch]
