# SPDX-License-Identifier: Apache-2.0
"""A backbone's pass, stopped early or recomputed block by block."""
from __future__ import annotations

from collections import Counter
from functools import partial
from typing import (Any, Callable, Dict, Iterator, List, Optional, Sequence,
                    Tuple)

import torch
from torch import Size, Tensor, nn

from .targets import Call, probe_calls, probe_images

# Shape legend: B images, C channels, H x W image, h x w map, L tokens

# From what a module gave for (B, C, H, W) images to a map (B, C, h, w).
Arrange = Callable[[Tensor, Size], Optional[Tensor]]


class _Complete(Exception):
    """All outputs that were asked for are there."""


class EarlyStages:
    """Computes the first outputs of a backbone and stops there.

    A pass over a probe shows which modules give the outputs, as maps or as
    tokens. Later passes take them from forward hooks and end with the last
    one. Where the probe shows no such modules, or their tokens do not fit the
    image, the backbone runs to its end.

    Args:
        backbone (nn.Module): At rest, in eval mode.
        num_outputs (int): Outputs that are needed.
    """

    def __init__(self, backbone: nn.Module, num_outputs: int) -> None:
        self._backbone = backbone
        self._num_outputs = num_outputs
        probe = probe_images(backbone, 1, side=64)
        *calls, (_, _, whole) = probe_calls(backbone, probe)
        outputs = _listed(whole)[:num_outputs]
        self._sources = _find_sources(calls, outputs, probe.shape)
        with torch.no_grad():
            if self._sources and not all(
                    map(torch.equal, self(probe), outputs)):
                self._sources = []

    def __call__(self, x: Tensor) -> List[Tensor]:
        """Outputs of (B, C, H, W) images, the first ``num_outputs``."""
        found: Dict[int, Tensor] = {}

        def take(index: int, arrange: Arrange, module: nn.Module, args: Any,
                 output: Tensor) -> None:
            feature_map = arrange(output, x.shape)
            if feature_map is not None:
                found[index] = feature_map
            if len(found) == self._num_outputs:
                raise _Complete

        handles = [
            module.register_forward_hook(partial(take, index, arrange))
            for index, (module, arrange) in enumerate(self._sources)
        ]
        try:
            return _listed(self._backbone(x))[:self._num_outputs]
        except _Complete:
            return [found[index] for index in range(self._num_outputs)]
        finally:
            for handle in handles:
                handle.remove()


def _listed(outputs: Any) -> List[Any]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _find_sources(calls: Sequence[Call], outputs: Sequence[Any],
                  image: Size) -> List[Tuple[nn.Module, Arrange]]:
    """The module that gives each output; [] unless there is one for all."""
    count = Counter(module for _, module, _ in calls)
    sources = []
    for wanted in outputs:
        # the last call that gave it: a block may write to its input
        for _, module, output in reversed(calls):
            arrange = _arrangement(output, wanted, image)
            if arrange is not None and count[module] == 1:
                sources.append((module, arrange))
                break
    return sources if len(sources) == len(outputs) else []


def _arrangement(output: Any, wanted: Any, image: Size) -> Optional[Arrange]:
    """Conversion of a module's output to one of the backbone's, if any."""
    if not (isinstance(output, Tensor) and isinstance(wanted, Tensor)):
        return None
    if output is wanted:
        return lambda output, image: output
    if output.dim() == 3 and wanted.dim() == 4:
        strides = [round(n / m) for n, m in zip(image[2:], wanted.shape[2:])]
        lead = output.shape[1] - wanted.shape[2:].numel()
        arrange = partial(_tokens_to_map, lead, strides,
                          wanted.is_contiguous())
        found = arrange(output, image) if lead >= 0 else None
        if found is not None and torch.equal(found, wanted):
            return arrange
    return None


def _tokens_to_map(lead: int, strides: List[int], contiguous: bool,
                   tokens: Tensor, image: Size) -> Optional[Tensor]:
    """From (B, lead + L, C) to (B, C, h, w); None if L is not h w."""
    grid = [-(-n // stride) for n, stride in zip(image[2:], strides)]
    tokens = tokens[:, lead:]
    if tokens.shape[1] != grid[0] * grid[1]:
        return None
    feature_map = tokens.transpose(1, 2).unflatten(2, grid)
    return feature_map.contiguous() if contiguous else feature_map


def checkpoint_blocks(backbone: nn.Module) -> None:
    """Switch on mmseg's ``with_cp`` in every block that has it.

    A block recomputes its activations if its input requires a gradient; so
    the blocks below the lowest adapter, and the first one above, do not.
    Batch norms that train count each batch once, not once more when their
    block is recomputed, as mmseg's own ``with_cp`` has it.

    Args:
        backbone (nn.Module): Changed in place.

    Raises:
        ValueError: If no block can be recomputed.
    """
    # a backbone's own field only hands the value on to new blocks
    blocks: Any = [
        m for m in backbone.modules()
        if m is not backbone and hasattr(m, 'with_cp')
    ]
    if not blocks:
        raise ValueError(
            f'with_cp=True, but no block of {type(backbone).__name__} has a '
            "field 'with_cp', so that nothing would be recomputed: leave "
            'with_cp out, or train with smaller batches.')
    for block in blocks:
        block.with_cp = True
    backbone.register_forward_pre_hook(_count_batches)
    backbone.register_forward_hook(_stop_counting, always_call=True)


def _count_batches(backbone: nn.Module, *args: Any) -> None:
    for norm in _training_norms(backbone):
        norm.track_running_stats = True


def _stop_counting(backbone: nn.Module, *args: Any) -> None:
    """Tell a recomputation in backward from a forward."""
    for norm in _training_norms(backbone):
        norm.track_running_stats = False


def _training_norms(backbone: nn.Module) -> Iterator[Any]:
    for module in backbone.modules():
        if module.training and getattr(module, 'running_mean',
                                       None) is not None:
            yield module
