# SPDX-License-Identifier: Apache-2.0
"""A library that says how images are loaded, and images to predict."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from tiny_library import CLASSES, PALETTE, disturb, model_config

from mmseg.registry import DATASETS, MODELS
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.structures import Task

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
    text = f'model = {model!r}\ntrain_cfg = {cfg.train_cfg.to_dict()!r}\n'
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
        learner.save_task(task, root, dict(config=text))
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
