# SPDX-License-Identifier: Apache-2.0
"""Images to predict: files, folders, patterns, arrays and videos."""
from __future__ import annotations

import contextlib
import glob
import logging
import os
import os.path as osp
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import (Any, Iterable, Iterator, List, Optional, Sequence, Set,
                    Tuple, Union)

import cv2
import numpy as np
from mmengine.logging import print_log

from mmseg_mile.files import printable

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.jp2', '.bmp',
                  '.dib', '.tif', '.tiff', '.webp', '.avif', '.ppm', '.pgm',
                  '.pbm', '.pnm')
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg',
                  '.mpeg', '.wmv')
# Frames per second of a video file that does not tell.
_FPS = 25.0


@dataclass(eq=False)
class ImageSource:
    """One image, on disk or in memory.

    Args:
        name (str): Names it in results: of a file the path below the folder
            that all inputs share, with '/'; bytes that are no UTF-8 are
            spelled out, as ``\\xdf``.
        path (Path, optional): The file. Defaults to None: an array.
        array (np.ndarray, optional): (H, W) or (H, W, 1), uint8 or uint16,
            or (H, W, 3) uint8 BGR. Defaults to None: a file.
    """
    name: str
    path: Optional[Path] = None
    array: Optional[np.ndarray] = field(default=None, repr=False)
    num_frames = 1

    def frames(self) -> Iterator['ImageSource']:
        """The image itself, as a video of one frame."""
        yield self

    @contextlib.contextmanager
    def file(self) -> Iterator[Path]:
        """The image as a file inside the block, an array as a lossless one."""
        if self.path is not None:
            yield self.path
            return
        assert self.array is not None
        with tempfile.NamedTemporaryFile(suffix='.png') as file:
            cv2.imwrite(file.name, self.array,
                        [cv2.IMWRITE_PNG_COMPRESSION, 1])
            yield Path(file.name)


