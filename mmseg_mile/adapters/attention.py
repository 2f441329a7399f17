# SPDX-License-Identifier: Apache-2.0
"""An exact stand-in for ``nn.MultiheadAttention`` made of linear layers.

``nn.MultiheadAttention`` keeps query, key and value in one packed parameter
and never calls ``out_proj.forward``, so an adapter can attach to neither. The
stand-in computes the same function with four ``nn.Linear`` that adapters can
wrap, on torch's fused attention kernels, and reads and writes the stock
state-dict keys.
"""
from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg.models.backbones.swin import WindowMSA

_PROJECTIONS = ('q_proj', 'k_proj', 'v_proj')


class LinearMultiheadAttention(nn.Module):
    """``out(softmax(q k^T / sqrt(d)) v)`` with q, k, v and out as Linears.

    Attention weights are never returned: mmseg's backbones discard them, and
    asking for them keeps torch off its fused kernels.

    Args:
        attention (nn.MultiheadAttention): See :func:`can_replace`; its
            values are copied.
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim = attention.embed_dim
        self.num_heads = attention.num_heads
        self.dropout = attention.dropout
        self.batch_first = attention.batch_first
        bias = attention.in_proj_bias is not None
        for name in (*_PROJECTIONS, 'out_proj'):
            # torch keeps out_proj.bias whenever in_proj has one
            layer = nn.Linear(self.embed_dim, self.embed_dim, bias=bias)
            self.add_module(name, layer.to(attention.in_proj_weight))
        self.register_load_state_dict_pre_hook(_unpack_stock_keys)
        self.register_state_dict_post_hook(_pack_stock_keys)
        self.load_state_dict(attention.state_dict())
        self.train(attention.training)

    def forward(self,
                query: Tensor,
                key: Tensor,
                value: Tensor,
                key_padding_mask: Optional[Tensor] = None,
                need_weights: bool = False,
                attn_mask: Optional[Tensor] = None,
                average_attn_weights: bool = True,
                is_causal: bool = False) -> Tuple[Tensor, None]:
        """Attend; arguments and layout as in ``nn.MultiheadAttention``.

        Args:
            query (Tensor): (L, B, C), or (B, L, C) with ``batch_first``.
            key (Tensor): (S, B, C) or (B, S, C).
            value (Tensor): Like ``key``.
            key_padding_mask (Tensor, optional): (B, S), True or -inf where a
                key is left out. Defaults to None.
            need_weights (bool): Ignored, as is ``average_attn_weights``.
            attn_mask (Tensor, optional): (L, S) or (B * heads, L, S).
                Defaults to None.
            average_attn_weights (bool): Ignored.
            is_causal (bool): Ignored: ``attn_mask`` says the same.

        Returns:
            tuple[Tensor, None]: Output laid out like ``query``.
        """
        if not self.batch_first:
            query, key, value = (
                x.transpose(0, 1) for x in (query, key, value))
        out = F.scaled_dot_product_attention(
            self._split_heads(self.q_proj(query)),
            self._split_heads(self.k_proj(key)),
            self._split_heads(self.v_proj(value)),
            attn_mask=self._merge_masks(attn_mask, key_padding_mask, query),
            dropout_p=self.dropout if self.training else 0.0)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, heads, L, C / heads)."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def _merge_masks(self, attn_mask: Optional[Tensor],
                     key_padding_mask: Optional[Tensor],
                     query: Tensor) -> Optional[Tensor]:
        """One additive mask that broadcasts to (B, heads, L, S)."""
        masks = []
        if attn_mask is not None:
            mask = _additive(attn_mask, query.dtype)
            masks.append(
                mask.unflatten(0, (
                    -1, self.num_heads)) if mask.dim() == 3 else mask)
        if key_padding_mask is not None:
            masks.append(
                _additive(key_padding_mask, query.dtype)[:, None, None])
        return torch.stack(torch.broadcast_tensors(
            *masks)).sum(0) if masks else None


def can_replace(module: nn.Module) -> bool:
    """Whether ``module`` is an attention that the stand-in can express."""
    return (isinstance(module, nn.MultiheadAttention)
            and module.in_proj_weight is not None and module.bias_k is None
            and module.bias_v is None and not module.add_zero_attn)


def replace_attention(model: nn.Module) -> List[str]:
    """Put a stand-in wherever ``model`` holds an attention that has one.

    Args:
        model (nn.Module): Changed in place.

    Returns:
        list[str]: Names of the replaced modules.
    """
    names = []
    for name, module in list(model.named_modules()):
        if can_replace(module):
            stand_in: nn.Module = LinearMultiheadAttention(module)
        elif type(module) is WindowMSA:  # a subclass computes something else
            stand_in = FusedWindowMSA(module)
        else:
            continue
        parent_name, _, child = name.rpartition('.')
        setattr(model.get_submodule(parent_name), child, stand_in)
        names.append(name)
    return names


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill(mask, float('-inf'))


def _layer_prefix(module: nn.Module, prefix: str, name: str) -> str:
    """Layer of the projection's own weight; adapters wrap it."""
    layer = getattr(module, name)
    inner = 'base_layer.' if hasattr(layer, 'base_layer') else ''
    return f'{prefix}{name}.{inner}'


