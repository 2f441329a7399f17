# SPDX-License-Identifier: Apache-2.0
"""Work dirs of runs that never ran, with numbers for hand computation."""
from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.files import write_json

TASKS = ('day', 'night')


def write_run(folder: Path,
              method: str = 'MILE',
              seed: int = 0,
              routed: Sequence[Sequence[float]] = ((60, 20), (50, 40)),
              oracle: Sequence[Sequence[float]] | None = None,
              tasks: Sequence[str] = TASKS,
              stream: str = 'street',
              label: bool = False,
              old_images: str = 'none',
              kept: Sequence[int] = (1_000_000, 1_200_000),
              seconds: Sequence[float] = (10, 30),
              settings: dict[str, Any] | None = None,
              commit: str = 'abc',
              device: str = 'cpu') -> Path:
    """Write ``results.json`` and, unless empty, ``settings.json``.

    Args:
        folder: The work dir.
        routed: (T, T) mIoU; NaN cells make an unfinished run.
        oracle: (T, T); as routed if None.
        kept: (T,) values; four bytes each.
        settings: Merged into those of a run of 8 iterations; {} writes none.
    """
    results = StreamResults.new(stream, method, seed, list(tasks))
    matrices = dict(routed=routed, oracle=routed if oracle is None else oracle)
    for kind, matrix in matrices.items():
        for after, row in enumerate(matrix):
            for task, value in enumerate(row):
                results.set_miou(kind, after, task, value)
    size = len(tasks)
    results.set_gate(1.0, [[10 * (i == j) for j in range(size)]
                           for i in range(size)])
    for index in range(size):
        results.cost.set_task(index, seconds[index], kept[index],
                              4 * kept[index])
    results.cost.macs = 1_000_000_000
    results.setting.update(task_label_at_test=label, old_images=old_images)
    results.set_provenance(commit, {'torch': '2.13'}, 'config', device)
    results.compute_scores()
    results.save(folder / 'results.json')
    if settings != {}:
        write_json(folder / 'settings.json', {
            **settings_of_run(tasks),
            **(settings or {})
        })
    return folder


def settings_of_run(tasks: Sequence[str] = TASKS,
                    max_iters: int = 8,
                    split: str = 'val',
                    scale: int = 1) -> dict[str, Any]:
    """The fields of ``settings.json`` that comparisons look at."""
    return dict(
        model=dict(type='ExpertSegmentor'),
        train_dataloader=dict(batch_size=2),
        train_cfg=dict(
            max_iters=max_iters,
            tasks=[
                dict(
                    name=task,
                    val_dataset=dict(
                        type='CamVidDataset',
                        split=split,
                        pipeline=[dict(type='Resize', scale=scale)]))
                for task in tasks
            ]),
        randomness=dict(seed=0))


def three_methods(root: Path) -> Path:
    """Three methods, of which two have two seeds.

    Averages at the end: fine-tuning (30 + 50) / 2 = 40; MILE 50 and 54;
    one model per task 50 and 50, with tasks at 50 and 50 each.
    """
    write_run(
        root / 'fine_tune' / 'seed_0',
        'fine-tuning',
        routed=((60, 20), (30, 50)),
        kept=(1_000_000, 1_000_000))
    write_run(root / 'mile' / 'seed_0', seed=0, routed=((60, 20), (60, 40)))
    write_run(root / 'mile' / 'seed_1', seed=1, routed=((60, 20), (60, 48)))
    for seed in (0, 1):
        write_run(
            root / 'single' / f'seed_{seed}', 'one model per task', seed=seed,
            routed=((50, math.nan), (50, 50)), label=True,
            kept=(1_000_000, 2_000_000))  # yapf: disable
    return root
