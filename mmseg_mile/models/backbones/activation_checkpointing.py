# SPDX-License-Identifier: Apache-2.0
"""Less memory in training: blocks are recomputed in backward."""
from __future__ import annotations

from typing import Any, Iterator

from torch import nn


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
    """What runs after the forward, in backward, is a recomputation."""
    for norm in _training_norms(backbone):
        norm.track_running_stats = False


def _training_norms(backbone: nn.Module) -> Iterator[Any]:
    for module in backbone.modules():
        if module.training and getattr(module, 'running_mean',
                                       None) is not None:
            yield module
