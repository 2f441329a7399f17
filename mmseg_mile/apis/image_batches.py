# SPDX-License-Identifier: Apache-2.0
"""Images read and predicted a few at a time."""
from __future__ import annotations

import time
from itertools import islice
from typing import (Any, Callable, Dict, Iterable, Iterator, List, NamedTuple,
                    Optional, Sequence)

import torch
from mmengine.dataset import pseudo_collate

from mmseg.structures import SegDataSample
from .image_sources import ImageSource, VideoFile

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
