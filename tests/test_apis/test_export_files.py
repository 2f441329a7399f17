# SPDX-License-Identifier: Apache-2.0
"""Experts of a library written for plain MMSegmentation."""
from __future__ import annotations

import importlib.util

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from tiny import tiny_task

from mmseg.apis import inference_model, init_model
from mmseg_mile.apis import export_files
from mmseg_mile.apis.export_files import ExportSource

MIXTURE = {'day': 0.5, 'night': 0.3, 'fog': 0.2}


@pytest.fixture
def cfg(library):
    """The config of a stream that left the library behind."""
    tasks = [dict(tiny_task('day'), name=name) for name in MIXTURE]
    return Config(dict(model=library.config, train_cfg=dict(tasks=tasks)))


@pytest.fixture
def export(library, cfg, tmp_path):
    """``export('a.pth', 'day', ...)``: into an empty folder."""

    def call(name, experts, **settings):
        return export_files(library.store.root, tmp_path / 'out' / name,
                            experts, cfg, **settings)

    return call


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / 'street.png'
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    cv2.imwrite(str(path), noise)
    return path


def names(tmp_path):
    return sorted(path.name for path in (tmp_path / 'out').iterdir())


def test_stock_mmseg_predicts_what_the_mixture_predicts(
        export, library, cfg, picture, tmp_path):
    made = export('deep/mix.pth', MIXTURE)
    checkpoint, config = made.files
    assert (checkpoint.name, config.name) == ('mix.pth', 'mix.py')
    stock = init_model(config, str(checkpoint), 'cpu')
    assert type(stock).__name__ == 'EncoderDecoder'
    theirs = inference_model(stock, str(picture))
    source = ExportSource(library.store.root, MIXTURE, cfg)
    state = source.checkpoint()['state_dict']
    assert all(
        torch.equal(value, state[key])
        for key, value in stock.state_dict().items())
    assert theirs.pred_sem_seg.data.shape == (1, 40, 56)


def test_difference_is_that_of_rounding(export):
    made = export('mix.pth', MIXTURE)
    assert made.mixture == pytest.approx(MIXTURE)
    assert 0 < made.difference.scale < float('inf')
    assert made.difference.largest <= 1e-5 * made.difference.scale
    assert made.difference.labels == 0
    assert made.difference.images == '2 drawn images (128 x 160 pixels)'
    assert made.notes == [
        'load it with mmseg.apis.init_model(config, checkpoint)'
    ]


def test_outputs_are_compared_on_the_image_given(export, picture):
    made = export('day.pth', 'day', image=picture)
    assert made.difference.images == 'the image (40 x 56 pixels)'
    assert made.difference.within(1e-5)


def test_nothing_but_the_files_is_left(export, tmp_path):
    export('day.pth', 'day')
    assert names(tmp_path) == ['day.pth', 'day.py']


def test_second_export_replaces_the_first(export):
    first = export('a.pth', 'day').files[0].read_bytes()
    assert export('a.pth', 'fog').files[0].read_bytes() != first


@pytest.fixture
def spoil(monkeypatch):
    """``spoil()``: from now on, exports are wrong by a hundredth."""

    def call():
        whole = ExportSource.checkpoint

        def spoilt(source):
            content = whole(source)
            content['state_dict']['decode_head.conv_seg.weight'] *= 1.01
            return content

        monkeypatch.setattr(ExportSource, 'checkpoint', spoilt)

    return call


def test_wrong_export_is_not_written(export, spoil, tmp_path):
    before = export('a.pth', 'day').files[0].read_bytes()
    spoil()
    for name in ('a.pth', 'b.pth'):
        with pytest.raises(ValueError, match='does not predict what the exp'):
            export(name, 'day')
    assert names(tmp_path) == ['a.pth', 'a.py']
    assert (tmp_path / 'out' / 'a.pth').read_bytes() == before


def test_tolerance_is_that_of_the_user(export, spoil, tmp_path):
    spoil()
    with pytest.raises(ValueError, match='more than --tolerance 0.001'):
        export('day.pth', 'day', tolerance=0.001)
    export('day.pth', 'day', tolerance=0.1)
    assert names(tmp_path) == ['day.pth', 'day.py']


def test_file_of_the_user_is_not_replaced(export, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'day.py').write_text('mine')
    with pytest.raises(ValueError, match='is of no earlier export'):
        export('day.pth', 'day')
    assert (tmp_path / 'out' / 'day.py').read_text() == 'mine'


@pytest.mark.parametrize('name, settings, message', [
    ('day.pt', {}, "must end in .pth, .* got 'day.pt'"),
    ('day.pth', dict(size=(64, 64)), 'size is for ONNX'),
    ('day.pth', dict(tolerance=0.0), 'tolerance must be above 0, got 0.0'),
    ('day.pth', dict(tolerance=float('nan')), 'must be above 0, got nan'),
    ('day.pth', dict(image='absent.png'), 'there is no image absent.png'),
])
def test_argument_out_of_range_is_named(export, tmp_path, name, settings,
                                        message):
    with pytest.raises(ValueError, match=message):
        export(name, 'day', **settings)
    assert not (tmp_path / 'out').exists()


def test_missing_packages_are_named_first(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name: None
        if name in ('onnx', 'onnxscript') else find(name))
    with pytest.raises(
            ValueError, match='onnx, onnxscript.*: pip install onnx onnxscri'):
        export_files(tmp_path / 'no library', tmp_path / 'a.onnx', 'day')
