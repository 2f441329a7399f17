# SPDX-License-Identifier: Apache-2.0
"""One forward for a batch whose images belong to different experts."""
from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import torch
from mmcv.cnn import is_norm
from torch import Tensor, nn

from .adapter import Adapter
from .low_rank_layers import (LowRankConv2d, LowRankLinear, LowRankTerm, Part,
                              PartedNorm)
from .merging import mix_norm
from .probe import probe_images

Mixture = Sequence[Tuple[float, Adapter]]


class LowRankPass:
    """Runs a backbone once over images that are sorted by expert.

    Every adapted layer computes the base's output for the whole batch and
    adds ``s B A x`` on each expert's rows; norm layers that experts own use
    each image's own tensors. The base's layers are back when it is done.

    Args:
        backbone (nn.Module): At rest, in eval mode.
        targets (Sequence[str]): Layers that adapters may hold.

    Raises:
        ValueError: If a target or a norm layer mixes the images of a batch,
            or does not keep each image's rows together; such a backbone
            needs merged weights.
    """

    def __init__(self, backbone: nn.Module, targets: Sequence[str]) -> None:
        parted = {
            name: module
            for name, module in backbone.named_modules()
            if name in targets or is_norm(module)
        }
        mixing = _layers_not_by_image(backbone, list(parted))
        if mixing:
            raise ValueError(
                "backbone.executor 'low_rank' cannot serve "
                f'{type(backbone).__name__}: {mixing[:5]} do not keep the '
                "rows of an image together; use executor='merged'")
        self._backbone = backbone
        self._layers: List[Any] = []
        self._places: List[Tuple[dict, str, nn.Module, Any]] = []
        for name, module in parted.items():
            kind: Any = PartedNorm
            if name in targets:
                kind = (
                    LowRankLinear
                    if isinstance(module, nn.Linear) else LowRankConv2d)
            self._replace(name, module, kind(name, module))

    def __call__(self, x: Tensor, mixtures: Sequence[Tuple[Mixture, int]],
                 base: Any) -> Any:
        """Forward a sorted batch.

        Args:
            x (Tensor): (B, C, H, W), images of one mixture side by side.
            mixtures (Sequence[tuple]): Mixtures in the order of the images,
                and the number of images of each.
            base (Mapping[str, Tensor]): The backbone's tensors.

        Returns:
            Any: What the backbone returns.
        """
        parts: List[Part] = []
        for mixture, count in mixtures:
            start = parts[-1].stop if parts else 0
            parts.append(
                Part(start, start + count, low_rank_terms(mixture),
                     _by_layer(mix_norm(base, mixture))))
        for layer in self._layers:
            layer.parts = parts
        with self._in_place():
            return self._backbone(x)

    def _replace(self, name: str, module: nn.Module, layer: nn.Module) -> None:
        parent, _, child = name.rpartition('.')
        entries = self._backbone.get_submodule(parent)._modules
        self._layers.append(layer)
        self._places.append((entries, child, module, layer))

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        try:
            for entries, child, _, layer in self._places:
                entries[child] = layer
            yield
        finally:
            for entries, child, module, layer in self._places:
                entries[child] = module
                # or the last batch's experts would never leave memory
                layer.parts = []


def low_rank_terms(mixture: Mixture) -> Dict[str, LowRankTerm]:
    """``sum_i w_i s_i B_i A_i`` as one product per layer.

    The factors of several experts are stacked along the rank, which is exact
    (PEFT's 'cat'); a single expert's are taken as they are.
    """
    factors: Dict[str, List[LowRankTerm]] = {}
    for weight, adapter in mixture:
        for target in adapter.targets():
            factors.setdefault(target, []).append(
                LowRankTerm(adapter.lora[f'{target}.lora_A.weight'],
                            adapter.lora[f'{target}.lora_B.weight'],
                            weight * adapter.scaling))
    return {
        target:
        terms[0] if len(terms) == 1 else LowRankTerm(
            torch.cat([t.down * t.scale for t in terms]),
            torch.cat([t.up for t in terms], dim=1), 1.0)
        for target, terms in factors.items()
    }


def _by_layer(tensors: Dict[str, Tensor]) -> Dict[str, Dict[str, Tensor]]:
    layers: Dict[str, Dict[str, Tensor]] = {}
    for key, value in tensors.items():
        layer, _, leaf = key.rpartition('.')
        layers.setdefault(layer, {})[leaf] = value
    return layers


@torch.no_grad()
def _layers_not_by_image(backbone: nn.Module,
                         layers: Sequence[str]) -> List[str]:
    """Layers whose rows for two images are not those of each alone."""
    probe = probe_images(backbone, 2)
    seen: List[Dict[str, Tensor]] = []
    for images in (probe, probe[:1], probe[1:]):
        inputs: Dict[str, Tensor] = {}
        handles = [
            backbone.get_submodule(name).register_forward_pre_hook(
                lambda _, args, name=name, inputs=inputs: inputs.update(
                    {name: args[0]})) for name in layers
        ]
        try:
            backbone(images)
        finally:
            for handle in handles:
                handle.remove()
        seen.append(inputs)
    both, first, second = seen
    return [
        name for name in layers if name in both
        and not _near(both[name], torch.cat([first[name], second[name]]))
    ]


def _near(got: Tensor, wanted: Tensor) -> bool:
    return got.shape == wanted.shape and torch.allclose(
        got, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
