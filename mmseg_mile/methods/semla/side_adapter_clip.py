# SPDX-License-Identifier: Apache-2.0
"""SAN as a backbone: masks of an image, and what CLIP sees in each."""
from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

import mmseg.models.decode_heads.san_head as san_head
import mmseg.models.utils.point_sample as uncertain_points
import mmseg.utils.mask_classification as mask_classification
from mmseg.models.decode_heads.san_head import (RecWithAttnbias,
                                                SideAdapterNetwork)
from mmseg.registry import MODELS
from mmseg.utils import tokenizer

# Shape legend: B images, Q masks, L tokens, C channels, D text values, h x w
# grid, K classes

# Tokens that CLIP reads.
_CONTEXT = 77
_STOCK_HEAD = 'decode_head.'


@MODELS.register_module()
class SideAdapterCLIP(BaseModule):
    """Everything of SAN (Xu et al., arXiv 2302.12242) but its classes.

    mmseg's ``MultimodalEncoderDecoder`` with ``SideAdapterCLIPHead``, cut
    before the comparison with texts: CLIP's first layers, the side adapter
    network and CLIP's last layers give masks and mask embeddings of no label
    space. CLIP's text encoder comes along and says where the names of classes
    lie, see :meth:`embed_classes`. mmseg's checkpoints of SAN load as they
    are.

    Inside ``LoRAExpertBackbone`` adapters may sit anywhere on the way of an
    image. With ``base_training='first_task'``, of the base itself only the
    side adapter network and the image encoder's position embedding train, as
    in SAN.

    Args:
        image_encoder (dict): Config of CLIP's first layers, a
            ``VisionTransformer`` that outputs class tokens.
        text_encoder (dict): Config of a ``CLIPTextEncoder``, without
            vocabulary.
        san_cfg (dict): Arguments of mmseg's ``SideAdapterNetwork``.
        maskgen_cfg (dict): Arguments of :class:`MaskRecognition`.
        deep_supervision_idxs (Sequence[int]): Layers of the side adapter
            network, counted from 1, that are supervised beside the last.
        encoder_resolution (float, optional): Size of CLIP's image, relative
            to the side adapter's. Defaults to None: the same.
        init_cfg (dict, optional): mmseg's checkpoint of SAN. Defaults to
            None.

    Raises:
        ValueError: If the parts do not fit together.
    """

    def __init__(self,
                 image_encoder: Dict[str, Any],
                 text_encoder: Dict[str, Any],
                 san_cfg: Dict[str, Any],
                 maskgen_cfg: Dict[str, Any],
                 deep_supervision_idxs: Sequence[int] = (),
                 encoder_resolution: Optional[float] = None,
                 init_cfg: Optional[Dict[str, Any]] = None) -> None:
        super().__init__(init_cfg)
        provide_point_sample()
        if san_cfg['num_queries'] != maskgen_cfg['sos_token_num']:
            raise ValueError(
                f'san_cfg.num_queries={san_cfg["num_queries"]} must equal '
                f'maskgen_cfg.sos_token_num={maskgen_cfg["sos_token_num"]}: '
                'one embedding per mask')
        if not image_encoder.get('output_cls_token'):
            raise ValueError('image_encoder.output_cls_token must be True: '
                             "CLIP's last layers start from the class token")
        self.encoder_resolution = encoder_resolution
        self.deep_supervision_idxs = tuple(deep_supervision_idxs)
        self.image_encoder = MODELS.build(image_encoder)
        self.side_adapter_network = SideAdapterNetwork(**ConfigDict(san_cfg))
        self.rec_with_attnbias = MaskRecognition(**maskgen_cfg)
        self.text_encoder = _text_encoder(text_encoder)
        self.register_load_state_dict_pre_hook(_accept_stock_keys)
        self.requires_grad_(True)

    def requires_grad_(self, requires_grad: bool = True) -> 'SideAdapterCLIP':
        """Of CLIP, only the position embedding of images ever trains."""
        super().requires_grad_(False)
        self.side_adapter_network.requires_grad_(requires_grad)
        self.image_encoder.pos_embed.requires_grad_(requires_grad)
        return self

    def forward(self, images: Tensor) -> List[Tensor]:
        """Find masks.

        Args:
            images (Tensor): (B, 3, H, W).

        Returns:
            list[Tensor]: CLIP's embedding of the image, (B, D, 1); then (B,
            Q, h, w) mask logits and (B, D, Q) mask embeddings, in training
            for every supervised layer, the last one last.
        """
        small = images
        if self.encoder_resolution is not None:
            small = F.interpolate(
                images, scale_factor=self.encoder_resolution, mode='bilinear')
        features = self.image_encoder(small)
        masks, biases = self.side_adapter_network(
            images, features, self.deep_supervision_idxs if self.training else
            ())
        outputs: List[Tensor] = []
        for own, bias in zip(masks, biases):
            embeds, whole = self.rec_with_attnbias(bias, features[-1])
            outputs += [own, embeds.mT]
        return [whole[..., None], *outputs]

    @torch.no_grad()
    def embed_classes(self, classes: Sequence[str]) -> Tensor:
        """Where the names of classes lie among mask embeddings.

        Each name is encoded once, in all prompts of the text encoder.

        Args:
            classes (Sequence[str]): K names.

        Returns:
            Tensor: (K + 1, D), scaled by CLIP's temperature; the last row is
            for masks that show none of them.

        Raises:
            ValueError: If a name is empty, named twice or too long.
        """
        self.check_classes(classes)
        encoder = self.text_encoder
        # what is kept must not depend on the precision of one prediction
        with torch.autocast(encoder.bg_embed.device.type, enabled=False):
            new = [name for name in classes if name not in encoder.texts]
            if new:
                encoded = encoder.template_encode(new).cpu()
                encoder.texts.update(zip(new, encoded))
            texts = torch.stack([encoder.texts[name] for name in classes])
            embeds = torch.cat([texts.to(encoder.bg_embed), encoder.bg_embed])
            return encoder.logit_scale.exp() * F.normalize(embeds, dim=-1)

    def check_classes(self, classes: Sequence[str]) -> None:
        """Refuse names that the text encoder could not tell apart.

        Raises:
            ValueError: If there is none, or one is empty, named twice or too
                long.
        """
        if not classes:
            raise ValueError('a vocabulary needs at least one class')
        prompt = max(self.text_encoder.templates, key=len)
        for name in classes:
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f'class names must be texts, got {name!r}')
            if list(classes).count(name) > 1:
                raise ValueError(f'class {name!r} is named twice')
            # mmseg's tokenizer cuts off what is too much
            tokens = tokenizer.tokenize(prompt.format(name), _CONTEXT + 1)
            if tokens[0, _CONTEXT]:
                raise ValueError(
                    f'the class name {name[:40]!r}... is too long for CLIP: '
                    'name it in a few words')


