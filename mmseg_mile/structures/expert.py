# SPDX-License-Identifier: Apache-2.0
"""Expert: the learned parts of one task."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Dict, Mapping, Tuple

from torch import Tensor

TensorDict = Dict[str, Tensor]


@dataclass
class Expert:
    """Named parts, each a dict of tensors, and what they mean.

    A method says which parts its experts have. Those of MILE are:

    - 'adapter': ``<module>.lora_A.weight`` and ``<module>.lora_B.weight``;
      module names are the backbone's own,
    - 'norm': parameters and buffers of the backbone's norm layers, where the
      expert owns them,
    - 'head': state dict of the decode head,
    - 'prototypes': the gate's statistics of the task.

    Args:
        name (str): Name of the expert, that of its task.
        classes (tuple[str]): Label space of the head.
        palette (tuple): One RGB triple per class.
        parts (Mapping[str, dict[str, Tensor]]): The tensors by part.
        configs (dict[str, dict]): What rebuilds a part, by its name:
            PEFT's ``LoraConfig`` for 'adapter', the config of the head.
        base_fingerprint (str): Of the base that it was trained on.
        provenance (dict): JSON-able facts about the training.
    """
    name: str
    classes: Tuple[str, ...]
    palette: Tuple[Tuple[int, ...], ...]
    parts: Mapping[str, TensorDict]
    configs: Dict[str, Dict[str, Any]]
    base_fingerprint: str
    provenance: Dict[str, Any] = field(default_factory=dict)

    #: Whether each access to a part reads it anew, so that it is better read
    #: when first needed.
    is_stored: ClassVar[bool] = False


def check_classes(expert: Expert) -> None:
    """Raise unless the head has one output per class.

    Raises:
        ValueError: Naming the expert and both numbers.
    """
    outputs = expert.configs.get('head', {}).get('num_classes')
    if outputs != len(expert.classes):
        raise ValueError(
            f'expert {expert.name!r} names {len(expert.classes)} classes '
            f'but its head has {outputs}: its expert.json was changed; '
            'restore it from a copy.')
