# SPDX-License-Identifier: Apache-2.0
"""The model of a library, and how it wants images to be loaded."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from mmengine.config import Config

from mmseg.registry import MODELS
from mmseg_mile.library.edits import AnyPath
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.library.stored_config import load_config
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.methods.semla.open_vocabulary import \
    OpenVocabularyExpertSegmentor
from mmseg_mile.structures import Expert
from .expert_import import prediction_pipeline


def set_pretrained(cfg: Config, path: str) -> None:
    """Let the backbone of a config start from other weights.

    Changes ``init_cfg.checkpoint`` of the innermost backbone: that of MILE
    lies in the one that holds the experts.

    Args:
        cfg (Config): Changed in place.
        path (str): A file, or an address such as 'mmcls://mobilenet_v2'.

    Raises:
        ValueError: If the file does not exist, or the backbone does not
            start from pretrained weights.
    """
    if '://' not in path and not Path(path).is_file():
        raise ValueError(f'the pretrained weights {path!r} do not exist: give '
                         'the path of a file')
    where, backbone = 'model', cfg.get('model') or {}
    while backbone.get('backbone') is not None:
        where, backbone = f'{where}.backbone', backbone['backbone']
    init = backbone.get('init_cfg')
    if where == 'model' or not isinstance(init, dict) or ('checkpoint'
                                                          not in init):
        raise ValueError(
            f'{where}.init_cfg must name a checkpoint that pretrained weights '
            f'can replace, got {init!r}: set it to dict(type="Pretrained", '
            f'checkpoint={path!r}) in the config')
    init['checkpoint'] = path


# What would load or download weights that the library replaces.
_WEIGHT_SOURCES = ('init_cfg', 'pretrained')


def library_config(experts: Sequence[Expert]) -> Config:
    """The config of the first expert that has one.

    Args:
        experts (Sequence[Expert]): Merged and imported ones have none.

    Raises:
        ValueError: If none has one.
    """
    for expert in experts:
        if 'config' in expert.provenance:
            return _config_of(expert)
    raise ValueError(
        f'none of the experts {[e.name for e in experts]} says which model '
        'it belongs to, they were merged or imported: name the config that '
        'the library was trained with as config')


def model_to_load(cfg: Config) -> Dict[str, Any]:
    """A copy of ``cfg.model`` that asks for no weights of its own."""
    return _without_weights(copy.deepcopy(cfg.model))


def loading_ways(experts: Sequence[Expert]) -> Dict[str, List[Any]]:
    """The steps from a file to the model, of each expert that tells.

    Args:
        experts (Sequence[Expert]): Each may come from a run of its
            own.
    """
    ways = {}
    for expert in experts:
        if 'config' in expert.provenance:
            task = expert.provenance.get('task', expert.name)
            ways[expert.name] = prediction_pipeline(_config_of(expert), task)
    return ways


def _config_of(expert: Expert) -> Config:
    return load_config(expert.provenance['config'],
                       f'the record of expert {expert.name!r}')


def _without_weights(value: Any) -> Any:
    if isinstance(value, dict):
        for key in _WEIGHT_SOURCES:
            value.pop(key, None)
        for item in value.values():
            _without_weights(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _without_weights(item)
    return value


Ways = Dict[str, List[Any]]


def config_and_ways(
        experts: Sequence[Expert],
        expert: Optional[str] = None,
        config: Union[AnyPath, Config, None] = None) -> Tuple[Config, Ways]:
    """The config of a library, and the loading steps by expert.

    Args:
        experts (Sequence[Expert]): Of the library.
        expert (str, optional): The one whose config is looked at first.
        config (str | Path | Config, optional): Trusted, and taken instead of
            what the library carries; the steps are those of its tasks.

    Raises:
        ValueError: If the library has no config that may be read.
    """
    if config is not None:
        cfg = copy.deepcopy(config) if isinstance(
            config, Config) else Config.fromfile(config)
        names = [task['name'] for task in cfg.train_cfg.tasks]
        return cfg, {name: prediction_pipeline(cfg, name) for name in names}
    first = sorted(experts, key=lambda e: e.name != expert)
    cfg = library_config(first)
    return cfg, loading_ways(experts)


def choose_way(ways: Mapping[str, List[Any]],
               task: Optional[str] = None,
               expert: Optional[str] = None) -> List[Any]:
    """The steps from a file to what the model is given.

    Args:
        ways (Mapping[str, list]): Of :func:`config_and_ways`.
        task (str, optional): Whose steps are asked for.
        expert (str, optional): Whose steps are taken where none are asked
            for and it has some. Defaults to None: the ones that all share.

    Raises:
        ValueError: If there is no such task, or they differ and none is
            named.
    """
    if task is not None and task not in ways:
        raise ValueError(f'task must be one of {list(ways)}, got {task!r}: '
                         'the one whose way of loading images is right')
    if task is None and expert in ways:
        task = expert
    if task is not None:
        return ways[task]
    found = list(ways.values())
    if any(other != found[0] for other in found):
        raise ValueError(
            f'{list(ways)} do not load their images in one way, such as '
            'colour and thermal: name the one whose way is right for these '
            'images as task, or force an expert')
    return found[0]


def change_config(cfg: Config,
                  options: Mapping[str, Any],
                  expert: Optional[str],
                  ood_policy: Optional[str],
                  fusion: Optional[str],
                  vocabulary: Optional[Sequence[str]] = None) -> None:
    """Set what a user wants to be other than in training.

    Args:
        cfg (Config): Changed in place.
        options (Mapping[str, Any]): Fields of the model, as ``model.x.y``.
        expert (str, optional): Predicts every image, where it is named.
        ood_policy (str, optional): Policy for images that the gate flags.
        fusion (str, optional): How experts of a mixture are fused.
        vocabulary (Sequence[str], optional): Classes to label images in.
            Defaults to None: those of the experts.

    Raises:
        ValueError: If one of them would have no effect.
    """
    idle = [key for key in options if not key.startswith('model.')]
    if idle:
        raise ValueError(f'cfg_options change fields of the model, as '
                         f"model.gate.top_k; {idle[0]!r} has no effect on "
                         'predictions')
    for name, value in (('ood_policy', ood_policy), ('fusion', fusion)):
        if value is not None and expert is not None:
            raise ValueError(f'{name} has no effect where expert {expert!r} '
                             'predicts every image: give one of the two')
        if value is not None:
            options = {**options, f'model.{name}': value}
    if vocabulary is not None:
        options = {**options, 'model.vocabulary': list(vocabulary)}
    if 'model.vocabulary' in options and not _has_texts(cfg):
        raise ValueError(
            f"vocabulary {options['model.vocabulary']} has no effect: experts "
            f'of a {cfg.model.type} speak in the classes they learned; those '
            'of an OpenVocabularyExpertSegmentor speak in any')
    cfg.merge_from_dict(dict(options))


def _has_texts(cfg: Config) -> bool:
    """Whether the config's model takes any classes that are named to it."""
    kind = MODELS.get(cfg.model.type)
    return kind is not None and issubclass(kind, OpenVocabularyExpertSegmentor)


