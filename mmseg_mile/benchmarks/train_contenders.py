# SPDX-License-Identifier: Apache-2.0
"""Ways to train a model on a new task, ours and stock."""
from __future__ import annotations

import copy
from abc import ABCMeta, abstractmethod
from typing import Dict, List, NamedTuple, Optional, Tuple, Type

import torch
from mmcv.cnn import is_norm
from mmcv.cnn.bricks.drop import DropPath
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from peft import get_peft_model
from torch import Tensor, nn

from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg_mile.apis import export_expert
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.structures import Expert, Task
from .benchmark_models import (build_expert_segmentor, build_stock, preprocess,
                               quiet, stock_model_config)
from .domain_images import blank_samples, domain_images
from .drawn_experts import ExpertDrawer
from .later_stages import later_stage_pattern
from .peft_layers import (OUT_PROJ_NOTE, complete_dilation,
                          has_packed_attention, load_adapter, peft_config)
from .settings import Settings

_LEARNING_RATE = 6e-5
_LABEL_CELL = 32  # pixels; labels come in blocks


class Source(NamedTuple):
    """The expert that every contender starts from.

    Args:
        model (ExpertSegmentor): Holds it.
        expert (Expert): Its adapter and head.
        state (dict[str, Tensor]): The same, merged, under stock keys.
    """
    model: ExpertSegmentor
    expert: Expert
    state: Dict[str, Tensor]


def draw_source(config: ConfigDict, settings: Settings) -> Source:
    """An expert of random values over a base of random values."""
    model = build_expert_segmentor(config, settings)
    drawer = ExpertDrawer(model, config, domain_images(settings), settings)
    expert = next(drawer.draw(1))
    with quiet():
        model.import_expert(copy.deepcopy(expert))
        state = export_expert(model, expert.name)['state_dict']
    return Source(model, expert, state)


class TrainContender(metaclass=ABCMeta):
    """A model, its optimizer and one batch.

    Args:
        config (ConfigDict): From ``load_model_config``.
        settings (Settings): Of the benchmark.
    """

    #: Name in tables.
    name = ''
    #: Whether its loss must be that of the merged checkpoint.
    must_equal = True
    #: What a reader of its figures must know.
    note = ''

    def __init__(self, config: ConfigDict, settings: Settings) -> None:
        self.config = config
        self.settings = settings

    @classmethod
    def fits(cls, config: ConfigDict) -> bool:
        """Whether there is such a way to train the model of ``config``."""
        return True

    @abstractmethod
    def build(self, source: Optional[Source]) -> EncoderDecoder:
        """The model; what trains, and nothing else, requires a gradient.

        Args:
            source (Source, optional): Where to start; None is cheaper, for
                time and memory do not depend on values.
        """

    def prepare(self, source: Optional[Source] = None) -> None:
        """Build the model, the optimizer and the batch."""
        with quiet():
            self._model = self.build(source)
        images = domain_images(self.settings)
        self._inputs = preprocess(self._model, images.to(self.settings.device))
        self._samples = _labelled_samples(self._inputs, self.config,
                                          self.settings)
        trainable = [p for p in self._model.parameters() if p.requires_grad]
        self.num_trainable = sum(p.numel() for p in trainable)
        self._optimizer = torch.optim.AdamW(
            trainable, lr=_LEARNING_RATE, weight_decay=0.01)
        self._model.train()

    def step(self) -> None:
        """Forward, backward, and one step of AdamW."""
        with self.settings.autocast():
            losses = self._model.loss(self._inputs, self._samples)
        loss, _ = self._model.parse_losses(losses)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    @torch.no_grad()
    def loss(self) -> float:
        """Loss of the decode head in fp32, in training mode, no dropout."""
        for module in self._model.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout2d, DropPath)):
                module.eval()
        losses = self._model.loss(self._inputs, self._samples)
        self._model.train()
        return float(
            sum(value for key, value in losses.items()
                if key.startswith('decode.') and 'loss' in key))


class FullFineTuning(TrainContender):
    """Plain MMSegmentation, every weight."""

    name = 'stock mmseg, full fine-tuning'

    def build(self, source: Optional[Source]) -> EncoderDecoder:
        """Backbone, decode head and auxiliary heads of the config."""
        model = build_stock(
            stock_model_config(self.config, auxiliary=True), self.settings)
        if source is not None:
            _load_but_auxiliary(model, source.state)
        return model

    def loss(self) -> float:
        """As an expert sees it: norm layers that it does not own are kept."""
        if not self.config.backbone.get('train_norm', False):
            for module in self._model.backbone.modules():
                if is_norm(module):
                    module.eval()
        return super().loss()


