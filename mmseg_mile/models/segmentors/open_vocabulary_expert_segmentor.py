# SPDX-License-Identifier: Apache-2.0
"""Experts that speak in any classes, named by texts."""
from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterator, Optional, Sequence

import torch
from torch import Tensor, nn

from mmseg.registry import MODELS
from mmseg_mile.structures import Routing, Task
from .expert_segmentor import ExpertSegmentor
from .open_vocabulary_heads import OpenVocabularyHeads
from .predicted_samples import PredictedSamples
from .routing_info import routing_info
from .task_head import head_config

# What a mixture of no experts is called by; there is no such expert.
_NOBODY = ''


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
        **kwargs: As in :class:`ExpertSegmentor`; the backbone within
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
        network: Any = self.backbone.backbone
        for field, module, method in (('backbone.backbone', network,
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
        self.heads: OpenVocabularyHeads = OpenVocabularyHeads(
            self.backbone.experts.cache, self._head_config,
            network.embed_classes)
        if vocabulary is not None:
            network.check_classes(vocabulary)
            self.heads.vocabulary = self.heads.space_of(vocabulary)

    @contextlib.contextmanager
    def speaking(
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
        network: Any = self.backbone.backbone
        network.check_classes(classes)
        previous = self.heads.vocabulary
        self.heads.vocabulary = self.heads.space_of(classes, palette)
        try:
            yield
        finally:
            self.heads.vocabulary = previous

    def check_stream(self, tasks: Sequence[Task]) -> None:
        """See :meth:`ContinualSegmentor.check_stream`."""
        super().check_stream(tasks)
        network: Any = self.backbone.backbone
        for task in tasks:
            try:
                network.check_classes(task.classes)
            except ValueError as error:
                raise ValueError(f'task {task.name!r}: {error}') from error

    def speak(self, head: nn.Module, classes: Sequence[str],
              palette: Sequence[Sequence[int]]) -> None:
        """Decode with ``head``, in its label space."""
        network: Any = self.backbone.backbone
        name_classes: Any = head.name_classes
        name_classes(network.embed_classes(classes))
        super().speak(head, classes, palette)

    def predict(self,
                inputs: Tensor,
                data_samples: Optional[list] = None) -> list:
        """See :meth:`RoutedSegmentor.predict`; needs no expert if a
        vocabulary is given."""
        labels = self.heads.vocabulary
        if self.expert_names or labels is None:
            return super().predict(inputs, data_samples)
        predicted = PredictedSamples(inputs, data_samples, self.keep_logits)
        count = len(inputs)
        self._decode_base(predicted, inputs, _NOBODY, list(range(count)))
        nobody = inputs.new_zeros(count, 0)
        routing = Routing((), nobody, nobody,
                          torch.zeros(count, dtype=torch.bool))
        for index, sample in enumerate(predicted.samples):
            sample.set_metainfo(routing_info(routing, index, labels))
        return predicted.samples

    def _head_config(self, num_classes: int) -> Dict[str, Any]:
        return head_config(self.head_template, num_classes)
