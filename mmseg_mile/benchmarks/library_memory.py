# SPDX-License-Identifier: Apache-2.0
"""Memory of a library of experts, in a process of its own."""
from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Dict

import torch

from mmseg_mile.library.expert_store import ExpertStore
from .benchmark_models import build_expert_segmentor, load_model_config, quiet
from .domain_images import blank_samples
from .own_process import figures_of, print_figures, settled_bytes
from .settings import Settings
from .written_library import benchmark_inputs

_TOUCH_SIDE = 32


def library_memory(config: str, folder: Path, count: int,
                   settings: Settings) -> Dict[str, int]:
    """Resident bytes with the first ``count`` experts of a library.

    Args:
        config (str): File of the config.
        folder (Path): Of the library.
        count (int): How many of its experts.
        settings (Settings): Of the benchmark.

    Returns:
        dict[str, int]: ``opened`` after the library was opened and a batch
        predicted, ``used`` after every expert has predicted an image.
    """
    return figures_of(
        __name__,
        dict(
            config=config,
            folder=str(folder),
            count=count,
            settings=dataclasses.asdict(settings)))


@torch.no_grad()
def measure(config: str, folder: Path, count: int,
            settings: Settings) -> Dict[str, Any]:
    """In this process; see :func:`library_memory`."""
    with settings.computing(), quiet():
        model = build_expert_segmentor(
            load_model_config(config, settings), settings)
        store = ExpertStore(folder)
        model.backbone.load_base(*store.load_base())
        model.import_experts(store.open(store.names[:count]))
        inputs = benchmark_inputs(model, settings)
        model.predict(inputs, blank_samples(inputs))
        opened = settled_bytes()
        image = inputs[:1, :, :_TOUCH_SIDE, :_TOUCH_SIDE]
        for name in model.expert_names:
            with model.forced(name):
                model.predict(image, blank_samples(image))
        return dict(opened=opened, used=settled_bytes())


if __name__ == '__main__':
    given = json.loads(sys.argv[1])
    print_figures(
        measure(given['config'], Path(given['folder']), given['count'],
                Settings(**given['settings'])))
