# SPDX-License-Identifier: Apache-2.0
"""Activation functions whose output an adapted layer need not keep.

GELU keeps its input for backward, and the adapted layer behind it keeps the
same map once more, as its own input. Half of that is enough: the layer can
keep what GELU keeps, and compute GELU again when it needs its input.

Which map a layer was given is not read off the structure of the network: the
tensor itself says whose output it is. So a layer that is given anything else
(a sum, a copy, what a dropout left over) keeps its input as ever, and nobody
else who uses the map notices.
"""
from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import (Any, Callable, ContextManager, Dict, Optional, Sequence,
                    Tuple)

import mmcv.cnn
import torch
from peft.tuners.lora import LoraLayer
from torch import Size, Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn import grad

from .adapter import lora_delta

_MARK = 'mile_recomputation'


@dataclass(frozen=True)
class Recomputation:
    """How to compute a map again: ``activation(source)``.

    Args:
        activation (Callable): Works on each element by itself.
        source (Tensor): Its input, of the shape of the map.
        version (int): Of the map; another one tells that it was written to.
    """
    activation: Callable[[Tensor], Tensor]
    source: Tensor
    version: int

    def rearranged(
            self, layout: Callable[[Tensor],
                                   Tensor]) -> Optional['Recomputation']:
        """The same for the map in another layout.

        Args:
            layout (Callable): Moves elements, and computes nothing.

        Returns:
            Recomputation | None: None if ``layout`` copies, so that keeping
            the source costs what keeping the map does.
        """
        source = layout(self.source)
        if not _share_memory(source, self.source):
            return None
        return replace(self, source=source)


class RecomputedActivation(nn.Module):
    """An activation function whose output tells how it was made.

    Args:
        activation (nn.Module): See :func:`can_recompute`.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.train(activation.training)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to a map of any shape."""
        y = self.activation(x)
        # without a gradient the activation keeps nothing that could be shared
        if y.requires_grad:
            setattr(y, _MARK,
                    Recomputation(self.activation, x.detach(), y._version))
        return y


def can_recompute(module: nn.Module) -> bool:
    """Whether a module keeps its input, and could spare others its output.

    ReLU, for one, keeps its output.
    """
    return type(module).forward is nn.GELU.forward


def recomputation_of(x: Tensor) -> Optional[Recomputation]:
    """How to compute ``x`` again; None if that is not known.

    Args:
        x (Tensor): If it is the very tensor that a
            :class:`RecomputedActivation` gave, and was not changed since.
    """
    found: Any = getattr(x, _MARK, None)
    if found is None or not torch.is_grad_enabled():
        return None
    return found if x._version == found.version else None


def _share_memory(a: Tensor, b: Tensor) -> bool:
    return (a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr())


def convolution_input_gradient(grad_output: Tensor,
                               weight: Tensor,
                               shape: Size,
                               stride: Sequence[int],
                               padding: Sequence[int],
                               dilation: Sequence[int],
                               groups: int = 1) -> Tensor:
    """Gradient of a convolution by its input: the transposed convolution.

    ``torch.nn.grad.conv2d_input`` computes the same, but fills a tensor of
    the input's size first: 5 to 20x slower for a depthwise convolution of
    channels-last activations.

    Args:
        grad_output (Tensor): (B, O, H', W').
        weight (Tensor): (O, I / groups, K, K).
        shape (Size): Of the input, (B, I, H, W).
        stride (Sequence[int]): Of the convolution, as the rest.
        padding (Sequence[int]): Zeros on each side.
        dilation (Sequence[int]): Of the kernel.
        groups (int): Defaults to 1.

    Returns:
        Tensor: (B, I, H, W).
    """
    # rows and columns at the end that a stride left out
    rest = [
        shape[2 + i] - (grad_output.shape[2 + i] - 1) * stride[i] +
        2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1
        for i in (0, 1)
    ]
    return F.conv_transpose2d(grad_output, weight, None, tuple(stride),
                              tuple(padding), rest, groups, tuple(dilation))


class FrozenConv2d(nn.Conv2d):
    """A convolution whose weight and bias are constants.

    Args:
        conv (nn.Conv2d): Its parameters are shared.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        # fields of a built layer are pairs, which torch's hints do not know
        source: Any = conv
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            source.kernel_size,
            source.stride,
            source.padding,
            source.dilation,
            conv.groups,
            bias=conv.bias is not None,
            device='meta')
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, I, H, W)."""
        kind = x.device.type
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = bias if bias is None else bias.to(dtype)
        return _FrozenConvolution.apply(x, weight, bias, self.stride,
                                        self.padding, self.dilation,
                                        self.groups)


