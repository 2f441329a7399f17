# SPDX-License-Identifier: Apache-2.0
"""What to do about a task whose training is lost."""
from __future__ import annotations

import contextlib
import hashlib
import json
import random
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, is_main_process
from mmengine.runner import Runner
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mmseg_mile.files import write_bytes


def diverged(what: str, iteration: int) -> FloatingPointError:
    """The error that stops a task.

    Args:
        what (str): What was found.
        iteration (int): Iterations of the task that are done.
    """
    return FloatingPointError(
        f'{what} at iteration {iteration} of this task. Tasks finished '
        'before it are kept: lower optim_wrapper.optimizer.lr, or set '
        "optim_wrapper.clip_grad, say so in train_cfg.changed_settings="
        "['optim_wrapper'], and run the same command with --resume; this "
        'task then begins anew.')


def sample_seed(*parts: object) -> int:
    """32 bits that depend on every part, such as seed, task and position."""
    text = '/'.join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], 'big')


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw as ``seed`` says inside the block, then go on as before it.

    Python's, numpy's and torch's generators of the CPU; a GPU's is left
    alone.

    Args:
        seed (int): Below 2 ** 32.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed would seed the GPUs, too
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def random_state() -> Dict[str, Any]:
    """States of all generators of this process, as plain data and tensors."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return dict(
        python=random.getstate(),
        numpy=(kind, np.asarray(keys).tolist(), *rest),
        torch=torch.get_rng_state(),
        cuda=cuda)


def set_random_state(state: Dict[str, Any]) -> None:
    """Go on drawing where :func:`random_state` was called."""
    random.setstate(state['python'])
    np.random.set_state(state['numpy'])
    torch.set_rng_state(state['torch'])
    if state['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'])


_PLAIN = (bool, int, float, str, type(None))


def pack(value: Any, tensors: Dict[str, Tensor], path: str) -> Any:
    """JSON form of a nested state; its tensors are put into ``tensors``.

    Args:
        value (Any): Dicts, lists, tuples, numbers, strings, None, tensors.
        tensors (dict[str, Tensor]): Receives every tensor under its path.
        path (str): Where ``value`` stands.

    Raises:
        ValueError: If it holds anything else; says where.
    """
    if isinstance(value, Tensor):
        tensors[path] = value
        return dict(tensor=path)
    if isinstance(value, dict):
        # pairs, because optimizers number their parameters
        return dict(
            dict=[[pack(k, tensors, path),
                   pack(v, tensors, f'{path}/{k}')] for k, v in value.items()])
    if isinstance(value, (list, tuple)):
        items = [pack(v, tensors, f'{path}/{i}') for i, v in enumerate(value)]
        return dict(tuple=items) if isinstance(value, tuple) else items
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, _PLAIN):
        return value
    raise ValueError(f'{path} is a {type(value).__name__}, which cannot be '
                     'kept to resume from')


def unpack(value: Any, tensors: Dict[str, Tensor]) -> Any:
    """The state that :func:`pack` was given."""
    if isinstance(value, list):
        return [unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    (kind, content), = value.items()
    if kind == 'tensor':
        return tensors[content]
    if kind == 'tuple':
        return tuple(unpack(v, tensors) for v in content)
    return {unpack(k, tensors): unpack(v, tensors) for k, v in content}


_SCHEMA = 1


def write_snapshot(path: Path, state: Dict[str, Any]) -> None:
    """Write a state in one step; an older one stays until then.

    Args:
        path (Path): The file.
        state (dict): As in :func:`pack`.

    Raises:
        OSError: If the disk is full or fails; names the file.
        ValueError: If the state holds something that is no plain data.
    """
    tensors: Dict[str, Tensor] = {}
    text = json.dumps(
        dict(schema=_SCHEMA, state=pack(state, tensors, 'state')))
    tensors = {
        k: v.detach().to('cpu', copy=True).contiguous()
        for k, v in tensors.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(
        path,
        save(tensors, dict(content=text, checksum=_checksum(text, tensors))))


def read_snapshot(path: Path) -> Dict[str, Any]:
    """Read what :func:`write_snapshot` wrote; runs no code of the file.

    Raises:
        ValueError: If it is broken, changed or of another version; names the
            file.
    """
    try:
        with safe_open(str(path), framework='pt') as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (OSError, SafetensorError) as error:
        raise ValueError(_broken(path, error)) from error
    text = metadata.get('content', '')
    if metadata.get('checksum') != _checksum(text, tensors):
        raise ValueError(_broken(path, 'its checksum differs'))
    content = json.loads(text)
    if content['schema'] != _SCHEMA:
        raise ValueError(_broken(path, f'schema {content["schema"]}'))
    return unpack(content['state'], tensors)


def _checksum(text: str, tensors: Dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for key in sorted(tensors):
        digest.update(tensors[key].numpy().tobytes())
    return digest.hexdigest()


def _broken(path: Path, why: object) -> str:
    return (f'{path} cannot be resumed from ({why}): remove it, and its task '
            'is trained from its beginning.')


_NAME = 'snapshot.safetensors'


class TaskSnapshot:
    """What training a task has changed so far, in one file.

    Trainable parameters, all buffers, optimizer, schedulers and the random
    state of every process. What is frozen is known without it. An older
    snapshot stays until the new one is complete.

    Args:
        folder (Path): Of the task.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / _NAME

    def exists(self) -> bool:
        """Whether there is one."""
        return self.path.exists()

    def discard(self) -> None:
        """Forget it: the task is finished, or begins anew."""
        if is_main_process():
            self.path.unlink(missing_ok=True)

    def save(self, runner: Runner, model: nn.Module, iteration: int,
             seconds: float) -> None:
        """Replace the snapshot by the state as it is now.

        Every process must call it after the same iteration.

        Args:
            runner (Runner): Whose optimizer and schedulers.
            model (nn.Module): Unwrapped.
            iteration (int): Iterations that are done.
            seconds (float): Training time so far.

        Raises:
            FloatingPointError: If a value is NaN or infinite. The earlier
                snapshot is kept.
        """
        own = dict(random=random_state(), buffers=dict(model.named_buffers()))
        state = dict(
            iteration=iteration,
            seconds=seconds,
            parameters=_trainable(model),
            optimizer=runner.optim_wrapper.state_dict(),
            schedulers=[_plain(s.state_dict()) for s in _schedulers(runner)],
            processes=all_gather_object(own))
        lost = _not_finite(state, model)
        if lost is not None:
            raise diverged(f'{lost} is not finite', iteration)
        if is_main_process():
            write_snapshot(self.path, state)

    def restore(self, runner: Runner, model: nn.Module) -> Dict[str, Any]:
        """Bring model, optimizer and schedulers to where they were.

        Returns:
            dict: ``iteration``, ``seconds``, and ``random``, the random
            state of this process.

        Raises:
            ValueError: If the file is broken, or of another model.
        """
        state = read_snapshot(self.path)
        own = state['processes'][get_rank()]
        self._copy(_trainable(model), state['parameters'])
        self._copy(dict(model.named_buffers()), own['buffers'])
        runner.optim_wrapper.load_state_dict(state['optimizer'])
        _lay_out(runner.optim_wrapper.optimizer)
        for scheduler, known in zip(_schedulers(runner), state['schedulers']):
            scheduler.load_state_dict(known)
        return dict(
            iteration=state['iteration'],
            seconds=state['seconds'],
            random=own['random'])

    @torch.no_grad()
    def _copy(self, target: Dict[str, Tensor], source: Dict[str,
                                                            Tensor]) -> None:
        wrong = sorted(set(target) ^ set(source)) or [
            name for name in target if target[name].shape != source[name].shape
        ]
        if wrong:
            raise ValueError(
                f'{self.path} is of another model, {wrong[0]} differs: '
                'remove it, and its task is trained from its beginning.')
        for name, value in target.items():
            value.copy_(source[name])


def _trainable(model: nn.Module) -> Dict[str, Tensor]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def _schedulers(runner: Runner) -> List[Any]:
    return list(runner.param_schedulers or [])


def _plain(state: Dict[str, Any]) -> Dict[str, Any]:
    # some schedulers hold a function, which their config says again
    return {k: v for k, v in state.items() if not callable(v)}


def _lay_out(optimizer: Any) -> None:
    """Give the state the memory layout of its parameter, as when made new.

    Kernels round differently for another layout.
    """
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[key] = torch.empty_like(
                    parameter, dtype=value.dtype).copy_(value)


def _not_finite(state: Dict[str, Any], model: nn.Module) -> Optional[str]:
    """Name of a parameter or statistic that is lost."""
    for name, value in state['parameters'].items():
        if not torch.isfinite(value).all():
            return name
    for name, value in model.named_buffers():
        # masks may be infinite, but nothing may be NaN
        if torch.isnan(value).any():
            return name
    for index, values in state['optimizer']['state'].items():
        for key, value in values.items():
            if isinstance(value, Tensor) and not torch.isfinite(value).all():
                return f'{key} of parameter {index} in the optimizer'
    return None
