# SPDX-License-Identifier: Apache-2.0
"""A head whose classes are texts."""
from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from mmengine.config import ConfigDict
from torch import Tensor

from mmseg.models.decode_heads import SideAdapterCLIPHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from mmseg.utils import MatchMasks
from .point_sampling import provide_point_sample

# SAN's, from mmseg's config.
_MATCHING = dict(
    num_points=12544,
    oversample_ratio=3.0,
    importance_sample_ratio=0.75,
    assigner=dict(
        type='HungarianAssigner',
        match_costs=[
            dict(type='ClassificationCost', weight=2.0),
            dict(type='CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
            dict(type='DiceCost', weight=5.0, pred_act=True, eps=1.0)
        ]))
_LOSSES = (dict(
    type='CrossEntropyLoss', loss_name='loss_cls_ce', loss_weight=2.0),
           dict(
               type='CrossEntropyLoss',
               use_sigmoid=True,
               loss_name='loss_mask_ce',
               loss_weight=5.0),
           dict(
               type='DiceLoss',
               ignore_index=None,
               naive_dice=True,
               eps=1,
               loss_name='loss_mask_dice',
               loss_weight=5.0))
# Shape legend: B images, Q masks, K classes, D text values, h x w grid


@MODELS.register_module()
class OpenVocabularyHead(SideAdapterCLIPHead):
    """Names the masks of :class:`SideAdapterCLIP` by their nearest texts.

    The last step of mmseg's ``SideAdapterCLIPHead`` (SAN, arXiv 2302.12242):
    ``sum_q softmax(e_q T)_k sigmoid(m_q)`` with mask embeddings ``e``, masks
    ``m`` and texts ``T``. It has no weights: all that it holds are the
    embeddings of its classes' names, which stand in ``class_embeds``. They
    are NaN until :meth:`name_classes`, so that no head predicts unnamed.

    Args:
        in_channels (int): D.
        num_classes (int): K.
        no_object_weight (float): Weight, in the classification loss, of
            masks that show nothing. Defaults to 0.1.
        matching (dict, optional): mmseg's ``train_cfg`` of the head: how
            masks find their ground truth. Defaults to None: SAN's.
        loss_decode (Sequence[dict], optional): Defaults to None: SAN's.
        **kwargs: As in mmseg's ``BaseDecodeHead``.
    """

    def __init__(self,
                 in_channels: int,
                 num_classes: int,
                 no_object_weight: float = 0.1,
                 matching: Optional[Dict[str, Any]] = None,
                 loss_decode: Optional[Sequence[Dict[str, Any]]] = None,
                 **kwargs: Any) -> None:
        provide_point_sample()
        losses = [
            _with_no_object(loss, num_classes, no_object_weight)
            for loss in loss_decode or _LOSSES
        ]
        # not the parent's, which builds the networks before this step
        BaseDecodeHead.__init__(
            self,
            in_channels=in_channels,
            channels=in_channels,
            num_classes=num_classes,
            loss_decode=losses,
            **kwargs)
        del self.conv_seg
        self.train_cfg = ConfigDict(matching or _MATCHING)
        self.match_masks = MatchMasks(
            num_points=self.train_cfg.num_points,
            num_queries=1,
            num_classes=num_classes,
            assigner=self.train_cfg.assigner)
        self.deep_supervision_idxs: Sequence[int] = ()
        self.class_embeds: Tensor
        self.register_buffer(
            'class_embeds',
            torch.full((num_classes + 1, in_channels), float('nan')))

    def init_weights(self) -> None:
        """There are none."""

    def name_classes(self, embeds: Tensor) -> None:
        """Say what the classes are.

        Args:
            embeds (Tensor): (K + 1, D), see
                :meth:`SideAdapterCLIP.embed_classes`.
        """
        self.class_embeds.copy_(embeds)

    def forward(
        self,
        inputs: Sequence[Tensor],
        deep_supervision_idxs: Sequence[int] = ()
    ) -> Tuple[List[Tensor], List[Tensor]]:
        """Scores of masks.

        Args:
            inputs (Sequence[Tensor]): What :class:`SideAdapterCLIP` gives.
            deep_supervision_idxs (Sequence[int]): Not looked at: the inputs
                say how many layers are supervised.

        Returns:
            tuple[list[Tensor], list[Tensor]]: Per supervised layer (B, Q, h,
            w) mask logits and (B, Q, K + 1) class logits.
        """
        scores = [
            torch.einsum('bdq,kd->bqk', embeds, self.class_embeds)
            for embeds in inputs[2::2]
        ]
        return list(inputs[1::2]), scores

    def loss(self, inputs: Sequence[Tensor], batch_data_samples: List[Any],
             train_cfg: Any) -> Dict[str, Tensor]:
        """SAN's losses; arguments as in mmseg's heads.

        Where values are no numbers any more, nothing can be matched: the loss
        is no number either, for the training loop to see.
        """
        masks = inputs[1::2]
        values = (*inputs[1:], self.class_embeds)
        total = torch.stack([x.sum() for x in values]).sum()
        if not total.isfinite():
            return dict(loss_cls_ce=total)
        self.match_masks.num_queries = masks[-1].shape[1]
        self.deep_supervision_idxs = range(len(masks) - 1)
        return super().loss(inputs, batch_data_samples, train_cfg)


def _with_no_object(loss: Dict[str, Any], num_classes: int,
                    weight: float) -> Dict[str, Any]:
    """The classification loss knows one class more."""
    loss = dict(loss)
    if 'loss_cls' in loss.get('loss_name', ''):
        own = loss.get('class_weight') or [1.0] * num_classes
        loss['class_weight'] = [*own, weight]
    return loss
