# SPDX-License-Identifier: Apache-2.0
"""CLIP's last layers, asked about each mask of an image."""
from __future__ import annotations

from typing import Any, List, Sequence, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmseg.models.decode_heads.san_head import RecWithAttnbias

# Shape legend: B images, Q masks, L tokens, C channels, D projected


class MaskRecognition(RecWithAttnbias):
    """mmseg's ``RecWithAttnbias``, images first, and the image's embedding.

    Same weights and numbers. mmseg puts tokens before images, where no rows
    of a layer belong to one image, which experts per image need. Besides the
    masks' embeddings it returns that of the image, which CLIP's class token
    yields on the way, since it does not attend to the masks.

    Args:
        **kwargs: As in ``RecWithAttnbias``.

    Raises:
        ValueError: If an option is chosen whose attention is no layer that
            adapters could wrap.
    """

    def __init__(self, **kwargs: Any) -> None:
        allowed = dict(sos_token_format='cls_token', cross_attn=False)
        for key, value in allowed.items():
            if kwargs.get(key, value) != value:
                raise ValueError(f'maskgen_cfg.{key} must be {value!r}, got '
                                 f'{kwargs[key]!r}')
        super().__init__(**kwargs)
        for layer in self.layers:
            layer.attentions[0].batch_first = True

    def init_weights(self) -> None:
        """As torch draws them; the parent wants a checkpoint."""

    def forward(self, bias: List[Tensor],
                feature: Sequence[Tensor]) -> Tuple[Tensor, Tensor]:
        """Embed masks and the image.

        Args:
            bias (list[Tensor]): (B, 1 or heads, Q, h', w') attention of the
                masks, for all layers or one for each.
            feature (Sequence[Tensor]): (B, C, h, w) and the class token
                (B, C).

        Returns:
            tuple[Tensor, Tensor]: (B, Q, D) and (B, D), which is not
            normalised.
        """
        image, token = feature
        size = tuple(image.shape[2:])
        masks = token[:, None].expand(-1, self.sos_token_num, -1)
        x = torch.cat([masks, token[:, None], image.flatten(2).mT], dim=1)
        biases = self._build_attn_biases(bias, target_shape=size)
        for layer, own in zip(self.layers, biases):
            x = layer(x, attn_masks=[own])
        x = self.proj(self.ln_post(x[:, :self.sos_token_num + 1]))
        embeds, whole = x[:, :-1], x[:, -1]
        if self.final_norm:
            embeds = F.normalize(embeds, dim=-1)
        return embeds, whole
