# SPDX-License-Identifier: Apache-2.0
"""The world of the frame: drawn domains, streams over them, commands.

Nothing here knows a module inside of the package, and nothing is shared with
other tests: only commands, registered names and files on disk.
"""
from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from mmseg.apis import init_model

ROOT = Path(__file__).resolve().parents[2]
STREAM = '''
custom_imports = dict(imports=['mmseg_mile'], allow_failed_imports=False)
default_scope = 'mmseg'
log_level = 'WARNING'
log_processor = dict(by_epoch=False)
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=100))
randomness = dict(seed=3)
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
param_scheduler = [dict(type='PolyLR', by_epoch=False)]
train_dataloader = dict(
    batch_size=4, num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True))
model = dict(
    type='ExpertSegmentor',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[127.5] * 3, std=[127.5] * 3,
        bgr_to_rgb=True, size_divisor=1, pad_val=0, seg_pad_val=255),
    backbone=dict(
        type='LoRAExpertBackbone', backbone=BACKBONE,
        lora=dict(r=2, lora_alpha=8), train_norm=True),
    decode_head=dict(
        type='LevelwiseSegformerHead', in_index=[0, 1, 2, 3], channels=16,
        num_classes=19, align_corners=False, **HEAD),
    embedder=dict(type='FeatureStatisticsEmbedder', stages=(0, )),
    gate=dict(type='PrototypeGate'),
    test_cfg=dict(mode='whole'))
del BACKBONE, HEAD


def dataset(name, split, classes, *steps):
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    # without serialize_data mmengine collects no garbage for each dataset
    return dict(
        type='BaseSegDataset', data_root=name, img_suffix='.png',
        data_prefix=dict(img_path=f'img/{split}', seg_map_path=f'ann/{split}'),
        metainfo=dict(classes=classes), serialize_data=False,
        pipeline=[*load, *steps, dict(type='PackSegInputs')])


def task(name, classes):
    flip = dict(type='RandomFlip', prob=0.5)
    return dict(
        name=name, train_dataset=dataset(name, 'train', classes, flip),
        val_dataset=dataset(name, 'val', classes))
'''
# Batch norm's statistics are what leaks most easily from task to task. With
# batch norm, dropout or Adam two processes cannot come out as one does.
NETWORKS = dict(
    cnn='''
norm = dict(type='BN', momentum=0.4)
BACKBONE = dict(
    type='ResNetV1c', depth=18, base_channels=8, stem_channels=8,
    norm_cfg=norm)
HEAD = dict(in_channels=[8, 16, 32, 64], norm_cfg=norm, dropout_ratio=0.1)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01))
''',
    mit='''
norm = dict(type='GN', num_groups=4)
BACKBONE = dict(
    type='MixVisionTransformer', embed_dims=8, num_layers=[1, 1, 1, 1],
    num_heads=[1, 2, 2, 4], sr_ratios=[4, 2, 1, 1], drop_path_rate=0.0)
HEAD = dict(in_channels=[8, 16, 16, 32], norm_cfg=norm, dropout_ratio=0.0)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, momentum=0.9))
''')


class Run(NamedTuple):
    """A stream: its config, and where it was or will be learned."""

    config: Path
    work_dir: Path
    model: nn.Module | None = None

    @property
    def library(self) -> Path:
        return self.work_dir / 'library'

    def copy(self, work_dir: Path) -> Run:
        """The same in another folder, to be changed."""
        shutil.copytree(self.work_dir, work_dir)
        return self._replace(work_dir=work_dir)

    def json(self, name: str) -> dict[str, Any]:
        """Content of a JSON file of the work dir."""
        return json.loads((self.work_dir / name).read_text())

    def files(self, pattern: str) -> dict[str, bytes]:
        """Bytes of the files of the library that match, which must exist."""
        paths = [p for p in self.library.glob(pattern) if p.is_file()]
        assert paths, f'no {pattern} in {self.library}'
        return {str(p.relative_to(self.library)): p.read_bytes()
                for p in paths}  # yapf: disable


