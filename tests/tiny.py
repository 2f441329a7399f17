# SPDX-License-Identifier: Apache-2.0
"""The tiny world of the tests: images, streams, libraries, models."""
from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from torch import Tensor, nn

from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.library.stored_config import to_json
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.structures import Task

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
            model=dict(copy.deepcopy(TINY_MODEL), init_from='nearest'),
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


CLASSES = ('sky', 'road', 'car')
PALETTE = ((70, 130, 180), (128, 64, 128), (0, 0, 142))
TINY_MIT = dict(
    type='MixVisionTransformer',
    embed_dims=8,
    num_layers=[1, 1, 1, 1],
    num_heads=[1, 2, 2, 4],
    sr_ratios=[4, 2, 1, 1])


class TinyLibrary(NamedTuple):
    """A library, and what it was made of.

    Args:
        store (ExpertStore): Experts 'day', 'night' and 'fog'.
        config (dict): Of the model.
        model (ExpertSegmentor): That has the experts in memory.
    """

    store: ExpertStore
    config: dict[str, Any]
    model: ExpertSegmentor

    def stock_backbone(self) -> nn.Module:
        """The backbone as plain mmseg builds it, with the base's weights."""
        backbone = MODELS.build(
            copy.deepcopy(self.config['backbone'])['backbone'])
        backbone.load_state_dict(self.store.load_base()[0], strict=True)
        # mmseg's CNNs return None from eval()
        backbone.eval()
        return backbone

    def build(self) -> ExpertSegmentor:
        """Build the model anew, without experts."""
        return MODELS.build(copy.deepcopy(self.config)).eval()

    def loaded(self) -> ExpertSegmentor:
        """Build the model with the experts that the folder holds now."""
        model = self.build()
        model.backbone.load_base(*self.store.load_base())
        model.import_experts(self.store.open(self.store.names))
        return model


def model_config(kind: str) -> dict[str, Any]:
    """A CNN whose experts own norm layers, or a transformer."""
    config = copy.deepcopy(TINY_MODEL)
    config['backbone'].update(base_training='none')
    config['init_from'] = 'base'
    if kind == 'mit':
        config['backbone'].update(backbone=dict(TINY_MIT), train_norm=False)
        config['decode_head']['in_channels'] = [8, 16, 16, 32]
    return Config(dict(model=config)).model


def make_library(kind: str, root: Path) -> TinyLibrary:
    """Draw three experts and save them."""
    torch.manual_seed(0)
    init_default_scope('mmseg')
    config = model_config(kind)
    model = MODELS.build(copy.deepcopy(config)).eval()
    # as it is drawn, the last stages would see almost nothing
    for value in model.backbone.backbone.parameters():
        value.data += 0.05 * torch.randn_like(value)
    for index, name in enumerate(('day', 'night', 'fog')):
        task = Task(name, CLASSES, PALETTE, dict(data_root=name), {})
        model.begin_task(task, batches(index))
        model.end_task(task, batches(index))
        adapter = model.backbone.experts[name]
        for tensors in (adapter.lora, adapter.norm, model.heads[name].state):
            disturb(tensors)
        model.save_task(
            task, root,
            dict(task=name, seed=index, train_dataset=task.train_dataset))
    return TinyLibrary(ExpertStore(root), config, model)


@pytest.fixture(scope='session')
def pristine(
        tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], TinyLibrary]:
    """``pristine(kind)``: made once; look, do not touch."""
    made: dict[str, TinyLibrary] = {}

    def get(kind: str) -> TinyLibrary:
        if kind not in made:
            made[kind] = make_library(
                kind,
                tmp_path_factory.mktemp(kind) / 'library')
        init_default_scope('mmseg')
        return made[kind]

    return get


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[TinyLibrary], TinyLibrary]:
    """Copy a library into the test's folder."""

    def copy_library(whole: TinyLibrary) -> TinyLibrary:
        folder = shutil.copytree(whole.store.root, tmp_path / 'library')
        return whole._replace(
            store=ExpertStore(folder), config=copy.deepcopy(whole.config))

    return copy_library


@pytest.fixture
def cnn(pristine: Callable[[str], TinyLibrary],
        copied: Callable[[TinyLibrary], TinyLibrary]) -> TinyLibrary:
    """A library of the test's own, of a CNN."""
    return copied(pristine('cnn'))


@pytest.fixture(params=['cnn', 'mit'])
def library(request: pytest.FixtureRequest, pristine: Callable[[str],
                                                               TinyLibrary],
            copied: Callable[[TinyLibrary], TinyLibrary]) -> TinyLibrary:
    """A library of the test's own, once of a CNN and once of a MiT."""
    return copied(pristine(request.param))


