# SPDX-License-Identifier: Apache-2.0
"""Which runs a leaderboard needs, checked before the first one starts."""
from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from mmengine.config import Config, DictAction

from mmseg.registry import MODELS
from mmseg_mile.engine.work_dir import changes, refuse, settings_of
from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.files import read_json
from .library_model import set_pretrained

_OWN_OPTIONS = ('work_dir', 'resume', 'randomness.seed',
                'train_cfg.experts_from')


class PlannedRun(NamedTuple):
    """One config with one seed.

    Args:
        name (str): Config and seed, for people.
        work_dir (Path): Where its results go.
        arguments (tuple[str]): Of ``tools/train.py``.
        settings (dict): What its results depend on.
        needs (Path, optional): Work dir whose experts it takes over.
    """
    name: str
    work_dir: Path
    arguments: Tuple[str, ...]
    settings: Dict[str, Any]
    needs: Optional[Path]

    @property
    def results(self) -> Optional[StreamResults]:
        """StreamResults: What it measured, None before it is finished."""
        path = self.work_dir / 'results.json'
        if not path.exists():
            return None
        found = StreamResults.load(path)
        names = [task['name'] for task in self.settings['train_cfg']['tasks']]
        # the work of a prediction is counted when all else is done
        done = (
            found.num_finished_rows == len(found.tasks)
            and found.cost.macs is not None)
        return found if done and set(names) == set(found.tasks) else None


def plan_runs(configs: Sequence[str],
              seeds: Sequence[int],
              work_dir: Path,
              options: Sequence[str] = (),
              pretrained: Optional[str] = None) -> List[PlannedRun]:
    """Every config with the first seed, then with the second, and so on.

    Args:
        configs (Sequence[str]): Paths of configs.
        seeds (Sequence[int]): Random seeds.
        work_dir (Path): Gets ``<config>/seed_<n>/`` of each run.
        options (Sequence[str]): Settings of every run, as key=value.
            Defaults to ().
        pretrained (str, optional): Weights of every backbone. Defaults to
            None: as the configs say.

    Returns:
        list[PlannedRun]: In order, finished ones included.

    Raises:
        ValueError: If two configs would be mixed up, a setting cannot be
            met, or a work dir holds a run with other settings.
    """
    _check_unique('configs', [Path(config).stem for config in configs])
    _check_unique('--seeds', list(seeds))
    changed = _parse_options(options)
    reserved = [name for name in _OWN_OPTIONS if name in changed]
    if reserved:
        raise ValueError(f'{reserved} differ from run to run: give --seeds '
                         'and --work-dir instead')
    loaded = [_load(config, changed, pretrained) for config in configs]
    _check_methods(configs, loaded)
    plan = [
        _plan(config, cfg, seed, work_dir, options, pretrained)
        for seed in seeds for config, cfg in zip(configs, loaded)
    ]
    own = {run.work_dir.resolve(): run for run in plan}
    for run in plan:
        if run.needs is not None and run.needs.resolve() not in own and not (
                run.needs / 'results.json').exists():
            raise ValueError(
                f'{run.name} takes its experts from {run.needs}, which holds '
                'no results and is of none of the configs: name the config '
                'that trains them as well')
    return plan


def _load(config: str, changed: Dict[str, Any],
          pretrained: Optional[str]) -> Config:
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(changed)
    if 'tasks' not in (cfg.get('train_cfg') or {}):
        raise ValueError(f'{config} must have train_cfg.tasks: it is no '
                         'config of a stream')
    if pretrained is not None:
        set_pretrained(cfg, pretrained)
    return cfg


def _plan(config: str, cfg: Config, seed: int, root: Path,
          options: Sequence[str], pretrained: Optional[str]) -> PlannedRun:
    stem = Path(config).stem
    work_dir = root / stem / f'seed_{seed}'
    own = [f'randomness.seed={seed}']
    cfg = copy.deepcopy(cfg)
    source = cfg.train_cfg.get('experts_from')
    if source is not None:
        source = _fill(config, source, root, seed)
        own.append(f'train_cfg.experts_from={source}')
        if _parse_options(own[1:])['train_cfg.experts_from'] != source:
            raise ValueError(f'the folder {source!r} has characters that '
                             '--cfg-options cannot say: choose another '
                             '--work-dir')
    cfg.merge_from_dict(_parse_options(own))
    settings = settings_of(cfg, seed)
    known = work_dir / 'settings.json'
    if known.exists():
        refuse(
            changes(read_json(known), settings),
            cfg.train_cfg.get('changed_settings', ()), work_dir)
    arguments = [config, '--work-dir', str(work_dir), '--resume']
    if pretrained is not None:
        arguments += ['--pretrained', pretrained]
    return PlannedRun(f'{stem}, seed {seed}', work_dir,
                      (*arguments, '--cfg-options', *options, *own), settings,
                      None if source is None else Path(source))


def _fill(config: str, template: str, root: Path, seed: int) -> str:
    try:
        return template.format(work_dir=root, seed=seed)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f'{config}: train_cfg.experts_from may hold {{work_dir}} and '
            f'{{seed}}, got {template!r}') from error


def _check_methods(configs: Sequence[str], loaded: Sequence[Config]) -> None:
    """Two configs of one name would pass for seeds of one method."""
    seen: Dict[Tuple[Any, ...], str] = {}
    for config, cfg in zip(configs, loaded):
        kind = MODELS.get(cfg.model.type)
        method = cfg.train_cfg.get('method') or getattr(kind, 'METHOD', None)
        order = cfg.train_cfg.get('order') or [
            task['name'] for task in cfg.train_cfg.tasks
        ]
        key = (method, cfg.train_cfg.get('stream'), tuple(order))
        if key in seen:
            raise ValueError(
                f'{seen[key]} and {config} both call their method {method!r}: '
                'give one of them a name with train_cfg.method')
        seen[key] = config


def _check_unique(what: str, values: Sequence[Any]) -> None:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice or not values:
        raise ValueError(f'{what} must be different and at least one, got '
                         f'{twice or "none"}{" twice" if twice else ""}')


def _parse_options(options: Sequence[str]) -> Dict[str, Any]:
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='*', action=DictAction, default={})
    wrong = [option for option in options if '=' not in option]
    if wrong:
        raise ValueError(f'--cfg-options must be key=value, got {wrong}')
    return parser.parse_args(['--options', *options
                              ]).options if options else {}
