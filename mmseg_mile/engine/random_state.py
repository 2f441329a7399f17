# SPDX-License-Identifier: Apache-2.0
"""The random numbers of a process: seeded for a while, kept, restored."""
from __future__ import annotations

import contextlib
import hashlib
import random
from typing import Any, Dict, Iterator

import numpy as np
import torch


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
