# SPDX-License-Identifier: Apache-2.0
"""Experts whose classes are texts: segmentor and heads."""
from __future__ import annotations

import colorsys
import contextlib
from typing import (Any, Callable, Dict, Iterator, List, Mapping, Optional,
                    Sequence, Tuple)

import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn

from mmseg.models.decode_heads import SideAdapterCLIPHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from mmseg.utils import MatchMasks
from mmseg_mile.structures import Routing, Task
from ..continual_segmentor import head_config
from ..mile.expert_heads import ExpertHeads, LabelSpace
from ..mile.expert_segmentor import ExpertSegmentor
from .side_adapter_clip import provide_point_sample

# Shape legend: B images, Q masks, K classes, D text values, h x w grid

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
# Stands for the expert where there is none: its head is the vocabulary's.
_NOBODY = ''
# Of hues, so that colours that follow each other differ.
_GOLDEN = 0.618034


@MODELS.register_module()
class OpenVocabularyExpertSegmentor(ExpertSegmentor):
    """LoRA experts of an open-vocabulary segmentor, one text head for all.

    SemLA's setting (Qorbani et al., CVPR 2025, arXiv 2503.21780): adapters of
    domains are fused in a network that compares masks with the texts of
    class names, so that label sets may differ. The paper adapts CAT-Seg;
    here it is mmseg's SAN, see :class:`SideAdapterCLIP`. An expert is its
    adapter and the embeddings of its classes' names; side adapter network and
    text encoder belong to the base, which SemLA adapts like the image
    encoder; here the text encoder stays as it is, since the experts of a
    mixture must mean the same by a word.

    Every image is labelled in the classes of its task's expert, or, where a
    vocabulary is given, all are labelled in that, by any mixture of experts,
    by the base alone, and before anything is learned.

    Measured with random weights in tests only: the weights of CLIP and SAN
    were not at hand.

    Args:
        vocabulary (Sequence[str], optional): Classes to predict. Defaults to
            None: those of the experts.
        *args, **kwargs: As in :class:`ExpertSegmentor`; the backbone within
            ``LoRAExpertBackbone`` is a :class:`SideAdapterCLIP`, the head an
            :class:`OpenVocabularyHead`.

    Raises:
        ValueError: If backbone and head have no texts, or an argument is out
            of range.
    """

    METHOD = 'MILE, open vocabulary'

    def __init__(self,
                 *args: Any,
                 vocabulary: Optional[Sequence[str]] = None,
                 **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._check_parts()
        self.heads: OpenVocabularyHeads = OpenVocabularyHeads(
            self.backbone.experts.cache,
            lambda count: head_config(self.head_template, count),
            self.texts.embed_classes)
        if vocabulary is not None:
            self.texts.check_classes(vocabulary)
            self.heads.vocabulary = self.heads.label_space(vocabulary)

    @property
    def texts(self) -> Any:
        """SideAdapterCLIP: What knows the meaning of class names."""
        return self.backbone.backbone

    def _check_parts(self) -> None:
        for field, module, method in (('backbone.backbone', self.texts,
                                       'embed_classes'),
                                      ('decode_head', self.decode_head,
                                       'name_classes')):
            if not hasattr(module, method):
                raise ValueError(
                    f'model.{field} has no texts, got '
                    f'{type(module).__name__}: use SideAdapterCLIP in the '
                    'backbone and OpenVocabularyHead as decode_head')
        if self.backbone.train_norm:
            raise ValueError(
                'model.backbone.train_norm must be False: an expert would '
                'own the norm layers of the text encoder, which never train')

    @contextlib.contextmanager
    def using_vocabulary(
            self,
            classes: Sequence[str],
            palette: Optional[Sequence[Sequence[int]]] = None
    ) -> Iterator[None]:
        """Predict every image inside the block in the given classes.

        Args:
            classes (Sequence[str]): Their names.
            palette (Sequence[Sequence[int]], optional): Their colours.
                Defaults to None: those that experts have for a class, new
                ones for others.

        Raises:
            ValueError: If a name is empty, named twice or too long.
        """
        self.texts.check_classes(classes)
        previous = self.heads.vocabulary
        self.heads.vocabulary = self.heads.label_space(classes, palette)
        try:
            yield
        finally:
            self.heads.vocabulary = previous

    def check_stream(self, tasks: Sequence[Task]) -> None:
        """See :meth:`ContinualSegmentor.check_stream`."""
        super().check_stream(tasks)
        for task in tasks:
            try:
                self.texts.check_classes(task.classes)
            except ValueError as error:
                raise ValueError(f'task {task.name!r}: {error}') from error

    def set_decode_head(self, head: nn.Module, classes: Sequence[str],
                        palette: Sequence[Sequence[int]]) -> None:
        """Decode with ``head``, whose classes get their names."""
        named: Any = head
        named.name_classes(self.texts.embed_classes(classes))
        super().set_decode_head(head, classes, palette)

    def route(self,
              inputs: Tensor,
              data_samples: Optional[list] = None) -> Routing:
        """See :meth:`ExpertSegmentor.route`.

        Where a vocabulary is given, the base predicts without any expert.
        """
        if self.expert_names or self.heads.vocabulary is None:
            return super().route(inputs, data_samples)
        nothing = torch.zeros(len(inputs), 0)
        return Routing((), nothing, nothing,
                       torch.zeros(len(inputs), dtype=torch.bool))

    def base_head(self, routing: Routing, index: int) -> str:
        """See :meth:`ExpertSegmentor.base_head`."""
        if not self.expert_names:
            return _NOBODY
        return super().base_head(routing, index)


class OpenVocabularyHeads(ExpertHeads):
    """:class:`ExpertHeads` whose tensors are the embeddings of class names.

    As long as a vocabulary is set, every head, and that of every mixture, is
    that vocabulary's, and all experts can be fused.

    Args:
        cache (ExpertCache): Holds the heads' tensors.
        config (Callable): Number of classes to the config of a head.
        embed (Callable): Class names to their embeddings.
    """

    def __init__(self, cache: Any, config: Callable[[int], Dict[str, Any]],
                 embed: Callable[[Sequence[str]], Tensor]) -> None:
        super().__init__(cache)
        self._config = config
        self._embed = embed
        self.vocabulary: Optional[LabelSpace] = None

    def labels(self, name: str) -> LabelSpace:
        """See :meth:`ExpertHeads.labels`."""
        if self.vocabulary is None:
            return super().labels(name)
        if name != _NOBODY:
            self._key(name)
        return self.vocabulary

    def fusable(self, mixture: Mapping[str, float]) -> Dict[str, float]:
        """See :meth:`ExpertHeads.fusable`."""
        if self.vocabulary is None:
            return super().fusable(mixture)
        total = sum(mixture.values())
        return {name: weight / total for name, weight in mixture.items()}

    def fused(self, mixture: Mapping[str, float],
              device: torch.device) -> nn.Module:
        """See :meth:`ExpertHeads.fused`."""
        if self.vocabulary is None:
            return super().fused(mixture, device)
        classes = self.vocabulary.classes
        state = dict(class_embeds=self._embed(classes))
        return self._holding(self._config(len(classes)), state, device)

    def label_space(
            self,
            classes: Sequence[str],
            palette: Optional[Sequence[Sequence[int]]] = None) -> LabelSpace:
        """A vocabulary, with colours.

        Args:
            classes (Sequence[str]): K names.
            palette (Sequence[Sequence[int]], optional): K colours. Defaults
                to None: those that experts have for a class, new ones for
                others.

        Raises:
            ValueError: If the numbers of names and colours differ.
        """
        if palette is None:
            known: Dict[str, Sequence[int]] = {}
            for name in self.names:
                for label, colour in zip(*super().labels(name)):
                    known.setdefault(label, colour)
            palette = [
                known.get(label) or _colour(index)
                for index, label in enumerate(classes)
            ]
        if len(palette) != len(classes):
            raise ValueError(f'{len(classes)} classes need as many colours, '
                             f'got {len(palette)}: leave the palette out')
        colours = tuple(tuple(int(v) for v in colour) for colour in palette)
        return LabelSpace(tuple(classes), colours)


def _colour(index: int) -> Tuple[int, ...]:
    """A strong colour, of a hue far from that of the one before."""
    hue = (index * _GOLDEN) % 1.0
    return tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.75, 0.9))


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
