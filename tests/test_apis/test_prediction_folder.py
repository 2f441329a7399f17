# SPDX-License-Identifier: Apache-2.0
"""A folder of predictions is never another run's, and goes on."""
from __future__ import annotations

import json
import os

import cv2
import numpy as np
import pytest

from mmseg_mile.apis.images import ImageFile, VideoFile, VideoWriter
from mmseg_mile.apis.predictions import Prediction, PredictionFolder

SETTINGS = dict(library='/a', library_checksum='1', expert=None)
OVERLAY = np.full((8, 8, 3), (200, 0, 0), np.uint8)


@pytest.fixture
def image(tmp_path):
    """``image(name)``: an image to be predicted."""

    def make(name):
        path = tmp_path / 'in' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), np.zeros((2, 4, 3), np.uint8))
        return ImageFile(name, path)

    return make


def predicted(source, labels=((0, 1, 2, 255), ) * 2, name=None):
    return Prediction(
        name=name or source.name,
        labels=np.array(labels, np.uint8),
        classes=('sky', 'road', 'car'),
        palette=((1, 1, 1), (2, 2, 2), (3, 3, 3)),
        expert='day',
        mixture=dict(day=1.0),
        distances=dict(day=float('nan')),
        ood=False,
        abstained=False,
        ood_score=None,
        forced=False,
        seconds=0.1,
        source=source)