def known_experts(wanted: Sequence[str], names: Sequence[str]) -> List[str]:
    """``wanted`` without what is named twice, if all of it is there.

    Raises:
        ValueError: If one is not among ``names``, or none is wanted.
    """
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ValueError(f'unknown expert {unknown[0]!r}; experts: '
                         f'{list(names)}')
    if not wanted:
        raise ValueError('there is no expert to predict with: train a task, '
                         f'or name some of {list(names)}')
    return list(dict.fromkeys(wanted))


def build_model(cfg: Config, store: ExpertStore, experts: Sequence[Expert],
                device: str) -> ExpertSegmentor:
    """The model, ready to predict, with the library's base and experts.

    Args:
        cfg (Config): Says how it is built; weights that it names are not
            fetched.
        store (ExpertStore): The library.
        experts (Sequence[Expert]): Those to load.
        device (str): Where to.

    Raises:
        ValueError: If the config's model has no experts, does not fit the
            library, or the device is not there.
    """
    try:
        model = MODELS.build(model_to_load(cfg))
    except (TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f'the model of the config cannot be built: {error}. '
                         'Check cfg_options, or the versions of the packages '
                         'beside those that the library tells') from error
    if not isinstance(model, ExpertSegmentor):
        raise ValueError('the config must be of a method with experts, its '
                         f'model.type is {cfg.model.type!r}')
    model.backbone.load_base(*store.load_base())
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f'device {device!r} cannot be used here: {error}') from error
    model.import_experts(experts)
    return model.eval()
