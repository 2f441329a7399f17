# SPDX-License-Identifier: Apache-2.0
"""Embeddings of a whole set of images."""
from __future__ import annotations

from typing import TYPE_CHECKING, Iterable, List

import torch
from mmengine.dist import all_gather_object, is_distributed
from torch import Tensor

if TYPE_CHECKING:
    from .expert_segmentor import ExpertSegmentor


@torch.no_grad()
def embed_images(model: 'ExpertSegmentor', loader: Iterable[dict]) -> Tensor:
    """Embed every image of a loader with the frozen base.

    Args:
        model (ExpertSegmentor): Whose preprocessor, base and embedder.
        loader (Iterable[dict]): Batches of test-pipeline images.

    Returns:
        Tensor: (N, D) on the CPU; the images of all processes.
    """
    parts: List[Tensor] = []
    for batch in loader:
        images = model.data_preprocessor(batch, False)['inputs']
        parts.append(model.embedder(model.backbone, images).cpu())
    embeddings = torch.cat(parts)
    if is_distributed():
        embeddings = torch.cat(all_gather_object(embeddings))
    return embeddings
