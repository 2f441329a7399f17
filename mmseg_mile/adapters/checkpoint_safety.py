# SPDX-License-Identifier: Apache-2.0
"""Checkpoints from outside are read as weights, not as programs.

A ``.pth`` is a pickle, and unpickling one runs what its author likes.
mmengine tries torch's ``weights_only=True`` and, where that fails, runs it
all the same; from the internet it does not even try. Importing this module
makes every loader of mmengine refuse instead.
"""
from __future__ import annotations

import contextlib
import functools
import os
from pickle import UnpicklingError
from typing import Any, Callable, Dict, Iterator, Tuple, Union

import torch
from mmengine.runner import checkpoint as stock
from mmengine.runner.checkpoint import CheckpointLoader

#: Environment variable with the names of the checkpoints, separated by
#: commas, that may run code.
TRUSTED = 'MMSEG_MILE_TRUSTED_CHECKPOINTS'
# how torch begins what it says of a damaged file
_BROKEN = 'PytorchStreamReader'
_FORCE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
_LOADERS: Dict[Union[str, Tuple[str, ...]], Callable] = {
    '': stock.load_from_local,
    ('http://', 'https://'): stock.load_from_http,
    'pavi://': stock.load_from_pavi,
    (r'(\S+\:)?s3://', r'(\S+\:)?petrel://'): stock.load_from_ceph,
    ('modelzoo://', 'torchvision://'): stock.load_from_torchvision,
    ('open-mmlab://', 'openmmlab://'): stock.load_from_openmmlab,
    'mmcls://': stock.load_from_mmcls,
}


def refuse_code(load: Callable) -> Callable:
    """A loader of mmengine that refuses pickles which are not just weights.

    Args:
        load (Callable): Takes the checkpoint's name and torch's
            ``map_location``.

    Returns:
        Callable: The same, but raises a ``ValueError`` naming the checkpoint
        if it holds more than weights and is not named in the environment
        variable ``MMSEG_MILE_TRUSTED_CHECKPOINTS``, or is broken.
    """

    @functools.wraps(load)
    def safe(filename: str, *args: Any, **kwargs: Any) -> Any:
        if filename in os.environ.get(TRUSTED, '').split(','):
            return load(filename, *args, **kwargs)
        try:
            with _weights_only():
                return load(filename, *args, **kwargs)
        except UnpicklingError as error:
            raise ValueError(
                f'checkpoint {filename!r} is no file of weights, or holds '
                'more than weights; reading it would run code that it '
                f'brings. If you trust it, name it: {TRUSTED}={filename}. '
                f'torch says: {error}') from error
        except (RuntimeError, EOFError) as error:
            if isinstance(error, RuntimeError) and _BROKEN not in str(error):
                raise
            raise ValueError(
                f'checkpoint {filename!r} is broken ({error}): copy or '
                'download it again.') from error

    return safe


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """Every ``torch.load`` inside the block is restricted to weights."""
    previous = os.environ.get(_FORCE)
    os.environ[_FORCE] = '1'
    try:
        with torch.serialization.safe_globals(stock.get_torch_safe_globals()):
            yield
    finally:
        if previous is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = previous


for _prefixes, _load in _LOADERS.items():
    CheckpointLoader.register_scheme(_prefixes, refuse_code(_load), force=True)
