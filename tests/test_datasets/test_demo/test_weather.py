# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from mmseg_mile.datasets.demo.raster import paint_buffers
from mmseg_mile.datasets.demo.rendering import CONDITIONS, render
from mmseg_mile.datasets.demo.snapshot import draw_scene
from mmseg_mile.datasets.demo.street_styles import SWISS
from mmseg_mile.datasets.demo.weather import add_fog, wet_road


@pytest.fixture(scope='module')
def scenes():
    return [
        paint_buffers(draw_scene(2, f'weather/{i}', (64, 128), SWISS)[0])
        for i in range(3)
    ]


def brightness(scenes, condition):
    rng = np.random.default_rng(0)
    return np.mean([render(scene, condition, rng).mean() for scene in scenes])


def test_fog_follows_koschmieder():
    image = np.full((1, 3, 3), .2, np.float32)
    depth = np.array([[0., 10., 1e4]], np.float32)
    foggy = add_fog(image, depth, .1, (.8, .8, .8))
    # .2 exp(-1) + .8 (1 - exp(-1)) = .579
    np.testing.assert_allclose(foggy[0, :, 0], [.2, .5793, .8], atol=1e-4)


def detail(image, mask):
    """Mean step between neighbouring pixels: contrast without gradients."""
    return np.abs(np.diff(image.mean(axis=2), axis=1))[mask[:, 1:]].mean()


def test_fog_takes_contrast_with_depth(scenes):
    kept = dict(near=[], far=[])
    for scene in scenes:
        light = {
            name: CONDITIONS[name][0](scene, np.random.default_rng(0))
            for name in ('cityscapes', 'fog')
        }
        solid = ~scene.on('sky')
        for name, mask in (('near', solid & (scene.z < 10)),
                           ('far', solid & (scene.z > 40))):
            kept[name].append(
                detail(light['fog'], mask) / detail(light['cityscapes'], mask))
    assert np.mean(kept['far']) < .6 * np.mean(kept['near'])


def test_night_is_darker_than_day(scenes):
    assert brightness(scenes, 'night') < .5 * brightness(scenes, 'cityscapes')


def test_snow_whitens_the_verge(scenes):
    rng = np.random.default_rng(0)
    for scene in scenes:
        grass = scene.of('grass')[::2, ::2] & (scene.z[::2, ::2] < 60)
        if grass.sum() < 20:
            continue
        snowy = render(scene, 'snow', rng)[grass].mean()
        assert snowy > render(scene, 'cityscapes', rng)[grass].mean() + 40
        return
    pytest.fail('no scene has enough grass to look at')


def test_wet_road_mirrors_what_stands_above_it(scenes):
    scene = scenes[0]
    height, width = scene.shape
    image = np.zeros((height, width, 3), np.float32)
    image[:, :width // 2] = 1.
    image[scene.on('ground')] = .2
    wet = wet_road(image, scene, .6, np.random.default_rng(0)).mean(axis=2)
    road = scene.of('asphalt')
    left, right = wet[:, :width // 2 - 20], wet[:, width // 2 + 20:]
    bright = left[road[:, :width // 2 - 20]].mean()
    assert bright > right[road[:, width // 2 + 20:]].mean() + .1
