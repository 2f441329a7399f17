# SPDX-License-Identifier: Apache-2.0
"""Compare gates on a stream's images, before anything is trained.

    python tools/compare_gates.py CONFIG
    python tools/compare_gates.py CONFIG --folders day='rgb/*D.jpg' ...
    python tools/compare_gates.py CONFIG --held-out [--stem conv1]
    python tools/compare_gates.py CONFIG --disturbed [--stem conv1]

Each domain's training images are learned and its validation images routed;
with ``--folders``, every other image of a folder is learned and the rest
routed, which needs no labels. With ``--held-out``, the flag for out-of-distribution
images is tried: each domain is left out in turn, and its validation images
should be flagged, those of the others should not. With ``--disturbed``,
validation images are routed darker, brighter, softer, noisier than learned.
"""
from __future__ import annotations

import argparse
import glob
from typing import Any, Dict, Tuple

from mmengine.config import Config, DictAction
from mmengine.dataset import Compose, pseudo_collate
from mmengine.runner import Runner

from mmseg_mile.apis.gate_study import routing_study
from mmseg_mile.apis.held_out_study import embedders_of, held_out_study
from mmseg_mile.apis.perturbation_study import perturbation_study
from mmseg_mile.library.edits import open_library

Images = Dict[str, Tuple[Any, Any]]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Compare gates')
    parser.add_argument('config', help='config of a stream, MILE')
    parser.add_argument('--scales', nargs='+', type=float, default=[1, 0.5])
    parser.add_argument('--folders', nargs='+', metavar='NAME=GLOB')
    parser.add_argument(
        '--held-out', action='store_true', help='hold each domain out')
    parser.add_argument(
        '--disturbed',
        action='store_true',
        help='route images in other light and quality')
    parser.add_argument(
        '--embeddings', nargs='+', help='for --held-out and --disturbed')
    parser.add_argument(
        '--drift-weights', nargs='+', type=float, default=[0, 0.25])
    parser.add_argument(
        '--quantiles', nargs='+', type=float, default=[0.99, 0.95])
    parser.add_argument('--library', help='take the base of this library')
    parser.add_argument('--work-dir', default='work_dirs/compare_gates')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    return parser.parse_args()


def stream_images(runner: Runner, loop: Any) -> Images:
    """Loaders of each task's training and validation images."""
    return {
        task.name:
        (loop.data.prototype_loader(runner, task, loop.val_dataloader,
                                    loop.max_prototype_images),
         loop.data.val_loader(runner, task, loop.val_dataloader))
        for task in loop.tasks
    }


def folder_images(loop: Any, folders: list) -> Images:
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
    """Embed the images and print a table of all gates, or of all flags."""
    args = parse_args()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    cfg.work_dir = args.work_dir
    runner = Runner.from_cfg(cfg)
    loop = runner.train_loop
    if args.library:
        loop.model.backbone.load_base(*open_library(args.library).load_base())
    else:
        loop.model.init_weights()
    loop.model.eval()
    images = folder_images(
        loop, args.folders) if args.folders else stream_images(runner, loop)
    if args.held_out or args.disturbed:
        embedders = embedders_of(loop.model, args.embeddings)
    if args.held_out:
        print(held_out_study(loop.model, images, embedders, args.quantiles))
    elif args.disturbed:
        print(
            perturbation_study(loop.model, images, embedders,
                               args.perturbation_weights))
    else:
        print(routing_study(loop.model, images, args.scales))


if __name__ == '__main__':
    main()