def can_freeze(module: nn.Module) -> bool:
    """Whether :class:`FrozenConv2d` computes what ``module`` does."""
    return (type(module).forward
            in (nn.Conv2d.forward, mmcv.cnn.Conv2d.forward)
            and module.padding_mode == 'zeros'
            and not isinstance(module.padding, str))


class _FrozenConvolution(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Optional[Tensor],
                *geometry: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.geometry = x.shape, geometry
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any,
                 grad_output: Tensor) -> Tuple[Optional[Tensor], ...]:
        weight, = ctx.saved_tensors
        by_x = convolution_input_gradient(grad_output, weight, ctx.shape,
                                          *ctx.geometry)
        return (by_x, *[None] * 6)


# Shape legend: N rows, B images, L positions, I inputs, O outputs, R rank


class WeightProducts(ABC):
    """Products of a weight with activations and with gradients."""

    @abstractmethod
    def apply(self, weight: Tensor, x: Tensor,
              bias: Optional[Tensor]) -> Tensor:
        """``W x + b``."""

    @abstractmethod
    def input_gradient(self, weight: Tensor, grad_output: Tensor,
                       shape: Size) -> Tensor:
        """``W^T g`` in the ``shape`` of the input."""

    @abstractmethod
    def add_input_gradient_(self, total: Tensor, weight: Tensor,
                            grad_output: Tensor) -> Tensor:
        """Add ``W^T g`` to ``total`` in place."""

    @abstractmethod
    def weight_gradient(self, grad_output: Tensor, x: Tensor,
                        shape: Size) -> Tensor:
        """``g x^T`` in the ``shape`` of the weight."""

    @abstractmethod
    def add_up_(self, y: Tensor, up: Tensor, u: Tensor,
                scale: float) -> Tensor:
        """Add ``scale * B u`` to ``y`` in place."""

    @abstractmethod
    def up_input_gradient(self, up: Tensor, grad_output: Tensor) -> Tensor:
        """``B^T g``: the gradient of the low-rank features."""

    @abstractmethod
    def up_gradient(self, grad_output: Tensor, u: Tensor) -> Tensor:
        """``g u^T`` (O, R)."""


class RowProducts(WeightProducts):
    """Activations (N, I), weight (O, I): linear layers, channels-last maps."""

    def apply(self, weight: Tensor, x: Tensor,
              bias: Optional[Tensor]) -> Tensor:
        """``x W^T + b`` (N, O)."""
        return F.linear(x, weight, bias)

    def input_gradient(self, weight: Tensor, grad_output: Tensor,
                       shape: Size) -> Tensor:
        """``g W`` (N, I)."""
        return grad_output @ weight

    def add_input_gradient_(self, total: Tensor, weight: Tensor,
                            grad_output: Tensor) -> Tensor:
        """Add ``g W`` to (N, I)."""
        return total.addmm_(grad_output, weight)

    def weight_gradient(self, grad_output: Tensor, x: Tensor,
                        shape: Size) -> Tensor:
        """``g^T x`` (O, I)."""
        return grad_output.t() @ x

    def add_up_(self, y: Tensor, up: Tensor, u: Tensor,
                scale: float) -> Tensor:
        """Add ``scale * u B^T`` to (N, O)."""
        return y.addmm_(u, up.t(), alpha=scale)

    def up_input_gradient(self, up: Tensor, grad_output: Tensor) -> Tensor:
        """``g B`` (N, R)."""
        return grad_output @ up

    def up_gradient(self, grad_output: Tensor, u: Tensor) -> Tensor:
        """``g^T u`` (O, R)."""
        # CPU kernels are up to 2x faster with the short side first
        return (u.t() @ grad_output).t()


