# SPDX-License-Identifier: Apache-2.0
"""The layers that an expert trains through, for speed and memory alone.

An adapted layer is ``y = (W + s B A) x + b``; W and b are frozen, A and B
train. PEFT's layers compute the same and are the reference of the tests.
These train MiT-B0 in half the time of full fine-tuning, by choices measured
in float32 on two CPU cores:

- ``W + s B A`` is merged, and made again in backward, where that is cheaper
  than the term ``s B A x``; gradients by A and B come from the dense weight's
  where that is cheaper than products of rank R (:func:`choose_plan`);
- 1x1 convolutions are matrix products (:class:`LoRAPointwiseConv2d`);
- convolutions without an adapter keep no input (:class:`FrozenConv2d`);
- a map that GELU made is made again, not kept (:class:`RecomputedGELU`).
"""
from __future__ import annotations

import contextlib
from typing import (Any, Callable, ContextManager, Dict, NamedTuple, Optional,
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

# Shape legend: N rows, B images, L positions, I inputs, O outputs, R rank,
# K kernel side, H x W grid

Layout = Callable[[Tensor], Tensor]
Gradients = Tuple[Optional[Tensor], ...]


class LoRALayer(nn.Module):
    """``y = (W + s B A) x + b``; only A and B (``lora_A``, ``lora_B``) train.

    Serves any layer that is linear in its weight, by way of the gradient of
    the dense weight; the subclasses are faster.

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

    def _adapted(self, x: Tensor) -> Tensor:
        """The output without dropout."""
        delta = lora_delta(self.lora_A, self.lora_B)
        merged = self.base_layer.weight + self.scaling * delta
        return functional_call(self.base_layer, {'weight': merged}, (x, ))

    def _with_dropout(self, x: Tensor) -> Tensor:
        """A sees another input than W, so that nothing can be merged."""
        down: Dict[str, Tensor] = {'weight': self.lora_A}
        if self.base_layer.bias is not None:
            down['bias'] = self.lora_A.new_zeros(len(self.lora_A))
        low = functional_call(self.base_layer, down, (self.lora_dropout(x), ))
        up = F.conv2d if self.lora_B.dim() == 4 else F.linear
        return self.base_layer(x) + self.scaling * up(low, self.lora_B)

    def _product(self,
                 x: Tensor,
                 products: 'RowProducts',
                 layout: Layout,
                 stride: int = 1) -> Tensor:
        """The output in the layout of ``products``.

        Args:
            x (Tensor): Activations, as they were given.
            products (RowProducts): Computes.
            layout (Callable): Brings activations into its layout.
            stride (int): Input positions for each output. Defaults to 1.
        """
        weight: Tensor = self.base_layer.weight
        down: Tensor = self.lora_A
        positions = x.numel() // weight.shape[1] // stride
        if not isinstance(products, ConvolutionProducts):
            weight, down = weight.flatten(1), down.flatten(1)
        plan = choose_plan(weight, len(down), positions)
        return LowRankFunction.apply(
            _lowered(layout(x)), weight, self.base_layer.bias, down,
            self.lora_B.flatten(1), self.scaling, products, plan,
            origin_of(x, layout))


class LoRALinear(LoRALayer):
    """An adapted ``nn.Linear``: (..., I) to (..., O)."""

    def _adapted(self, x: Tensor) -> Tensor:
        y = self._product(x, _ROWS, _rows)
        return y.view(*x.shape[:-1], y.shape[-1])


class LoRAPointwiseConv2d(LoRALayer):
    """An adapted 1x1 convolution, as a matrix product.

    On a CPU it takes 0.5 to 0.8 of the time of torch's convolution, whose
    gradient by the input costs seven forwards where it has a stride.
    """

    def _adapted(self, x: Tensor) -> Tensor:
        down, right = self.base_layer.stride
        if (down, right) != (1, 1):
            x = x[:, :, ::down, ::right]
        images, _, height, width = x.shape
        if not x.is_contiguous() and x.is_contiguous(
                memory_format=torch.channels_last):
            y = self._product(x, _ROWS, lambda x: _rows(x.permute(0, 2, 3, 1)))
            return y.view(images, height, width, -1).permute(0, 3, 1, 2)
        y = self._product(x, _COLUMNS, lambda x: x.flatten(2))
        return y.unflatten(2, (height, width))


class LoRAConv2d(LoRALayer):
    """An adapted ``nn.Conv2d`` with zero padding and without groups."""

    def _adapted(self, x: Tensor) -> Tensor:
        down, right = self.base_layer.stride
        products = ConvolutionProducts(self.base_layer)
        return self._product(x, products, lambda x: x, down * right)


def _rows(x: Tensor) -> Tensor:
    """From (..., I) to (N, I)."""
    return x.reshape(-1, x.shape[-1])


def lora_layer(layer: LoraLayer, adapter: str) -> LoRALayer:
    """Our layer in place of PEFT's, with the very same parameters.

    Args:
        layer (LoraLayer): Around a linear layer or a convolution.
        adapter (str): Name of the adapter in it.
    """
    base: Any = layer.get_base_layer()
    # mmcv's own layers differ for empty tensors only
    if type(base).forward in (nn.Linear.forward, mmcv.cnn.Linear.forward):
        return LoRALinear(layer, adapter)
    if not is_plain_convolution(base):
        return LoRALayer(layer, adapter)
    if tuple(base.kernel_size) == (1, 1) and not any(base.padding):
        return LoRAPointwiseConv2d(layer, adapter)
    return LoRAConv2d(layer, adapter)


def is_plain_convolution(module: nn.Module) -> bool:
    """Whether it is torch's or mmcv's own, padded with zeros."""
    return (type(module).forward
            in (nn.Conv2d.forward, mmcv.cnn.Conv2d.forward)
            and module.padding_mode == 'zeros'
            and not isinstance(module.padding, str))


class Plan(NamedTuple):
    """Way to compute a call; every choice gives the same function."""
    merged: bool  # W + s B A, made twice, never kept; else the term s B A x
    dense_gradient: bool  # by A and B from dW; else from products of rank R


def choose_plan(weight: Tensor, rank: int, positions: int) -> Plan:
    """The cheaper way for these shapes.

    Merging costs ``4 O I R`` operations for forward and backward, and the
    low-rank term ``2 P R (2 I + O)`` at P positions; per operation a merge,
    bound by memory, takes about twice as long. Gradients of rank R read each
    activation twice instead of once, and pay off when they need less than
    half of the operations. Both factors were measured at rank 8 over the
    layers of MiT-B0 and MiT-B2 and 3x3 convolutions of 64 to 512 channels;
    near the borders both ways take about the same time.

    Args:
        weight (Tensor): The frozen weight (O, I) or (O, I, K, K).
        rank (int): R.
        positions (int): P, output positions of the whole batch.
    """
    outputs = weight.shape[0]
    inputs = weight.numel() // outputs
    return Plan(
        merged=4 * weight.numel() <= positions * (2 * inputs + outputs),
        dense_gradient=weight.numel() < 4 * rank * (inputs + outputs))


class LowRankFunction(torch.autograd.Function):
    """``(W + s B A) x + b`` with constants ``W`` and ``b``.

    Computed in the type of ``x``, which autocast may have lowered. Shapes: x
    and y in the layout of ``products``, W (O, I) or (O, I, K, K), b (O, ), A
    (R, I) or (R, I, K, K), B (O, R).
    """

    @staticmethod
    def forward(ctx: Any,
                x: Tensor,
                weight: Tensor,
                bias: Optional[Tensor],
                down: Tensor,
                up: Tensor,
                scaling: float,
                products: 'RowProducts',
                plan: Plan,
                origin: Optional['Origin'] = None) -> Tensor:
        """Compute y; if its ``origin`` is known, ``x`` is not kept."""
        ctx.scaling, ctx.products, ctx.plan = scaling, products, plan
        dtype, u = x.dtype, None
        bias = bias if bias is None else bias.to(dtype)
        with _without_autocast(x):
            if plan.merged:
                merged = _merge(weight, down, up, scaling, dtype)
                y = products.apply(merged, x, bias)
            else:
                y = products.apply(weight.to(dtype), x, bias)
                u = products.apply(down.to(dtype), x)
                products.add_up_(y, up.to(dtype), u, scaling)
        ctx.activation = None if origin is None else origin.activation
        kept = x if origin is None else origin.source
        ctx.save_for_backward(kept, weight, down, up, u)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Gradients:
        """Gradients by x, A and B."""
        x, weight, down, up, u = ctx.saved_tensors
        scaling, products, plan = ctx.scaling, ctx.products, ctx.plan
        dtype = g.dtype
        by_x: Optional[Tensor] = None
        with _without_autocast(g):
            if not (plan.merged and plan.dense_gradient):
                du = products.up_input_gradient(up.to(dtype) * scaling, g)
            if ctx.needs_input_grad[0] and plan.merged:
                merged = _merge(weight, down, up, scaling, dtype)
                by_x = products.input_gradient(merged, g, x.shape)
            elif ctx.needs_input_grad[0]:
                by_x = products.input_gradient(weight.to(dtype), g, x.shape)
                products.add_input_gradient_(by_x, down.to(dtype), du)
            if ctx.activation is not None:
                x = ctx.activation(x).to(dtype)
            if plan.dense_gradient:
                dense = products.weight_gradient(g, x, weight.shape)
                dense = dense.flatten(1).to(down.dtype) * scaling
                by_down = (up.t() @ dense).view_as(down)
                by_up = dense @ down.flatten(1).t()
            else:
                if u is None:
                    u = products.apply(down.to(x.dtype), x)
                by_up = products.up_gradient(g, u) * scaling
                by_down = products.weight_gradient(du, x, down.shape)
        return (by_x, None, None, by_down.to(down.dtype), by_up.to(up.dtype),
                None, None, None, None)


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


def _lowered(x: Tensor) -> Tensor:
    """Operand of a product, as autocast casts it."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(kind))
    return x


class RowProducts:
    """Products of weights (O, I) with activations (N, I) and gradients (N, O).

    For linear layers and channels-last maps. ``up`` is B (O, R), ``u`` is
    ``A x``.
    """

    def apply(self,
              weight: Tensor,
              x: Tensor,
              bias: Optional[Tensor] = None) -> Tensor:
        """``W x + b``."""
        return F.linear(x, weight, bias)

    def input_gradient(self, weight: Tensor, g: Tensor, shape: Size) -> Tensor:
        """``W^T g``, in the shape of the input."""
        return g @ weight

    def weight_gradient(self, g: Tensor, x: Tensor, shape: Size) -> Tensor:
        """``g x^T``, in the shape of the weight."""
        return g.t() @ x

    def add_up_(self, y: Tensor, up: Tensor, u: Tensor, scale: float) -> None:
        """Add ``scale * B u`` to ``y``."""
        y.addmm_(u, up.t(), alpha=scale)

    def up_gradient(self, g: Tensor, u: Tensor) -> Tensor:
        """``g u^T``; CPU kernels are up to 2x faster this way round."""
        return (u.t() @ g).t()

    def up_input_gradient(self, up: Tensor, g: Tensor) -> Tensor:
        """``B^T g``."""
        return self.input_gradient(up, g, g.shape)

    def add_input_gradient_(self, total: Tensor, down: Tensor,
                            du: Tensor) -> None:
        """Add ``A^T du`` to ``total``."""
        self.add_up_(total, down.t(), du, 1.0)


class ColumnProducts(RowProducts):
    """The same for (B, I, L) and (B, O, L): pointwise convolutions."""

    def apply(self,
              weight: Tensor,
              x: Tensor,
              bias: Optional[Tensor] = None) -> Tensor:
        """``W x + b``."""
        if bias is None:
            return _over_batch(weight, x) @ x
        return torch.baddbmm(bias[:, None], _over_batch(weight, x), x)

    def input_gradient(self, weight: Tensor, g: Tensor, shape: Size) -> Tensor:
        """``W^T g``, in the shape of the input."""
        return _over_batch(weight.t(), g) @ g

    def weight_gradient(self, g: Tensor, x: Tensor, shape: Size) -> Tensor:
        """``sum_b g_b x_b^T``, in the shape of the weight."""
        return (g @ x.mT).sum(0)

    def add_up_(self, y: Tensor, up: Tensor, u: Tensor, scale: float) -> None:
        """Add ``scale * B u`` to ``y``."""
        y.baddbmm_(_over_batch(up, u), u, alpha=scale)

    def up_gradient(self, g: Tensor, u: Tensor) -> Tensor:
        """``sum_b g_b u_b^T``; faster this way round, as for rows."""
        return (u @ g.mT).sum(0).t()


def _over_batch(weight: Tensor, x: Tensor) -> Tensor:
    """The weight once per image, without a copy."""
    return weight.expand(x.shape[0], -1, -1)


_ROWS, _COLUMNS = RowProducts(), ColumnProducts()


class ConvolutionProducts(ColumnProducts):
    """The same for weights (O, I / groups, K, K) and maps (B, I, H, W).

    Args:
        conv (nn.Conv2d): Zero-padded; its geometry is taken over.
    """

    def __init__(self, conv: Any) -> None:
        self.stride, self.padding = conv.stride, conv.padding
        self.dilation, self.groups = conv.dilation, conv.groups

    def apply(self,
              weight: Tensor,
              x: Tensor,
              bias: Optional[Tensor] = None) -> Tensor:
        """``W * x + b`` (B, O, H', W')."""
        return F.conv2d(x, weight, bias, self.stride, self.padding,
                        self.dilation, self.groups)

    def input_gradient(self, weight: Tensor, g: Tensor, shape: Size) -> Tensor:
        """The transposed convolution (B, I, H, W).

        ``torch.nn.grad.conv2d_input`` computes the same, but fills a tensor
        of the input's size first: 5 to 20x slower for a depthwise convolution
        of channels-last activations.
        """
        # rows and columns at the end that a stride left out
        rest = [
            shape[2 + i] - (g.shape[2 + i] - 1) * self.stride[i] +
            2 * self.padding[i] - self.dilation[i] *
            (weight.shape[2 + i] - 1) - 1 for i in (0, 1)
        ]
        return F.conv_transpose2d(g, weight, None, self.stride, self.padding,
                                  rest, self.groups, self.dilation)

    def weight_gradient(self, g: Tensor, x: Tensor, shape: Size) -> Tensor:
        """The correlation of gradient and input (O, I, K, K)."""
        return grad.conv2d_weight(x, shape, g, self.stride, self.padding,
                                  self.dilation)

    def add_up_(self, y: Tensor, up: Tensor, u: Tensor, scale: float) -> None:
        """Add ``scale * B u`` to ``y``; B is a pointwise map."""
        # view, not flatten: a copy would take the sum to the wrong place
        super().add_up_(y.view(*y.shape[:2], -1), up, u.flatten(2), scale)

    def up_gradient(self, g: Tensor, u: Tensor) -> Tensor:
        """``g u^T`` (O, R)."""
        return super().up_gradient(g.flatten(2), u.flatten(2))

    def up_input_gradient(self, up: Tensor, g: Tensor) -> Tensor:
        """``B^T g`` (B, R, H', W')."""
        columns = _COLUMNS.up_input_gradient(up, g.flatten(2))
        return columns.unflatten(2, g.shape[2:])

    def add_input_gradient_(self, total: Tensor, down: Tensor,
                            du: Tensor) -> None:
        """Add the transposed convolution of ``du`` to ``total``."""
        total.add_(self.input_gradient(down, du, total.shape))


class FrozenConv2d(nn.Conv2d):
    """A convolution whose weight and bias are constants: no input is kept.

    Args:
        conv (nn.Conv2d): See :func:`is_plain_convolution`; its parameters
            and geometry are shared.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(conv.__dict__)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, I, H, W)."""
        bias = self.bias if self.bias is None else _lowered(self.bias)
        return _FrozenConvolution.apply(
            _lowered(x), _lowered(self.weight), bias,
            ConvolutionProducts(self))


class _FrozenConvolution(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Optional[Tensor],
                products: ConvolutionProducts) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.products = x.shape, products
        return products.apply(weight, x, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Gradients:
        weight, = ctx.saved_tensors
        by_x = ctx.products.input_gradient(weight, g, ctx.shape)
        return by_x, None, None, None


class Origin(NamedTuple):
    """Origin of a map: ``activation(source)``, element by element."""
    activation: Callable[[Tensor], Tensor]
    source: Tensor
    version: int  # of the map at that time


class RecomputedGELU(nn.Module):
    """A GELU whose output tells how it was made.

    GELU keeps its input for backward, and an adapted layer behind it would
    keep the same map once more, as its own input. It keeps GELU's input
    instead, and computes GELU again. ``torch.utils.checkpoint`` around both
    would compute the layer's product again, too.

    The :class:`Origin` is an attribute of the output: it lives no longer than
    the map, and the layer behind need not be known. One that is given anything
    else (a sum, a copy, what a dropout left) finds none and keeps its input.
    GELU's node in the graph holds the same input, but under torch's
    checkpointing it may be asked for it only once.

    Args:
        activation (nn.GELU): The activation function.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.train(activation.training)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to a map of any shape."""
        y: Any = self.activation(x)
        # without a gradient GELU keeps nothing that could be shared
        if y.requires_grad:
            y.mile_origin = Origin(self.activation, x.detach(), y._version)
        return y


def origin_of(x: Tensor, layout: Layout) -> Optional[Origin]:
    """Recipe of a map in a layout; None if it is better kept.

    Args:
        x (Tensor): Known if it is the very tensor that a
            :class:`RecomputedGELU` gave, and was not written to since.
        layout (Callable): Moves elements. Where it copies them, keeping the
            source costs what keeping the map does.
    """
    origin: Optional[Origin] = getattr(x, 'mile_origin', None)
    if origin is None or x._version != origin.version:
        return None
    source = layout(origin.source)
    if source.data_ptr() != origin.source.data_ptr():
        return None
    return origin._replace(source=source)
