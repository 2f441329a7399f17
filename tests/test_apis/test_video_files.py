# SPDX-License-Identifier: Apache-2.0
"""Videos are written as a whole, or not at all."""
from __future__ import annotations

import numpy as np
import pytest

from mmseg_mile.apis.images import VideoReader, VideoWriter


def frame(grey, shape=(33, 49)):
    return np.full((*shape, 3), grey, np.uint8)


def test_frames_come_back_in_rgb_and_in_order(tmp_path):
    red = frame(0)
    red[..., 0] = 220
    with VideoWriter(tmp_path / 'new' / 'a.mp4', 12.5) as writer:
        for picture in (red, frame(60)):
            writer.add(picture)
    with VideoReader(tmp_path / 'new' / 'a.mp4') as video:
        assert video.fps == pytest.approx(12.5)
        first, second = video.frames()
    # odd sizes are cut to even ones
    assert first.shape == (32, 48, 3)
    blue, green, red = first.reshape(-1, 3).mean(0)
    assert red > 180 and blue < 40 and green < 40
    assert second.mean() == pytest.approx(60, abs=6)


def test_block_that_fails_leaves_the_older_video(tmp_path):
    path = tmp_path / 'a.mp4'
    path.write_bytes(b'older')
    with pytest.raises(KeyboardInterrupt):
        with VideoWriter(path, 5) as writer:
            writer.add(frame(1))
            raise KeyboardInterrupt
    assert path.read_bytes() == b'older'
    assert list(tmp_path.iterdir()) == [path]


def test_no_frame_makes_no_file(tmp_path):
    with VideoWriter(tmp_path / 'a.mp4', 5):
        pass
    assert not list(tmp_path.iterdir())


def test_file_that_is_no_video_is_named(tmp_path):
    (tmp_path / 'a.avi').write_text('no video')
    with pytest.raises(ValueError, match='a.avi is no video.*ffmpeg'):
        VideoReader(tmp_path / 'a.avi')
