# SPDX-License-Identifier: Apache-2.0
"""Settings of a run that its results depend on, compared on resume."""
from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence, Tuple

from mmengine.config import Config
from mmengine.dist import get_world_size

from .task_config import in_order

# What a Runner reads; other names of a config only help to write it.
_FIELDS = ('model', 'data_preprocessor', 'load_from', 'train_dataloader',
           'train_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr',
           'default_hooks', 'custom_hooks', 'env_cfg', 'model_wrapper_cfg',
           'sync_bn', 'compile', 'default_scope')
# Where data lie, who loads them, what is checked, kept and drawn.
_WITHOUT_EFFECT = {
    'train_dataloader':
    ('num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor',
     'timeout', 'multiprocessing_context', 'disable_subprocess_warning'),
    'train_cfg':
    ('data_root', 'num_checked', 'checkpoint_interval', 'changed_settings'),
    'env_cfg': ('mp_cfg', 'dist_cfg', 'resource_limit'),
    'default_hooks':
    ('runtime_info', 'timer', 'logger', 'checkpoint', 'visualization'),
}
_HOOKS_WITHOUT_EFFECT = ('CheckpointHook', 'FiniteLossHook', 'IterTimerHook',
                         'LoggerHook', 'MemoryProfilerHook', 'ProfilerHook',
                         'RuntimeInfoHook', 'SegVisualizationHook',
                         'StreamPicturesHook', 'StreamProgressHook',
                         'StreamReportHook', 'StreamScalarsHook')
_ABSENT = 'absent'

Changes = Dict[str, Tuple[Any, Any]]


def settings_of(cfg: Config, seed: int) -> Dict[str, Any]:
    """What the results of a config depend on, as plain JSON values.

    Left out are the work dir, ``train_cfg.data_root`` and
    ``train_cfg.checkpoint_interval``, launcher, logging, visualisers, hooks
    that log, draw or write checkpoints, and how loaders divide their work.

    Args:
        cfg (Config): Of the runner.
        seed (int): That it uses, configured or drawn.
    """
    found = {k: _plain(cfg.get(k)) for k in _FIELDS if cfg.get(k) is not None}
    # an order that is spelled out is that of tasks listed so
    train_cfg = found.get('train_cfg', {})
    order = train_cfg.pop('order', None)
    if order is not None:
        train_cfg['tasks'] = in_order(train_cfg.get('tasks'), order)
    for field, names in _WITHOUT_EFFECT.items():
        _leave_out(found.get(field), names)
    _leave_out(
        found.get('train_cfg', {}).get('val_dataloader'),
        _WITHOUT_EFFECT['train_dataloader'])
    found['custom_hooks'] = [
        h for h in found.get('custom_hooks', [])
        if h.get('type') not in _HOOKS_WITHOUT_EFFECT
    ]
    found['randomness'] = dict(_plain(cfg.get('randomness') or {}), seed=seed)
    found['num_processes'] = get_world_size()
    return found


def changes(old: Dict[str, Any], new: Dict[str, Any]) -> Changes:
    """Fields that differ, by dotted name: old and new value.

    Tasks at the end of the new stream are no change.
    """
    train_cfg = new.get('train_cfg', {})
    if 'tasks' in train_cfg:
        count = len(old.get('train_cfg', {}).get('tasks', []))
        tasks = train_cfg['tasks'][:count]
        new = dict(new, train_cfg=dict(train_cfg, tasks=tasks))
    found: Changes = {}
    _compare(old, new, '', found)
    return found


def refuse(found: Changes, allowed: Sequence[str], work_dir: Any) -> None:
    """Refuse changes that were not announced.

    Args:
        found (dict): Of :func:`changes`.
        allowed (Sequence[str]): Dotted names; one allows all below it.
        work_dir (Any): Of the run that is resumed.

    Raises:
        ValueError: Naming every field with its old and new value.
    """
    refused = [
        f'  {name}: {_short(old)} -> {_short(new)}'
        for name, (old, new) in found.items()
        if not any(f'{name}.'.startswith(f'{a}.') for a in allowed)
    ]
    if refused:
        raise ValueError(
            f'{work_dir} holds a run with other settings:\n' +
            '\n'.join(refused) +
            '\nResume with the same config, choose another --work-dir, or '
            'name in train_cfg.changed_settings what shall differ from here '
            'on.')


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f'{text[:97]}...'


def _plain(value: Any) -> Any:
    """JSON has neither tuples nor classes."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    return getattr(value, '__qualname__', type(value).__qualname__)


def _leave_out(settings: Any, names: Sequence[str]) -> None:
    for name in names:
        (settings or {}).pop(name, None)


def _compare(old: Any, new: Any, path: str, found: Changes) -> None:
    if isinstance(old, dict) and isinstance(new, dict):
        pairs: List[Tuple[Any, Any, Any]] = [
            (k, old.get(k, _ABSENT), new.get(k, _ABSENT))
            for k in {**old, **new}]  # yapf: disable
    elif (isinstance(old, list) and isinstance(new, list)
          and len(old) == len(new)):
        pairs = [(i, *both) for i, both in enumerate(zip(old, new))]
    else:
        if old != new:
            found[path] = (old, new)
        return
    for key, before, after in pairs:
        _compare(before, after, f'{path}.{key}' if path else str(key), found)
