# SPDX-License-Identifier: Apache-2.0
"""Bytes of an expert against those of a whole checkpoint."""
from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Sequence

from safetensors.torch import save_file

from .benchmark_models import build_stock, stock_model_config
from .ratio_plot import Bar
from .report import Report, goal_of, model_name
from .settings import Settings
from .written_library import write_library

GOALS = dict(segformer_b2=1 / 20)
# Part of an expert -> the files of its folder that make it up.
PARTS = dict(
    adapter=('adapter_model.safetensors', ),
    head=('head.safetensors', ),
    norm=('norm.safetensors', ),
    prototypes=('prototypes.safetensors', ),
    json=('adapter_config.json', 'expert.json'))
_COLUMNS = dict(
    model='model',
    **{f'{part}_bytes': part
       for part in PARTS},
    expert_bytes='expert, bytes',
    stock_bytes='stock checkpoint, bytes',
    ratio_text='expert / stock',
    goal_text='goal')


def benchmark_disk(configs: Sequence[str], settings: Settings) -> Report:
    """An expert's folder, part by part, against stock weights in fp32.

    The stock checkpoint holds the weights of backbone and head alone, as
    safetensors: no optimizer, no auxiliary head.

    Args:
        configs (Sequence[str]): Files whose model is an ``ExpertSegmentor``.
        settings (Settings): Seed and size of the images that the prototypes
            are made of.
    """
    settings = dataclasses.replace(settings, experts=1)
    rows = [measure(config, settings) for config in configs]
    bars = [
        Bar(row['model'],
            part,
            row[f'{part}_bytes'] / row['stock_bytes'],
            goal=row['goal'] if part == 'expert' else None) for row in rows
        for part in ('expert', *PARTS) if row[f'{part}_bytes']
    ]
    return Report('disk', 'One expert on disk, with its head', settings,
                  _COLUMNS, rows, bars,
                  'bytes relative to a stock checkpoint of the weights')


def measure(config: str, settings: Settings) -> Dict[str, Any]:
    """The row of one config."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = write_library(config, folder / 'library', 1, settings)
        sizes = _part_sizes(folder / 'library' / library.tasks[0].name)
        stock = build_stock(stock_model_config(library.config), settings)
        save_file({
            k: v.contiguous()
            for k, v in stock.state_dict().items()
        }, str(folder / 'stock.safetensors'))
        stock_bytes = (folder / 'stock.safetensors').stat().st_size
    expert_bytes = sum(sizes.values())
    goal = goal_of(GOALS, config)
    return dict(
        model=model_name(config),
        **{
            f'{part}_bytes': size
            for part, size in sizes.items()
        },
        expert_bytes=expert_bytes,
        stock_bytes=stock_bytes,
        ratio=expert_bytes / stock_bytes,
        ratio_text=f'1/{stock_bytes / expert_bytes:.1f}',
        goal=goal,
        goal_text=f'1/{1 / goal:.0f}' if goal else None)


def _part_sizes(folder: Path) -> Dict[str, int]:
    """Bytes per part.

    Raises:
        ValueError: If the folder holds a file that is no part.
    """
    sizes = {part: 0 for part in PARTS}
    known = {file: part for part, files in PARTS.items() for file in files}
    strange: List[str] = []
    for path in folder.iterdir():
        if path.name in known:
            sizes[known[path.name]] += path.stat().st_size
        else:
            strange.append(path.name)
    if strange:
        raise ValueError(f'{folder} holds files of no known part of an '
                         f'expert: {strange}')
    return sizes
