# SPDX-License-Identifier: Apache-2.0
"""Write one expert as a stock MMSegmentation checkpoint and config.

    python tools/export_expert.py CONFIG WORK_DIR EXPERT OUT.pth
"""
from __future__ import annotations

import argparse
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

import mmseg_mile  # noqa: F401  registers the components
from mmseg.registry import MODELS
from mmseg_mile.apis import export_expert, stock_config
from mmseg_mile.experts import ExpertStore
from mmseg_mile.models import ExpertSegmentor


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Export an expert')
    parser.add_argument('config', help='the config that was trained')
    parser.add_argument('work_dir', help='the work dir that the run left')
    parser.add_argument('expert', help='name of the expert')
    parser.add_argument(
        'out',
        help='checkpoint to write; its config goes '
        'beside it, with the suffix .py')
    return parser.parse_args()


def main() -> None:
    """Export the expert."""
    args = parse_args()
    cfg = Config.fromfile(args.config)
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model)
    if not isinstance(model, ExpertSegmentor):
        raise ValueError(f'{args.config} has no experts to export: its '
                         f'model.type is {type(model).__name__!r}, not '
                         "'ExpertSegmentor'")
    store = ExpertStore(Path(args.work_dir) / 'library')
    expert = store.load(args.expert)
    model.backbone.load_base(*store.load_base())
    model.import_expert(expert)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(export_expert(model, args.expert), out)
    stock_config(cfg.model, model, args.expert).dump(out.with_suffix('.py'))
    print(f'{args.expert}: {out} and {out.with_suffix(".py")}; load with '
          'mmseg.apis.init_model')


if __name__ == '__main__':
    main()
