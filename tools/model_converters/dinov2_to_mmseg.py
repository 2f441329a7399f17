# SPDX-License-Identifier: Apache-2.0
"""Rename the weights of a DINOv2 ViT for mmseg's ``VisionTransformer``.

Takes the keys of DINOv2's own files, which are timm's as well, from a
``.pth`` or a ``.safetensors`` file, and writes a ``.pth`` of 32 bit floats.
LayerScale (arXiv 2103.17239, eq. 9) multiplies each channel that a branch adds
to its input; mmseg has none, so it goes into the last layer of the branch:
``g * (W x + b) = (diag(g) W) x + g * b``, the same function. A file that has
mmseg's keys already only changes its type.

Example:
    python tools/model_converters/dinov2_to_mmseg.py \
        dinov2_vits14_pretrain.pth vit-s14.pth
"""
from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Dict, Mapping, Optional, Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor

TOP = {
    'cls_token': 'cls_token',
    'pos_embed': 'pos_embed',
    'patch_embed.proj.weight': 'patch_embed.projection.weight',
    'patch_embed.proj.bias': 'patch_embed.projection.bias',
    'norm.weight': 'ln1.weight',
    'norm.bias': 'ln1.bias',
}
BLOCK = {
    'norm1.': 'ln1.',
    'attn.qkv.': 'attn.attn.in_proj_',
    'attn.proj.': 'attn.attn.out_proj.',
    'norm2.': 'ln2.',
    'mlp.fc1.': 'ffn.layers.0.0.',
    'mlp.fc2.': 'ffn.layers.1.',
}
# The LayerScale of a branch, by the branch's last layer.
SCALES = {'attn.proj.': 'ls1.gamma', 'mlp.fc2.': 'ls2.gamma'}
# What only the pretraining needs.
UNUSED = ('mask_token', )


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', help='.pth or .safetensors, bare tensors')
    parser.add_argument('out', help='.pth to write')
    return parser.parse_args(argv)


def read_weights(path: str) -> Dict[str, Tensor]:
    """The tensors of a file, which may hold nothing else.

    Raises:
        ValueError: If it holds anything else.
    """
    if path.endswith('.safetensors'):
        return load_file(path)
    state = torch.load(path, map_location='cpu', weights_only=True)
    if not isinstance(state, dict) or not all(
            isinstance(value, Tensor) for value in state.values()):
        fields = list(state) if isinstance(state, dict) else type(state)
        raise ValueError(f'{path!r} must hold tensors by name and nothing '
                         f'else, got {fields}: save the state dict of the '
                         'backbone alone.')
    return state


def convert(state: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Weights under mmseg's keys, LayerScale folded in.

    Args:
        state (Mapping[str, Tensor]): Of a DINOv2 ViT, or already mmseg's.

    Raises:
        ValueError: If a tensor has no place in mmseg's ``VisionTransformer``,
            such as the registers of DINOv2 (arXiv 2309.16588).
    """
    if 'patch_embed.projection.weight' in state:
        return {name: value.float() for name, value in state.items()}
    out: Dict[str, Tensor] = {}
    unknown = []
    for name, value in state.items():
        block, layer, kind = _parts(name)
        scale = state.get(block + SCALES.get(layer, ''))
        if name in TOP:
            out[TOP[name]] = value.float()
        elif layer in BLOCK:
            renamed = block.replace('blocks.', 'layers.') + BLOCK[layer] + kind
            value = value.float()
            out[renamed] = value if scale is None else (value.T *
                                                        scale.float()).T
        elif name[len(block):] not in (*SCALES.values(), *UNUSED):
            unknown.append(name)
    if unknown or not out:
        raise ValueError(
            f'these weights are of no ViT that mmseg has: it has no place for '
            f'{unknown[:5]} ({len(unknown)} of {len(state)} tensors). Allowed '
            'are the keys of DINOv2 without registers and with a plain MLP '
            "(ViT-S, B and L), such as 'blocks.0.attn.qkv.weight'.")
    return out


def _parts(name: str) -> Sequence[str]:
    """``('blocks.0.', 'attn.qkv.', 'weight')``; outside of blocks empty."""
    match = re.fullmatch(r'(blocks\.\d+\.)(.*\.)(weight|bias|gamma)', name)
    return match.groups() if match else ('', '', '')


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Convert one file."""
    args = parse_args(argv)
    if not args.out.endswith('.pth'):
        raise ValueError(f'out must end with .pth, got {args.out!r}')
    weights = convert(read_weights(args.source))
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    torch.save(weights, args.out)
    print(f'{len(weights)} tensors, '
          f'{sum(w.numel() for w in weights.values()):,} values: {args.out}')


if __name__ == '__main__':
    main()