class VideoFile:
    """A video, whose frames are images.

    Args:
        name (str): As that of an image; a frame adds its number.
        path (Path): The file.

    Raises:
        ValueError: If it cannot be opened, or its name is no UTF-8.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        if printable(path) != str(path):
            # OpenCV would end the process
            raise ValueError(f'{printable(path)} has bytes in its name that '
                             'are no UTF-8, with which OpenCV opens no '
                             'video: rename it')
        capture = cv2.VideoCapture(str(path))
        if not capture.isOpened():
            raise ValueError(
                f'{path} is no video that OpenCV can open: convert it, for '
                f'example with `ffmpeg -i {path.name} -c:v libx264 new.mp4`')
        #: Frames that the file announces; 0 where it does not tell.
        self.num_frames = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        fps = capture.get(cv2.CAP_PROP_FPS)
        #: Frames per second.
        self.fps = fps if 0 < fps < 1000 else _FPS
        capture.release()

    def frames(self) -> Iterator[ImageSource]:
        """The frames in order, to the last one that can be read.

        A warning says if these are fewer than announced.
        """
        capture = cv2.VideoCapture(str(self.path))
        try:
            for index in count():
                found, frame = capture.read()
                if not found:
                    break
                yield ImageSource(f'{self.name}/{index:06d}', array=frame)
        finally:
            capture.release()
        if index < self.num_frames:
            _warn(f'{self.path}: {index} of {self.num_frames} announced '
                  'frames could be read; if it is cut off, copy or download '
                  'it again')

    def is_complete(self, num_read: int) -> bool:
        """Whether so many frames are the video.

        Some containers announce a duration instead of a count, which sound
        that outlasts the picture makes longer: a second may be missing.
        """
        return num_read + self.fps >= self.num_frames


Source = Union[ImageSource, VideoFile]


def list_sources(inputs: Any, rgb: bool = False) -> List[Source]:
    """The images and videos that an input stands for.

    Args:
        inputs (Any): A file, a folder (its images, subfolders and links to
            folders included, but nothing hidden; a warning counts files of
            other suffixes), a glob pattern, an array, what this function
            returned, or a list of these. Of a file of several pages the
            first one, with a warning.
        rgb (bool): Whether arrays are RGB. Defaults to False: BGR.

    Returns:
        list[ImageSource | VideoFile]: In the order given; files of a folder
        or pattern in the order of their names.

    Raises:
        ValueError: If there is no such file, or a folder or pattern holds no
            image.
    """
    found: List[Any] = []
    roots: List[str] = []
    for entry in inputs if isinstance(inputs, (list, tuple)) else [inputs]:
        if isinstance(entry, (str, Path)):
            paths = _find_files(entry)
            found += paths
            # absolute, but not resolved: a link keeps its name
            folders = [entry
                       ] if osp.isdir(entry) else [p.parent for p in paths]
            roots += map(osp.abspath, folders)
        elif isinstance(entry, np.ndarray):
            name = f'array_{len(found):06d}'
            found.append(ImageSource(name, array=_as_bgr(entry, name, rgb)))
        elif isinstance(entry, (ImageSource, VideoFile)):
            found.append(entry)
        else:
            raise ValueError(
                'an input must be a path, a glob pattern, a numpy array, or a '
                f'list of these, got {type(entry).__name__}')
    if not found:
        raise ValueError('inputs holds no image: name at least one')
    for index, entry in enumerate(found):
        if isinstance(entry, Path):
            name = osp.relpath(osp.abspath(entry), osp.commonpath(roots))
            is_video = entry.suffix.lower() in VIDEO_SUFFIXES
            kind = VideoFile if is_video else ImageSource
            found[index] = kind(printable(Path(name).as_posix()), entry)
            pages = 1 if is_video else _num_pages(entry)
            if pages > 1:
                _warn(f'{printable(entry)} holds {pages} pages or frames, of '
                      'which the first alone is read: save each as a file')
    return found


def check_images(sources: Sequence[Source]) -> None:
    """Refuse files that are no image, by their first bytes.

    Raises:
        ValueError: Naming the first one.
    """
    for source in sources:
        # a pipeline of one's own may read files of other suffixes
        if (isinstance(source, ImageSource) and source.path is not None
                and source.path.suffix.lower() in IMAGE_SUFFIXES
                and not _num_pages(source.path)):
            raise ValueError(
                f'{printable(source.path)} is no image that OpenCV can read: '
                'take it out, or skip such files (skip_broken)')


def _num_pages(path: Path) -> int:
    """Pages, or frames, of an image; 0 if OpenCV does not know its format."""
    try:
        with open(path, 'rb') as file:
            # by its own name, one that is no UTF-8 would end the process
            name = f'/dev/fd/{file.fileno()}'
            return max(1,
                       cv2.imcount(name)) if cv2.haveImageReader(name) else 0
    except OSError:
        return 0


def _find_files(entry: Union[str, Path]) -> List[Path]:
    """The files that a path or pattern stands for."""
    path = Path(entry)
    if path.is_file():
        return [path]
    known: Tuple[str, ...] = IMAGE_SUFFIXES
    files: Iterable[Path]
    if path.is_dir():
        files = _files_below(path)
        where = f'folder {path} holds no image'
        hint = '; videos must be named one by one, or by a pattern'
    elif glob.has_magic(str(entry)):
        known += VIDEO_SUFFIXES
        matches = map(Path, glob.glob(str(entry), recursive=True))
        files = (p for p in matches if not p.is_dir())
        where, hint = f'pattern {str(entry)!r} matches no image or video', ''
    else:
        raise ValueError(f'there is no file or folder {path}')
    found: List[Path] = []
    others: Counter = Counter()
    for file in files:
        suffix = file.suffix.lower()
        if suffix in known:
            found.append(file)
        else:
            others[suffix or 'without suffix'] += 1
    if not found:
        raise ValueError(f'{where} with one of the suffixes {known}{hint}')
    if others:
        counts = ', '.join(f'{n} {s}' for s, n in sorted(others.items()))
        _warn(f'{printable(entry)}: files left out, whose suffix is none of '
              f'those that are looked for: {counts}')
    return sorted(found)


def _files_below(folder: Path) -> Iterator[Path]:
    """Files of a folder and of its subfolders, linked ones included.

    Nothing hidden, and no folder twice, for a link may lead back.
    """
    seen: Set[str] = set()
    for place, folders, files in os.walk(
            folder,
            onerror=lambda error: _warn(f'folder left out: {error}'),
            followlinks=True):
        real = osp.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # in-place: these are walked next, links behind what they may lead to
        folders[:] = sorted((f for f in folders if not f.startswith('.')),
                            key=lambda f: osp.islink(osp.join(place, f)))
        yield from (Path(place, f) for f in files if not f.startswith('.'))


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)


def _as_bgr(array: np.ndarray, name: str, rgb: bool) -> np.ndarray:
    """The array of an image, colours as OpenCV has them.

    Raises:
        ValueError: If it is no image.
    """
    colour = array.ndim == 3 and array.shape[2] == 3
    grey = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    dtypes = (np.uint8, ) if colour else (np.uint8, np.uint16)
    if not (array.size and (colour or grey) and array.dtype in dtypes):
        raise ValueError(
            f'{name}: an array must be (H, W), (H, W, 1) or (H, W, 3), uint8 '
            f'or uint16 (colour only as uint8), got {array.shape} of '
            f'{array.dtype}')
    return np.ascontiguousarray(array[:, :, ::-1] if colour and rgb else array)
