# SPDX-License-Identifier: Apache-2.0
"""Embeddings of a whole set of images."""
from __future__ import annotations

from itertools import islice
from typing import (TYPE_CHECKING, Any, ContextManager, Iterable, List,
                    Optional, Sequence)

import torch
from mmengine.dist import all_gather_object
from torch import Tensor

from mmseg_mile.structures.interleaving import interleave
from ..embedders.disturbed_images import looks_at

if TYPE_CHECKING:
    from .expert_segmentor import ExpertSegmentor


def embed_images(model: 'ExpertSegmentor',
                 loader: Iterable[dict],
                 num_looks: Optional[int] = None) -> Tensor:
    """Embed every image of a loader with the frozen base.

    However many processes share the images, the rows and their order are
    those of a single process, and so is all that a gate makes of them. The
    random state stays as it was. Where more looks than one are wanted,
    disturbed copies are embedded as well.

    Args:
        model (ExpertSegmentor): Whose preprocessor, base, embedder and gate.
        loader (Iterable[dict]): Batches of test-pipeline images, those of
            this process only.
        num_looks (int, optional): L, at each image, see
            :meth:`BaseGate.fit`. Defaults to None: as the model's gate
            wants.

    Returns:
        Tensor: (N, D) on the CPU, or (N, L, D) for several looks; the images
        of all processes.
    """
    count = model.gate.num_looks if num_looks is None else num_looks
    with _random_state_kept():
        parts = [_embed(model, batch, count) for batch in loader]
    # of a small dataset, the last processes have no image
    mine = torch.cat(parts) if parts else None
    shares: List[List[Tensor]] = [[] if share is None else list(share)
                                  for share in all_gather_object(mine)]
    return torch.stack(interleave(shares))


def check_embedder(model: 'ExpertSegmentor', loader: Iterable[dict]) -> None:
    """Show one batch of this process to embedder and gate.

    Raises:
        ValueError: If one of them could not work with the images.
    """
    with _random_state_kept():
        for batch in islice(loader, 1):
            model.gate.check_embeddings(_embed(model, batch, 1))


def prepared_looks(model: 'ExpertSegmentor', batch: dict,
                   count: int) -> List[Tensor]:
    """Images of a batch, then disturbed copies of them, as the base sees them.

    Args:
        model (ExpertSegmentor): Whose preprocessor.
        batch (dict): B images.
        count (int): L, looks at each image.

    Returns:
        list[Tensor]: L of (B, C, H, W).
    """
    return [
        model.data_preprocessor(look, False)['inputs']
        for look in looks_at(batch, count)
    ]


@torch.no_grad()
def embed_looks(model: 'ExpertSegmentor', embedder: Any,
                looks: Sequence[Tensor]) -> Tensor:
    """Embed what :func:`prepared_looks` gave.

    Args:
        model (ExpertSegmentor): Whose frozen base.
        embedder (Any): The model's, or another one.
        looks (Sequence[Tensor]): L of (B, C, H, W).

    Returns:
        Tensor: (B, D) on the CPU, or (B, L, D) for several looks.
    """
    found = [embedder(model.backbone, images).cpu() for images in looks]
    return found[0] if len(found) == 1 else torch.stack(found, 1)


def _embed(model: 'ExpertSegmentor', batch: dict, num_looks: int) -> Tensor:
    return embed_looks(model, model.embedder,
                       prepared_looks(model, batch, num_looks))


def _random_state_kept() -> ContextManager[None]:
    # a loader draws a seed whenever it starts; how often images are looked
    # at must not change what is learned afterwards
    return torch.random.fork_rng(devices=[])
