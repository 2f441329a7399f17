# SPDX-License-Identifier: Apache-2.0
"""Where an expert that comes without a head gets one."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

from mmengine.runner.checkpoint import CheckpointLoader

from mmseg_mile.experts.library_edits import AnyPath, open_library
from mmseg_mile.models.segmentors.expert_heads import ExpertHead
from mmseg_mile.models.segmentors.task_head import head_config

_PREFIX = 'decode_head.'


def head_of_expert(library: AnyPath, name: str) -> ExpertHead:
    """The head, classes and colours of an expert of a library.

    Raises:
        ValueError: If there is no such expert, or its head was changed.
    """
    expert, = open_library(library).open([name])
    return ExpertHead(expert.head, expert.head_config, expert.classes,
                      expert.palette)


def head_of_checkpoint(path: AnyPath, template: Dict[str, Any]) -> ExpertHead:
    """The decode head of a checkpoint that mmseg's own training wrote.

    Args:
        path (str | Path): The checkpoint.
        template (dict): The config's ``decode_head``; the checkpoint says
            how many classes it has.

    Raises:
        ValueError: If it has no decode head, or does not name its classes.
    """
    # a name without scheme would be looked for in the model zoos
    path = Path(path)
    if not path.is_file():
        raise ValueError(f'--head-checkpoint {path} does not exist')
    content = CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
    state = {
        key.removeprefix(_PREFIX): value
        for key, value in content.get('state_dict', content).items()
        if key.startswith(_PREFIX)
    }
    if not state:
        raise ValueError(f'{path} has no key that begins with {_PREFIX!r}: '
                         'give a checkpoint of a whole mmseg segmentor')
    meta = content.get('meta', {})
    labels = {
        key.lower(): value
        for key, value in {
            **meta,
            **(meta.get('dataset_meta') or {})
        }.items()
    }
    classes, palette = labels.get('classes'), labels.get('palette')
    if not classes or not palette:
        raise ValueError(
            f'{path} does not say in meta.dataset_meta what its classes and '
            'their palette are: write them there with torch.save, or take '
            'the head of an expert with --head-from')
    return ExpertHead(state, head_config(template, len(classes)),
                      tuple(classes), tuple(tuple(c) for c in palette))
