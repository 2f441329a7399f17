# SPDX-License-Identifier: Apache-2.0
"""A stream of three tasks that a Runner learns in seconds."""
from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

COLOUR_CLASSES = ('sky', 'road', 'car')
# 'car' is class 2 in colour and class 1 in infrared; 'road' is only in colour.
INFRARED_CLASSES = ('cold', 'car')
TINY_MODEL = dict(
    type='ExpertSegmentor',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[127.5] * 3,
        std=[127.5] * 3,
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size_divisor=1),
    backbone=dict(
        type='LoRAExpertBackbone',
        backbone=dict(
            type='ResNetV1c',
            depth=18,
            base_channels=8,
            stem_channels=8,
            norm_cfg=dict(type='SyncBN', momentum=0.4)),
        lora=dict(r=2, lora_alpha=4),
        train_norm=True,
        base_training='first_task'),
    decode_head=dict(
        type='SegformerHead',
        in_channels=[8, 16, 32, 64],
        in_index=[0, 1, 2, 3],
        channels=8,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=dict(type='SyncBN', momentum=0.4),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False)),
    embedder=dict(type='FeatureStatisticsEmbedder', stages=(0, 1)),
    gate=dict(type='PrototypeGate'),
    test_cfg=dict(mode='whole'))


@pytest.fixture(scope='session')
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training and three validation images of each of three domains.

    ``day`` and ``night`` are colour images of one label space, ``infrared``
    are 16-bit images of another; a car is hot.
    """
    return draw_tiny_data(tmp_path_factory.mktemp('tiny_data'))


def draw_tiny_data(root: Path) -> Path:
    """Write the images of :func:`tiny_data` below ``root``."""
    generator = np.random.default_rng(0)
    for domain, split, index in product(('day', 'night', 'infrared'),
                                        ('train', 'val'), range(6)):
        if split == 'val' and index >= 3:
            continue
        label, image = _scene(generator, domain)
        for kind, array in (('img', image), ('ann', label)):
            path = root / domain / kind / split / f'{index}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), array)
    return root


def _scene(generator: np.random.Generator,
           domain: str) -> tuple[np.ndarray, np.ndarray]:
    """A label map and an image of 48 x 64 pixels: sky, road and a car."""
    label = np.zeros((48, 64), np.uint8)
    label[generator.integers(16, 28):] = 1
    top, left = generator.integers(16, 26), generator.integers(0, 32)
    label[top:top + 22, left:left + 32] = 2
    if domain == 'infrared':
        label = (label == 2).astype(np.uint8)
        heat = np.array([22500, 24500])[label]
        image = heat + generator.normal(0, 100, label.shape)
        return label, image.astype(np.uint16)
    colours = np.array([[220, 180, 120], [90, 90, 90], [40, 40, 210]])
    image = colours[label] + generator.normal(0, 8, (*label.shape, 3))
    if domain == 'night':
        image = image * 0.15 + [25, 8, 5]
    return label, image.clip(0, 255).astype(np.uint8)


def tiny_task(domain: str) -> dict[str, Any]:
    """The config of a task named after its domain."""
    infrared = domain == 'infrared'
    load = dict(
        type='LoadSingleChannelImage', low=21800,
        high=25000) if infrared else dict(type='LoadImageFromFile')
    classes = INFRARED_CLASSES if infrared else COLOUR_CLASSES
    palette = [[10, 60, 90], [0, 60, 100], [200, 30, 30]][-len(classes):]
    pipelines = dict(
        train=[
            load,
            dict(type='LoadAnnotations'),
            dict(type='RandomCrop', crop_size=(32, 48)),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackSegInputs')
        ],
        val=[load,
             dict(type='LoadAnnotations'),
             dict(type='PackSegInputs')])
    datasets = {
        f'{split}_dataset':
        dict(
            type='BaseSegDataset',
            data_root=domain,
            data_prefix=dict(
                img_path=f'img/{split}', seg_map_path=f'ann/{split}'),
            img_suffix='.png',
            metainfo=dict(classes=classes, palette=palette),
            pipeline=pipeline)
        for split, pipeline in pipelines.items()
    }
    return dict(name=domain, **datasets)


@pytest.fixture(scope='session')
def tiny_config(tiny_data: Path) -> Callable[..., Config]:
    """``tiny_config(work_dir, domains, **changes)``: a config to train.

    ``changes`` are merged into it, with ``__`` for a dot in the key.
    """
    return partial(tiny_stream_config, tiny_data)


def tiny_stream_config(tiny_data: Path,
                       work_dir: Path,
                       domains: Sequence[str] = ('day', 'night', 'infrared'),
                       **changes: Any) -> Config:
    """The config of :func:`tiny_config`, over data that is named."""
    cfg = Config(
        dict(
            custom_imports=dict(
                imports=['mmseg_mile'], allow_failed_imports=False),
            default_scope='mmseg',
            env_cfg=dict(
                mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0)),
            visualizer=dict(type='SegLocalVisualizer', name='visualizer'),
            log_processor=dict(by_epoch=False),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=2),
                checkpoint=dict(
                    type='CheckpointHook', by_epoch=False, interval=2)),
            randomness=dict(seed=3),
            model=copy.deepcopy(TINY_MODEL),
            train_dataloader=dict(
                batch_size=2,
                num_workers=0,
                sampler=dict(type='InfiniteSampler', shuffle=True)),
            optim_wrapper=dict(
                type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01)),
            param_scheduler=[
                dict(type='PolyLR', power=1.0, eta_min=0, by_epoch=False)
            ],
            train_cfg=dict(
                type='IncrementalTaskLoop',
                stream='tiny',
                max_iters=6,
                checkpoint_interval=2,
                data_root=str(tiny_data),
                tasks=[tiny_task(domain) for domain in domains]),
            work_dir=str(work_dir)))
    cfg.merge_from_dict({
        key.replace('__', '.'): value
        for key, value in changes.items()
    })
    return cfg


class Diary(Hook):
    """Writes down what a stream did."""

    def __init__(self) -> None:
        self.learned: list[str] = []
        self.rows: list[int] = []
        self.routed: list[tuple[int, str, str]] = []
        self.optimizers: list[Any] = []
        self.schedulers: list[Any] = []
        self.rates: list[list[float]] = []
        self.predicted: list[int] = []
        self._num_images = 0

    def before_run(self, runner: Runner) -> None:
        """Count the images that the model is asked to predict."""
        test_step = runner.model.test_step

        def counted(batch: dict) -> list:
            self._num_images += len(batch['inputs'])
            return test_step(batch)

        runner.model.test_step = counted

    def before_stream_task(self, runner: Runner, tasks: list,
                           index: int) -> None:
        """A task begins to train."""
        self.learned.append(tasks[index].name)
        self.rates.append([])

    def before_train(self, runner: Runner) -> None:
        """A task's optimizer and schedulers are ready."""
        self.optimizers.append(runner.optim_wrapper.optimizer)
        self.schedulers.append(runner.param_schedulers[0])

    def before_train_iter(self, runner: Runner, **kwargs: Any) -> None:
        """An optimizer step is about to happen."""
        self.rates[-1] += runner.optim_wrapper.get_lr()['lr'][:1]

    def before_stream_row(self, runner: Runner, task_index: int) -> None:
        """Every task is about to be evaluated."""
        self.rows.append(task_index)
        self._num_images = 0

    def after_stream_row(self, runner: Runner, seconds: float,
                         results: Any) -> None:
        """Every task was evaluated."""
        self.predicted.append(self._num_images)

    def after_stream_val_iter(self, runner: Runner, task: Any,
                              data_samples: list, oracle_samples: Any) -> None:
        """A batch was predicted as routed."""
        self.routed += [(self.rows[-1], task.name, sample.expert)
                        for sample in data_samples]