@pytest.fixture
def image() -> Tensor:
    """One normalised image."""
    return torch.randn(1, 3, 64, 96)


def batches(index: int) -> list[dict[str, Any]]:
    """Eight images of a brightness of their own."""
    generator = torch.Generator().manual_seed(index)
    return [
        dict(inputs=[(
            60 * index +
            40 * torch.rand(3, 32, 48, generator=generator)).to(torch.uint8)])
        for _ in range(8)
    ]


def disturb(tensors: dict[str, Tensor]) -> None:
    """Move every value that training would, and keep variances positive."""
    for value in tensors.values():
        if value.is_floating_point():
            value += 0.1 * torch.rand_like(value)


def features(backbone: nn.Module, image: Tensor) -> list[Tensor]:
    """All outputs of a backbone."""
    with torch.no_grad():
        return list(backbone(image))


def assert_close(mine: list[Tensor],
                 theirs: list[Tensor],
                 atol: float = 1e-5) -> None:
    """Compare outputs stage by stage, relative to their size."""
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs):
        scale = float(b.abs().max())
        assert scale > 1e-3
        torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=atol)


DOMAINS = ('day', 'night')


class PredictingLibrary(NamedTuple):
    """A library, and what the loop has when it evaluates.

    Args:
        root (Path): Of experts 'day' and 'night'.
        data (Path): Images, see ``tiny_data``.
        cfg (Config): That the library carries.
        model (ExpertSegmentor): With the experts in memory.
    """

    root: Path
    data: Path
    cfg: Config
    model: ExpertSegmentor

    def as_in_the_loop(self, domain: str) -> list[Any]:
        """Data samples of the validation images of a domain."""
        return loop_predictions(self.model, self.cfg, self.data, domain)

    def images(self, domain: str = 'day') -> Path:
        """The folder of three validation images."""
        return self.data / domain / 'img' / 'val'


def resizing_task(domain: str) -> dict[str, Any]:
    """A task whose images are enlarged, its labels are not."""
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(96, 64), keep_ratio=True),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs')
    ]
    datasets = {
        f'{split}_dataset':
        dict(
            type='BaseSegDataset',
            data_root=domain,
            data_prefix=dict(
                img_path=f'img/{split}', seg_map_path=f'ann/{split}'),
            img_suffix='.png',
            metainfo=dict(classes=CLASSES, palette=PALETTE),
            pipeline=pipeline)
        for split in ('train', 'val')
    }
    return dict(name=domain, **datasets)


def make_predicting_library(data: Path, root: Path,
                            **changes: Any) -> PredictingLibrary:
    """Draw two experts and save them, with a config in each.

    Args:
        data (Path): See ``tiny_data``.
        root (Path): Of the library.
        **changes: Of the model's config.
    """
    torch.manual_seed(0)
    init_default_scope('mmseg')
    # the resolved config of a run names weights to start from
    model = dict(
        model_config('cnn').to_dict(),
        # six images are too few for a covariance
        gate=dict(type='PrototypeGate', metric='euclidean'),
        **changes)
    model['backbone']['backbone']['init_cfg'] = dict(
        type='Pretrained', checkpoint='nowhere/to/be/found.pth')
    cfg = Config(
        dict(
            model=model,
            train_cfg=dict(tasks=[resizing_task(d) for d in DOMAINS])))
    learner = MODELS.build(copy.deepcopy(cfg.model)).eval()
    for value in learner.backbone.backbone.parameters():
        value.data += 0.05 * torch.randn_like(value)
    for domain in DOMAINS:
        task = Task(domain, CLASSES, PALETTE, {}, {})
        loader = list(loop_batches(cfg, data, domain, 'train'))
        learner.begin_task(task, loader)
        learner.end_task(task, loader)
        adapter = learner.backbone.experts[domain]
        for tensors in (adapter.lora, adapter.norm,
                        learner.heads[domain].state):
            disturb(tensors)
        _balance(learner, cfg, data, domain)
        learner.save_task(task, root,
                          dict(task=domain, config=to_json(cfg.to_dict())))
    return PredictingLibrary(root, data, cfg, learner)


def _balance(model: ExpertSegmentor, cfg: Config, data: Path,
             domain: str) -> None:
    """Let the head find each class somewhere, not one everywhere."""
    model.keep_logits = True
    with model.forced(domain):
        samples = loop_predictions(model, cfg, data, domain)
    model.keep_logits = False
    logits = torch.stack([s.seg_logits.data for s in samples])
    state = model.heads[domain].state
    state['conv_seg.bias'] -= logits.mean(dim=(0, 2, 3))


