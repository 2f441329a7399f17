# SPDX-License-Identifier: Apache-2.0
"""CLIP's view of an image: a stand-in, and a tiny CLIP of transformers."""
from __future__ import annotations

import copy
import importlib.util
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from tiny import DAY, NIGHT, TINY_MODEL, batch_of, learn_task, loader_of

from mmseg.models import SegDataPreProcessor
from mmseg.registry import MODELS
from mmseg_mile.methods.semla.clip_embedder import CLIPEmbedder, load_encoder

MEAN, STD = [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]


@pytest.fixture
def asked(monkeypatch):
    """A stand-in for open_clip; what it is asked for stands in the list."""
    asked = []

    class Visual(torch.nn.Linear):
        """Answers the 4 x 4 pixels of an image."""
        preprocess_cfg = dict(size=(4, 4), mean=(0.0, ) * 3, std=(1.0, ) * 3)

        def forward(self, x):
            return x.flatten(1)

    def create_model(name, **options):
        asked.append((name, options))
        if name == 'unknown':
            raise RuntimeError('Model config for unknown not found.\nMore')
        return SimpleNamespace(visual=Visual(1, 1))

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name, *args: 'there'
        if name in ('open_clip', 'transformers') else find(name, *args))
    monkeypatch.setitem(sys.modules, 'open_clip',
                        SimpleNamespace(create_model=create_model))
    return asked


def embedder(preprocessor=None, **options):
    """An embedder that knows how images are normalised."""
    options = dict(
        dict(model='ViT-L-14', library='open_clip', pretrained='openai'),
        **options)
    embed = CLIPEmbedder(**options)
    embed.bind_preprocessor(
        preprocessor or SegDataPreProcessor(bgr_to_rgb=True))
    return embed