class StreamRun(NamedTuple):
    """What is left of a run."""

    cfg: Config
    work_dir: Path
    runner: Runner
    diary: Diary


@pytest.fixture(scope='session')
def learn(quick: Callable[[], Any],
          forget_runner: Callable[[], None]) -> Callable[..., StreamRun]:
    """``learn(cfg, *hooks)`` trains a config in a Runner of its own."""

    def run(cfg: Config, *hooks: Hook) -> StreamRun:
        import mmseg_mile  # noqa: F401  registers the components
        forget_runner()
        with quick():
            runner = Runner.from_cfg(cfg)
            diary = Diary()
            for hook in (diary, *hooks):
                runner.register_hook(hook)
            runner.train()
        return StreamRun(cfg, Path(cfg.work_dir), runner, diary)

    return run


@pytest.fixture(scope='session')
def quick() -> Callable[[], Any]:
    """``with quick():`` leaves out what takes most of the time of a test."""

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            # mmengine formats the config for every checkpoint, and collects
            # garbage for every dataset.
            patch.setattr('yapf.yapflib.yapf_api.FormatCode',
                          lambda text, **kwargs: (text, True))
            patch.setattr('gc.collect', lambda: 0)
            yield

    return block


@pytest.fixture(scope='session')
def stream_run(learn: Callable[..., StreamRun], tiny_config: Callable[...,
                                                                      Config],
               tmp_path_factory: pytest.TempPathFactory) -> StreamRun:
    """The tiny stream, learned without interruption; look, do not touch."""
    return learn(tiny_config(tmp_path_factory.mktemp('stream') / 'run'))
