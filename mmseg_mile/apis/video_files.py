# SPDX-License-Identifier: Apache-2.0
"""Videos in and out, through OpenCV."""
from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Iterator, Optional, Type

import cv2
import numpy as np

VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg',
                  '.mpeg', '.wmv')
# Of a file that does not tell.
_FPS = 25.0


class VideoReader:
    """The frames of a video file; a context manager.

    Args:
        path (Path): The file.

    Raises:
        ValueError: If it cannot be opened, or holds no frame.
    """

    def __init__(self, path: Path) -> None:
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise ValueError(
                f'{path} is no video that OpenCV can open: convert it, for '
                f'example with `ffmpeg -i {path.name} -c:v libx264 new.mp4`')
        #: Frames that the file announces; 0 where it does not tell.
        self.num_frames = max(0,
                              int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        #: Frames per second.
        self.fps = fps if 0 < fps < 1000 else _FPS

    def frames(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 BGR frames, to the last one that can be read."""
        while True:
            there, frame = self._capture.read()
            if not there:
                return
            yield frame

    def __enter__(self) -> 'VideoReader':
        return self

    def __exit__(self, kind: Optional[Type[BaseException]],
                 error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self._capture.release()


class VideoWriter:
    """A video that is there as a whole, or not at all; a context manager.

    Args:
        path (Path): An ``.mp4`` file; an older one is replaced at the end.
        fps (float): Frames per second.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._path = path
        # the suffix chooses the container
        self._partial = path.with_name(f'.partial.{path.name}')
        self._fps = fps
        self._writer: Optional[cv2.VideoWriter] = None

    def add(self, frame: np.ndarray) -> None:
        """Append an (H, W, 3) uint8 RGB frame.

        All take the size of the first one, cut to even numbers of rows and
        columns, which video codecs want.

        Raises:
            ValueError: If no codec for the file is there.
        """
        height, width = (n - n % 2 for n in frame.shape[:2])
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = cv2.VideoWriter(
                str(self._partial), cv2.VideoWriter.fourcc(*'mp4v'), self._fps,
                (width, height))
            if not self._writer.isOpened():
                raise ValueError(f'{self._path} cannot be written: this '
                                 'OpenCV has no MPEG-4 encoder')
        self._writer.write(np.ascontiguousarray(frame[:height, :width, ::-1]))

    def __enter__(self) -> 'VideoWriter':
        return self

    def __exit__(self, kind: Optional[Type[BaseException]],
                 error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        if self._writer is not None:
            self._writer.release()
            if kind is None:
                os.replace(self._partial, self._path)
        self._partial.unlink(missing_ok=True)
