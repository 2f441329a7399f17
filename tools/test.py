# SPDX-License-Identifier: Apache-2.0
"""Score what a run left: python tools/test.py CONFIG WORK_DIR."""
from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any, ContextManager

from mmengine.config import DictAction
from mmengine.runner import Runner
from prettytable import PrettyTable

from mmseg_mile.apis.library_model import read_config
from mmseg_mile.engine.incremental_task_loop import IncrementalTaskLoop
from mmseg_mile.engine.task_evaluator import evaluate_task
from mmseg_mile.files import write_json
from mmseg_mile.gates.simple_gates import OracleGate


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='the config that was trained')
    parser.add_argument('work_dir', help='the work dir that the run left')
    parser.add_argument(
        '--gate',
        default='prototype',
        help="'prototype' (the config's gate), 'oracle' (the true task), or "
        'the name of one task, whose expert then predicts every image')
    parser.add_argument(
        '--out', help='JSON file (default: WORK_DIR/test_GATE.json)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that override the config, as key=value')
    return parser.parse_args()


def gated(model: Any, gate: str) -> ContextManager[None]:
    """Predict with the gate that was asked for.

    Raises:
        ValueError: If the model has no such gate or expert.
    """
    if gate == 'prototype':
        return contextlib.nullcontext()
    if gate == 'oracle' and model.expert_names:
        if model.gate is None:
            # its images come with their task
            return contextlib.nullcontext()
        oracle = OracleGate()
        for name in model.expert_names:
            oracle.fit(name, None)
        return model.gated(oracle)
    if gate not in model.expert_names:
        raise ValueError(f"--gate must be 'prototype', 'oracle' (for methods "
                         f'with experts) or one of {model.expert_names}, got '
                         f'{gate!r}')
    return model.forced(gate)


def main() -> None:
    """Evaluate every learned task and print a table."""
    args = parse_args()
    cfg = read_config(args.config, args.cfg_options)
    work_dir = Path(args.work_dir)
    cfg.work_dir = str(work_dir / 'test')
    runner = Runner.from_cfg(cfg)
    loop: IncrementalTaskLoop = runner.train_loop
    learned = loop.load(work_dir)
    after = loop.tasks[learned - 1].name
    table = PrettyTable(['task', 'mIoU', 'images', 'experts chosen'])
    scores = {}
    with gated(loop.model, args.gate):
        for task in loop.tasks[:learned]:
            loader = loop.data.val_loader(runner, task, loop.val_dataloader)
            score = evaluate_task(runner, loop.model, task, loader,
                                  loop.data_root, after)
            chosen = dict(score.chosen.most_common())
            scores[task.name] = dict(
                miou=score.routed.miou(),
                class_iou=score.routed.class_iou(),
                chosen=chosen)
            table.add_row([
                task.name, f'{score.routed.miou():.2f}',
                len(loader.dataset),
                ', '.join(f'{k} {v}' for k, v in chosen.items()) or '-'
            ])
    print(table)
    out = Path(args.out or work_dir / f'test_{args.gate}.json')
    write_json(out, dict(gate=args.gate, tasks=scores))
    print(f'written to {out}')


if __name__ == '__main__':
    main()
