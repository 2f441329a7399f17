# SPDX-License-Identifier: Apache-2.0
"""The tensors of one expert inside the backbone."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence

import torch
from torch import Tensor

from .config import lora_scaling

# Shape legend: O outputs, I inputs, R rank, K kernel side


@dataclass
class Adapter:
    """Tensors of one expert inside the backbone.

    Args:
        lora (dict[str, Tensor]): ``<module>.lora_A.weight`` (R, I[, K, K])
            and ``<module>.lora_B.weight`` (O, R[, 1, 1]).
        norm (dict[str, Tensor]): Owned norm parameters and buffers, or {}.
        scaling (float): ``lora_alpha / r``.
    """
    lora: Dict[str, Tensor]
    norm: Dict[str, Tensor]
    scaling: float

    def targets(self) -> List[str]:
        """Names of the adapted layers."""
        suffix = '.lora_A.weight'
        return [k[:-len(suffix)] for k in self.lora if k.endswith(suffix)]

    def num_bytes(self) -> int:
        """Memory that the tensors take."""
        return sum(
            v.nbytes for part in (self.lora, self.norm) for v in part.values())

    def clone(self, device: Optional[torch.device] = None) -> 'Adapter':
        """A copy that shares no tensor, on ``device`` if one is given."""
        lora, norm = ({
            k: v.to(device or v.device, copy=True)
            for k, v in tensors.items()
        } for tensors in (self.lora, self.norm))
        return Adapter(lora, norm, self.scaling)

    def check_settings(self, name: str, targets: Sequence[str],
                       config: Mapping[str, Any], train_norm: bool) -> None:
        """Raise unless training can go on from here with these settings.

        Raises:
            ValueError: If layers, rank or scaling differ, or the adapter
                owns norm layers that would not be trained.
        """
        ranks = {v.shape[0] for k, v in self.lora.items() if 'lora_A' in k}
        scaling = lora_scaling(config)
        if (set(self.targets()) != set(targets) or ranks - {config['r']}
                or self.scaling != scaling or bool(self.norm) > train_norm):
            raise ValueError(
                f'expert {name!r} has {len(self.targets())} layers of rank '
                f'{sorted(ranks)}, scaling {self.scaling:g} and '
                f'{len(self.norm)} norm tensors; the config asks for '
                f'{len(targets)}, {config["r"]}, {scaling:g} and train_norm='
                f'{train_norm}: train with the settings it was made with, '
                "or start from 'base'.")

    def check_fit(self,
                  name: str,
                  base: Mapping[str, Tensor],
                  adapts: Optional[bool] = True) -> None:
        """Raise unless the tensors fit the layers of ``base``.

        Args:
            name (str): Of the expert, for the message.
            base (Mapping[str, Tensor]): The backbone's tensors by name.
            adapts (bool, optional): Whether it must adapt a layer, or must
                not; None allows both. Defaults to True.

        Raises:
            ValueError: If a layer does not exist or has another shape, or
                the adapter is empty or should be.
        """
        wrong = [k for k, v in self.norm.items() if _shape(base, k) != v.shape]
        pairs = [f'{t}.lora_{x}.weight' for t in self.targets() for x in 'AB']
        wrong += set(self.lora).symmetric_difference(pairs)
        for target in self.targets() if not wrong else ():
            down, up = (self.lora[f'{target}.lora_{x}.weight'] for x in 'AB')
            if (down.shape[0] != up.shape[1]
                    or _shape(base, f'{target}.weight')
                    != (up.shape[0], *down.shape[1:])):
                wrong.append(target)
        if wrong or adapts not in (None, bool(self.lora)):
            found = 'no' if adapts else 'an'
            raise ValueError(
                f'expert {name!r} does not fit the layers of this backbone: '
                f'{sorted(wrong)[:5] or f"it has {found} adapter"}. Load it '
                'into the backbone that it was trained in, or train it again.')


def _shape(base: Mapping[str, Tensor], key: str) -> Any:
    return getattr(base.get(key), 'shape', None)
