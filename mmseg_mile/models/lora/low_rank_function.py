# SPDX-License-Identifier: Apache-2.0
"""``(W + s B A) x + b`` and its gradients by A and B only.

``W`` and ``b`` are constants. Autograd would compute the same from three
layers, a product and a sum, at about the price of training ``W`` itself.
"""
from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, ContextManager, Optional, Tuple

import torch
from torch import Size, Tensor
from torch.autograd.function import once_differentiable

from .recomputation import Recomputation
from .weight_products import WeightProducts

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
