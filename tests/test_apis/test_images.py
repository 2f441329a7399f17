# SPDX-License-Identifier: Apache-2.0
"""Files, folders, patterns, arrays and videos become images with names."""
from __future__ import annotations

import os
import shutil

import cv2
import numpy as np
import pytest
from mmengine.logging import MMLogger
from PIL import Image

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


@pytest.fixture
def warned(caplog):
    """``warned()``: the lines of the log."""
    logger = MMLogger.get_instance('mmengine')
    logger.addHandler(caplog.handler)
    yield lambda: caplog.messages
    logger.removeHandler(caplog.handler)


def test_linked_folders_are_entered_once(folder, tmp_path):
    shutil.copytree(folder / 'sub', tmp_path / 'elsewhere')
    (folder / 'link').symlink_to(tmp_path / 'elsewhere')
    (folder / 'loop').symlink_to(folder)
    (folder / 'again').symlink_to(folder / 'sub')
    assert names(folder) == ['a.JPG', 'b.png', 'link/c.tif', 'sub/c.tif']


def test_link_to_a_file_that_is_gone_is_no_image(folder):
    (folder / 'gone.png').symlink_to(folder / 'nowhere.png')
    with pytest.raises(ValueError, match='gone.png is no image'):
        check_images(list_sources(folder))


@pytest.mark.parametrize('suffix', ['.jfif', '.ppm', '.jp2', '.avif'])
def test_less_common_suffixes_are_images(folder, suffix):
    (folder / f'd{suffix}').write_bytes(b'')
    assert f'd{suffix}' in names(folder)


@pytest.mark.parametrize('pattern', ['', '*', '**'])
def test_files_of_other_suffixes_are_counted(folder, warned, pattern):
    for name in ('a.heic', 'b.HEIC', 'README'):
        (folder / name).write_bytes(b'')
    names(folder / pattern)
    line, = warned()
    assert f'{folder / pattern}: ' in line
    assert line.endswith(': 2 .heic, 1 .txt, 1 without suffix')
    names(folder / '*.png')
    assert len(warned()) == 1


@pytest.mark.parametrize('suffix', ['.tif', '.webp'])
def test_pages_that_are_not_read_are_told(folder, warned, suffix):
    first, *others = [Image.new('RGB', (6, 4), c) for c in ('red', 'blue')]
    path = folder / os.fsdecode(b'stack\xdf' + suffix.encode())
    first.save(path, save_all=True, append_images=others)
    sources = list_sources([folder / 'b.png', path])
    line, = warned()
    assert f'stack\\xdf{suffix} holds 2 pages or frames, of which' in line
    # once is enough
    list_sources(sources)
    assert len(warned()) == 1


def test_name_that_is_no_utf_8_is_spelled_out(folder):
    path = os.path.join(os.fsencode(folder), b'stra\xdfe.png')
    os.rename(folder / 'b.png', path)
    sources = list_sources(folder)
    check_images(sources)
    assert [s.name for s in sources
            ] == ['a.JPG', 'stra\\xdfe.png', 'sub/c.tif']  # yapf: disable
    assert os.fsencode(sources[1].path) == path
    with open(path, 'wb'), pytest.raises(
            ValueError, match=r'stra\\xdfe.png is no image'):
        check_images(sources)


def test_video_whose_name_is_no_utf_8_is_refused(write_video):
    path = write_video([np.zeros((32, 48, 3), np.uint8)])
    path = path.rename(os.fsdecode(os.fsencode(path.parent) + b'/\xdf.mp4'))
    with pytest.raises(ValueError, match=r'/\\xdf.mp4 .*rename it'):
        list_sources(path)


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


@pytest.mark.parametrize('share, complete', [(1.0, True), (0.4, False)])
def test_video_that_is_cut_off_is_told(write_video, warned, share, complete):
    rng = np.random.default_rng(0)
    path = write_video(rng.integers(0, 255, (20, 32, 48, 3), np.uint8))
    content = path.with_suffix('.avi')
    writer = cv2.VideoWriter(
        str(content), cv2.VideoWriter.fourcc(*'MJPG'), 5, (48, 32))
    for frame in VideoFile('', path).frames():
        writer.write(frame.array)
    writer.release()
    whole = content.read_bytes()
    content.write_bytes(whole[:int(share * len(whole))])
    video, = list_sources(content)
    found = len(list(video.frames()))
    assert video.is_complete(found) is complete
    lines = [f'{content}: {found} of 20 announced frames could be read; if it '
             'is cut off, copy or download it again']  # yapf: disable
    assert warned() == ([] if complete else lines)


def test_video_that_cannot_be_opened_is_named(tmp_path):
    path = tmp_path / 'clip.mp4'
    path.write_text('no video')
    with pytest.raises(ValueError, match='clip.mp4 is no video.*ffmpeg'):
        list_sources(path)
