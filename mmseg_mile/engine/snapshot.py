# SPDX-License-Identifier: Apache-2.0
"""Random state, and snapshots that training goes on from."""
from __future__ import annotations

import contextlib
import hashlib
import json
import random
from pathlib import Path
from typing import Any, Dict, Iterator

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, is_main_process
from mmengine.runner import Runner
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mmseg_mile.files import write_bytes
from mmseg_mile.structures import TensorDict

_SCHEMA = 2
_PLAIN = (bool, int, float, str, type(None))


def sample_seed(*parts: object) -> int:
    """32 bits that depend on every part, such as seed, task and position."""
    text = '/'.join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], 'big')


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seed (below 2 ** 32) on the CPU inside the block only."""
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


def divergence(found: str, iteration: int) -> FloatingPointError:
    """The error that stops a task at values such as 'the loss is nan'."""
    return FloatingPointError(
        f'{found} at iteration {iteration} of this task. Tasks finished '
        'before it are kept: lower optim_wrapper.optimizer.lr, or set '
        "optim_wrapper.clip_grad, say so in train_cfg.changed_settings="
        "['optim_wrapper'], and run the same command with --resume; this "
        'task then begins anew.')


def pack(value: Any, tensors: TensorDict, path: str = '') -> Any:
    """JSON form of a nested state; its tensors are put into ``tensors``.

    Args:
        value (Any): Dicts, lists, tuples, numbers, strings, None, tensors.
        tensors (dict[str, Tensor]): Receives every tensor under its path.
        path (str): Keys that lead to ``value``. Defaults to ''.

    Raises:
        ValueError: If it holds anything else; names the path.
    """
    if isinstance(value, Tensor):
        tensors[path] = value
        return dict(tensor=path)
    if isinstance(value, dict):
        # pairs, because optimizers number their parameters
        return dict(dict=[[pack(k, tensors),
                           pack(v, tensors, f'{path}/{k}')]
                          for k, v in value.items()])  # yapf: disable
    if isinstance(value, (list, tuple)):
        items = [pack(v, tensors, f'{path}/{i}') for i, v in enumerate(value)]
        return dict(tuple=items) if isinstance(value, tuple) else items
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, _PLAIN):
        return value
    raise ValueError(f'{path} is a {type(value).__name__}, which cannot be '
                     'kept to resume from')


def unpack(value: Any, tensors: TensorDict) -> Any:
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


class TaskSnapshot:
    """State of a task's training so far, in one file without pickle.

    Trainable parameters, all buffers, optimizer, schedulers and the random
    state of every process, bit by bit; what follows is bit by bit the same
    on CPUs. What is frozen is known without it. An older snapshot stays
    until the new one is complete.

    Args:
        folder (Path): Of the task.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / 'snapshot.safetensors'

    def discard(self) -> None:
        """Remove it: the task is finished, or begins anew."""
        if is_main_process():
            self.path.unlink(missing_ok=True)

    def save(self, runner: Runner, model: nn.Module, iteration: int,
             seconds: float) -> None:
        """Replace the snapshot; every process calls it.

        Args:
            runner (Runner): Whose optimizer and schedulers.
            model (nn.Module): Unwrapped.
            iteration (int): Iterations that are done.
            seconds (float): Training time so far.

        Raises:
            FloatingPointError: If a value is NaN or infinite. The earlier
                snapshot is kept.
        """
        # others would unpickle tensors of a GPU onto this process's GPU
        buffers = {n: b.cpu() for n, b in model.named_buffers()}
        own = dict(random=random_state(), buffers=buffers)
        tensors: TensorDict = {}
        state = pack(
            dict(
                iteration=iteration,
                seconds=seconds,
                parameters=_trainable(model),
                optimizer=runner.optim_wrapper.state_dict(),
                # some hold a function, which their config says again
                schedulers=[{
                    key: value
                    for key, value in s.state_dict().items()
                    if not callable(value)
                } for s in runner.param_schedulers or []],
                processes=all_gather_object(own)),
            tensors)
        for path, value in tensors.items():
            # masks may be infinite, but nothing may be NaN
            bad = value.isnan() if '/buffers/' in path else ~value.isfinite()
            if bad.any():
                raise divergence(f'{path} is not finite', iteration)
        if is_main_process():
            self._write(json.dumps(dict(schema=_SCHEMA, state=state)), tensors)

    def restore(self, runner: Runner, model: nn.Module) -> Dict[str, Any]:
        """Bring model, optimizer and schedulers to the kept state.

        Returns:
            dict: ``iteration``, ``seconds``, and ``random``, the random
            state of this process.

        Raises:
            ValueError: If the file is broken, or of another model.
        """
        state = self._read()
        own = state['processes'][get_rank()]
        self._copy(_trainable(model), state['parameters'])
        self._copy(dict(model.named_buffers()), own['buffers'])
        runner.optim_wrapper.load_state_dict(state['optimizer'])
        _match_memory_format(runner.optim_wrapper.optimizer)
        for scheduler, known in zip(runner.param_schedulers or [],
                                    state['schedulers']):
            scheduler.load_state_dict(known)
        return dict(
            iteration=state['iteration'],
            seconds=state['seconds'],
            random=own['random'])

    def _write(self, text: str, tensors: TensorDict) -> None:
        tensors = {
            key: value.detach().to('cpu', copy=True).contiguous()
            for key, value in tensors.items()
        }
        metadata = dict(content=text, checksum=_checksum(text, tensors))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self.path, save(tensors, metadata))

    def _read(self) -> Dict[str, Any]:
        try:
            with safe_open(str(self.path), framework='pt') as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}
        except (OSError, SafetensorError) as error:
            raise self._unusable(error) from error
        text = metadata.get('content', '')
        if metadata.get('checksum') != _checksum(text, tensors):
            raise self._unusable('its checksum differs')
        content = json.loads(text)
        if content['schema'] != _SCHEMA:
            raise self._unusable(f'schema {content["schema"]}')
        return unpack(content['state'], tensors)

    @torch.no_grad()
    def _copy(self, target: TensorDict, source: TensorDict) -> None:
        for name in sorted({*target, *source}):
            if (name not in target or name not in source
                    or target[name].shape != source[name].shape):
                raise self._unusable(f'of another model, {name} differs')
        for name, value in target.items():
            value.copy_(source[name])

    def _unusable(self, why: object) -> ValueError:
        return ValueError(
            f'{self.path} cannot be resumed from ({why}): remove it, and its '
            'task is trained from its beginning.')


def _checksum(text: str, tensors: TensorDict) -> str:
    digest = hashlib.sha256(text.encode())
    for key in sorted(tensors):
        digest.update(tensors[key].numpy().tobytes())
    return digest.hexdigest()


def _trainable(model: nn.Module) -> TensorDict:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def _match_memory_format(optimizer: Any) -> None:
    """Lay the state out as its parameter: kernels round alike only then."""
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[key] = torch.empty_like(
                    parameter, dtype=value.dtype).copy_(value)