class ColumnProducts(WeightProducts):
    """Activations (B, I, L), weight (O, I): pointwise convolutions."""

    def apply(self, weight: Tensor, x: Tensor,
              bias: Optional[Tensor]) -> Tensor:
        """``W x + b`` (B, O, L)."""
        if bias is None:
            return _over_batch(weight, x) @ x
        return torch.baddbmm(bias[:, None], _over_batch(weight, x), x)

    def input_gradient(self, weight: Tensor, grad_output: Tensor,
                       shape: Size) -> Tensor:
        """``W^T g`` (B, I, L)."""
        return _over_batch(weight.t(), grad_output) @ grad_output

    def add_input_gradient_(self, total: Tensor, weight: Tensor,
                            grad_output: Tensor) -> Tensor:
        """Add ``W^T g`` to (B, I, L)."""
        return total.baddbmm_(
            _over_batch(weight.t(), grad_output), grad_output)

    def weight_gradient(self, grad_output: Tensor, x: Tensor,
                        shape: Size) -> Tensor:
        """``sum_b g_b x_b^T`` (O, I)."""
        return (grad_output @ x.mT).sum(0)

    def add_up_(self, y: Tensor, up: Tensor, u: Tensor,
                scale: float) -> Tensor:
        """Add ``scale * B u`` to (B, O, L)."""
        return y.baddbmm_(_over_batch(up, u), u, alpha=scale)

    def up_input_gradient(self, up: Tensor, grad_output: Tensor) -> Tensor:
        """``B^T g`` (B, R, L)."""
        return self.input_gradient(up, grad_output, grad_output.shape)

    def up_gradient(self, grad_output: Tensor, u: Tensor) -> Tensor:
        """``sum_b g_b u_b^T`` (O, R)."""
        # CPU kernels are up to 2x faster with the short side first
        return (u @ grad_output.mT).sum(0).t()


@dataclass(frozen=True)
class ConvolutionProducts(WeightProducts):
    """Activations (B, I, H, W), weight (O, I, K, K), zero padding.

    Args:
        stride (tuple[int, int]): Of the convolution.
        padding (tuple[int, int]): Zeros on each side.
        dilation (tuple[int, int]): Of the kernel.
    """
    stride: Tuple[int, int]
    padding: Tuple[int, int]
    dilation: Tuple[int, int]

    def apply(self, weight: Tensor, x: Tensor,
              bias: Optional[Tensor]) -> Tensor:
        """Convolve: (B, O, H', W')."""
        return F.conv2d(x, weight, bias, self.stride, self.padding,
                        self.dilation)

    def input_gradient(self, weight: Tensor, grad_output: Tensor,
                       shape: Size) -> Tensor:
        """The transposed convolution (B, I, H, W)."""
        return convolution_input_gradient(grad_output, weight, shape,
                                          self.stride, self.padding,
                                          self.dilation)

    def add_input_gradient_(self, total: Tensor, weight: Tensor,
                            grad_output: Tensor) -> Tensor:
        """Add the transposed convolution to (B, I, H, W)."""
        return total.add_(
            self.input_gradient(weight, grad_output, total.shape))

    def weight_gradient(self, grad_output: Tensor, x: Tensor,
                        shape: Size) -> Tensor:
        """Correlate gradient and input: (O, I, K, K)."""
        return grad.conv2d_weight(x, shape, grad_output, self.stride,
                                  self.padding, self.dilation)

    def add_up_(self, y: Tensor, up: Tensor, u: Tensor,
                scale: float) -> Tensor:
        """Add ``scale * B u`` to (B, O, H', W')."""
        # view, not flatten: a copy would take the sum to the wrong place
        _COLUMNS.add_up_(
            y.view(*y.shape[:2], -1), up.flatten(1), u.flatten(2), scale)
        return y

    def up_input_gradient(self, up: Tensor, grad_output: Tensor) -> Tensor:
        """``B^T g`` (B, R, H', W')."""
        columns = _COLUMNS.up_input_gradient(
            up.flatten(1), grad_output.flatten(2))
        return columns.unflatten(2, grad_output.shape[2:])

    def up_gradient(self, grad_output: Tensor, u: Tensor) -> Tensor:
        """``g u^T`` (O, R)."""
        return _COLUMNS.up_gradient(grad_output.flatten(2), u.flatten(2))


_COLUMNS = ColumnProducts()


def _over_batch(weight: Tensor, x: Tensor) -> Tensor:
    """The weight once per image, without a copy."""
    return weight.expand(x.shape[0], -1, -1)


Gradients = Tuple[Optional[Tensor], ...]

# Shape legend: O outputs, I inputs (with the kernel's positions), R rank


