# SPDX-License-Identifier: Apache-2.0
"""One small network for all tasks, and two tasks that share a class."""
from __future__ import annotations

import copy
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from tiny_stream import TINY_MODEL

from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg_mile.structures import Task

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


def model_config(kind: str, **changes: Any) -> ConfigDict:
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
    model = MODELS.build(model_config(kind, **changes))
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
        labels = torch.zeros(1, 32, 32, dtype=torch.uint8)
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


def learn(model: Any, task: Task, num_steps: int = 3) -> None:
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
