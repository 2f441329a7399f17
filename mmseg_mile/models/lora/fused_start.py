# SPDX-License-Identifier: Apache-2.0
"""A new adapter that starts as a mixture of others."""
from __future__ import annotations

import math
from typing import Any, Mapping, Sequence, Tuple

from torch import Tensor, nn

from .adapter import Adapter
from .config import lora_scaling
from .joined_adapters import cut_adapter, join_adapters
from .merging import mix_norm


def fused_adapter(mixture: Sequence[Tuple[float, Adapter]],
                  base: Mapping[str, Tensor], config: Mapping[str,
                                                              Any]) -> Adapter:
    """The adapter of the config's rank that is nearest to a weighted sum.

    Where the sum has a lower rank than that, the rest starts as LoRA does
    (arXiv 2106.09685): B is zero and A is drawn, so that it can be trained.

    Args:
        mixture (Sequence[tuple[float, Adapter]]): Weights, of sum 1, and
            adapters of one backbone with the config's rank and scaling.
        base (Mapping[str, Tensor]): The backbone's tensors by name.
        config (Mapping): Of :func:`check_lora_config`.

    Returns:
        Adapter: Of a single one a copy; else its owned norm tensors are the
        weighted means.
    """
    if len(mixture) == 1:
        return mixture[0][1].clone()
    scaling = lora_scaling(config)
    lora = cut_adapter(join_adapters(mixture), config['r'])[0].lora
    for key, value in lora.items():
        if '.lora_B' in key:
            lora[key] = value / scaling
            continue
        unused = value.flatten(1).norm(dim=1) == 0
        drawn = value.new_empty(value.shape)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
        value[unused] = drawn[unused]
    return Adapter(lora, mix_norm(base, mixture), scaling)
