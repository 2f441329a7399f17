# SPDX-License-Identifier: Apache-2.0
"""What one task leaves behind."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Tuple

from torch import Tensor

TensorDict = Dict[str, Tensor]


@dataclass
class Expert:
    """Adapter, norm statistics, decode head, prototypes and provenance.

    Args:
        name (str): Name of the expert, that of its task.
        classes (tuple[str]): Label space of the head.
        palette (tuple): One RGB triple per class.
        lora_config (dict): PEFT's ``LoraConfig`` as a dict.
        lora (dict[str, Tensor]): ``<module>.lora_A.weight`` and
            ``<module>.lora_B.weight``; module names are the backbone's own.
        norm (dict[str, Tensor]): Parameters and buffers of the backbone's
            norm layers where the expert owns them, else empty.
        head (dict[str, Tensor]): State dict of the decode head.
        head_config (dict): Config that rebuilds the head.
        prototypes (dict[str, Tensor]): The gate's statistics of the task.
        base_fingerprint (str): Of the base that the adapter was trained on.
        provenance (dict): JSON-able facts about the training.
    """
    name: str
    classes: Tuple[str, ...]
    palette: Tuple[Tuple[int, ...], ...]
    lora_config: Dict[str, Any]
    lora: TensorDict
    norm: TensorDict
    head: TensorDict
    head_config: Dict[str, Any]
    prototypes: TensorDict
    base_fingerprint: str
    provenance: Dict[str, Any] = field(default_factory=dict)
