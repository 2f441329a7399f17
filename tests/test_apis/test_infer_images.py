# SPDX-License-Identifier: Apache-2.0
"""Images go into a folder of predictions, once each."""
from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
from tiny import make_predicting_library

from mmseg_mile.apis.images import VideoReader, VideoWriter
from mmseg_mile.apis.inferencer import MILEInferencer, infer_images
from mmseg_mile.files import locked


@pytest.fixture(scope='module')
def made(tiny_data, tmp_path_factory):
    """Look, do not touch."""
    return make_predicting_library(
        tiny_data,
        tmp_path_factory.mktemp('predicting') / 'library')


@pytest.fixture
def inferencer(made):
    return MILEInferencer(made.root, show_progress=False, device='cpu')


@pytest.fixture
def images(made, tmp_path):
    """Three images of each domain, in a folder of its own."""
    for domain in ('day', 'night'):
        shutil.copytree(made.images(domain), tmp_path / 'in' / domain)
    return tmp_path / 'in'


def names(out):
    text = (out / 'predictions.jsonl').read_text()
    return [json.loads(line)['name'] for line in text.splitlines()]


def test_label_maps_are_those_of_the_inferencer(inferencer, images, tmp_path):
    report = infer_images(inferencer, images, tmp_path / 'out', batch_size=4)
    assert report.images == dict(day=3, night=3)
    assert report.predicted == 6 and report.seconds > 0
    for prediction in inferencer.stream(images):
        labels = cv2.imread(
            str(tmp_path / 'out' / 'labels' / prediction.name),
            cv2.IMREAD_UNCHANGED)
        assert (labels != prediction.labels).mean() < 0.001
    overlays = (tmp_path / 'out' / 'overlays').rglob('*.jpg')
    assert len(list(overlays)) == 6


def test_folder_that_another_process_writes_is_refused(inferencer, images,
                                                       tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    with locked(out):
        with pytest.raises(ValueError, match='another process writes .*out'):
            infer_images(inferencer, images, out)
    assert not list(out.iterdir())
    assert infer_images(inferencer, images, out).predicted == 6


def test_stopped_run_goes_on_where_it_stopped(inferencer, images, tmp_path):
    out = tmp_path / 'out'
    (images / 'night' / '1.png').write_bytes(b'')
    with pytest.raises(ValueError, match='night/1.png is no image'):
        infer_images(inferencer, images, out)
    # nothing was begun
    assert not out.exists()
    report = infer_images(inferencer, images, out, skip_broken=True)
    assert report.predicted == 5 and list(report.broken) == ['night/1.png']
    shutil.copy(images / 'night' / '0.png', images / 'night' / '1.png')
    report = infer_images(inferencer, images, out)
    assert report.predicted == 1
    assert report.images == dict(day=3, night=3)
    assert sorted(names(out)) == [
        f'{d}/{i}.png' for d in ('day', 'night') for i in range(3)
    ]


def test_image_that_breaks_later_costs_nothing_that_was_done(
        inferencer, images, tmp_path):
    path = images / 'night' / '1.png'
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match='night/1.png cannot be read'):
        infer_images(inferencer, images, tmp_path / 'out', batch_size=6)
    assert names(tmp_path / 'out') == [
        'day/0.png', 'day/1.png', 'day/2.png', 'night/0.png'
    ]


def test_nothing_is_predicted_twice(inferencer, images, tmp_path, monkeypatch):
    infer_images(inferencer, images, tmp_path / 'out')
    monkeypatch.setattr(inferencer.model, 'test_step', None)
    report = infer_images(inferencer, images, tmp_path / 'out')
    assert report.predicted == 0 and report.images == dict(day=3, night=3)


def test_results_below_the_images_are_no_images(inferencer, images):
    out = images / 'out'
    infer_images(inferencer, images, out)
    assert infer_images(inferencer, images, out).predicted == 0
    with pytest.raises(ValueError, match='all images lie in'):
        infer_images(inferencer, out / 'labels', out)


def test_other_experts_need_another_folder(made, inferencer, images, tmp_path):
    infer_images(inferencer, images, tmp_path / 'out')
    forced = MILEInferencer(made.root, 'night', show_progress=False)
    with pytest.raises(ValueError, match=r'\(expert\)'):
        infer_images(forced, images, tmp_path / 'out')
    report = infer_images(forced, images, tmp_path / 'out', overwrite=True)
    assert report.images == dict(night=6)


def test_what_no_expert_knows_is_counted(made, tmp_path):
    inferencer = MILEInferencer(
        made.root, ood_policy='abstain', show_progress=False)
    red = np.full((48, 64, 3), (0, 0, 255), np.uint8)
    assert cv2.imwrite(str(tmp_path / 'red.png'), red)
    report = infer_images(inferencer, tmp_path / 'red.png', tmp_path / 'out')
    assert report.images == report.ood == {'no prediction': 1}
    base = MILEInferencer(made.root, ood_policy='base', show_progress=False)
    report = infer_images(base, tmp_path / 'red.png', tmp_path / 'out2')
    assert report.images == {'base, without an expert': 1}


def test_video_becomes_a_video_and_a_map_per_frame(inferencer, images,
                                                   tmp_path):
    path = tmp_path / 'clip.mp4'
    with VideoWriter(path, 5) as writer:
        for index in range(3):
            frame = cv2.imread(str(images / 'day' / f'{index}.png'))
            writer.add(frame[:, :, ::-1])
    out = tmp_path / 'out'
    report = infer_images(inferencer, [path, images / 'day'], out, 2)
    assert sum(report.images.values()) == report.predicted == 6
    with VideoReader(out / 'overlays' / 'clip.mp4') as video:
        frames = list(video.frames())
    assert len(frames) == 3 and frames[0].shape[1] == 512
    labels = cv2.imread(str(out / 'labels' / 'clip.mp4' / '000002.png'), -1)
    assert labels.shape == (48, 64)
    assert infer_images(inferencer, [path, images / 'day'], out).predicted == 0


def test_progress_is_shown(made, images, tmp_path, capsys):
    infer_images(MILEInferencer(made.root), images, tmp_path / 'out')
    assert 'Inference' in capsys.readouterr().out
