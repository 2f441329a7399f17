# SPDX-License-Identifier: Apache-2.0
"""Cost of an image with many tasks of CaRE against few.

    python -m analysis_tools.benchmark.care_scale CONFIG [--counts 3 30 300]

Run with ``tools`` on the path. Weights, tasks and images are drawn from a
seed. All models share the base; rounds are interleaved.
"""
from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import Any, Dict, List

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

import mmseg_mile  # noqa: F401  registers the components
from mmseg.registry import MODELS
from mmseg_mile.methods.continual_segmentor import head_config
from mmseg_mile.methods.prediction import blank_samples
from mmseg_mile.structures import Task
from .models import quiet


@torch.no_grad()
def with_tasks(blank: Any, count: int, classes: int = 19) -> Any:
    """A copy of a model with drawn experts, routers and perceptrons."""
    model = copy.deepcopy(blank)
    names = tuple(f'class{i}' for i in range(classes))
    palette = tuple((i, i, i) for i in range(classes))
    config = head_config(model.head_template, classes)
    head = model.new_head(classes)
    for index in range(count):
        draw = torch.Generator().manual_seed(index)
        others = [0, *range(max(1, index - model.backbone.pool + 1), index)]
        members = others if index else []
        for layer in model.backbone.moe:
            layer.begin(members, [], 0)
            for value in layer.new.values():
                value.copy_(0.02 * torch.randn(value.shape, generator=draw))
            mean = torch.randn(layer.dims, generator=draw)
            layer.fit(100, mean, torch.full((layer.dims, ), 100.0))
            layer.finish()
        task = Task(f'task{index}', names, palette, {}, {})
        model.heads.keep(task, head, config)
    return model.eval()


@torch.no_grad()
def measure(config: str, counts: List[int], size: int, batch: int,
            rounds: int) -> List[Dict[str, Any]]:
    """Median milliseconds per batch, and bytes of what tasks keep.

    Args:
        config (str): File of a model with ``perceptron='slda'``.
        counts (list[int]): Tasks per model.
        size (int): Side of the images in pixels.
        batch (int): Images per prediction.
        rounds (int): Predictions per model.
    """
    init_default_scope('mmseg')
    torch.manual_seed(0)
    with quiet():
        blank = MODELS.build(Config.fromfile(config).model)
        blank.init_weights()
        models = {count: with_tasks(blank, count) for count in counts}
    images = torch.randn(batch, 3, size, size)
    seconds: Dict[int, List[float]] = {count: [] for count in counts}
    for turn in range(rounds + 1):
        for count, model in models.items():
            start = time.perf_counter()
            model.predict(images, blank_samples(images))
            if turn:
                seconds[count].append(time.perf_counter() - start)
    first = counts[0]
    return [
        dict(
            tasks=count,
            milliseconds=round(1e3 * statistics.median(seconds[count]), 1),
            ratio=round(
                statistics.median(
                    a / b for a, b in zip(seconds[count], seconds[first])), 3),
            bytes_per_task=sum(layer.num_bytes()
                               for layer in models[count].backbone.moe) //
            count) for count in counts
    ]


def main() -> None:
    """Print a line per number of tasks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('--counts', nargs='+', type=int, default=[3, 30, 300])
    parser.add_argument('--size', type=int, default=512)
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=15)
    args = parser.parse_args()
    for row in measure(args.config, args.counts, args.size, args.batch,
                       args.rounds):
        print(row)


if __name__ == '__main__':
    main()
