# SPDX-License-Identifier: Apache-2.0
"""CLIP's view of an image, with a tiny CLIP of random weights."""
from __future__ import annotations

import copy
import importlib.util
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from mmseg.models import SegDataPreProcessor
from mmseg.registry import TASK_UTILS
from mmseg_mile.methods.semla import clip_embedder
from mmseg_mile.methods.semla.clip_embedder import CLIPEmbedder, CLIPEncoder

MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
SIDE, WIDTH = 16, 12


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A saved CLIP of two layers: 16 x 16 pixels become 12 values."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
        projection_dim=WIDTH)
    network = CLIPVisionModelWithProjection(config)
    path = tmp_path_factory.mktemp('clip')
    network.save_pretrained(path)
    return path


@pytest.fixture
def seen(monkeypatch):
    """Put a network in place of CLIP that shows what it is given."""
    batches = []

    def encode(pixels):
        batches.append(pixels)
        return pixels.flatten(1)

    encoder = CLIPEncoder(
        torch.nn.Linear(1, 1), encode, 4, (0.0, ) * 3, (1.0, ) * 3)
    monkeypatch.setattr(clip_embedder.CLIPSource, 'load',
                        lambda self, device: encoder)
    return batches


def pixels(count=2, height=40, width=60, seed=0):
    """Images from 0 to 255 with structure at all scales."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 6, generator=generator)
    image = torch.nn.functional.interpolate(coarse, (height, width))
    fine = torch.rand(count, 3, height, width, generator=generator)
    image = image + 0.3 * fine
    return (image / image.max() * 255).round()


def normalised(image, mean=MEAN, std=STD):
    """What the segmentor's preprocessor makes of pixels."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (mean, std))
    return (image - mean) / std


def embedder(folder, **options):
    """An embedder that was told how images are normalised."""
    return CLIPEmbedder(
        str(folder), **dict(dict(mean=MEAN, std=STD), **options))


def test_embedding_is_what_clip_says_of_the_files_pixels(folder):
    images = pixels(height=SIDE, width=SIDE)
    network = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    # OpenAI's numbers, in units of pixels from 0 to 255
    mean = torch.tensor([122.7709, 116.7460, 104.0937])[:, None, None]
    std = torch.tensor([68.5005, 66.6322, 70.3232])[:, None, None]
    with torch.no_grad():
        wanted = network((images - mean) / std).image_embeds
    got = embedder(folder)(None, normalised(images))
    assert got.shape == (2, WIDTH) and got.dtype is torch.float32
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    # not on the unit sphere
    assert not torch.allclose(got.norm(dim=1), torch.ones(2), atol=0.1)


@pytest.mark.parametrize('size', [(40, 60), (60, 40), (33, 90), (16, 16),
                                  (8, 12)])
def test_images_are_cut_as_clips_own_processor_does(seen, size):
    pil = pytest.importorskip(
        'transformers.models.clip.image_processing_pil_clip')
    process = pil.CLIPImageProcessorPil(
        size=dict(shortest_edge=4),
        crop_size=dict(height=4, width=4),
        do_normalize=False)
    image = pixels(1, *size)[0]
    wanted = process(image.byte().permute(1, 2, 0).numpy())['pixel_values'][0]
    embedder('some/name')(None, normalised(image[None]))
    # Pillow rounds to whole pixels on the way
    np.testing.assert_allclose(seen[0][0], wanted, atol=1.5 / 255)


def test_center_crop_loses_the_sides_and_squeeze_does_not(seen):
    image = torch.zeros(1, 3, 8, 16)
    image[..., :4] = image[..., 12:] = 255
    images = normalised(image)
    embedder('some/name')(None, images)
    embedder('some/name', crop='squeeze')(None, images)
    center, squeezed = (batch[0, 0, 1] for batch in seen)
    assert center.max() < 0.1
    assert squeezed[[0, 3]].min() > 0.9 and squeezed[[1, 2]].max() < 0.1