@dataclass(frozen=True)
class LowRankPlan:
    """How one call is computed; every choice gives the same function.

    Args:
        products (WeightProducts): For the layout of the activations.
        scaling (float): ``s``.
        merged (bool): Multiply with ``W + s B A``, which is made twice, in
            forward and in backward, but never kept. Otherwise the term
            ``s B A x`` is added in place.
        dense_gradient (bool): Take the gradients by A and B from the one by
            the dense weight. Otherwise from products of rank R.
    """
    products: WeightProducts
    scaling: float
    merged: bool
    dense_gradient: bool

    @classmethod
    def choose(cls, products: WeightProducts, scaling: float, weight: Tensor,
               rank: int, positions: int) -> 'LowRankPlan':
        """The cheaper way for these shapes.

        Merging costs ``4 O I R`` operations for forward and backward, and
        the low-rank term ``2 P R (2 I + O)`` at P positions; per operation
        a merge, bound by memory, takes about twice as long. Gradients of
        rank R read each activation twice instead of once, and pay off when
        they need less than half of the operations. Both factors were
        measured in float32 on two CPU cores at rank 8, over the layers of
        MiT-B0 and MiT-B2 and 3x3 convolutions of 64 to 512 channels; near
        the borders both ways take about the same time.

        Args:
            products (WeightProducts): For the layout of the activations.
            scaling (float): ``s``.
            weight (Tensor): The frozen weight (O, I) or (O, I, K, K).
            rank (int): Of the adapter.
            positions (int): Output positions of the whole batch.
        """
        outputs = weight.shape[0]
        inputs = weight.numel() // outputs
        return cls(
            products,
            scaling,
            merged=4 * weight.numel() <= positions * (2 * inputs + outputs),
            dense_gradient=weight.numel() < 4 * rank * (inputs + outputs))


class LowRankFunction(torch.autograd.Function):
    """Autograd's view of an adapted layer: constants ``W``, ``b``."""

    @staticmethod
    def forward(ctx: Any,
                x: Tensor,
                weight: Tensor,
                bias: Optional[Tensor],
                down: Tensor,
                up: Tensor,
                plan: LowRankPlan,
                recomputation: Optional[Recomputation] = None) -> Tensor:
        """Compute in the type of ``x``, which autocast may have lowered.

        Args:
            ctx (Any): Of autograd.
            x (Tensor): Activations in the layout of ``plan.products``.
            weight (Tensor): W, (O, I) or (O, I, K, K).
            bias (Tensor, optional): b, (O, ).
            down (Tensor): A, (R, I) or (R, I, K, K).
            up (Tensor): B, (O, R).
            plan (LowRankPlan): How to compute.
            recomputation (Recomputation, optional): Of ``x``, which is then
                not kept for backward. Defaults to None.
        """
        ctx.plan = plan
        products = plan.products
        bias = bias if bias is None else bias.to(x.dtype)
        u = None
        with _without_autocast(x):
            if plan.merged:
                merged = _merge(weight, down, up, plan.scaling, x.dtype)
                y = products.apply(merged, x, bias)
            else:
                y = products.apply(weight.to(x.dtype), x, bias)
                u = products.apply(down.to(x.dtype), x, None)
                products.add_up_(y, up.to(x.dtype), u, plan.scaling)
        ctx.activation = None
        if recomputation is not None:
            ctx.activation, x = recomputation.activation, recomputation.source
        ctx.save_for_backward(x, weight, down, up, u)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Gradients:
        """Gradients by x, A and B."""
        x, weight, down, up, u = ctx.saved_tensors
        plan, dtype = ctx.plan, grad_output.dtype
        by_x: Optional[Tensor] = None
        du: Any = None  # not needed where all is dense
        with _without_autocast(grad_output):
            if not (plan.merged and plan.dense_gradient):
                du = plan.products.up_input_gradient(
                    up.to(dtype) * plan.scaling, grad_output)
            if ctx.needs_input_grad[0]:
                by_x = _input_gradient(plan, grad_output, du, x.shape, weight,
                                       down, up)
            if ctx.activation is not None:
                x = ctx.activation(x).to(dtype)
            if plan.dense_gradient:
                by_down, by_up = _dense_gradients(plan, grad_output, x, weight,
                                                  down, up)
            else:
                by_down, by_up = _rank_gradients(plan, grad_output, du, x, u,
                                                 down)
        return by_x, None, None, by_down, by_up, None, None


