# SPDX-License-Identifier: Apache-2.0
"""A library of experts over a tiny backbone, in the test's folder."""
from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope
from tiny import (PredictingLibrary, TinyLibrary, make_library,
                  make_predicting_library)

from mmseg_mile.library.expert_store import ExpertStore


@pytest.fixture(scope='session')
def pristine(tmp_path_factory) -> Callable[[str], TinyLibrary]:
    """``pristine(kind)``: made once; look, do not touch."""
    made: dict[str, TinyLibrary] = {}

    def get(kind: str) -> TinyLibrary:
        if kind not in made:
            made[kind] = make_library(
                kind,
                tmp_path_factory.mktemp(kind) / 'library')
        init_default_scope('mmseg')
        return made[kind]

    return get


@pytest.fixture
def cnn(pristine, tmp_path) -> TinyLibrary:
    """A library of the test's own, without a config in its experts."""
    whole = pristine('cnn')
    folder = shutil.copytree(whole.store.root, tmp_path / 'library')
    return whole._replace(
        store=ExpertStore(folder), config=copy.deepcopy(whole.config))


@pytest.fixture(scope='session')
def made(tiny_data, tmp_path_factory) -> PredictingLibrary:
    """A library that says how it predicts; look, do not touch."""
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
