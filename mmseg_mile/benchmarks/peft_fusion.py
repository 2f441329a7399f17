# SPDX-License-Identifier: Apache-2.0
"""SemLA's way to fuse adapters: PEFT builds one for every image."""
from __future__ import annotations

import dataclasses
from typing import Any, List

from peft import LoraConfig, get_peft_model
from torch import Tensor

from mmseg.models import EncoderDecoder
from mmseg.structures import SegDataSample
from mmseg_mile.adapters.adapter import mix_norm
from mmseg_mile.adapters.adapter_library import TensorSlots
from .contenders import Contender
from .domain_images import blank_samples
from .fusion_contenders import Fusing
from .peft_layers import (OUT_PROJ_NOTE, complete_dilation,
                          has_packed_attention, load_adapter, peft_targets)

_FUSED = 'fused'


class PeftAllFused(Fusing, Contender):
    """``add_weighted_adapter('cat')``, predict, delete, image by image.

    As SemLA (arXiv 2503.21780) does it, on the stock backbone. Retrieval,
    and the means of heads and of norm layers, which PEFT cannot mix, are
    ours.
    """

    name = 'PEFT per image, all experts'
    may_raise = True

    def prepare(self) -> None:
        """Inject and fill one adapter per expert."""
        super().prepare()
        subject = self.subject
        ours = subject.model.backbone
        self._stock: EncoderDecoder = subject.stock()
        self._stock.backbone.load_state_dict(ours.base_state())
        if has_packed_attention(self._stock.backbone):
            self.must_equal, self.note = False, OUT_PROJ_NOTE
        self._norms = TensorSlots(self._stock.backbone)
        # names in a set are compared, a pattern would be tried on each
        config = LoraConfig(
            target_modules=peft_targets(self._stock.backbone, ours.targets),
            **ours.lora_config)
        first, *others = subject.experts
        self._peft: Any = get_peft_model(
            self._stock.backbone, config, adapter_name=first.name)
        for expert in others:
            self._peft.add_adapter(expert.name, config)
        for expert in subject.experts:
            adapter = dataclasses.replace(expert, norm={})
            load_adapter(self._peft, adapter, expert.name)
        if complete_dilation(self._peft):
            self.note = 'dilation of lora_A set by hand'
        self._stock.backbone = self._peft
        self._stock.to(subject.settings.device).eval()

    def predict(self, inputs: Tensor) -> List[SegDataSample]:
        """Each image with an adapter that is made for it."""
        routing = self.subject.model.route(inputs)
        samples = []
        for index in range(len(inputs)):
            image = inputs[index:index + 1]
            samples += self._predict_one(image, routing.mixture(index))
        return samples

    def _predict_one(self, image: Tensor, mixture: Any) -> List[SegDataSample]:
        model = self.subject.model
        self._peft.base_model.add_weighted_adapter(
            list(mixture), list(mixture.values()), _FUSED, 'cat')
        self._peft.base_model.set_adapter(_FUSED)
        complete_dilation(self._peft)
        self._stock.decode_head.load_state_dict(
            model.heads.fused_state(mixture), assign=True)
        adapters = [(w, model.backbone.experts[n]) for n, w in mixture.items()]
        norm = mix_norm(model.backbone.tensors, adapters)
        try:
            with self._norms.holding(norm):
                return self._stock.predict(image, blank_samples(image))
        finally:
            self._peft.base_model.delete_adapter(_FUSED)


class PeftFiveFused(PeftAllFused):
    """The same with SemLA's five nearest."""

    name = 'PEFT per image, 5 nearest'
    top_k = 5
