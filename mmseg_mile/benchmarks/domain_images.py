# SPDX-License-Identifier: Apache-2.0
"""Images of made-up domains that a gate can tell apart."""
from __future__ import annotations

from typing import Dict, List

import torch
from torch import Tensor
from torch.nn import functional as F

from mmseg.structures import SegDataSample
from .settings import Settings

_COPIES = 8


def domain_images(settings: Settings) -> Tensor:
    """A batch in which image i belongs to domain ``i % experts``.

    A domain is a colour and a contrast; the rest is blobs and grain.

    Returns:
        Tensor: (B, 3, H, W) uint8.
    """
    random = torch.Generator().manual_seed(settings.seed)
    size, count = settings.size, settings.experts
    tones = 50 + 150 * torch.rand(count, 3, 1, 1, generator=random)
    contrasts = torch.linspace(15, 60, count).view(-1, 1, 1, 1)
    domain = torch.arange(settings.batch) % count
    blobs = F.interpolate(
        torch.randn(settings.batch, 3, 8, 8, generator=random),
        size=(size, size),
        mode='bilinear')
    grain = torch.randn(settings.batch, 3, size, size, generator=random)
    images = tones[domain] + contrasts[domain] * (blobs + 0.2 * grain)
    return images.clamp(0, 255).byte()


def training_images(images: Tensor, domain: int,
                    settings: Settings) -> List[Dict[str, list]]:
    """Noisy copies of the images of one domain, as a loader gives them.

    Args:
        images (Tensor): (B, 3, H, W) from :func:`domain_images`.
        domain (int): Which domain.
        settings (Settings): That made ``images``.

    Returns:
        list[dict]: Batches of one image.
    """
    random = torch.Generator().manual_seed(settings.seed + 1 + domain)
    batches = []
    for image in images[domain::settings.experts]:
        for _ in range(_COPIES):
            noise = 8 * torch.randn(image.shape, generator=random)
            copy = (image + noise).clamp(0, 255).byte()
            batches.append(
                dict(inputs=[copy], data_samples=blank_samples(copy[None])))
    return batches


def blank_samples(inputs: Tensor) -> List[SegDataSample]:
    """Data samples of images that are predicted at their own size.

    Args:
        inputs (Tensor): (B, C, H, W).
    """
    size = tuple(inputs.shape[2:])
    return [
        SegDataSample(
            metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size))
        for _ in inputs
    ]
