# SPDX-License-Identifier: Apache-2.0
"""A prediction says what it is; a folder of predictions goes on filling."""
from __future__ import annotations

import json
import math
import os
from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import PixelData

from mmseg.structures import SegDataSample
from mmseg_mile.apis.images import ImageSource, VideoFile
from mmseg_mile.apis.predictions import Prediction, PredictionFolder

IMAGE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
LABELS = ((0, 0, 0, 1), (255, 1, 0, 0))
SETTINGS = dict(library='/a', library_checksum='1', expert=None)
OVERLAY = np.full((8, 8, 3), (200, 0, 0), np.uint8)


def prediction(labels=LABELS, dtype=np.uint8, **changes):
    source = changes.setdefault(
        'source', ImageSource('a/b.png', array=IMAGE[:, :, ::-1]))
    values = dict(
        name=source.name,
        labels=np.array(labels, dtype),
        classes=('sky', 'road'),
        palette=((1, 2, 3), (4, 5, 6)),
        expert='day',
        mixture=dict(day=1.0),
        distances=dict(night=3.0, day=1.25),
        ood=False,
        ood_score=0.5,
        abstained=False,
        forced=False,
        seconds=0.25)
    return Prediction(**dict(values, **changes))


MIXED = dict(mixture=dict(day=0.25, night=0.75), expert='night')
BASE = dict(mixture={}, expert=None, ood=True, ood_score=2.0)
NO_DISTANCE = dict(
    ood_score=None, distances=dict(night=math.nan, day=math.nan))


@pytest.mark.parametrize('changes, title, note', [
    ({}, 'expert day', 'distances: day 1.25, night 3; ood score 0.50'),
    (MIXED, 'experts 75 % night + 25 % day', 'distances: day 1.25'),
    (BASE, 'base without an expert',
     'out-of-distribution; distances: day 1.25, night 3; ood score 2.00'),
    (dict(BASE, abstained=True), 'no prediction', 'out-of-distribution'),
    (dict(NO_DISTANCE, forced=True), 'expert day', 'expert as asked for'),
    (NO_DISTANCE, 'expert day', 'no distances'),
])
def test_title_and_note(changes, title, note):
    made = prediction(**changes)
    assert made.title == title
    assert made.note.startswith(note)


def test_record_is_json_without_nan():
    record = json.loads(
        json.dumps(prediction(**NO_DISTANCE).record(), allow_nan=False))
    assert record['distances'] == dict(night=None, day=None)
    assert record['shape'] == [2, 4]
    assert record['classes'] == ['sky', 'road']
    assert 'labels' not in record


def test_image_is_read_again_and_cropped_as_the_labels_were():
    np.testing.assert_array_equal(prediction().image(), IMAGE)
    cut = prediction(labels=((0, 0), (0, 0)), columns=(1, 3))
    np.testing.assert_array_equal(cut.image(), IMAGE[:, 1:3])


@pytest.mark.parametrize('count, dtype', [(255, np.uint8), (256, np.uint16)])
def test_labels_are_as_wide_as_they_must_be(count, dtype):
    sample = SegDataSample(
        metainfo=dict(
            classes=tuple(map(str, range(count))),
            palette=((0, 0, 0), ) * count,
            expert=None,
            cropped_columns=dict(img=(3, 7))))
    sample.pred_sem_seg = PixelData(data=torch.full((1, 2, 4), count - 1))
    # of a method that has no gate, and says nothing of routing
    made = Prediction.from_sample(sample, ImageSource('x'), False, 0.0)
    assert made.labels.dtype == dtype
    assert (made.labels == count - 1).all()
    assert made.columns == (3, 7)
    assert not made.abstained and not made.ood and made.distances == {}


# -- the folder ----------------------------------------------------------


@pytest.fixture
def image(tmp_path):
    """``image(name)``: an image to be predicted."""

    def make(name):
        path = tmp_path / 'in' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), np.zeros((2, 4, 3), np.uint8))
        return ImageSource(name, path)

    return make


@pytest.fixture
def opened(tmp_path):
    """``opened()``: the folder, as a process that starts finds it."""

    def call(settings=SETTINGS, **options):
        return PredictionFolder(tmp_path / 'out', settings, **options)

    return call


def keep(folder, *sources, **changes):
    for source in sources:
        folder.keep(prediction(source=source, **changes), OVERLAY)


def lines(folder):
    text = (folder.root / 'predictions.jsonl').read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_files_lie_as_the_images_do(opened, image):
    folder, source = opened(), image('sub/a.b.jpg')
    keep(folder, source)
    line, = lines(folder)
    assert line['labels'] == 'labels/sub/a.b.png'
    assert line['overlay'] == 'overlays/sub/a.b.jpg'
    assert line['image'] == str(source.path)
    labels = cv2.imread(str(folder.root / line['labels']), -1)
    np.testing.assert_array_equal(labels, LABELS)
    overlay = cv2.imread(str(folder.root / line['overlay']))
    assert overlay[..., 2].mean() > 150 > overlay[..., 0].mean()


@pytest.mark.parametrize('shape, written', [((65536, 5), (65500, 4)),
                                            ((5, 131072), (2, 65500))])
def test_overlay_is_shrunk_to_what_a_jpeg_can_hold(opened, image, shape,
                                                   written):
    folder = opened()
    folder.keep(
        prediction(source=image('a.png')), np.zeros((*shape, 3), np.uint8))
    overlay = cv2.imread(str(folder.root / 'overlays' / 'a.jpg'))
    assert overlay.shape[:2] == written