def _input_gradient(plan: LowRankPlan, grad_output: Tensor, du: Tensor,
                    shape: Size, weight: Tensor, down: Tensor,
                    up: Tensor) -> Tensor:
    """``(W + s B A)^T g``."""
    dtype = grad_output.dtype
    if plan.merged:
        merged = _merge(weight, down, up, plan.scaling, dtype)
        return plan.products.input_gradient(merged, grad_output, shape)
    total = plan.products.input_gradient(weight.to(dtype), grad_output, shape)
    return plan.products.add_input_gradient_(total, down.to(dtype), du)


def _dense_gradients(plan: LowRankPlan, grad_output: Tensor, x: Tensor,
                     weight: Tensor, down: Tensor,
                     up: Tensor) -> Tuple[Tensor, Tensor]:
    """``s B^T dW`` and ``s dW A^T`` of ``dW = g x^T``."""
    dense = plan.products.weight_gradient(grad_output, x, weight.shape)
    dense = dense.flatten(1).to(down.dtype) * plan.scaling
    return (up.t() @ dense).view_as(down), dense @ down.flatten(1).t()


def _rank_gradients(plan: LowRankPlan, grad_output: Tensor, du: Tensor,
                    x: Tensor, u: Optional[Tensor],
                    down: Tensor) -> Tuple[Tensor, Tensor]:
    """``du x^T`` and ``s g u^T``, with ``u = A x`` and ``du = s B^T g``."""
    products = plan.products
    if u is None:
        u = products.apply(down.to(x.dtype), x, None)
    by_up = products.up_gradient(grad_output, u) * plan.scaling
    by_down = products.weight_gradient(du, x, down.shape)
    return by_down.to(down.dtype), by_up.to(down.dtype)


def _merge(weight: Tensor, down: Tensor, up: Tensor, scaling: float,
           dtype: torch.dtype) -> Tensor:
    """``W + s B A``, summed in the type of the parameters."""
    merged = torch.addmm(weight.flatten(1), up, down.flatten(1), alpha=scaling)
    return merged.view_as(weight).to(dtype)


def _without_autocast(like: Tensor) -> ContextManager:
    """Autocast would lower a merge, and raise what is low already."""
    kind = like.device.type
    if torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


_ROWS, _COLUMNS_TRAINABLE_LAYERS = RowProducts(), ColumnProducts()


