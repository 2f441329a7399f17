# SPDX-License-Identifier: Apache-2.0
"""Videos in and out, through OpenCV."""
from __future__ import annotations

import contextlib
import glob
import os
import os.path as osp
import tempfile
import time
from abc import ABCMeta, abstractmethod
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import (Any, Callable, ContextManager, Dict, Iterable, Iterator,
                    List, NamedTuple, Optional, Sequence, Type)

import cv2
import numpy as np
import torch
from mmengine.dataset import pseudo_collate

from mmseg.structures import SegDataSample
from .expert_import import IMAGE_SUFFIXES

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


Loaded = Dict[str, Any]


class Outcome(NamedTuple):
    """What the model said of one image, and how long it took."""
    source: ImageSource
    sample: SegDataSample
    seconds: float


def single_images(sources: Sequence[Any]) -> Iterator[ImageSource]:
    """Images as they are, and the frames of videos."""
    for source in sources:
        if isinstance(source, VideoFile):
            yield from source.frames()
        else:
            yield source


def count_images(sources: Sequence[Any]) -> Optional[int]:
    """How many they are; None where a video does not tell."""
    counts = [s.num_frames if isinstance(s, VideoFile) else 1 for s in sources]
    return sum(counts) if all(counts) else None


def load_image(source: ImageSource, pipeline: Callable) -> Loaded:
    """What a pipeline makes of an image.

    Raises:
        ValueError: If it cannot be read; names the file.
    """
    name = str(source.path or source.name)
    with source.file() as path:
        try:
            data = pipeline(dict(img_path=str(path)))
        except Exception as error:
            raise ValueError(f'{name} cannot be read as an image: '
                             f'{type(error).__name__}: {error}') from error
    data['data_samples'].set_metainfo(dict(img_path=name))
    return data


@torch.no_grad()
def predict_by_size(model: Any,
                    inputs: Sequence[Loaded],
                    collate: Callable = pseudo_collate) -> List[SegDataSample]:
    """Predict loaded images, those of one size together.

    mmseg stacks a batch, and so refuses images of different sizes.
    """
    sizes: Dict[Any, List[int]] = {}
    for index, data in enumerate(inputs):
        sizes.setdefault(data['inputs'].shape, []).append(index)
    outputs: Dict[int, SegDataSample] = {}
    for indices in sizes.values():
        batch = collate([inputs[i] for i in indices])
        outputs.update(zip(indices, model.test_step(batch)))
    return [outputs[index] for index in range(len(inputs))]


def predict_images(images: Iterable[ImageSource], batch_size: int,
                   load: Callable[[ImageSource], Loaded],
                   forward: Callable[[List[Loaded]], List[SegDataSample]],
                   broken: Optional[Dict[str, str]]) -> Iterator[Outcome]:
    """Read and predict ``batch_size`` images at a time.

    Args:
        images (Iterable[ImageSource]): In the order of what comes out.
        batch_size (int): At least 1.
        load (Callable): Reads one.
        forward (Callable): Predicts those that were read.
        broken (dict[str, str], optional): Takes up why an image cannot be
            read, by its name. None: that is an error, raised when the images
            before it have come out.

    Yields:
        Outcome: One per image that could be read.

    Raises:
        ValueError: See ``broken``.
    """
    images = iter(images)
    while True:
        start = time.perf_counter()
        chunk = list(islice(images, batch_size))
        if not chunk:
            return
        sources, loaded, failure = [], [], None
        for source in chunk:
            try:
                loaded.append(load(source))
                sources.append(source)
            except ValueError as error:
                if broken is None:
                    failure = error
                    break
                broken[source.name] = str(error)
        samples = forward(loaded)
        seconds = (time.perf_counter() - start) / max(1, len(loaded))
        for source, sample in zip(sources, samples):
            yield Outcome(source, sample, seconds)
        if failure is not None:
            raise failure