def _unpack_stock_keys(module: nn.Module, state_dict: Dict[str, Tensor],
                       prefix: str, *args: Any) -> None:
    for kind in ('weight', 'bias'):
        packed = state_dict.pop(f'{prefix}in_proj_{kind}', None)
        if packed is None:
            continue
        for name, part in zip(_PROJECTIONS, packed.chunk(3)):
            state_dict[_layer_prefix(module, prefix, name) + kind] = part
        out = state_dict.pop(f'{prefix}out_proj.{kind}', None)
        if out is not None:
            state_dict[_layer_prefix(module, prefix, 'out_proj') + kind] = out


def _pack_stock_keys(module: nn.Module, state_dict: Dict[str, Tensor],
                     prefix: str, local_metadata: Dict[str, Any]) -> None:
    for kind in ('weight', 'bias'):
        keys = [_layer_prefix(module, prefix, n) + kind for n in _PROJECTIONS]
        if keys[0] not in state_dict:
            continue
        state_dict[f'{prefix}in_proj_{kind}'] = torch.cat(
            [state_dict.pop(key) for key in keys])
        out = _layer_prefix(module, prefix, 'out_proj') + kind
        state_dict[f'{prefix}out_proj.{kind}'] = state_dict.pop(out)


# Shape legend: B windows of all images, W windows of one image, N tokens of a
# window, C channels


class FusedWindowMSA(WindowMSA):
    """mmseg's ``WindowMSA``, the same function in half the time.

    The position bias and the mask of shifted windows go into the fused
    kernel as one additive mask; the scores of all pairs are never kept.

    Args:
        attention (WindowMSA): The module to stand in for; its layers and
            fields are taken over, not copied.
    """

    def __init__(self, attention: WindowMSA) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(attention.__dict__)

    def forward(self, x: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        """Attend within each window.

        Args:
            x (Tensor): (B, N, C).
            mask (Tensor, optional): (W, N, N), added to the scores.
                Defaults to None.

        Returns:
            Tensor: (B, N, C).
        """
        num_windows, tokens, channels = x.shape
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[
            self.relative_position_index.view(-1)]
        bias = bias.view(1, tokens, tokens, -1).permute(0, 3, 1, 2)
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(num_windows // len(mask), 1,
                                                 1, 1)
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=bias.to(query.dtype),
            dropout_p=self.attn_drop.p if self.training else 0.0,
            scale=self.scale)
        out = out.transpose(1, 2).reshape(num_windows, tokens, channels)
        return self.proj_drop(self.proj(out))