def test_wide_labels_keep_their_values(opened, image):
    folder = opened()
    keep(folder, image('a.png'), labels=[[3, 299]], dtype=np.uint16)
    labels = cv2.imread(str(folder.root / 'labels' / 'a.png'), -1)
    np.testing.assert_array_equal(labels, [[3, 299]])


def test_two_images_of_one_stem_do_not_share_a_file(opened, image):
    first, second = image('a.jpg'), image('a.png')
    keep(opened(), first)
    # the names are kept over a restart
    folder = opened()
    keep(folder, second)
    assert [line['labels']
            for line in lines(folder)] == ['labels/a.png', 'labels/a.png.png']
    assert folder.pending([first, second]) == []


@pytest.mark.parametrize('name', ['a.png', 'a\u2028b\x85c.png', 'a\nb.png'])
def test_second_run_knows_what_is_done(opened, image, name):
    sources = [image(name), image('b.png')]
    keep(opened(), sources[0])
    assert opened().pending(sources) == sources[1:]
    assert opened().pending([sources[1]] * 2) == sources[1:]


@pytest.mark.parametrize('change', ['image', 'labels'])
def test_changed_image_or_lost_file_is_predicted_again(opened, image, change):
    source, other = image('a.png'), image('b.png')
    folder = opened()
    keep(folder, source, other)
    if change == 'image':
        later = source.path.stat().st_mtime + 10
        os.utime(source.path, (later, later))
    else:
        (folder.root / 'labels' / 'a.png').unlink()
    assert opened().pending([source, other]) == [source]
    assert [line['name'] for line in lines(folder)] == ['b.png']


def test_half_a_line_of_a_killed_run_is_forgotten(opened, image):
    sources = [image('a.png'), image('b.png')]
    folder = opened()
    keep(folder, *sources)
    path = folder.root / 'predictions.jsonl'
    path.write_bytes(path.read_bytes()[:-30])
    again = opened()
    assert again.pending(sources) == sources[1:]
    keep(again, sources[1])
    assert [line['name'] for line in lines(again)] == ['a.png', 'b.png']


def test_number_that_json_has_not_is_not_written(opened, image):
    folder = opened()
    with pytest.raises(ValueError, match='not JSON compliant'):
        keep(folder, image('a.png'), ood_score=math.nan)
    assert opened().lines == {}


def test_other_settings_are_refused_and_named(opened):
    opened()
    with pytest.raises(ValueError, match=r'\(expert\).*--overwrite'):
        opened(dict(SETTINGS, expert='day'))
    # a copied library is the same library
    opened(dict(SETTINGS, library='/b'))


def test_overwriting_removes_all_of_the_other_run(opened, image):
    source, folder = image('a.png'), opened()
    keep(folder, source)
    (folder.root / 'mine.txt').write_text('kept')
    new = dict(SETTINGS, expert='day')
    folder = opened(new, overwrite=True)
    assert sorted(p.name for p in folder.root.iterdir()
                  ) == ['mine.txt', 'run.json']  # yapf: disable
    assert json.loads((folder.root / 'run.json').read_text()) == new
    assert folder.pending([source]) == [source]


@pytest.mark.parametrize('overwrite', [False, True])
def test_folder_of_something_else_is_left_alone(opened, tmp_path, overwrite):
    (tmp_path / 'out' / 'labels').mkdir(parents=True)
    with pytest.raises(ValueError, match='no predictions'):
        opened(overwrite=overwrite)
    assert [p.name for p in (tmp_path / 'out').iterdir()] == ['labels']


def test_other_image_of_the_same_name_is_refused(opened, image):
    folder = opened()
    keep(folder, image('day/a.png'))
    source = image('night/a.png')
    source.name = 'day/a.png'
    with pytest.raises(ValueError, match='day/a.png.*night/a.png has as well'):
        folder.pending([source])


def test_video_is_done_when_its_last_frame_is(opened, write_video):
    red = np.full((33, 49, 3), (220, 0, 0), np.uint8)
    video = VideoFile('clip.avi.mp4', write_video([OVERLAY] * 2))
    frames = [
        prediction(name=f'clip.avi.mp4/00000{i}', source=frame)
        for i, frame in enumerate(video.frames())
    ]
    with pytest.raises(KeyboardInterrupt):
        with opened().video(video) as add:
            add(frames[0], red)
            raise KeyboardInterrupt
    folder = opened()
    assert folder.pending([video]) == [video]
    assert not list((folder.root / 'overlays').iterdir())
    with folder.video(video) as add:
        for frame in frames:
            add(frame, red)
    assert opened().pending([video]) == []
    assert [line['labels'] for line in lines(folder)
            ] == [f'labels/clip.avi.mp4/00000{i}.png' for i in range(2)]
    written = VideoFile('', folder.root / 'overlays' / 'clip.avi.mp4')
    assert written.fps == 5
    first, _ = (frame.array for frame in written.frames())
    # odd sizes are cut to even ones; colours are BGR
    assert first.shape == (32, 48, 3)
    assert first[..., 2].mean() > 180 > 40 > first[..., :2].mean()


def test_video_of_which_frames_are_missing_is_not_done(opened, write_video):
    video = VideoFile('clip.mp4', write_video([OVERLAY] * 8))
    folder = opened()
    with folder.video(video) as add:
        for frame in islice(video.frames(), 2):
            add(prediction(name=frame.name, source=frame), OVERLAY)
    assert opened().pending([video]) == [video]


def test_video_is_not_written_where_opencv_cannot(tmp_path, write_video):
    video = VideoFile('clip.mp4', write_video([OVERLAY]))
    folder = PredictionFolder(
        tmp_path / os.fsdecode(b'out\xdf'), settings=SETTINGS)
    with pytest.raises(ValueError, match=r'out\\xdf.*another folder'):
        with folder.video(video):
            pass