def _text_encoder(config: Dict[str, Any]) -> Any:
    """The encoder, its values drawn where mmseg leaves memory as it was."""
    for key in ('vocabulary', 'dataset_name'):
        if config.get(key) is not None:
            raise ValueError(
                f'text_encoder.{key} does not belong here, got '
                f'{config[key]!r}: classes are those of the tasks')
    if not config.get('cat_bg', True):
        raise ValueError('text_encoder.cat_bg must be True: masks that show '
                         'no class need an embedding')
    encoder: Any = MODELS.build(dict(config, vocabulary=[]))
    nn.init.normal_(encoder.positional_embedding, std=0.01)
    width = encoder.text_projection.shape[0]
    nn.init.normal_(encoder.text_projection, std=width**-0.5)
    # embeddings by name, on the CPU, as long as the weights stay
    encoder.texts = {}
    encoder.register_load_state_dict_post_hook(_forget_texts)
    return encoder


def _forget_texts(encoder: Any, *args: Any) -> None:
    encoder.texts.clear()


def _accept_stock_keys(module: nn.Module, state_dict: Dict[str, Tensor],
                       prefix: str, *args: Any) -> None:
    """Let a checkpoint of mmseg's ``MultimodalEncoderDecoder`` load."""
    stock = prefix + _STOCK_HEAD
    for key in [k for k in state_dict if k.startswith(stock)]:
        state_dict[prefix + key[len(stock):]] = state_dict.pop(key)


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


def point_sample(maps: Tensor,
                 points: Tensor,
                 align_corners: bool = False,
                 **kwargs: Any) -> Tensor:
    """Bilinear values of maps at points.

    Args:
        maps (Tensor): (N, C, H, W).
        points (Tensor): (N, P, 2), x and y from 0 to 1, the image's borders.
        align_corners (bool): See ``grid_sample``. Defaults to False.
        **kwargs: Of ``grid_sample``.

    Returns:
        Tensor: (N, C, P).
    """
    grid = 2 * points[:, :, None] - 1
    sampled = F.grid_sample(maps, grid, align_corners=align_corners, **kwargs)
    return sampled[..., 0]


def provide_point_sample() -> None:
    """Fill the gap in mmseg where mmcv's own function is missing."""
    for module in (san_head, uncertain_points, mask_classification):
        if module.point_sample is None:
            module.point_sample = point_sample
    if san_head.get_uncertain_point_coords_with_randomness is None:
        san_head.get_uncertain_point_coords_with_randomness = (
            uncertain_points.get_uncertain_point_coords_with_randomness)
