# SPDX-License-Identifier: Apache-2.0
"""One forward for a batch whose images belong to different experts."""
from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import torch
from mmcv.cnn import is_norm
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from .adapter import Adapter, mix_norm
from .targets import probe_images

# Shape legend: B images, n rows per image, O outputs, I inputs, R rank


class LowRankTerm(NamedTuple):
    """``scale * up(down(x))`` of one layer.

    Args:
        down (Tensor): A, (R, I) or (R, I, K, K).
        up (Tensor): B, (O, R) or (O, R, 1, 1).
        scale (float): Factor of the product.
    """
    down: Tensor
    up: Tensor
    scale: float


class Part(NamedTuple):
    """Consecutive images of a batch that share their experts.

    Args:
        start (int): First image.
        stop (int): One after the last image.
        terms (dict[str, LowRankTerm]): By layer.
        norm (dict[str, dict[str, Tensor]]): Tensors that replace the base's,
            by norm layer and their names in it.
    """
    start: int
    stop: int
    terms: Dict[str, LowRankTerm]
    norm: Dict[str, Dict[str, Tensor]]


class _PartedLayer(nn.Module):
    """A layer of the base that treats each part of the batch in its way."""

    def __init__(self, name: str, base: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.base = base
        self.parts: List[Part] = []

    def rows(self, x: Tensor) -> Iterator[Tuple[slice, Part]]:
        """The rows of each part; windows of an image lie side by side."""
        per_image = len(x) // self.parts[-1].stop
        for part in self.parts:
            yield slice(part.start * per_image, part.stop * per_image), part


class LowRankLinear(_PartedLayer):
    """``W x + b`` of the base, plus ``s B A x`` of each part's experts."""

    def forward(self, x: Tensor) -> Tensor:
        """(B n, ..., I) -> (B n, ..., O)."""
        out = self.base(x).contiguous()
        for rows, part in self.rows(x):
            term = part.terms.get(self.name)
            if term is not None:
                low = x[rows].flatten(0, -2) @ term.down.T.to(x.dtype)
                flat = out[rows].view(-1, out.shape[-1])
                flat.addmm_(
                    low.to(flat.dtype),
                    term.up.T.to(flat.dtype),
                    alpha=term.scale)
        return out


class LowRankConv2d(_PartedLayer):
    """``W * x + b`` of the base, plus ``s B (A * x)`` of the experts."""

    base: nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """(B n, I, H, W) -> (B n, O, H', W')."""
        out = self.base(x)
        for rows, part in self.rows(x):
            term = part.terms.get(self.name)
            if term is not None:
                low = self._convolved(x[rows], term.down)
                out[rows].add_(
                    torch.nn.functional.conv2d(low, term.up), alpha=term.scale)
        return out

    def _convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        """As the base's own forward, which may pad, with another weight."""
        own: Any = self.base._parameters
        held = dict(own)
        own.update(weight=weight, bias=None)
        try:
            return self.base(x)
        finally:
            own.update(held)


class PartedNorm(_PartedLayer):
    """A norm layer in eval mode, with each part's own tensors."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B n, C, ...) rows with their experts' tensors."""
        if not any(self.name in part.norm for part in self.parts):
            return self.base(x)
        if isinstance(self.base, _BatchNorm) and self.base.track_running_stats:
            return self._affine(x)
        return torch.cat([
            functional_call(self.base, part.norm.get(self.name, {}),
                            (x[rows], )) for rows, part in self.rows(x)
        ])

    def _affine(self, x: Tensor) -> Tensor:
        """Batch norm in eval mode is one factor and shift per channel."""
        scales, shifts = [], []
        for rows, part in self.rows(x):
            own = part.norm.get(self.name, {})
            weight, bias, mean, variance = (
                own.get(leaf, getattr(self.base, leaf))
                for leaf in ('weight', 'bias', 'running_mean', 'running_var'))
            scale = torch.rsqrt(variance + self.base.eps)
            scale = scale if weight is None else scale * weight
            shift = -mean * scale
            shift = shift if bias is None else shift + bias
            scales.append(scale.expand(rows.stop - rows.start, -1))
            shifts.append(shift.expand(rows.stop - rows.start, -1))
        shape = (len(x), x.shape[1], *[1] * (x.dim() - 2))
        out = torch.addcmul(
            torch.cat(shifts).view(shape), x,
            torch.cat(scales).view(shape))
        return out.to(x.dtype)


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