def loop_batches(cfg: Config,
                 data: Path,
                 domain: str,
                 split: str = 'val') -> Any:
    """Images of a task through the test pipeline, as the loop loads them."""
    config, = (t for t in cfg.train_cfg.tasks if t['name'] == domain)
    dataset = DATASETS.build(
        dict(
            copy.deepcopy(config[f'{split}_dataset']),
            data_root=str(data / domain)))
    for index in range(len(dataset)):
        yield pseudo_collate([dataset[index]])


def loop_predictions(model: ExpertSegmentor, cfg: Config, data: Path,
                     domain: str) -> list[Any]:
    """What the loop's evaluation gets from the model."""
    init_default_scope('mmseg')
    with torch.no_grad():
        return [
            model.eval().test_step(batch)[0]
            for batch in loop_batches(cfg, data, domain)
        ]


def label_map(sample: Any) -> np.ndarray:
    """(H, W) labels of a data sample."""
    return sample.pred_sem_seg.data[0].numpy()


AUXILIARY_HEAD = dict(
    type='FCNHead',
    in_channels=32,
    in_index=2,
    channels=8,
    num_convs=1,
    num_classes=19)
DAY = Task('day', ('sky', 'road'), ((1, 1, 1), (2, 2, 2)), {}, {})
NIGHT = Task('night', ('lamp', 'road'), ((3, 3, 3), (2, 2, 2)), {}, {})
DUSK = Task('dusk', ('sky', 'road'), ((1, 1, 1), (2, 2, 2)), {}, {})


def one_model_config(kind: str, **changes: Any) -> ConfigDict:
    """Config of a method that keeps one network."""
    model = copy.deepcopy(TINY_MODEL)
    for key in ('embedder', 'gate'):
        del model[key]
    if kind != 'SharedLoRASegmentor':
        model['backbone'] = model['backbone']['backbone']
    return ConfigDict(dict(model, type=kind, **changes))


def one_model(kind: str, **changes: Any) -> Any:
    """A model; its weights are the same every time."""
    init_default_scope('mmseg')
    torch.manual_seed(7)
    model = MODELS.build(one_model_config(kind, **changes))
    model.init_weights()
    return model


def batch_of(task: Task, seed: int, size: int = 2) -> dict[str, list]:
    """Images whose upper half is class 1, darker than the lower half."""
    noise = torch.Generator().manual_seed(seed)
    images, samples = [], []
    for _ in range(size):
        image = 100 + 20 * torch.randn(3, 32, 32, generator=noise)
        image[:, :16] -= 60
        if task.name == 'night':
            image = 255 - image
        labels = torch.zeros(1, 32, 32, dtype=torch.long)
        labels[:, :16] = 1
        images.append(image.clamp(0, 255).byte())
        samples.append(
            SegDataSample(
                gt_sem_seg=PixelData(data=labels),
                metainfo=dict(
                    img_shape=(32, 32), ori_shape=(32, 32), task=task.name)))
    return dict(inputs=images, data_samples=samples)


def loader_of(task: Task, count: int = 4) -> list[dict[str, list]]:
    """Training images of a task, one at a time, as the loop gives them."""
    return [batch_of(task, 100 + seed, 1) for seed in range(count)]


def train(model: Any,
          task: Task,
          num_steps: int = 3,
          lr: float = 0.05) -> dict:
    """Take a few optimizer steps; return the last losses."""
    model.train()
    torch.manual_seed(11)
    wrapper = OptimWrapper(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad],
                        lr=lr))
    losses: dict = {}
    for step in range(num_steps):
        losses = model.train_step(batch_of(task, step), wrapper)
    return losses


def learn_task(model: Any, task: Task, num_steps: int = 3) -> None:
    """Learn one task from beginning to end."""
    model.begin_task(task, loader_of(task))
    train(model, task, num_steps)
    model.eval()
    model.end_task(task, loader_of(task))


def predict(model: Any, task: Task) -> torch.Tensor:
    """Logits of two images of a task, as the model predicts them."""
    model.eval()
    model.keep_logits = True
    samples = model.test_step(batch_of(task, 5))
    return torch.stack([s.seg_logits.data for s in samples])


class StopAt(Hook):
    """Ends the process inside a task, as Ctrl-C does."""

    def __init__(self, task: str, iteration: int) -> None:
        self.task = task
        self.iteration = iteration
        self._present = ''

    def before_stream_task(self, runner: Any, tasks: list, index: int) -> None:
        """A task begins to train."""
        self._present = tasks[index].name

    def before_train_iter(self, runner: Any, **kwargs: Any) -> None:
        """An optimizer step is about to happen."""
        if (self._present, runner.iter) == (self.task, self.iteration):
            raise KeyboardInterrupt
