# SPDX-License-Identifier: Apache-2.0
"""What a benchmark is asked to measure, and on what."""
from __future__ import annotations

import contextlib
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

import torch

from mmseg_mile.engine.work_dir import commit, versions

DTYPES = ('fp32', 'bf16')
MODES = ('whole', 'slide')


@dataclass(frozen=True)
class Settings:
    """Batch, device and number of repetitions of one benchmark.

    Args:
        size (int): Side of the square images in pixels. Defaults to 512.
        batch (int): Images per batch. Defaults to 4.
        experts (int): Experts that the batch mixes: image i belongs to
            expert ``i % experts``. Defaults to 4.
        rounds (int): How often each contender is timed. Defaults to 9.
        warmup (int): Untimed runs of each contender. Defaults to 2.
        device (str): As in ``torch.device``. Defaults to 'cpu'.
        dtype (str): 'fp32', or 'bf16' for autocast. Defaults to 'fp32'.
        mode (str): 'whole', or 'slide' for windows of half the image's
            side at a stride of three eighths of it. Defaults to 'whole'.
        threads (int, optional): Of torch; None leaves torch's choice.
            Defaults to None.
        seed (int): Of weights and images. Defaults to 0.

    Raises:
        ValueError: If a value is out of range.
    """
    size: int = 512
    batch: int = 4
    experts: int = 4
    rounds: int = 9
    warmup: int = 2
    device: str = 'cpu'
    dtype: str = 'fp32'
    mode: str = 'whole'
    threads: Optional[int] = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (('size', 32), ('batch', 1), ('experts', 1),
                            ('rounds', 1), ('warmup', 0)):
            if getattr(self, name) < least:
                raise ValueError(f'--{name} must be at least {least}, got '
                                 f'{getattr(self, name)}')
        if self.size % 32:
            raise ValueError(f'--size must be a multiple of 32, got '
                             f'{self.size}: the deepest features have one '
                             'value per 32 pixels')
        if self.experts > self.batch:
            raise ValueError(
                f'--experts must not exceed --batch, {self.batch}, got '
                f'{self.experts}: each expert gets at least one image')
        for name, allowed in (('dtype', DTYPES), ('mode', MODES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f'--{name} must be one of {allowed}, got '
                                 f'{getattr(self, name)!r}')
        if self.threads is not None and self.threads < 1:
            raise ValueError(f'--threads must be at least 1, got '
                             f'{self.threads}')
        if torch.device(self.device).type == 'cuda' and (
                not torch.cuda.is_available()):
            raise ValueError(f'--device is {self.device!r}, but torch finds '
                             "no CUDA device: use 'cpu'")

    @property
    def test_cfg(self) -> Dict[str, Any]:
        """dict: mmseg's ``test_cfg`` for the mode."""
        if self.mode == 'whole':
            return dict(mode='whole')
        crop, stride = self.size // 2, 3 * self.size // 8
        return dict(
            mode='slide', crop_size=(crop, crop), stride=(stride, stride))

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Threads as asked for, and denormals as zeros, for all alike."""
        threads = torch.get_num_threads()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        torch.set_flush_denormal(True)
        try:
            yield
        finally:
            torch.set_flush_denormal(False)
            torch.set_num_threads(threads)

    def autocast(self) -> torch.autocast:
        """The context in which every contender runs."""
        return torch.autocast(
            torch.device(self.device).type,
            dtype=torch.bfloat16,
            enabled=self.dtype == 'bf16')

    def synchronise(self) -> None:
        """Wait until the device has done what it was asked to do."""
        if torch.device(self.device).type == 'cuda':
            torch.cuda.synchronize(self.device)

    def environment(self) -> Dict[str, Any]:
        """Commit, versions, device and threads, for the record."""
        device = torch.device(self.device)
        return dict(
            commit=commit(),
            versions=versions(),
            device=torch.cuda.get_device_name(device)
            if device.type == 'cuda' else device.type,
            cpu=_cpu_model(),
            threads=self.threads or torch.get_num_threads())


def _cpu_model() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        lines = []
    names = [x.split(':', 1)[1].strip() for x in lines if 'model name' in x]
    return names[0] if names else platform.processor() or platform.machine()