class OurExpert(TrainContender):
    """An expert, as the training loop begins it."""

    name = 'ours, all stages'

    def build(self, source: Optional[Source]) -> ExpertSegmentor:
        """A model whose task has begun."""
        model = build_expert_segmentor(
            self.config, self.settings) if source is None else copy.deepcopy(
                source.model)
        classes = int(self.config.decode_head.num_classes)
        names = tuple(f'class {i}' for i in range(classes))
        start = None if source is None else source.expert.name
        task = Task(
            'new', names, ((0, 0, 0), ) * classes, {}, {}, init_from=start)
        model.begin_task(task, [])
        return model


class OurLaterStages(OurExpert):
    """An expert without adapters in the first stage."""

    name = 'ours, stages 2-4'

    def __init__(self, config: ConfigDict, settings: Settings) -> None:
        config = copy.deepcopy(config)
        config.backbone.lora.target_modules = later_stage_pattern(
            config, settings)
        super().__init__(config, settings)


class OurRecomputedExpert(OurExpert):
    """An expert whose blocks are recomputed in backward.

    There is no such row for a backbone without blocks of that kind.
    """

    name = 'ours, recomputed'

    def __init__(self, config: ConfigDict, settings: Settings) -> None:
        config = copy.deepcopy(config)
        config.backbone.with_cp = True
        super().__init__(config, settings)

    @classmethod
    def fits(cls, config: ConfigDict) -> bool:
        """Whether any block of the backbone has the field ``with_cp``."""
        init_default_scope('mmseg')
        with quiet():
            backbone = MODELS.build(copy.deepcopy(config.backbone.backbone))
        return any(
            hasattr(block, 'with_cp') for block in backbone.modules()
            if block is not backbone)


class PeftTraining(TrainContender):
    """Plain MMSegmentation with PEFT's layers in a frozen backbone."""

    name = 'PEFT on stock mmseg'

    def build(self, source: Optional[Source]) -> EncoderDecoder:
        """PEFT freezes the backbone; the heads train."""
        ours = (source.model if source else build_expert_segmentor(
            self.config, self.settings)).backbone
        model = build_stock(
            stock_model_config(self.config, auxiliary=True), self.settings)
        if has_packed_attention(model.backbone):
            self.must_equal, self.note = False, OUT_PROJ_NOTE
        if source is not None:
            _load_but_auxiliary(model, source.state)
            model.backbone.load_state_dict(ours.base_state())
        config = peft_config(model.backbone, ours.targets, ours.lora_config,
                             ours.train_norm)
        model.backbone = get_peft_model(model.backbone, config)
        if complete_dilation(model.backbone):
            self.note = 'raises without the dilation that was set by hand'
        if source is not None:
            load_adapter(model.backbone, source.expert, 'default')
        return model

    def prepare(self, source: Optional[Source] = None) -> None:
        """Norm layers that no adapter owns keep their statistics."""
        super().prepare(source)
        self._keep_statistics()

    def loss(self) -> float:
        """See :meth:`TrainContender.loss`."""
        loss = super().loss()
        self._keep_statistics()
        return loss

    def _keep_statistics(self) -> None:
        for module in self._model.backbone.modules():
            parameters = list(module.parameters(recurse=False))
            if is_norm(module) and not any(p.requires_grad
                                           for p in parameters):
                module.eval()


CONTENDERS: Tuple[Type[TrainContender],
                  ...] = (FullFineTuning, OurExpert, OurLaterStages,
                          OurRecomputedExpert, PeftTraining)


def _load_but_auxiliary(model: EncoderDecoder, state: Dict[str,
                                                           Tensor]) -> None:
    missing, unexpected = model.load_state_dict(state, strict=False)
    lost = [k for k in missing if not k.startswith('auxiliary_head')]
    if lost or unexpected:
        raise RuntimeError(f'the exported expert does not fit stock mmseg: '
                           f'missing {lost}, unexpected {unexpected}')


def _labelled_samples(inputs: Tensor, config: ConfigDict,
                      settings: Settings) -> List[SegDataSample]:
    """Random labels in blocks."""
    random = torch.Generator().manual_seed(settings.seed)
    samples = blank_samples(inputs)
    cells = settings.size // _LABEL_CELL
    for sample in samples:
        labels = torch.randint(
            config.decode_head.num_classes, (1, cells, cells),
            generator=random)
        for axis in (1, 2):
            labels = labels.repeat_interleave(_LABEL_CELL, axis)
        sample.gt_sem_seg = PixelData(data=labels.to(inputs.device))
    return samples