def pixels(count=2, height=40, width=60):
    """Images from 0 to 255 with structure at all scales."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 6, generator=generator)
    image = torch.nn.functional.interpolate(coarse, (height, width))
    image += 0.3 * torch.rand(count, 3, height, width, generator=generator)
    return (image / image.max() * 255).round()


# -- what the encoder sees ---------------------------------------------------


@pytest.mark.parametrize('numbers', [dict(mean=MEAN, std=STD), dict()])
@pytest.mark.parametrize('turned', [True, False])
def test_encoder_sees_the_pixels_of_the_file(asked, numbers, turned):
    preprocessor = SegDataPreProcessor(bgr_to_rgb=turned, **numbers)
    files = pixels(2, 4, 4).byte()
    images = preprocessor(dict(inputs=list(files)))['inputs']
    seen = embedder(preprocessor)(None, images).view(2, 3, 4, 4)
    # a file's pixels come blue first, whatever the segmentor does to them
    torch.testing.assert_close(seen, files.flip(1) / 255)


def test_single_channel_is_grey(asked):
    preprocessor = SegDataPreProcessor(mean=[100.0], std=[50.0])
    grey = pixels(1, 4, 4)[:, :1]
    seen = embedder(preprocessor)(None, (grey - 100) / 50)
    torch.testing.assert_close(seen.view(3, 4, 4), grey[0].expand(3, -1, -1) /
                               255)  # yapf: disable


def test_center_crop_loses_the_sides_and_squeeze_does_not(asked):
    image = torch.zeros(1, 3, 8, 16)
    image[..., :4] = image[..., 12:] = 255
    center, squeezed = (
        embedder(crop=crop)(None, image).view(3, 4, 4)[0, 1]
        for crop in ('center', 'squeeze'))
    assert center.max() < 0.1
    assert squeezed[[0, 3]].min() > 0.9 and squeezed[[1, 2]].max() < 0.1


def test_bicubic_overshoot_stays_within_pixels(asked):
    image = torch.zeros(1, 3, 64, 64)
    image[..., 29:] = 255
    seen = embedder()(None, image)
    assert seen.min() >= 0 and seen.max() <= 1


@pytest.mark.parametrize('images, message', [
    (torch.zeros(1, 4, 8, 8), 'images of 1 or 3 channels, got 4'),
    (torch.full((1, 3, 8, 8), -60.), 'from 0 to 255, got -60.0 to -60.0'),
    (torch.full((1, 3, 8, 8), 360.), 'from 0 to 255, got 360.0 to 360.0'),
])
def test_images_that_no_file_has_are_refused(asked, images, message):
    with pytest.raises(ValueError, match=message):
        embedder()(None, images)


# -- the encoder -------------------------------------------------------------


def test_weights_are_read_once_for_all_copies(asked):
    first, images = embedder(), pixels()
    assert not asked
    wanted = first(None, images)
    assert len(pickle.dumps(first)) < 1000
    for other in (copy.deepcopy(first), embedder(),
                  pickle.loads(pickle.dumps(first))):
        assert torch.equal(other(None, images.requires_grad_()), wanted)
        assert not other(None, images).requires_grad
    (name, options), = asked
    assert name == 'ViT-L-14' and options['pretrained'] == 'openai'
    # or it would go on with random weights
    assert options['require_pretrained'] is True


def test_what_open_clip_does_not_know_is_named(asked):
    with pytest.raises(
            ValueError,
            match="embedder.model='unknown', embedder.pretrained='tag': "
            r'open_clip cannot load it \(Model config for unknown not found'):
        embedder(model='unknown', pretrained='tag')(None, pixels())


@pytest.mark.parametrize('options, message', [
    (dict(library='clip'), 'embedder.library must be one of'),
    (dict(crop='corner'), 'embedder.crop must be one of'),
    (dict(pretrained=None), 'is an architecture of open_clip: name its weigh'),
    (dict(model='hf-hub:a/b'), 'names weights itself: leave it out'),
    (dict(library='transformers'), 'names weights itself: leave it out'),
    (dict(model='local-dir:/no/such/folder', pretrained=None), 'is no folder'),
    (dict(model='./no_such_folder'), 'is no folder'),
    (dict(model=__file__), 'is no folder'),
])
def test_source_without_certain_weights_is_refused(asked, options, message):
    with pytest.raises(ValueError, match=message):
        embedder(**options)


@pytest.mark.parametrize('library, package', [
    ('transformers', 'transformers'), ('open_clip', 'open_clip_torch')
])  # yapf: disable
def test_library_that_is_not_installed_is_named(monkeypatch, library, package):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda *args: None)
    with pytest.raises(
            ValueError,
            match=f"embedder.library='{library}' is not installed: pip "
            f'install {package},'):
        embedder(library=library)


# -- beside a segmentor ------------------------------------------------------


def segmentor(**options):
    """The tiny model with CLIP at its gate."""
    torch.manual_seed(0)
    config = ConfigDict(copy.deepcopy(TINY_MODEL))
    config.backbone.base_training = 'none'
    config.embedder = dict(
        dict(
            type='CLIPEmbedder',
            model='ViT-L-14',
            library='open_clip',
            pretrained='openai'), **options)
    config.gate = dict(type='SemLAGate', tau=1.0)
    return MODELS.build(config)


def test_images_go_to_their_experts_and_clip_is_no_part_of_them(asked):
    model = segmentor()
    known = set(model.kept_state())
    for task in (DAY, NIGHT):
        learn_task(model, task)
    samples = [
        sample for task in (NIGHT, DAY)
        for sample in model.test_step(batch_of(task, 5))
    ]
    assert [s.expert for s in samples] == ['night', 'night', 'day', 'day']
    assert set(model.kept_state()) == known
    assert not any(type(m).__name__ == 'Visual' for m in model.modules())


def test_weights_that_are_not_there_stop_the_first_task(asked):
    model = segmentor(model='unknown')
    with pytest.raises(ValueError, match='embedder.model=.* cannot load it'):
        model.begin_task(DAY, loader_of(DAY))


# -- transformers ------------------------------------------------------------


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A saved CLIP of two layers: 16 x 16 pixels become 12 values."""
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=12)
    path = tmp_path_factory.mktemp('clip')
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(path)
    return path


