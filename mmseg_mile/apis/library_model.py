# SPDX-License-Identifier: Apache-2.0
"""The model of a library, and the pipelines that load its images."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from mmengine.config import Config

from mmseg.registry import MODELS
from mmseg_mile.library.edits import AnyPath
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.library.stored_config import load_config, name_classes
from mmseg_mile.methods.continual_segmentor import ContinualSegmentor
from mmseg_mile.structures import Expert, Task
from .expert_import import prediction_pipeline

#: Steps from an image file to the model, by expert.
Pipelines = Dict[str, List[Any]]


def read_config(path: AnyPath,
                options: Optional[Mapping[str, Any]] = None) -> Config:
    """A config file, in mmengine's text or pure Python style.

    Args:
        path (str | Path): The file; its code is run.
        options (Mapping[str, Any], optional): Fields that it shall have
            instead, by dotted names. Defaults to None.
    """
    cfg = name_classes(Config.fromfile(path))
    cfg.merge_from_dict(dict(options or {}))
    return cfg


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
        if has_config(expert):
            return _config_of(expert)
    raise ValueError(
        f'none of the experts {[e.name for e in experts]} says which model '
        'it belongs to, they were merged or imported: name the config that '
        'the library was trained with as config')


def read_pipelines(experts: Sequence[Expert]) -> Pipelines:
    """The pipeline of each expert that has a config.

    Args:
        experts (Sequence[Expert]): Each may come from a run of its
            own; merged and imported ones have no config.
    """
    return {
        expert.name:
        prediction_pipeline(
            _config_of(expert), expert.provenance.get('task', expert.name))
        for expert in experts if has_config(expert)
    }


def has_config(expert: Expert) -> bool:
    """True if an expert keeps the config that it was trained with."""
    return 'config' in expert.provenance


def _config_of(expert: Expert) -> Config:
    return load_config(expert.provenance['config'],
                       f'the record of expert {expert.name!r}')


def config_and_pipelines(
        experts: Sequence[Expert],
        expert: Optional[str] = None,
        config: Union[AnyPath, Config,
                      None] = None) -> Tuple[Config, Pipelines]:
    """The config of a library, and the pipelines of its experts.

    Args:
        experts (Sequence[Expert]): Of the library.
        expert (str, optional): The one whose config is looked at first.
        config (str | Path | Config, optional): Trusted, and taken instead of
            what the library carries; the pipelines are those of its tasks.

    Raises:
        ValueError: If the library has no config that may be read.
    """
    if config is not None:
        cfg = name_classes(config) if isinstance(
            config, Config) else read_config(config)
        names = [task['name'] for task in cfg.train_cfg.tasks]
        return cfg, {name: prediction_pipeline(cfg, name) for name in names}
    cfg = library_config(sorted(experts, key=lambda e: e.name != expert))
    return cfg, read_pipelines(experts)


def choose_pipeline(pipelines: Mapping[str, List[Any]],
                    task: Optional[str] = None,
                    expert: Optional[str] = None) -> List[Any]:
    """The steps from a file to the input of the model.

    Args:
        pipelines (Mapping[str, list]): Of :func:`config_and_pipelines`.
        task (str, optional): Whose pipeline is asked for.
        expert (str, optional): Whose pipeline is taken where none is asked
            for and it has one. Defaults to None: the one that all share.

    Raises:
        ValueError: If there is no such task, or they differ and none is
            named.
    """
    if task is not None and task not in pipelines:
        raise ValueError(f'task must be one of {list(pipelines)}, got '
                         f'{task!r}: the one whose pipeline loads the images')
    if task is None and expert in pipelines:
        task = expert
    if task is not None:
        return pipelines[task]
    first, *others = pipelines.values()
    if any(other != first for other in others):
        raise ValueError(
            f'the pipelines of {list(pipelines)} differ, such as those of '
            'colour and thermal: name the one that is right for these images '
            'as task, or force an expert')
    return first


def change_config(cfg: Config,
                  options: Mapping[str, Any],
                  expert: Optional[str] = None,
                  **model: Any) -> None:
    """Set what a user wants to be other than in training.

    Args:
        cfg (Config): Changed in place.
        options (Mapping[str, Any]): Fields of the model, as ``model.x.y``.
        expert (str, optional): Predicts every image, where it is named.
        **model: Fields of the model; None leaves one as it is.

    Raises:
        ValueError: If one of them would have no effect.
    """
    idle = [key for key in options if not key.startswith('model.')]
    if idle:
        raise ValueError(f'cfg_options change fields of the model, as '
                         f"model.gate.top_k; {idle[0]!r} has no effect on "
                         'predictions')
    given = {k: v for k, v in model.items() if v is not None}
    for name in ('ood_policy', 'fusion'):
        if name in given and expert is not None:
            raise ValueError(f'{name} has no effect where expert {expert!r} '
                             'predicts every image: give one of the two')
    cfg.merge_from_dict({
        **options,
        **{
            f'model.{name}': value
            for name, value in given.items()
        }
    })


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
                device: str) -> ContinualSegmentor:
    """The model, ready to predict, with the library's base and experts.

    Args:
        cfg (Config): Of the model; weights that it names are not fetched.
        store (ExpertStore): The library.
        experts (Sequence[Expert]): Those to load.
        device (str): Where to.

    Raises:
        ValueError: If the config's model has no experts, does not fit the
            library, or the device is not there.
    """
    kind = cfg.model.get('type')
    try:
        model = MODELS.build(_without_weights(copy.deepcopy(cfg.model)))
    except (TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f'the model of the config cannot be built: {error}. '
                         'Check cfg_options, or the versions of the packages '
                         'beside those that the library tells') from error
    lacks_experts = ValueError('the config must be of a method with experts, '
                               f'its model.type is {kind!r}')
    if not isinstance(model, ContinualSegmentor):
        raise lacks_experts
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f'device {device!r} cannot be used here: {error}') from error
    tasks = [Task(e.name, e.classes, e.palette, {}, {}) for e in experts]
    try:
        model.load_tasks(tasks, store.root)
    except ValueError as error:
        raise ValueError(f'library {store.root} does not fit the config, '
                         f'whose model.type is {kind!r}: {error}') from error
    if not model.expert_names:
        raise lacks_experts
    return model.eval()


def _without_weights(value: Any) -> Any:
    """A config that loads and downloads nothing; changed in place."""
    if isinstance(value, dict):
        for key in _WEIGHT_SOURCES:
            value.pop(key, None)
        for item in value.values():
            _without_weights(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _without_weights(item)
    return value