class World:
    """Drawn images of three domains, and what is done with them."""

    # another index in each domain
    classes = dict(
        day=('sky', 'road', 'car'),
        night=('car', 'sky', 'road'),
        fog=('road', 'car', 'sky'))
    max_iters, interval = 12, 4

    def __init__(self, root: Path) -> None:
        self.root = root
        generator = np.random.default_rng(0)
        for domain in self.classes:
            for index in range(12):
                self._draw(generator, domain, index)

    def images(self, *domains: str) -> list[str]:
        """Files of the validation images, of several domains by turns."""
        return [str(self.root / domain / 'img' / 'val' / f'{index:02}.png')
                for index in range(8, 12)
                for domain in domains]  # yapf: disable

    def stream(self, name: str, network: str, domains: Sequence[str],
               changes: str = '') -> Run:  # yapf: disable
        """Write the config of a stream, with more lines at its end."""
        tasks = ', '.join(f'task({d!r}, {self.classes[d]})' for d in domains)
        path = self.root / f'{name}.py'
        path.write_text(
            f"{NETWORKS[network]}{STREAM}train_cfg = dict(\n"
            f"    type='IncrementalTaskLoop', stream='frame',\n"
            f'    max_iters={self.max_iters}, data_root={str(self.root)!r},\n'
            f'    checkpoint_interval={self.interval}, tasks=[{tasks}])\n'
            f'{changes}\n')
        return Run(path, path.with_suffix(''))

    def learn(self, run: Run, resume: bool = False) -> Run:
        """Learn a stream in this process, as ``tools/train.py`` would."""
        with self._process():
            cfg = Config.fromfile(run.config)
            cfg.update(work_dir=str(run.work_dir), resume=resume)
            runner = Runner.from_cfg(cfg)
            runner.train()
        return run._replace(model=runner.model)

    def stock(self, run: Run, expert: str) -> nn.Module:
        """An expert, exported by the command and loaded by plain mmseg."""
        path = self.root / f'{run.config.stem}_{expert}.pth'
        self.command('export_expert.py', run.work_dir, path, '--experts',
                     expert)
        return init_model(str(path.with_suffix('.py')), str(path), 'cpu')

    def command(self, tool: str, *arguments: Any) -> str:
        """What ``python tools/TOOL ARGUMENTS`` prints; run in this process."""
        printed = io.StringIO()
        with self._process(tool, *arguments), \
                contextlib.redirect_stdout(printed):
            runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
        return printed.getvalue()

    def shell(self, *arguments: Any,
              **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in processes of its own, of one thread each."""
        path = os.pathsep.join([str(ROOT), str(self.root)])
        return subprocess.run(
            list(map(str, arguments)), cwd=ROOT, capture_output=True,
            text=True, timeout=300, env=dict(
                os.environ, OMP_NUM_THREADS='1', PYTHON=sys.executable,
                PYTHONPATH=path, **environment))  # yapf: disable

    @contextlib.contextmanager
    def _process(self, *argv: Any) -> Iterator[None]:
        """Nearly a process of its own, without its imports.

        mmengine would spend most of a short run on laying out its config.
        """
        with mock.patch('yapf.yapflib.yapf_api.FormatCode',
                        lambda text, **kwargs: (text, True)), \
                mock.patch.dict(os.environ), \
                mock.patch.object(sys, 'argv', list(map(str, argv))), \
                mock.patch.object(sys, 'path', [str(self.root), *sys.path]):
            yield

    def _draw(self, generator: np.random.Generator, domain: str,
              index: int) -> None:
        """A road below a sky, and a car."""
        scene = np.zeros((64, 64), np.uint8)
        scene[generator.integers(20, 36):] = 1
        top, left = generator.integers(16, 32, 2)
        scene[top:top + 24, left:left + 28] = 2
        colours = np.array([[220, 180, 120], [90, 90, 90], [40, 40, 210]])
        image = colours[scene] + generator.normal(0, 8, (64, 64, 3))
        light = dict(day=0, night=9, fog=170)[domain]
        image = (image * (0.3 if light else 1) + light).clip(0, 255)
        names = ('sky', 'road', 'car')
        label = np.array([self.classes[domain].index(n) for n in names])[scene]
        for kind, array in (('img', image), ('ann', label)):
            split = 'train' if index < 8 else 'val'
            path = self.root / domain / kind / split / f'{index:02}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), array.astype(np.uint8))


@pytest.fixture(scope='session')
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp('frame'))


@pytest.fixture(scope='session')
def run(world: World) -> Run:
    """Day, then night, by a CNN whose experts own batch norm."""
    return world.learn(world.stream('cnn', 'cnn', ('day', 'night')))


@pytest.fixture(scope='session')
def mit_run(world: World) -> Run:
    """The same by a transformer, without batch norm and dropout."""
    return world.learn(world.stream('mit', 'mit', ('day', 'night')))