def saved(folder):
    """transformers' own network."""
    from transformers import CLIPVisionModelWithProjection
    return CLIPVisionModelWithProjection.from_pretrained(folder).eval()


def of_transformers(model):
    """The embedder of a folder or name."""
    return embedder(model=str(model), library='transformers', pretrained=None)


@pytest.mark.extras
def test_embedding_is_what_clip_says_of_the_pixels(folder):
    images = pixels(height=16, width=16)
    # OpenAI's numbers, in units of pixels from 0 to 255
    mean = torch.tensor([122.7709, 116.7460, 104.0937])[:, None, None]
    std = torch.tensor([68.5005, 66.6322, 70.3232])[:, None, None]
    with torch.no_grad():
        wanted = saved(folder)((images - mean) / std).image_embeds
    embed = of_transformers(folder)
    got = embed(None, images)
    network = load_encoder(embed.source, torch.device('cpu')).network
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert got.shape == (2, 12) and got.dtype is torch.float32
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    # not on the unit sphere
    assert not torch.allclose(got.norm(dim=1), torch.ones(2), atol=0.1)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(embed(None, images), got)


@pytest.mark.extras
@pytest.mark.parametrize('size', [(40, 60), (60, 40), (33, 90), (16, 16),
                                  (8, 12)])
def test_images_are_cut_as_clips_own_processor_does(asked, size):
    pil = pytest.importorskip(
        'transformers.models.clip.image_processing_pil_clip')
    process = pil.CLIPImageProcessorPil(
        size=dict(shortest_edge=4),
        crop_size=dict(height=4, width=4),
        do_normalize=False)
    image = pixels(1, *size)[0]
    wanted = process(image.byte().permute(1, 2, 0).numpy())['pixel_values'][0]
    seen = embedder()(None, image[None]).view(3, 4, 4)
    # Pillow rounds to whole pixels on the way
    np.testing.assert_allclose(seen, wanted, atol=1.5 / 255)


@pytest.mark.extras
def test_numbers_beside_the_weights_are_used(folder, tmp_path):
    saved(folder).save_pretrained(tmp_path)
    text = ('{"image_processor_type": "CLIPImageProcessor", '
            '"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 1]}')
    (tmp_path / 'preprocessor_config.json').write_text(text)
    got = of_transformers(tmp_path)(None, torch.full((1, 3, 16, 16), 255.0))
    white = torch.tensor([2.0, 1.0, 0.5])[:, None, None]
    with torch.no_grad():
        wanted = saved(folder)(white.expand(1, 3, 16, 16)).image_embeds
    torch.testing.assert_close(got, wanted)


@pytest.mark.extras
@pytest.mark.parametrize('file, old, new, message', [
    ('config.json', None, None, 'model_type None'),
    ('config.json', '"clip_vision_model"', '"siglip"', "model_type 'siglip'"),
    ('config.json', '"num_hidden_layers": 2', '"num_hidden_layers": 3',
     'the file lacks'),
    ('config.json', '"projection_dim": 12', '"projection_dim": 13',
     'cannot load it'),
    ('model.safetensors', None, None, 'cannot load it'),
])  # yapf: disable
def test_folder_that_is_no_whole_clip_is_refused(folder, tmp_path, file, old,
                                                 new, message):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if old is None:
        (tmp_path / file).unlink()
    else:
        text = (tmp_path / file).read_text()
        assert old in text
        (tmp_path / file).write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message) as error:
        of_transformers(tmp_path)(None, pixels())
    assert f'embedder.model={str(tmp_path)!r}' in str(error.value)
    assert 'Download the weights' in str(error.value)
