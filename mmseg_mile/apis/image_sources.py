# SPDX-License-Identifier: Apache-2.0
"""What a user gives to be predicted, as single images with names."""
from __future__ import annotations

import contextlib
import glob
import os.path as osp
import tempfile
from abc import ABCMeta, abstractmethod
from pathlib import Path
from typing import Any, ContextManager, Iterator, List, Optional, Sequence

import cv2
import numpy as np

from .image_prototypes import IMAGE_SUFFIXES
from .video_files import VIDEO_SUFFIXES, VideoReader

_ARRAYS = ('an array must be (H, W), (H, W, 1) or (H, W, 3), uint8 or uint16 '
           '(colour only as uint8)')


class ImageSource(metaclass=ABCMeta):
    """One image.

    Args:
        name (str): Names it in results: of a file the path below the folder
            that all inputs share, with '/'.
    """

    #: The file that the user named, where there is one.
    path: Optional[Path] = None

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def file(self) -> ContextManager[Path]:
        """The image as a file, inside the block."""


class ImageFile(ImageSource):
    """An image on disk."""

    path: Path

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name)
        self.path = path

    def file(self) -> ContextManager[Path]:
        """See :meth:`ImageSource.file`."""
        return contextlib.nullcontext(self.path)


class ImageContent(ImageSource):
    """The bytes of an image file.

    They go through a temporary file: whatever a pipeline reads images with,
    the bytes are read as the file would be.
    """

    def __init__(self, name: str, content: bytes) -> None:
        super().__init__(name)
        self._content = content

    @contextlib.contextmanager
    def file(self) -> Iterator[Path]:
        """See :meth:`ImageSource.file`."""
        with tempfile.NamedTemporaryFile(suffix='.png') as file:
            file.write(self._content)
            file.flush()
            yield Path(file.name)

    @classmethod
    def of_array(cls,
                 name: str,
                 array: np.ndarray,
                 rgb: bool = False) -> 'ImageContent':
        """An array, without loss.

        Args:
            name (str): Its name.
            array (np.ndarray): (H, W) or (H, W, 3), uint8 or uint16.
            rgb (bool): Whether colours are RGB. Defaults to False: BGR, as
                OpenCV has them.

        Raises:
            ValueError: If it is no such array.
        """
        colour = array.ndim == 3 and array.shape[2] == 3
        if not (array.size and (array.ndim == 2 or colour or
                                (array.ndim == 3 and array.shape[2] == 1))
                and array.dtype in ((np.uint8, ) if colour else
                                    (np.uint8, np.uint16))):
            raise ValueError(f'{name}: {_ARRAYS}, got {array.shape} of '
                             f'{array.dtype}')
        if colour and rgb:
            array = array[:, :, ::-1]
        _, content = cv2.imencode('.png', np.ascontiguousarray(array),
                                  [cv2.IMWRITE_PNG_COMPRESSION, 1])
        return cls(name, content.tobytes())


class VideoFile:
    """A video, whose frames are images.

    Args:
        name (str): As that of an image; a frame adds its number.
        path (Path): The file.

    Raises:
        ValueError: If it cannot be opened.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        with VideoReader(path) as video:
            self.num_frames = video.num_frames
            self.fps = video.fps

    def frames(self) -> Iterator[ImageSource]:
        """The frames, in order."""
        with VideoReader(self.path) as video:
            for index, frame in enumerate(video.frames()):
                yield ImageContent.of_array(f'{self.name}/{index:06d}', frame)


def list_sources(inputs: Any, rgb: bool = False) -> List[Any]:
    """The images and videos that an input stands for.

    Args:
        inputs (Any): A file, a folder (its images, subfolders included, but
            nothing hidden), a glob pattern, an array, what this function
            returned, or a list of these.
        rgb (bool): Whether arrays are RGB. Defaults to False: BGR.

    Returns:
        list[ImageSource | VideoFile]: In the order given; files of a folder
        or pattern in the order of their names.

    Raises:
        ValueError: If there is no such file, or a folder or pattern holds no
            image.
    """
    given = inputs if isinstance(inputs, (list, tuple)) else [inputs]
    found: List[Any] = []
    roots: List[Path] = []
    for entry in given:
        if isinstance(entry, (str, Path)):
            paths = _paths(entry)
            folder = Path(entry)
            # absolute, but not resolved: a link keeps its name
            roots += [folder] if folder.is_dir() else [p.parent for p in paths]
            found += paths
        elif isinstance(entry, np.ndarray):
            found.append(
                ImageContent.of_array(f'array_{len(found):06d}', entry, rgb))
        elif isinstance(entry, (ImageSource, VideoFile)):
            found.append(entry)
        else:
            raise ValueError(
                'an input must be a path, a glob pattern, a numpy array, or a '
                f'list of these, got {type(entry).__name__}')
    if not found:
        raise ValueError('inputs holds no image: name at least one')
    top = osp.commonpath([osp.abspath(r) for r in roots]) if roots else ''
    return [
        _source(entry, top) if isinstance(entry, Path) else entry
        for entry in found
    ]


def check_images(sources: Sequence[Any]) -> None:
    """Refuse files that are no image, by their first bytes.

    Raises:
        ValueError: Naming the first one.
    """
    for source in sources:
        if (isinstance(source, ImageFile)
                and source.path.suffix.lower() in IMAGE_SUFFIXES
                and not cv2.haveImageReader(str(source.path))):
            raise ValueError(
                f'{source.path} is no image that OpenCV can read: take it '
                'out, or skip such files (skip_broken)')


def _paths(entry: Any) -> List[Path]:
    """The files that a path or pattern stands for."""
    path = Path(entry)
    if path.is_dir():
        inside = (
            p for p in path.rglob('*') if not any(
                part.startswith('.') for part in p.relative_to(path).parts))
        found = sorted(p for p in inside
                       if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not found:
            raise ValueError(
                f'folder {path} holds no image with one of the suffixes '
                f'{IMAGE_SUFFIXES}; videos must be named one by one, or by a '
                'pattern')
        return found
    if path.is_file():
        return [path]
    if glob.has_magic(str(entry)):
        known = IMAGE_SUFFIXES + VIDEO_SUFFIXES
        found = sorted(
            p for p in map(Path, glob.glob(str(entry), recursive=True))
            if p.suffix.lower() in known and p.is_file())
        if found:
            return found
        raise ValueError(f'pattern {str(entry)!r} matches no image or video '
                         f'with one of the suffixes {known}')
    raise ValueError(f'there is no file or folder {path}')


def _source(path: Path, top: str) -> Any:
    name = Path(osp.relpath(osp.abspath(path), top)).as_posix()
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return VideoFile(name, path)
    return ImageFile(name, path)
