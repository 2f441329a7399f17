# SPDX-License-Identifier: Apache-2.0
"""Compare gates on a stream's images, before anything is trained.

    python tools/compare_gates.py CONFIG
    python tools/compare_gates.py CONFIG --folders day='rgb/*D.jpg' ...

Each domain's training images are learned and its validation images routed;
with ``--folders``, every other image of a folder is learned and the rest
routed, which needs no labels.
"""
from __future__ import annotations

import argparse
import glob
from typing import Any, Dict, Iterator, Tuple

from mmengine.config import Config, DictAction
from mmengine.dataset import Compose, pseudo_collate
from mmengine.runner import Runner
from prettytable import PrettyTable, TableStyle

from mmseg_mile.apis.gate_study import (GATES, STAGE_SETS, Split,
                                        StageEmbeddings, route_all)
from mmseg_mile.models import PrototypeGate

Batches = Iterator[dict]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Compare gates')
    parser.add_argument('config', help='config of a stream, MILE')
    parser.add_argument('--scales', nargs='+', type=float, default=[1, 0.5])
    parser.add_argument('--folders', nargs='+', metavar='NAME=GLOB')
    parser.add_argument('--work-dir', default='work_dirs/compare_gates')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    return parser.parse_args()


def stream_images(runner: Runner, loop: Any) -> Dict[str, Tuple[Any, Any]]:
    """Loaders of each task's training and validation images."""
    return {
        task.name:
        (loop.data.prototype_loader(runner, task, loop.val_dataloader,
                                    loop.max_prototype_images),
         loop.data.val_loader(runner, task, loop.val_dataloader))
        for task in loop.tasks
    }


def folder_images(loop: Any, folders: list) -> Dict[str, Tuple[Any, Any]]:
    """Every other image of each folder, and the rest.

    Raises:
        ValueError: If a folder is given in another form or has no two
            images.
    """
    steps = [
        t for t in loop.tasks[0].val_dataset['pipeline']
        if t['type'] != 'LoadAnnotations'
    ]
    pipeline = Compose(steps)
    found = {}
    for item in folders:
        name, _, pattern = item.partition('=')
        paths = sorted(glob.glob(pattern))
        if len(paths) < 2:
            raise ValueError(f'--folders takes NAME=GLOB with at least two '
                             f'images each, {item!r} has {len(paths)}')
        found[name] = tuple([
            pseudo_collate([pipeline(dict(img_path=p))]) for p in paths[k::2]
        ] for k in (0, 1))
    return found


def main() -> None:
    """Embed the images once per scale and print a table of all gates."""
    args = parse_args()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    cfg.work_dir = args.work_dir
    runner = Runner.from_cfg(cfg)
    loop = runner.train_loop
    loop.model.init_weights()
    loop.model.eval()
    images = folder_images(
        loop, args.folders) if args.folders else stream_images(runner, loop)
    table = PrettyTable(['embedding', 'scale', 'values', 'gate'] +
                        [f'{n} %' for n in images] + ['all %', 'flagged %'])
    table.set_style(TableStyle.MARKDOWN)
    for scale in args.scales:
        stages = StageEmbeddings(loop.model, scale)
        whole = {
            name: Split(stages.embed(train), stages.embed(test))
            for name, (train, test) in images.items()
        }
        for label, (chosen, statistics) in STAGE_SETS.items():
            columns = stages.columns(chosen, statistics)
            part = {
                n: Split(s.train[:, columns], s.test[:, columns])
                for n, s in whole.items()
            }
            for gate, options in GATES.items():
                confusion, flagged = route_all(PrototypeGate(**options), part)
                right = confusion.diagonal() / confusion.sum(1)
                all_right = confusion.trace() / confusion.sum()
                table.add_row(
                    [label, scale, len(columns), gate] +
                    [f'{100 * r:.1f}' for r in right] +
                    [f'{100 * all_right:.1f}', f'{100 * flagged:.1f}'])
    print(table)


if __name__ == '__main__':
    main()
