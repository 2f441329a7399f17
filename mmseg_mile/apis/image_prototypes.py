# SPDX-License-Identifier: Apache-2.0
"""Prototypes of a domain from a folder of its images."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

from mmengine.dataset import Compose, pseudo_collate
from torch import Tensor

from mmseg_mile.experts import ExpertStore
from mmseg_mile.models import ExpertSegmentor
from mmseg_mile.models.segmentors.embedding import embed_images

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')


def fit_prototypes(model: ExpertSegmentor, store: ExpertStore, name: str,
                   folder: Path, pipeline: Sequence[Any]) -> Dict[str, Tensor]:
    """What the model's gate keeps of a folder of images.

    They are embedded by the frozen base, as a task's training images are,
    and calibrated against the experts that are there.

    Args:
        model (ExpertSegmentor): Its base is loaded from the library.
        store (ExpertStore): The library.
        name (str): Of the new expert.
        folder (Path): Of images, subfolders included.
        pipeline (Sequence[dict]): See :func:`prediction_pipeline`.

    Raises:
        ValueError: If the folder has no image, or one cannot be read.
    """
    paths = sorted(
        p for p in folder.rglob('*')
        if p.suffix.lower() in IMAGE_SUFFIXES) if folder.is_dir() else []
    if model.gate.needs_embeddings and not paths:
        raise ValueError(f'--images {folder} holds no image with one of the '
                         f'suffixes {IMAGE_SUFFIXES}: name the folder of the '
                         "domain's training images")
    model.backbone.load_base(*store.load_base())
    for other in store.open(store.names):
        if other.name != name:
            model.gate.load_state(other.name, other.prototypes)
    embeddings = embed_images(model, _batches(
        paths, pipeline)) if model.gate.needs_embeddings else None
    model.gate.fit(name, embeddings)
    return model.gate.state(name)


def prediction_pipeline(cfg: Any, task: Optional[str] = None) -> List[Any]:
    """The steps from a file to what the model predicts, without labels.

    Args:
        cfg (Config): Of a stream.
        task (str, optional): Whose pipeline. Defaults to None: the one that
            all tasks share.

    Raises:
        ValueError: If there is no such task, or tasks differ and none is
            named.
    """
    found = {
        config['name']: [
            step for step in _pipeline(config['val_dataset'])
            if step['type'] != 'LoadAnnotations'
        ]
        for config in cfg.train_cfg.tasks
    }
    if task is None:
        pipelines = list(found.values())
        if any(other != pipelines[0] for other in pipelines):
            raise ValueError(f'the tasks {list(found)} do not load their '
                             'images in one way: name one whose way is '
                             'right with --task')
        return pipelines[0]
    if task not in found:
        raise ValueError(f'--task must be one of {list(found)}, got {task!r}')
    return found[task]


def _pipeline(dataset: Any) -> List[Any]:
    """Of a dataset, or of the first one that it wraps."""
    while 'pipeline' not in dataset:
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset[
            'datasets'][0]
    return dataset['pipeline']


def _batches(paths: Sequence[Path],
             pipeline: Sequence[Any]) -> Iterator[Dict[str, Any]]:
    steps = Compose(pipeline)
    for path in paths:
        try:
            yield pseudo_collate([steps(dict(img_path=str(path)))])
        except Exception as error:
            raise ValueError(f'{path} cannot be read as an image: '
                             f'{error}') from error