def lines(root):
    text = (root / 'predictions.jsonl').read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_files_lie_as_the_images_do(image, tmp_path):
    folder = PredictionFolder(tmp_path / 'out', SETTINGS)
    source = image('sub/a.b.jpg')
    folder.keep(predicted(source), OVERLAY)
    line, = lines(folder.root)
    assert line['labels'] == 'labels/sub/a.b.png'
    assert line['overlay'] == 'overlays/sub/a.b.jpg'
    assert line['image'] == str(source.path)
    assert line['distances'] == dict(day=None)
    labels = cv2.imread(
        str(folder.root / line['labels']), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(labels, [[0, 1, 2, 255]] * 2)
    overlay = cv2.imread(str(folder.root / line['overlay']))
    assert overlay[..., 2].mean() > 150 > overlay[..., 0].mean()


def test_wide_labels_keep_their_values(image, tmp_path):
    folder = PredictionFolder(tmp_path / 'out', SETTINGS)
    wide = predicted(image('a.png'))
    object.__setattr__(wide, 'labels', np.array([[3, 299]], np.uint16))
    folder.keep(wide, OVERLAY)
    labels = cv2.imread(
        str(folder.root / 'labels' / 'a.png'), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(labels, [[3, 299]])


def test_two_images_of_one_stem_do_not_share_a_file(image, tmp_path):
    folder = PredictionFolder(tmp_path / 'out', SETTINGS)
    first, second = image('a.jpg'), image('a.png')
    folder.keep(predicted(first, [[0]]), OVERLAY)
    # the names are kept over a restart
    folder = PredictionFolder(tmp_path / 'out', SETTINGS)
    folder.keep(predicted(second, [[1]]), OVERLAY)
    assert [line['labels'] for line in lines(folder.root)
            ] == ['labels/a.png', 'labels/a.png.png']
    assert folder.pending([first, second]) == []


def test_second_run_knows_what_is_done(image, tmp_path):
    sources = [image('a.png'), image('b.png')]
    folder = PredictionFolder(tmp_path / 'out', SETTINGS)
    folder.keep(predicted(sources[0]), OVERLAY)
    again = PredictionFolder(tmp_path / 'out', SETTINGS)
    assert again.pending(sources) == sources[1:]
    assert again.pending([sources[1]] * 2) == sources[1:]


@pytest.mark.parametrize('change', ['image', 'labels'])
def test_changed_image_or_lost_file_is_predicted_again(image, tmp_path,
                                                       change):
    source, other = image('a.png'), image('b.png')
    folder = PredictionFolder(tmp_path / 'out', SETTINGS)
    for each in (source, other):
        folder.keep(predicted(each), OVERLAY)
    if change == 'image':
        later = source.path.stat().st_mtime + 10
        os.utime(source.path, (later, later))
    else:
        (folder.root / 'labels' / 'a.png').unlink()
    again = PredictionFolder(tmp_path / 'out', SETTINGS)
    assert again.pending([source, other]) == [source]
    assert [line['name'] for line in lines(folder.root)] == ['b.png']


def test_half_a_line_of_a_killed_run_is_forgotten(image, tmp_path):
    sources = [image('a.png'), image('b.png')]
    folder = PredictionFolder(tmp_path / 'out', SETTINGS)
    for source in sources:
        folder.keep(predicted(source), OVERLAY)
    path = folder.root / 'predictions.jsonl'
    path.write_bytes(path.read_bytes()[:-30])
    again = PredictionFolder(tmp_path / 'out', SETTINGS)
    assert again.pending(sources) == sources[1:]
    again.keep(predicted(sources[1]), OVERLAY)
    assert [line['name'] for line in lines(again.root)] == ['a.png', 'b.png']


def test_other_settings_are_refused_and_named(image, tmp_path):
    PredictionFolder(tmp_path / 'out', SETTINGS)
    with pytest.raises(ValueError, match=r'\(expert\).*--overwrite'):
        PredictionFolder(tmp_path / 'out', dict(SETTINGS, expert='day'))
    # a copied library is the same library
    PredictionFolder(tmp_path / 'out', dict(SETTINGS, library='/b'))


def test_overwriting_removes_all_of_the_other_run(image, tmp_path):
    source = image('a.png')
    folder = PredictionFolder(tmp_path / 'out', SETTINGS)
    folder.keep(predicted(source), OVERLAY)
    (folder.root / 'mine.txt').write_text('kept')
    new = dict(SETTINGS, expert='day')
    folder = PredictionFolder(tmp_path / 'out', new, overwrite=True)
    assert sorted(p.name for p in folder.root.iterdir()
                  ) == ['mine.txt', 'run.json']  # yapf: disable
    assert json.loads((folder.root / 'run.json').read_text()) == new
    assert folder.pending([source]) == [source]


@pytest.mark.parametrize('overwrite', [False, True])
def test_folder_of_something_else_is_left_alone(tmp_path, overwrite):
    (tmp_path / 'labels').mkdir()
    with pytest.raises(ValueError, match='no predictions'):
        PredictionFolder(tmp_path, SETTINGS, overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ['labels']


def test_other_image_of_the_same_name_is_refused(image, tmp_path):
    folder = PredictionFolder(tmp_path / 'out', SETTINGS)
    folder.keep(predicted(image('day/a.png')), OVERLAY)
    source = image('night/a.png')
    source.name = 'day/a.png'
    with pytest.raises(ValueError, match='day/a.png.*night/a.png has as well'):
        folder.pending([source])


def test_video_is_done_when_its_last_frame_is(tmp_path):
    path = tmp_path / 'clip.avi.mp4'
    with VideoWriter(path, 5) as writer:
        writer.add(OVERLAY)
    video = VideoFile('clip.avi.mp4', path)
    folder = PredictionFolder(tmp_path / 'out', SETTINGS)
    frames = [
        predicted(frame, name=f'clip.avi.mp4/00000{i}')
        for i, frame in enumerate([*video.frames(), *video.frames()])
    ]
    with pytest.raises(KeyboardInterrupt):
        with folder.video(video) as keep:
            keep(frames[0], OVERLAY)
            raise KeyboardInterrupt
    folder = PredictionFolder(tmp_path / 'out', SETTINGS)
    assert folder.pending([video]) == [video]
    with folder.video(video) as keep:
        for frame in frames:
            keep(frame, OVERLAY)
    assert PredictionFolder(tmp_path / 'out', SETTINGS).pending([video]) == []
    assert [line['labels'] for line in lines(folder.root)
            ] == [f'labels/clip.avi.mp4/00000{i}.png' for i in range(2)]
    assert (folder.root / 'overlays' / 'clip.avi.mp4').stat().st_size > 0
