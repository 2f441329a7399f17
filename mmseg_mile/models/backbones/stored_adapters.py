# SPDX-License-Identifier: Apache-2.0
"""Adapters of experts that were made elsewhere, or earlier."""
from __future__ import annotations

from functools import partial
from typing import Callable, Mapping, Optional, Sequence, Union

from torch import Tensor

from mmseg_mile.experts import StoredExpert
from mmseg_mile.structures import Expert, check_task_name
from ..lora import Adapter, AdapterLibrary, lora_scaling

AnyExpert = Union[Expert, StoredExpert]


def check_base(experts: Sequence[AnyExpert], fingerprint: str) -> None:
    """Raise unless all were trained on the base of this fingerprint.

    Raises:
        ValueError: Naming the expert and both fingerprints.
    """
    for expert in experts:
        if expert.base_fingerprint != fingerprint:
            raise ValueError(
                f'expert {expert.name!r} was trained on the base '
                f'{expert.base_fingerprint[:16]}, this backbone is '
                f'{fingerprint[:16]}: load that base, or train the expert '
                'again.')


def adapter_of(expert: AnyExpert,
               base: Mapping[str, Tensor],
               adapts: Optional[bool] = None) -> Adapter:
    """The adapter of an expert, read from its folder if it is stored.

    Args:
        expert (Expert | StoredExpert): The expert.
        base (Mapping[str, Tensor]): The backbone's tensors by name.
        adapts (bool, optional): Whether the backbone's experts adapt layers.
            Defaults to None: not known.

    Raises:
        ValueError: If a file was changed, or the tensors do not fit.
    """
    adapter = Adapter(expert.lora, expert.norm,
                      lora_scaling(expert.lora_config))
    adapter.check_fit(expert.name, base, adapts)
    return adapter.clone(next(iter(base.values())).device)


def take_over(experts: Sequence[AnyExpert], library: AdapterLibrary,
              read: Callable[[AnyExpert], Adapter]) -> None:
    """Add experts' adapters to a library; stored ones when first used.

    Args:
        experts (Sequence[Expert | StoredExpert]): The experts.
        library (AdapterLibrary): Gets them.
        read (Callable): Expert -> adapter that fits the backbone.
    """
    for expert in experts:
        name = check_task_name(expert.name)
        if isinstance(expert, StoredExpert):
            library.defer(name, partial(read, expert))
        else:
            library[name] = read(expert)
