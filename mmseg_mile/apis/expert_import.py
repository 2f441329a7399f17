# SPDX-License-Identifier: Apache-2.0
"""Experts from LoRA folders that plain PEFT wrote."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

from mmcv.cnn import is_norm
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader

from mmseg.registry import MODELS
from mmseg_mile.adapters.base_weights import weights_checksum, weights_only
from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone
from mmseg_mile.adapters.targets import called_modules, is_adaptable
from mmseg_mile.library.edits import check_free
from mmseg_mile.library.expert_store import AnyPath, ExpertStore, open_library
from mmseg_mile.library.peft_exchange import PeftAdapter, read_peft_folder
from mmseg_mile.methods.continual_segmentor import head_config
from mmseg_mile.methods.mile.expert_heads import ExpertHead
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.structures import Expert
from mmseg_mile.structures.expert import TensorDict
from .images import Source, list_sources

_PREFIX = 'decode_head.'


def import_peft(library: AnyPath,
                folder: AnyPath,
                new: str,
                cfg: Config,
                head_from: Optional[str] = None,
                head_checkpoint: Optional[AnyPath] = None,
                images: Optional[AnyPath] = None,
                prototypes_from: Optional[str] = None,
                task: Optional[str] = None,
                force: bool = False) -> PeftAdapter:
    """Make an expert of a LoRA folder that plain PEFT wrote.

    The adapter may have been trained on the stock backbone, on ours, or on a
    segmentor around it, and be of any layers, ranks and scalings; nothing is
    lost. What is more than ``W + s B A`` and norm layers is refused.

    Args:
        library (str | Path): Gets the expert.
        folder (str | Path): The adapter.
        new (str): Name of the expert.
        cfg (Config): The config that the library was trained with.
        head_from (str, optional): Expert that gives head and classes.
        head_checkpoint (str | Path, optional): Or a checkpoint of mmseg.
        images (str | Path, optional): Folder of images of its domain.
        prototypes_from (str, optional): Or an expert of the same domain.
        task (str, optional): See :func:`prediction_pipeline`.
        force (bool): Whether an expert of that name may be replaced.

    Returns:
        PeftAdapter: What was in the folder.

    Raises:
        ValueError: If the adapter is of another base or fits no layer, a
            part does not fit the model or cannot be had, or the name is
            taken.
    """
    store = open_library(library)
    check_free(store, new, force)
    adapter = _read_adapter(store, Path(folder))
    init_default_scope('mmseg')
    model = MODELS.build(copy.deepcopy(cfg.model))
    if not isinstance(model, ExpertSegmentor):
        raise ValueError('the config must be of a method with experts, its '
                         f'model.type is {cfg.model.type!r}')
    model.backbone.load_base(*store.load_base())
    _check_layers(model.backbone, adapter, folder)
    head = _head(store, model, head_from, head_checkpoint)
    for other in store.open(store.names):
        if other.name != new:
            model.gate.load_state(other.name, other.parts['prototypes'])
    if prototypes_from is not None and images is None:
        prototypes = store.open([prototypes_from])[0].parts['prototypes']
    else:
        prototypes = _fit(model, new, images, prototypes_from, cfg, task)
    expert = _expert(new, adapter, head, prototypes, store.base_fingerprint,
                     folder)
    # shows that it fits
    model.import_expert(expert)
    store.save(expert)
    return adapter


def _expert(name: str, adapter: PeftAdapter, head: ExpertHead,
            prototypes: TensorDict, base: str, folder: AnyPath) -> Expert:
    norm = dict(norm=adapter.others) if adapter.others else {}
    weights = dict(adapter=adapter.lora, head=head.state, **norm)
    return Expert(
        name=name,
        classes=head.classes,
        palette=head.palette,
        parts=dict(weights, prototypes=prototypes),
        configs=dict(adapter=adapter.config, head=head.config),
        base_fingerprint=base,
        provenance=dict(
            weights_sha256=weights_checksum(weights),
            imported_from=str(folder),
            peft_version=adapter.peft_version,
            base_told=adapter.base_fingerprint is not None))


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


def _read_adapter(store: ExpertStore, folder: Path) -> PeftAdapter:
    base, fingerprint = store.load_base()
    adapter = read_peft_folder(folder, base)
    stated = adapter.base_fingerprint
    if stated not in (None, fingerprint):
        raise ValueError(
            f'the adapter in {folder} was trained on the base {stated[:16]}, '
            f'library {store.root} has {fingerprint[:16]}: import it into a '
            'library of its own base')
    return adapter


def _check_layers(backbone: LoRAExpertBackbone, adapter: PeftAdapter,
                  folder: AnyPath) -> None:
    """Raise unless an adapter changes layers that an expert can change."""
    modules: Dict[str, Any] = dict(backbone.backbone.named_modules())
    adapted = {key.rpartition('.lora_')[0] for key in adapter.lora}
    unknown = sorted(adapted - set(modules))
    if unknown:
        raise ValueError(
            f'the adapter in {folder} is of layers that this backbone has '
            f'not: {unknown[:5]}. It has {sorted(modules)[1:4]} and more; '
            'import an adapter of the same backbone')
    fixed = sorted(n for n in adapted if not is_adaptable(modules[n]))
    if fixed:
        raise ValueError(
            f'the adapter in {folder} changes {fixed[0]!r}, a '
            f'{type(modules[fixed[0]]).__name__}: an expert adapts linear '
            'layers and convolutions without groups; leave it out of '
            'target_modules and train again')
    dead = sorted(adapted - called_modules(backbone.backbone))
    if dead:
        raise ValueError(f'the adapter in {folder} is of layers that are '
                         f'never called: {dead[:5]}; leave them out')
    foreign = sorted(
        key for key in adapter.others
        if not is_norm(modules.get(key.rpartition('.')[0])))
    if foreign:
        raise ValueError(
            f'the adapter in {folder} holds {foreign[:5]}, which belong to no '
            'norm layer of the backbone: an expert owns norm layers, '
            'everything else is an adapter; a head goes in by '
            '--head-checkpoint')


def _head(store: ExpertStore, model: ExpertSegmentor, name: Optional[str],
          checkpoint: Optional[AnyPath]) -> ExpertHead:
    """The head of an expert, or of a checkpoint of mmseg."""
    if name is not None and checkpoint is None:
        expert, = store.open([name])
        return ExpertHead(expert.parts['head'], expert.configs['head'],
                          expert.classes, expert.palette)
    if checkpoint is None or name is not None:
        raise ValueError(
            'an adapter has no head and no classes: name an expert of the '
            'library that has the right ones (--head-from) or a checkpoint '
            'of mmseg (--head-checkpoint), and only one')
    # a name without scheme would be looked for in the model zoos
    path = Path(checkpoint)
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
    labels = {**meta, **(meta.get('dataset_meta') or {})}
    # mmseg 0.x wrote them in capitals
    labels = {key.lower(): value for key, value in labels.items()}
    classes, palette = labels.get('classes'), labels.get('palette')
    if not classes or not palette:
        raise ValueError(
            f'{path} does not say in meta.dataset_meta what its classes and '
            'their palette are: write them there with torch.save, or take '
            'the head of an expert with --head-from')
    return ExpertHead(state, head_config(model.head_template, len(classes)),
                      tuple(classes), tuple(tuple(c) for c in palette))


def _fit(model: ExpertSegmentor, name: str, images: Optional[AnyPath],
         expert: Optional[str], cfg: Config,
         task: Optional[str]) -> TensorDict:
    """The gate's state for a folder of images.

    They are embedded by the frozen base, as a task's training images are,
    and calibrated against the experts that are there.
    """
    embeddings = None
    if model.gate.needs_embeddings or images is not None:
        if images is None or expert is not None:
            raise ValueError(
                'an adapter does not tell which images it is for: name a '
                "folder of its domain's images (--images), or an expert of "
                'the same domain (--prototypes-from), and only one')
        embeddings = model.embed_images(
            _batches(list_sources(images), prediction_pipeline(cfg, task)))
    model.gate.fit(name, embeddings)
    return model.gate.state(name)


def _batches(sources: Sequence[Source],
             pipeline: Sequence[Any]) -> Iterator[Dict[str, Any]]:
    steps = Compose(pipeline)
    for source in sources:
        try:
            yield pseudo_collate([steps(dict(img_path=str(source.path)))])
        except Exception as error:
            raise ValueError(f'{source.path} cannot be read as an image: '
                             f'{error}') from error
