# SPDX-License-Identifier: Apache-2.0
"""Files, folders, patterns, arrays and videos become images with names."""
from __future__ import annotations

import cv2
import numpy as np
import pytest

from mmseg_mile.apis.images import (ImageSource, VideoFile, check_images,
                                    list_sources)


@pytest.fixture
def folder(tmp_path):
    """Images, and what is none, in a folder."""
    root = tmp_path / 'in'
    for name in ('b.png', 'a.JPG', 'sub/c.tif', '.hidden/d.png', '._b.png'):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = path.suffix.lower()
        _, content = cv2.imencode(suffix, np.zeros((4, 6, 3), np.uint8))
        path.write_bytes(content.tobytes())
    (root / 'notes.txt').write_text('none')
    return root


def names(inputs):
    return [source.name for source in list_sources(inputs)]


def test_folder_gives_its_images_in_order_and_nothing_hidden(folder):
    assert names(folder) == ['a.JPG', 'b.png', 'sub/c.tif']
    assert names(str(folder)) == ['a.JPG', 'b.png', 'sub/c.tif']


def test_names_are_relative_to_what_all_inputs_share(folder, monkeypatch):
    assert names(folder / 'b.png') == ['b.png']
    assert names([folder / 'sub' / 'c.tif',
                  folder / 'b.png']) == ['sub/c.tif', 'b.png']
    assert names([folder / 'sub', folder / 'a.JPG']) == ['sub/c.tif', 'a.JPG']
    monkeypatch.chdir(folder / 'sub')
    assert names(['c.tif', '../b.png']) == ['sub/c.tif', 'b.png']


def test_pattern_leaves_out_what_is_no_image(folder):
    assert names(f'{folder}/*') == ['a.JPG', 'b.png']
    assert names(f'{folder}/**/*.tif') == ['c.tif']


def test_name_like_a_pattern_and_name_of_a_link_are_kept(folder, tmp_path):
    path = (folder / 'b.png').rename(folder / 'b[1].png')
    assert names(path) == ['b[1].png']
    (tmp_path / 'link').symlink_to(folder)
    assert names(tmp_path / 'link' / 'a.JPG') == ['a.JPG']


def test_listed_sources_and_arrays_stay_in_place(folder):
    listed = list_sources(folder / 'b.png')
    array = np.zeros((2, 3), np.uint8)
    mixed = [array, *listed, array]
    assert list_sources(mixed)[1] is listed[0]
    assert names(mixed) == ['array_000000', 'b.png', 'array_000002']


@pytest.mark.parametrize('shape, dtype', [((5, 7), np.uint8),
                                          ((5, 7), np.uint16),
                                          ((5, 7, 1), np.uint16),
                                          ((5, 7, 3), np.uint8)])
def test_array_is_in_the_file_without_loss(shape, dtype):
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape)
    source, = list_sources(array.astype(dtype))
    with source.file() as path:
        back = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(back, array.squeeze())
    assert not path.exists()


def test_rgb_array_is_turned_around():
    array = np.zeros((2, 2, 3), np.uint8)
    array[..., 0] = 200
    source, = list_sources(array, rgb=True)
    np.testing.assert_array_equal(source.array, array[:, :, ::-1])


@pytest.mark.parametrize('array', [
    np.zeros((4, 4, 3), np.float32),
    np.zeros((4, 4, 3), np.uint16),
    np.zeros((4, 4, 4), np.uint8),
    np.zeros((1, 4, 4, 3), np.uint8),
    np.zeros((0, 4, 3), np.uint8),
    np.zeros(4, np.uint8)
])
def test_other_arrays_are_refused(array):
    with pytest.raises(ValueError, match='array_000000: an array must be'):
        list_sources(array)


@pytest.mark.parametrize('given, match', [
    ([], 'holds no image'),
    ('missing.png', 'there is no file or folder missing.png'),
    ('missing/*.png', "pattern 'missing/.*' matches no image"),
    ('empty', 'folder empty holds no image'),
    (7, 'got int'),
    ([None], 'got NoneType'),
])
def test_input_that_is_nothing_is_named(given, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=match):
        list_sources(given)


def test_file_that_is_no_image_is_named(folder):
    (folder / 'b.png').write_text('no image')
    with pytest.raises(ValueError, match='b.png is no image'):
        check_images(list_sources(folder))
    check_images(list_sources(folder / 'a.JPG'))
    # a pipeline of one's own may read it
    check_images([ImageSource('notes.txt', folder / 'notes.txt')])


def test_frames_of_a_video_are_images(write_video):
    path = write_video([np.full((32, 48, 3), g, np.uint8)
                        for g in (30, 120, 210)])  # yapf: disable
    video, = list_sources(path)
    assert isinstance(video, VideoFile)
    assert (video.name, video.num_frames, video.fps) == ('clip.mp4', 3, 5)
    frames = list(video.frames())
    assert [f.name for f in frames
            ] == [f'clip.mp4/00000{i}' for i in range(3)]  # yapf: disable
    assert [f.array.mean() for f in frames] == pytest.approx([30, 120, 210],
                                                             abs=6)


def test_video_that_cannot_be_opened_is_named(tmp_path):
    path = tmp_path / 'clip.mp4'
    path.write_text('no video')
    with pytest.raises(ValueError, match='clip.mp4 is no video.*ffmpeg'):
        list_sources(path)
