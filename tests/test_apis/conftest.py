# SPDX-License-Identifier: Apache-2.0
"""A library that says how it predicts, and videos."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny import PredictingLibrary, make_predicting_library


@pytest.fixture(scope='session')
def made(tiny_data, tmp_path_factory) -> PredictingLibrary:
    """Made once; look, do not touch."""
    return make_predicting_library(
        tiny_data,
        tmp_path_factory.mktemp('predicting') / 'library')


@pytest.fixture
def write_video(tmp_path) -> Callable[[Sequence[np.ndarray]], Path]:
    """``write_video(frames)``: a video of BGR frames, five a second."""

    def write(frames: Sequence[np.ndarray]) -> Path:
        path = tmp_path / 'clip.mp4'
        height, width = frames[0].shape[:2]
        codec = cv2.VideoWriter.fourcc(*'mp4v')
        writer = cv2.VideoWriter(str(path), codec, 5, (width, height))
        for frame in frames:
            writer.write(frame)
        writer.release()
        return path

    return write
