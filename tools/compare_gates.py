# SPDX-License-Identifier: Apache-2.0
"""Compare gates on a stream's images, before anything is trained.

    python tools/compare_gates.py CONFIG
    python tools/compare_gates.py CONFIG --folders day='rgb/*D.jpg' ...
    python tools/compare_gates.py CONFIG --held-out
    python tools/compare_gates.py CONFIG --disturbed
    python tools/compare_gates.py CONFIG --by-sequence

Each domain's training images are learned and its validation images routed;
with --folders, every other image of a folder is learned and the rest routed,
which needs no labels. With --held-out, each domain is left out in turn: its
validation images should be flagged as out-of-distribution, those of the
others should not. With --disturbed, validation images are routed darker,
brighter, softer and noisier than learned. With --by-sequence, training images
are routed by gates that saw no image of their sequence, such as a drive.

Prints a table of Markdown.
"""
from __future__ import annotations

import argparse
import glob
from typing import Any, Dict, Sequence

from analysis_tools.gate_studies import (Images, embedders_of, gate_options,
                                         held_out_study, perturbation_study,
                                         routing_study, sequence_study)
from mmengine.config import DictAction
from mmengine.dataset import Compose, pseudo_collate
from mmengine.runner import Runner

from mmseg_mile.apis.library_model import read_config
from mmseg_mile.engine.incremental_task_loop import IncrementalTaskLoop
from mmseg_mile.evaluation.tables import markdown_table
from mmseg_mile.library.edits import open_library

# Options of single studies, which have no say in the others.
DEFAULTS: Dict[str, Dict[str, Any]] = dict(
    routing=dict(scales=[1.0, 0.5]),
    held_out=dict(embeddings=None, quantiles=[0.99, 0.95]),
    disturbed=dict(embeddings=None, perturbation_weights=[0.0, 0.25]),
    by_sequence=dict(
        embeddings=None, perturbation_weights=None, shrinkages=None))


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS)
    parser.add_argument('config', help='config of a stream, MILE')
    parser.add_argument(
        '--folders', nargs='+', metavar='NAME=GLOB', default=None)
    study = parser.add_mutually_exclusive_group()
    study.add_argument(
        '--held-out',
        dest='study',
        action='store_const',
        const='held_out',
        default='routing',
        help='hold each domain out')
    study.add_argument(
        '--disturbed',
        dest='study',
        action='store_const',
        const='disturbed',
        help='route images in other light and quality')
    study.add_argument(
        '--by-sequence',
        dest='study',
        action='store_const',
        const='by_sequence',
        help='hold each sequence of images out')
    parser.add_argument(
        '--scales',
        nargs='+',
        type=float,
        help="of the gate's copies of the images (default: 1 0.5)")
    parser.add_argument(
        '--embeddings',
        nargs='+',
        help='for all studies but the first (default: all)')
    parser.add_argument(
        '--perturbation-weights',
        nargs='+',
        type=float,
        help='for --disturbed (default: 0 0.25) and --by-sequence (default: '
        'as configured)')
    parser.add_argument(
        '--shrinkages',
        nargs='+',
        type=float,
        help='for --by-sequence (default: as configured)')
    parser.add_argument(
        '--quantiles',
        nargs='+',
        type=float,
        help='ood_quantile of the gates, for --held-out (default: 0.99 0.95)')
    parser.add_argument(
        '--library', default=None, help='take the base of this library')
    parser.add_argument('--work-dir', default='work_dirs/compare_gates')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={})
    args = parser.parse_args()
    defaults = DEFAULTS[args.study]
    for name in (name for group in DEFAULTS.values() for name in group):
        if name not in defaults and hasattr(args, name):
            parser.error(f'--{name.replace("_", "-")} is of another study')
    return argparse.Namespace(**{**defaults, **vars(args)})


def stream_images(runner: Runner, loop: IncrementalTaskLoop) -> Images:
    """Training and validation images of each task of a stream."""
    return {
        task.name:
        (loop.data.prototype_loader(runner, task, loop.val_dataloader,
                                    loop.max_prototype_images),
         loop.data.val_loader(runner, task, loop.val_dataloader))
        for task in loop.tasks
    }


def folder_images(loop: IncrementalTaskLoop, folders: Sequence[str]) -> Images:
    """Every other image of each folder to learn from, the rest to route.

    Args:
        loop (IncrementalTaskLoop): The images go through the test pipeline
            of its first task.
        folders (Sequence[str]): Each as NAME=GLOB.

    Raises:
        ValueError: If a folder is given in another form or has fewer than
            two images.
    """
    pipeline = Compose([
        step for step in loop.tasks[0].val_dataset['pipeline']
        if step['type'] != 'LoadAnnotations'
    ])
    found = {}
    for folder in folders:
        name, _, pattern = folder.partition('=')
        paths = sorted(glob.glob(pattern))
        if len(paths) < 2:
            raise ValueError(f'--folders takes NAME=GLOB with at least two '
                             f'images each, {folder!r} has {len(paths)}')
        train, test = ([
            pseudo_collate([pipeline(dict(img_path=path))])
            for path in paths[start::2]
        ] for start in (0, 1))
        found[name] = (train, test)
    return found


def main() -> None:
    """Embed the images, print the table of a study."""
    args = parse_args()
    cfg = read_config(args.config, args.cfg_options)
    cfg.work_dir = args.work_dir
    runner = Runner.from_cfg(cfg)
    loop = runner.train_loop
    model = loop.model
    if args.library:
        model.backbone.load_base(*open_library(args.library).load_base())
    else:
        model.init_weights()
    model.eval()
    images = folder_images(
        loop, args.folders) if args.folders else stream_images(runner, loop)
    if args.study == 'held_out':
        table = held_out_study(model, images,
                               embedders_of(model, args.embeddings),
                               args.quantiles)
    elif args.study == 'disturbed':
        table = perturbation_study(model, images,
                                   embedders_of(model, args.embeddings),
                                   args.perturbation_weights)
    elif args.study == 'by_sequence':
        own = gate_options(model)
        table = sequence_study(model, images,
                               embedders_of(model, args.embeddings),
                               args.perturbation_weights or [own['weight']],
                               args.shrinkages or [own['shrinkage']])
    else:
        table = routing_study(model, images, args.scales)
    print(markdown_table(table))


if __name__ == '__main__':
    main()