class TrainableLayer(nn.Module):
    """``(W + s B A) x + b``; only A and B (``lora_A``, ``lora_B``) train.

    Args:
        layer (LoraLayer): PEFT's layer, whose adapter is taken over as PEFT
            initialised it, and whose base layer stays as it is.
        adapter (str): Name of the adapter in it.
    """

    def __init__(self, layer: LoraLayer, adapter: str) -> None:
        super().__init__()
        self.base_layer: Any = layer.get_base_layer()
        self.scaling: float = layer.scaling[adapter]
        self.lora_A: nn.Parameter = layer.lora_A[adapter].weight
        self.lora_B: nn.Parameter = layer.lora_B[adapter].weight
        self.lora_dropout: nn.Module = layer.lora_dropout[adapter]
        self.train(self.base_layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` as the base layer does, adapter included."""
        if self.training and isinstance(self.lora_dropout, nn.Dropout):
            return self._with_dropout(x)
        return self._adapted(x)

    @abstractmethod
    def _adapted(self, x: Tensor) -> Tensor:
        """The output without dropout."""

    def _low_rank(self, x: Tensor, layout: Callable[[Tensor], Tensor],
                  products: WeightProducts, positions: int,
                  pointwise: bool) -> Tensor:
        """The output in the layout of ``products``.

        Args:
            x (Tensor): Activations, as they were given.
            layout (Callable): Brings them into the layout of ``products``.
            products (WeightProducts): For that layout.
            positions (int): Output positions of the whole batch.
            pointwise (bool): Whether ``products`` take (O, I) weights.
        """
        recomputation = recomputation_of(x)
        if recomputation is not None:
            recomputation = recomputation.rearranged(layout)
        weight: Tensor = self.base_layer.weight
        down: Tensor = self.lora_A
        if pointwise:
            weight, down = weight.flatten(1), down.flatten(1)
        plan = LowRankPlan.choose(products, self.scaling, weight,
                                  down.shape[0], positions)
        return LowRankFunction.apply(
            _lowered(layout(x)), weight, self.base_layer.bias, down,
            self.lora_B.flatten(1), plan, recomputation)

    def _with_dropout(self, x: Tensor) -> Tensor:
        """A sees another input than W, so that nothing can be merged."""
        down: Dict[str, Tensor] = {'weight': self.lora_A}
        if self.base_layer.bias is not None:
            down['bias'] = self.lora_A.new_zeros(len(self.lora_A))
        low = functional_call(self.base_layer, down, (self.lora_dropout(x), ))
        up = F.conv2d if self.lora_B.dim() == 4 else F.linear
        return self.base_layer(x) + self.scaling * up(low, self.lora_B)


class TrainableLinear(TrainableLayer):
    """An adapted ``nn.Linear``: (..., I) to (..., O)."""

    def _adapted(self, x: Tensor) -> Tensor:
        positions = x.shape[:-1].numel()
        y = self._low_rank(x, _rows, _ROWS, positions, pointwise=True)
        return y.view(*x.shape[:-1], y.shape[-1])


class TrainablePointwiseConv2d(TrainableLayer):
    """An adapted 1x1 convolution, as a matrix product.

    On a CPU it takes 0.5 to 0.8 of the time of torch's convolution, whose
    gradient by the input costs seven forwards where it has a stride.
    """

    def _adapted(self, x: Tensor) -> Tensor:
        down, right = self.base_layer.stride
        if (down, right) != (1, 1):
            x = x[:, :, ::down, ::right]
        images, _, height, width = x.shape
        positions = images * height * width
        if _is_channels_last(x):
            y = self._low_rank(
                x,
                lambda x: _rows(x.permute(0, 2, 3, 1)),
                _ROWS,
                positions,
                pointwise=True)
            return y.view(images, height, width, -1).permute(0, 3, 1, 2)
        y = self._low_rank(
            x,
            lambda x: x.flatten(2),
            _COLUMNS_TRAINABLE_LAYERS,
            positions,
            pointwise=True)
        return y.unflatten(2, (height, width))


class TrainableConv2d(TrainableLayer):
    """An adapted ``nn.Conv2d`` with zero padding and without groups."""

    def __init__(self, layer: LoraLayer, adapter: str) -> None:
        super().__init__(layer, adapter)
        conv = self.base_layer
        self.products = ConvolutionProducts(conv.stride, conv.padding,
                                            conv.dilation)

    def _adapted(self, x: Tensor) -> Tensor:
        down, right = self.base_layer.stride
        positions = len(x) * x.shape[2:].numel() // (down * right)
        return self._low_rank(
            x, lambda x: x, self.products, positions, pointwise=False)


class TrainableMergedLayer(TrainableLayer):
    """Any layer that is linear in its weight: other paddings, subclasses.

    The gradient of the dense weight is computed on the way.
    """

    def _adapted(self, x: Tensor) -> Tensor:
        delta = lora_delta(self.lora_A, self.lora_B)
        merged = self.base_layer.weight + self.scaling * delta
        return functional_call(self.base_layer, {'weight': merged}, (x, ))


def trainable_layer(layer: LoraLayer, adapter: str) -> TrainableLayer:
    """Our layer in place of PEFT's, with the very same parameters.

    Args:
        layer (LoraLayer): Around a linear layer or a convolution.
        adapter (str): Name of the adapter in it.
    """
    base: Any = layer.get_base_layer()
    forward = type(base).forward
    # mmcv's own layers differ for empty tensors only
    if forward in (nn.Linear.forward, mmcv.cnn.Linear.forward):
        return TrainableLinear(layer, adapter)
    if (forward not in (nn.Conv2d.forward, mmcv.cnn.Conv2d.forward)
            or base.padding_mode != 'zeros' or isinstance(base.padding, str)):
        return TrainableMergedLayer(layer, adapter)
    if tuple(base.kernel_size) == (1, 1) and not any(base.padding):
        return TrainablePointwiseConv2d(layer, adapter)
    return TrainableConv2d(layer, adapter)


def _rows(x: Tensor) -> Tensor:
    """From (..., I) to (N, I)."""
    return x.reshape(-1, x.shape[-1])


def _lowered(x: Tensor) -> Tensor:
    """What autocast makes of the operand of a product."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(kind))
    return x


def _is_channels_last(x: Tensor) -> bool:
    return (not x.is_contiguous()
            and x.is_contiguous(memory_format=torch.channels_last))