def test_bicubic_overshoot_stays_within_pixels(seen):
    image = torch.zeros(1, 3, 64, 64)
    image[..., 29:] = 255
    embedder('some/name')(None, normalised(image))
    assert seen[0].min() >= 0 and seen[0].max() <= 1


def test_channels_in_the_loaders_order_are_turned(folder):
    images = pixels()
    rgb = embedder(folder)(None, normalised(images))
    turned = normalised(images).flip(1)
    bgr = embedder(folder, mean=MEAN[::-1], std=STD[::-1], channel_order='bgr')
    torch.testing.assert_close(bgr(None, turned), rgb)
    wrong = embedder(folder, mean=MEAN[::-1], std=STD[::-1])(None, turned)
    assert not torch.allclose(wrong, rgb)


def test_single_channel_is_grey(folder):
    grey = pixels()[:, :1]
    one = embedder(folder, mean=[100.0], std=[50.0])(None, (grey - 100) / 50)
    three = embedder(folder)(None, normalised(grey.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('turned', [True, False])
def test_preprocessor_says_how_to_undo_it(folder, turned):
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    preprocessor = SegDataPreProcessor(mean=mean, std=std, bgr_to_rgb=turned)
    told = CLIPEmbedder(str(folder))
    told.bind_preprocessor(preprocessor)
    files = pixels().byte()
    images = preprocessor(dict(inputs=list(files)))['inputs']
    # a file's pixels come blue first, whatever the segmentor does to them
    wanted = embedder(folder)(None, normalised(files.flip(1).float()))
    torch.testing.assert_close(
        told(None, images), wanted, rtol=1e-4, atol=1e-5)


def test_preprocessor_that_does_not_normalise_is_understood(folder):
    told = CLIPEmbedder(str(folder))
    told.bind_preprocessor(SegDataPreProcessor(bgr_to_rgb=True))
    images = pixels()
    torch.testing.assert_close(
        told(None, images),
        embedder(folder)(None, normalised(images)),
        rtol=1e-4,
        atol=1e-5)


@pytest.mark.parametrize('field, value', [('mean', (0.0, 0.0, 0.0)),
                                          ('std', (1.0, 1.0, 1.0)),
                                          ('channel_order', 'bgr')])
def test_config_that_contradicts_the_preprocessor_is_refused(field, value):
    preprocessor = SegDataPreProcessor(mean=MEAN, std=STD, bgr_to_rgb=True)
    embedder('some/name').bind_preprocessor(preprocessor)
    with pytest.raises(ValueError, match=f'embedder.{field}=.* leave it out'):
        embedder('some/name', **{field: value}).bind_preprocessor(preprocessor)


def test_batch_is_its_images_one_by_one(folder):
    embed, images = embedder(folder), normalised(pixels(3))
    torch.testing.assert_close(
        embed(None, images), torch.cat([embed(None, x[None]) for x in images]))


def test_embedding_ignores_autocast(folder):
    embed, images = embedder(folder), normalised(pixels())
    wanted = embed(None, images)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(embed(None, images), wanted)


def test_weights_are_read_once_for_all_copies(folder, monkeypatch):
    calls = []
    read = CLIPVisionModelWithProjection.from_pretrained
    monkeypatch.setattr(
        CLIPVisionModelWithProjection, 'from_pretrained',
        lambda *args, **kwargs: (calls.append(args), read(*args, **kwargs))[1])
    first = embedder(folder)
    assert not calls
    images = normalised(pixels())
    wanted = first(None, images)
    for other in (first, copy.deepcopy(first), embedder(folder),
                  pickle.loads(pickle.dumps(first))):
        assert torch.equal(other(None, images), wanted)
    assert len(calls) == 1


def test_pickle_carries_no_network(folder):
    embed = embedder(folder)
    embed(None, normalised(pixels()))
    assert len(pickle.dumps(embed)) < 1000


def test_network_is_frozen_and_in_eval_mode(folder):
    embed = embedder(folder)
    got = embed(None, normalised(pixels()).requires_grad_())
    network = embed.source.load(torch.device('cpu')).network
    assert not got.requires_grad and not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_half_precision_file_is_computed_in_single(folder, tmp_path):
    network = CLIPVisionModelWithProjection.from_pretrained(folder)
    network.half().save_pretrained(tmp_path)
    got = embedder(tmp_path)(None, normalised(pixels()))
    wanted = embedder(folder)(None, normalised(pixels()))
    assert got.dtype is torch.float32
    torch.testing.assert_close(got, wanted, rtol=0.05, atol=0.01)


def test_numbers_beside_the_weights_are_used(folder, tmp_path):
    network = CLIPVisionModelWithProjection.from_pretrained(folder)
    network.save_pretrained(tmp_path)
    text = ('{"image_processor_type": "CLIPImageProcessor", '
            '"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 1]}')
    (tmp_path / 'preprocessor_config.json').write_text(text)
    image = torch.full((1, 3, SIDE, SIDE), 255.0)
    got = embedder(tmp_path)(None, normalised(image))
    white = torch.tensor([2.0, 1.0, 0.5])[:, None, None]
    with torch.no_grad():
        wanted = network(white.expand(1, 3, SIDE, SIDE)).image_embeds
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize('change, message', [
    (lambda d: (d / 'config.json').unlink(), 'model_type None'),
    (lambda d: replace(d / 'config.json', '"clip_vision_model"', '"siglip"'),
     "model_type 'siglip'"),
    (lambda d: (d / 'model.safetensors').unlink(), 'cannot load it'),
    (lambda d: replace(d / 'config.json', '"num_hidden_layers": 2',
                       '"num_hidden_layers": 3'), 'the file lacks'),
    (lambda d: replace(d / 'config.json', '"projection_dim": 12',
                       '"projection_dim": 13'), 'cannot load it'),
])  # yapf: disable
def test_folder_that_is_no_whole_clip_is_refused(folder, tmp_path, change,
                                                 message):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    change(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        embedder(tmp_path)(None, normalised(pixels()))
    assert f'embedder.model={str(tmp_path)!r}' in str(error.value)
    assert 'Download the weights' in str(error.value)


def replace(path, old, new):
    """Change a text file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_hub_that_cannot_be_reached_is_named(monkeypatch):

    def fail(*_, **__):
        raise OSError("We couldn't connect to the hub\nand more")

    monkeypatch.setattr(CLIPVisionConfig, 'get_config_dict', fail)
    with pytest.raises(
            ValueError,
            match=r"embedder.model='owner/name': trans"
            r"formers cannot load it \(We couldn't connect to the "
            r'hub\)'):
        embedder('owner/name')(None, normalised(pixels()))


@pytest.mark.parametrize('options, message', [
    (dict(model='/no/such/folder'), 'is no folder'),
    (dict(model='./no_such_folder'), 'is no folder'),
    (dict(model=__file__), 'is no folder'),
    (dict(library='clip'), 'embedder.library must be one of'),
    (dict(pretrained='openai'), 'names weights itself: leave it out'),
    (dict(crop='corner'), 'embedder.crop must be one of'),
    (dict(channel_order='gbr'), 'embedder.channel_order must be'),
    (dict(std=None), 'belong together'),
    (dict(std=[1.0, 0.0, 1.0]), 'embedder.std must be > 0'),
])  # yapf: disable
def test_argument_out_of_range_is_refused(options, message):
    options = dict(dict(model='owner/name', mean=MEAN, std=STD), **options)
    with pytest.raises(ValueError, match=message):
        CLIPEmbedder(**options)


@pytest.mark.parametrize('options, shape, message', [
    (dict(mean=None, std=None), (1, 3, 8, 8), 'are missing: give those of'),
    (dict(), (1, 4, 8, 8), 'images of 1 or 3 channels, got 4'),
    (dict(mean=[1.0] * 2), (1, 3, 8, 8), 'embedder.mean has 2 values'),
    (dict(), (1, 1, 8, 8), 'embedder.mean has 3 values'),
])  # yapf: disable
def test_images_that_cannot_be_undone_are_refused(seen, options, shape,
                                                  message):
    with pytest.raises(ValueError, match=message):
        embedder('some/name', **options)(None, torch.zeros(shape))


@pytest.mark.parametrize('value, bounds', [(-3.0, '-60.0 to 0.0'),
                                           (4.0, '0.0 to 360.0')])
def test_pixels_that_no_file_has_are_refused(seen, value, bounds):
    images = normalised(torch.zeros(1, 3, 8, 8))
    images[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=f'make pixels from {bounds}'):
        embedder('some/name')(None, images)


def find_no(library):
    """Answer that a package is not there."""
    find = importlib.util.find_spec
    return lambda name, *args: None if name == library else find(name, *args)


@pytest.mark.parametrize('library, package', [
    ('transformers', 'transformers'), ('open_clip', 'open_clip_torch')
])  # yapf: disable
def test_library_that_is_not_installed_is_named(monkeypatch, library, package):
    monkeypatch.setattr(importlib.util, 'find_spec', find_no(library))
    with pytest.raises(
            ValueError,
            match=f"embedder.library='{library}' is not installed: pip "
            f'install {package},'):
        embedder('ViT-L-14', library=library, pretrained='openai')


@pytest.fixture
def open_clip(monkeypatch):
    """A stand-in for the package that notes what is asked of it."""
    asked = []

    class Visual(torch.nn.Module):
        preprocess_cfg = dict(size=(4, 4), mean=(0.5, ) * 3, std=(0.5, ) * 3)

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.scale * x.mean((2, 3))

    def create_model(name, **options):
        asked.append((name, options))
        if name == 'unknown':
            raise RuntimeError('Model config for unknown not found.\nMore')
        return SimpleNamespace(visual=Visual())

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name, *args: 'there'
        if name == 'open_clip' else find(name, *args))
    monkeypatch.setitem(sys.modules, 'open_clip',
                        SimpleNamespace(create_model=create_model))
    return asked


def test_open_clip_gives_the_image_encoder_alone(open_clip):
    embed = embedder('ViT-L-14', library='open_clip', pretrained='openai')
    assert not open_clip
    got = embed(None, normalised(torch.full((1, 3, 8, 8), 255.0)))
    torch.testing.assert_close(got, torch.full((1, 3), 2.0))
    (name, options), = open_clip
    assert name == 'ViT-L-14' and options['pretrained'] == 'openai'
    # or it would go on with random weights
    assert options['require_pretrained'] is True


@pytest.mark.parametrize('model, pretrained, message', [
    ('ViT-L-14', None, 'is an architecture of open_clip: name its weights'),
    ('hf-hub:a/b', 'openai', 'names weights itself: leave it out'),
    ('local-dir:/no/such/folder', None, 'is no folder'),
])  # yapf: disable
def test_open_clip_without_certain_weights_is_refused(open_clip, model,
                                                      pretrained, message):
    with pytest.raises(ValueError, match=message):
        embedder(model, library='open_clip', pretrained=pretrained)


def test_what_open_clip_does_not_know_is_named(open_clip):
    embed = embedder('unknown', library='open_clip', pretrained='tag')
    with pytest.raises(
            ValueError,
            match="embedder.model='unknown', embedder.pretrained='tag': "
            r'open_clip cannot load it \(Model config for unknown not'):
        embed(None, normalised(pixels()))


def test_config_builds_it():
    config = dict(type='CLIPEmbedder', model='owner/name', crop='squeeze')
    assert TASK_UTILS.build(config).crop == 'squeeze'
