# SPDX-License-Identifier: Apache-2.0
"""PEFT on plain MMSegmentation, used as its documentation says."""
from __future__ import annotations

import copy
from typing import Any, List, Sequence

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from mmseg.models import EncoderDecoder
from mmseg.registry import TASK_UTILS
from mmseg.structures import SegDataSample
from mmseg_mile.structures import Routing
from .benchmark_models import preprocess
from .contenders import Contender, Subject
from .domain_images import blank_samples, training_images
from .drawn_experts import check_mixing
from .peft_layers import (OUT_PROJ_NOTE, complete_dilation,
                          has_packed_attention, load_adapter, peft_config)
from .report import raised


class _PeftContender(Contender):
    """The stock model with one PEFT adapter per expert in its backbone."""

    may_raise = True

    def prepare(self) -> None:
        """Inject and fill the adapters; fit a gate at full resolution."""
        subject = self.subject
        model = subject.model
        self._stock: EncoderDecoder = subject.stock()
        self._stock.backbone.load_state_dict(model.backbone.base_state())
        if has_packed_attention(self._stock.backbone):
            self.note = OUT_PROJ_NOTE
        else:
            self.must_equal = True
        config = peft_config(self._stock.backbone, model.backbone.targets,
                             model.backbone.lora_config,
                             model.backbone.train_norm)
        first = subject.experts[0].name
        self._peft = get_peft_model(
            self._stock.backbone, config, adapter_name=first)
        for expert in subject.experts:
            if expert.name != first:
                self._peft.add_adapter(expert.name, config)
            load_adapter(self._peft, expert, expert.name)
        self._peft.to(subject.settings.device)
        self._stock.backbone = self._peft
        self._stock.eval()
        self._repair_dilation()
        self._heads = {
            e.name: {
                k: v.to(subject.settings.device)
                for k, v in e.parts['head'].items()
            }
            for e in subject.experts
        }
        self._fit_gate(subject)
        with torch.no_grad():
            check_mixing(self.route(subject.inputs), len(subject.experts))

    def route(self, inputs: Tensor) -> Routing:
        """The extra pass: no adapters, full resolution, then the gate."""
        return self._gate.route(self._embed(inputs), [None] * len(inputs))

    def load_head(self, expert: str) -> None:
        """Decode with an expert's head; nothing is copied."""
        self._stock.decode_head.load_state_dict(
            self._heads[expert], assign=True)

    def _repair_dilation(self) -> None:
        """PEFT's layer of a dilated convolution has no dilation."""
        try:
            with torch.no_grad():
                self._peft(self.subject.inputs[:1])
        except RuntimeError as error:
            if not complete_dilation(self._peft):
                raise
            self.note = f'as documented it {raised(error)}; timed with ' \
                'the dilation of lora_A set by hand'

    def _embed(self, inputs: Tensor) -> Tensor:
        """(B, D), what our embedder computes, from a whole pass."""
        with self._peft.disable_adapter():
            outputs = self._peft(inputs)
        chosen = self.subject.config.embedder.get('stages')
        kept = outputs if chosen is None else [outputs[i] for i in chosen]
        maps = [x.float().flatten(2) for x in kept]
        return torch.cat(
            [v for x in maps for v in (x.mean(2), x.std(2, unbiased=False))],
            1)

    @torch.no_grad()
    def _fit_gate(self, subject: Subject) -> None:
        self._gate = TASK_UTILS.build(copy.deepcopy(subject.config.gate))
        for index, expert in enumerate(subject.experts):
            batches = training_images(subject.images, index, subject.settings)
            self._gate.fit(
                expert.name,
                torch.cat([
                    self._embed(
                        preprocess(subject.model, torch.stack(b['inputs'])))
                    for b in batches
                ]))


class PeftTwoPasses(_PeftContender):
    """Embed without adapters, then ``set_adapter`` for each group."""

    name = 'PEFT, two passes'

    def predict(self, inputs: Tensor) -> List[SegDataSample]:
        """Each group of images with its adapter and head."""
        outputs: List[Any] = [None] * len(inputs)
        for mixture, indices in self.route(inputs).groups():
            expert = max(mixture, key=lambda n: mixture[n])
            self._peft.set_adapter(expert)
            self.load_head(expert)
            group = inputs[indices]
            for index, sample in zip(
                    indices, self._stock.predict(group, blank_samples(group))):
                outputs[index] = sample
        return outputs


class PeftMixedBatch(_PeftContender):
    """Embed without adapters, then one pass with ``adapter_names``."""

    name = 'PEFT, mixed batch'

    def prepare(self) -> None:
        """As two passes, with a backbone and a head that hear names."""
        super().prepare()
        self._backbone = _NamedBackbone(self._peft)
        self._stock.backbone = self._backbone
        self._decoder = _GroupedHead(self)
        self._plain_head = self._stock.decode_head

    def predict(self, inputs: Tensor) -> List[SegDataSample]:
        """All images at once, heads group by group."""
        routing = self.route(inputs)
        self._backbone.names = [
            routing.top_expert(i) for i in range(len(routing))
        ]
        self._decoder.routing = routing
        self._stock.decode_head = self._decoder
        try:
            return self._stock.predict(inputs, blank_samples(inputs))
        finally:
            self._stock.decode_head = self._plain_head

    def decode(self, expert: str, features: List[Tensor], metas: List[dict],
               test_cfg: Any) -> Tensor:
        """Logits of one group of images."""
        self._plain_head.load_state_dict(self._heads[expert], assign=True)
        return self._plain_head.predict(features, metas, test_cfg)


class _NamedBackbone(nn.Module):
    """Hands the adapter of each image to PEFT."""

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.model = model
        self.names: List[str] = []

    def forward(self, x: Tensor) -> Any:
        return self.model(x, adapter_names=self.names)


class _GroupedHead(nn.Module):
    """Decodes each group of images with its expert's head."""

    def __init__(self, contender: PeftMixedBatch) -> None:
        super().__init__()
        self.contender = contender
        self.routing: Any = None

    def predict(self, features: Sequence[Tensor], metas: List[dict],
                test_cfg: Any) -> Tensor:
        """As mmseg's heads: (B, classes, H, W) logits."""
        logits: List[Any] = [None] * len(features[0])
        for mixture, indices in self.routing.groups():
            expert = max(mixture, key=lambda n: mixture[n])
            group = self.contender.decode(
                expert, [level[indices] for level in features],
                [metas[i] for i in indices], test_cfg)
            for index, image in zip(indices, group):
                logits[index] = image
        return torch.stack(logits)
