# SPDX-License-Identifier: Apache-2.0
"""Peak memory of one training contender, in a process of its own."""
from __future__ import annotations

import dataclasses
import gc
import json
import sys
from typing import Any, Callable, Dict

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.profiler import ProfilerActivity, profile

from .benchmark_models import load_model_config
from .own_process import figures_of, print_figures
from .settings import Settings
from .train_contenders import CONTENDERS

_ALLOCATION = '[memory]'


def peak_training_bytes(config: str, contender: str,
                        settings: Settings) -> int:
    """Bytes of all tensors when they are most: one step of training.

    Model, gradients, optimizer state and activations, as torch allocates
    them. On a GPU this is ``torch.cuda.max_memory_allocated``. On a CPU the
    same is counted from torch's own record of allocations; the resident set
    of the process would add what its allocator keeps of freed memory, which
    is another amount in every run.

    Args:
        config (str): File of the config.
        contender (str): Name of a training contender.
        settings (Settings): Of the benchmark.

    Raises:
        RuntimeError: If the process fails; quotes the end of its output.
    """
    task = dict(
        config=config,
        contender=contender,
        settings=dataclasses.asdict(settings))
    return int(figures_of(__name__, task)['bytes'])


def measure(config: str, contender: str, settings: Settings) -> Dict[str, Any]:
    """In this process; see :func:`peak_training_bytes`."""
    kind = {c.name: c for c in CONTENDERS}[contender]
    with settings.computing():
        trainer = kind(load_model_config(config, settings), settings)
        trainer.prepare()
        # the optimizer makes its state in the first step
        trainer.step()
        if torch.device(settings.device).type != 'cuda':
            return dict(bytes=live_bytes() + peak_growth(trainer.step))
        torch.cuda.reset_peak_memory_stats(settings.device)
        trainer.step()
        return dict(bytes=torch.cuda.max_memory_allocated(settings.device))


def live_bytes() -> int:
    """Bytes of all tensors of this process, views counted once."""
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        # a tensor that stands for another one in a traced graph holds nothing
        if isinstance(item, Tensor) and not isinstance(item, FakeTensor):
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def peak_growth(step: Callable[[], None]) -> int:
    """Largest number of bytes that ``step`` holds beyond its start."""
    with profile(
            activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    assert record.profiler is not None
    events = record.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == _ALLOCATION:
            held += event.nbytes()
            peak = max(peak, held)
    return peak


if __name__ == '__main__':
    given = json.loads(sys.argv[1])
    print_figures(
        measure(given['config'], given['contender'],
                Settings(**given['settings'])))
