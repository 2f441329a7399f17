# SPDX-License-Identifier: Apache-2.0
"""Embeddings of a whole set of images."""
from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, ContextManager, Iterable, List, Optional

import torch
from mmengine.dist import all_gather_object
from torch import Tensor

from mmseg_mile.structures.interleaving import interleave
from ..embedders.disturbed_images import looks_at
from ..gates.prototypes import own_embeddings

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
    with _random_state_kept():
        parts = [_embed(model, batch, num_looks) for batch in loader]
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
            model.gate.check_embeddings(own_embeddings(_embed(model, batch)))


@torch.no_grad()
def _embed(model: 'ExpertSegmentor',
           batch: dict,
           num_looks: Optional[int] = None) -> Tensor:
    count = model.gate.num_looks if num_looks is None else num_looks
    looks = [_look(model, each) for each in looks_at(batch, count)]
    return looks[0] if len(looks) == 1 else torch.stack(looks, 1)


def _look(model: 'ExpertSegmentor', batch: dict) -> Tensor:
    images = model.data_preprocessor(batch, False)['inputs']
    return model.embedder(model.backbone, images).cpu()


def _random_state_kept() -> ContextManager[None]:
    # a loader draws a seed whenever it starts; how often images are looked
    # at must not change what is learned afterwards
    return torch.random.fork_rng(devices=[])
