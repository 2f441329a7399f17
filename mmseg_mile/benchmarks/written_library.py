# SPDX-License-Identifier: Apache-2.0
"""A library of drawn experts on disk."""
from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import List, NamedTuple, Tuple

import torch
from mmengine.config import Config, ConfigDict
from torch import Tensor

from mmseg_mile.engine.work_dir import provenance
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.structures import Task
from .benchmark_models import (build_expert_segmentor, load_model_config,
                               preprocess, quiet)
from .domain_images import domain_images
from .drawn_experts import ExpertDrawer
from .settings import Settings


class WrittenLibrary(NamedTuple):
    """A library of ``len(tasks)`` experts.

    Args:
        config (ConfigDict): Of the model that the experts belong to.
        folder (Path): Of the library.
        tasks (tuple[Task]): In order; the first ones know the domains of
            ``domain_images``.
        num_bytes (list[int]): Adapter, norm layers and head of each expert
            in memory.
    """
    config: ConfigDict
    folder: Path
    tasks: Tuple[Task, ...]
    num_bytes: List[int]

    def open(self, model: ExpertSegmentor, count: int) -> None:
        """Load the base and the first ``count`` experts into a model."""
        with quiet():
            model.load_tasks(self.tasks[:count], self.folder)


def write_library(path: str, folder: Path, count: int,
                  settings: Settings) -> WrittenLibrary:
    """Draw and save experts of a config.

    Args:
        path (str): File of the config.
        folder (Path): Where to.
        count (int): How many experts.
        settings (Settings): Seed and domains.
    """
    config = load_model_config(path, settings)
    model = build_expert_segmentor(config, settings)
    drawer = ExpertDrawer(model, config, domain_images(settings), settings)
    store = ExpertStore(folder)
    store.save_base(model.backbone.base_state(), model.backbone.fingerprint())
    origin = provenance(Config(dict(model=config)))
    tasks, sizes = [], []
    for expert in drawer.draw(count):
        store.save(dataclasses.replace(expert, provenance=origin))
        tasks.append(Task(expert.name, expert.classes, expert.palette, {}, {}))
        sizes.append(
            sum(v.numel() * v.element_size()
                for part, tensors in expert.parts.items()
                if part != 'prototypes' for v in tensors.values()))
    return WrittenLibrary(config, folder, tuple(tasks), sizes)


def benchmark_inputs(model: ExpertSegmentor, settings: Settings) -> Tensor:
    """The normalised batch of the settings, on the device."""
    with torch.no_grad():
        return preprocess(model, domain_images(settings).to(settings.device))
