# SPDX-License-Identifier: Apache-2.0
"""Heads for imported experts that come without one."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from mmseg.registry import MODELS
from mmseg_mile.adapters.base_weights import weights_only
from mmseg_mile.library.edits import AnyPath, open_library
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.methods.continual_segmentor import head_config
from mmseg_mile.methods.mile.expert_heads import ExpertHead
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor

_PREFIX = 'decode_head.'


def head_of_expert(library: AnyPath, name: str) -> ExpertHead:
    """The head, classes and colours of an expert of a library.

    Raises:
        ValueError: If there is no such expert, or its head was changed.
    """
    expert, = open_library(library).open([name])
    return ExpertHead(expert.parts['head'], expert.configs['head'],
                      expert.classes, expert.palette)


def head_of_checkpoint(path: AnyPath, template: Dict[str, Any]) -> ExpertHead:
    """The decode head of a checkpoint that mmseg's own training wrote.

    Args:
        path (str | Path): The checkpoint.
        template (dict): The config's ``decode_head``; the checkpoint says
            how many classes it has.

    Raises:
        ValueError: If it has no decode head, or does not name its classes.
    """
    # a name without scheme would be looked for in the model zoos
    path = Path(path)
    if not path.is_file():
        raise ValueError(f'--head-checkpoint {path} does not exist')
    with weights_only(f'--head-checkpoint {path}'):
        content = CheckpointLoader.load_checkpoint(
            str(path), map_location='cpu')
    state = {
        key.removeprefix(_PREFIX): value
        for key, value in content.get('state_dict', content).items()
        if key.startswith(_PREFIX)
    }
    if not state:
        raise ValueError(f'{path} has no key that begins with {_PREFIX!r}: '
                         'give a checkpoint of a whole mmseg segmentor')
    meta = content.get('meta', {})
    labels = {
        key.lower(): value
        for key, value in {
            **meta,
            **(meta.get('dataset_meta') or {})
        }.items()
    }
    classes, palette = labels.get('classes'), labels.get('palette')
    if not classes or not palette:
        raise ValueError(
            f'{path} does not say in meta.dataset_meta what its classes and '
            'their palette are: write them there with torch.save, or take '
            'the head of an expert with --head-from')
    return ExpertHead(state, head_config(template, len(classes)),
                      tuple(classes), tuple(tuple(c) for c in palette))


class ImportSource:
    """Model, head and prototypes for an adapter that has only its tensors.

    Args:
        library (str | Path): Gets the expert.
        cfg (Config): The config that the library was trained with.

    Raises:
        ValueError: If the config's model has no experts.
    """

    def __init__(self, library: AnyPath, cfg: Config) -> None:
        self._store = open_library(library)
        self._cfg = cfg
        init_default_scope('mmseg')
        self.model = MODELS.build(copy.deepcopy(cfg.model))
        if not isinstance(self.model, ExpertSegmentor):
            raise ValueError('the config must be of a method with experts, '
                             f'its model.type is {cfg.model.type!r}')

    def head(self,
             expert: Optional[str] = None,
             checkpoint: Optional[AnyPath] = None) -> ExpertHead:
        """The head of an expert, or of a checkpoint of mmseg.

        Raises:
            ValueError: If not exactly one is named, or it cannot be had.
        """
        if (expert is None) == (checkpoint is None):
            raise ValueError(
                'an adapter has no head and no classes: name an expert of '
                'the library that has the right ones (--head-from) or a '
                'checkpoint of mmseg (--head-checkpoint), and only one')
        if expert is not None:
            return head_of_expert(self._store.root, expert)
        assert checkpoint is not None
        return head_of_checkpoint(checkpoint, self.model.head_template)

    def prototypes(self,
                   name: str,
                   images: Optional[AnyPath] = None,
                   expert: Optional[str] = None,
                   task: Optional[str] = None) -> Dict[str, Tensor]:
        """Statistics of the gate from images, or those of an expert.

        Args:
            name (str): Of the new expert.
            images (str | Path, optional): Folder of images of its domain.
            expert (str, optional): One of the same domain.
            task (str, optional): See :func:`prediction_pipeline`.

        Raises:
            ValueError: If the gate needs images and not exactly one source
                is named, or it cannot be had.
        """
        if (images is None) == (expert is None) and not (
                images is None and not self.model.gate.needs_embeddings):
            raise ValueError(
                'an adapter does not tell which images it is for: name a '
                "folder of its domain's images (--images), or an expert of "
                'the same domain (--prototypes-from), and only one')
        if expert is not None:
            return self._store.open([expert])[0].parts['prototypes']
        steps = prediction_pipeline(self._cfg, task) if images else []
        return fit_prototypes(self.model, self._store, name,
                              Path(images or '.'), steps)


IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')


def fit_prototypes(model: ExpertSegmentor, store: ExpertStore, name: str,
                   folder: Path, pipeline: Sequence[Any]) -> Dict[str, Tensor]:
    """The gate's state for a folder of images.

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
            model.gate.load_state(other.name, other.parts['prototypes'])
    embeddings = model.embed_images(_batches(
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
