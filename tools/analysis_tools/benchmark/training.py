# SPDX-License-Identifier: Apache-2.0
"""A training step of an expert against full fine-tuning and PEFT."""
from __future__ import annotations

import copy
import dataclasses
import gc
import json
import re
import sys
from abc import ABCMeta, abstractmethod
from typing import (Any, Callable, Dict, List, NamedTuple, Optional, Sequence,
                    Set, Tuple, Type)

import torch
from mmcv.cnn import is_norm
from mmcv.cnn.bricks.drop import DropPath
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.profiler import ProfilerActivity, profile

from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg_mile.apis.export import export_expert
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.methods.prediction import blank_samples
from mmseg_mile.structures import Expert, Task
from .harness import (Report, Settings, Spread, figures_of, goal_of,
                      interleaved_seconds, model_name, print_figures,
                      range_text, ratios)
from .models import (ExpertDrawer, build_expert_segmentor, build_stock,
                     domain_images, load_model_config, preprocess, quiet,
                     stock_model_config)

_ALLOCATION = '[memory]'


def peak_training_bytes(config: str, contender: str,
                        settings: Settings) -> int:
    """Bytes of all tensors when they are most: one step of training.

    Model, gradients, optimizer state and activations, as torch allocates
    them. On a GPU this is ``torch.cuda.max_memory_allocated``. On a CPU the
    same is counted from torch's own record of allocations; the resident set
    of the process would add what its allocator keeps of freed memory, which
    is another amount in every run.

    Args:
        config (str): File of the config.
        contender (str): Name of a training contender.
        settings (Settings): Of the benchmark.

    Raises:
        RuntimeError: If the process fails; quotes the end of its output.
    """
    task = dict(
        config=config,
        contender=contender,
        settings=dataclasses.asdict(settings))
    return int(figures_of('analysis_tools.benchmark.training', task)['bytes'])


def measure(config: str, contender: str, settings: Settings) -> Dict[str, Any]:
    """In this process; see :func:`peak_training_bytes`."""
    kind = {c.name: c for c in CONTENDERS}[contender]
    with settings.computing():
        trainer = kind(load_model_config(config, settings), settings)
        trainer.prepare()
        # the optimizer makes its state in the first step
        trainer.step()
        if torch.device(settings.device).type != 'cuda':
            return dict(bytes=live_bytes() + peak_growth(trainer.step))
        torch.cuda.reset_peak_memory_stats(settings.device)
        trainer.step()
        return dict(bytes=torch.cuda.max_memory_allocated(settings.device))


def live_bytes() -> int:
    """Bytes of all tensors of this process, views counted once."""
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        # a tensor that stands for another one in a traced graph holds nothing
        if isinstance(item, Tensor) and not isinstance(item, FakeTensor):
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def peak_growth(step: Callable[[], None]) -> int:
    """Largest number of bytes that ``step`` holds beyond its start."""
    with profile(
            activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    assert record.profiler is not None
    events = record.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == _ALLOCATION:
            held += event.nbytes()
            peak = max(peak, held)
    return peak


_PROBE_SIDE = 64


def later_stage_pattern(config: ConfigDict, settings: Settings) -> str:
    """``lora.target_modules`` for stages 2 to 4 of any backbone.

    Args:
        config (ConfigDict): Of an ``ExpertSegmentor``.
        settings (Settings): Seed and device.

    Returns:
        str: A regular expression over full names.

    Raises:
        ValueError: If there is no target, or each lies in the first stage.
    """
    backbone = build_expert_segmentor(config, settings).backbone
    if not backbone.targets:
        raise ValueError('model.backbone.lora is None: there is no adapter '
                         'whose training could be timed, give a config that '
                         'has one')
    names = later_stage_targets(backbone.backbone, backbone.targets)
    if not names:
        raise ValueError('backbone has no adapter behind its first output: '
                         'give it several out_indices to train later stages '
                         'only')
    return '|'.join(re.escape(name) for name in names)


def later_stage_targets(backbone: nn.Module,
                        targets: Sequence[str]) -> List[str]:
    """The targets that the backbone's first output does not depend on.

    Args:
        backbone (nn.Module): With several outputs, the finest first.
        targets (Sequence[str]): Full names of layers with a weight.
    """
    layers: List[Any] = [backbone.get_submodule(t) for t in targets]
    weights = [layer.weight for layer in layers]
    before = [w.requires_grad for w in weights]
    for weight in weights:
        weight.requires_grad_()
    try:
        probe = torch.zeros(
            1, 3, _PROBE_SIDE, _PROBE_SIDE, device=weights[0].device)
        outputs = backbone(probe)
        first = outputs if isinstance(outputs, Tensor) else outputs[0]
        found = torch.autograd.grad(first.sum(), weights, allow_unused=True)
    finally:
        for weight, required in zip(weights, before):
            weight.requires_grad_(required)
    return [name for name, grad in zip(targets, found) if grad is None]


OUT_PROJ_NOTE = 'PEFT adds the update of out_proj twice'
_PACKED = ('q_proj', 'k_proj', 'v_proj')


def peft_targets(backbone: nn.Module, targets: Sequence[str]) -> List[str]:
    """``target_modules`` of PEFT for the same layers.

    Args:
        backbone (nn.Module): Stock; its attentions are
            ``nn.MultiheadAttention``, which PEFT adapts as a whole.
        targets (Sequence[str]): Layers that ours adapts.
    """
    found: Dict[str, None] = {}
    modules = dict(backbone.named_modules())
    for target in targets:
        parent = target.rpartition('.')[0]
        packed = isinstance(modules.get(parent), nn.MultiheadAttention)
        found[parent if packed else target] = None
    return list(found)


def peft_config(backbone: nn.Module, targets: Sequence[str],
                lora: Dict[str, Any], train_norm: bool) -> LoraConfig:
    """PEFT's config for ``targets`` of a stock backbone.

    Args:
        backbone (nn.Module): Stock.
        targets (Sequence[str]): Layers that ours adapts.
        lora (dict): Rank, alpha, dropout.
        train_norm (bool): Whether each adapter owns the norm layers.

    Raises:
        ValueError: If there is no target.
    """
    if not targets:
        raise ValueError('model.backbone.lora is None: PEFT has no adapter to '
                         'compare with, give a config that has one')
    names = peft_targets(backbone, targets)
    norms = [n for n, m in backbone.named_modules() if is_norm(m)]
    pattern = '|'.join(re.escape(name) for name in names)
    return LoraConfig(
        target_modules=f'(?:{pattern})',
        modules_to_save=norms if train_norm else None,
        **lora)


@torch.no_grad()
def load_adapter(model: PeftModel, expert: Expert, name: str) -> None:
    """Copy an expert's values into the adapter ``name`` of a PEFT model.

    The packed projection of an ``nn.MultiheadAttention`` takes the shared
    ``lora_A`` and the stacked ``lora_B`` of query, key and value.
    """
    backbone = model.get_base_model()
    done: Set[str] = set()
    lora, norms = expert.parts['adapter'], expert.parts.get('norm', {})
    for target in sorted({k.rsplit('.lora_', 1)[0] for k in lora}):
        parent, _, leaf = target.rpartition('.')
        down = lora[f'{target}.lora_A.weight']
        up = lora[f'{target}.lora_B.weight']
        layer: Any = None
        if leaf in (*_PACKED, 'out_proj'):
            layer = backbone.get_submodule(parent)
        if not hasattr(layer, 'lora_A'):
            layer = backbone.get_submodule(target)
        elif leaf == 'out_proj':
            layer = layer.get_base_layer().out_proj
        elif parent in done:
            continue
        else:
            done.add(parent)
            up = torch.cat(
                [lora[f'{parent}.{p}.lora_B.weight'] for p in _PACKED])
        layer.lora_A[name].weight.copy_(down)
        layer.lora_B[name].weight.copy_(up)
    for norm in sorted({k.rpartition('.')[0] for k in norms}):
        wrapper: Any = backbone.get_submodule(norm)
        saved = wrapper.modules_to_save[name]
        saved.load_state_dict(
            {k: norms[f'{norm}.{k}']
             for k in saved.state_dict()})


def complete_dilation(model: nn.Module) -> int:
    """Give each ``lora_A`` the dilation of the convolution it adapts.

    Returns:
        int: How many lacked it.
    """
    repaired = 0
    for module in model.modules():
        base = getattr(module, 'base_layer', None)
        if isinstance(base, nn.Conv2d) and isinstance(module, LoraLayer):
            for down in module.lora_A.values():
                repaired += down.dilation != base.dilation
                down.dilation = base.dilation
    return repaired


def has_packed_attention(backbone: nn.Module) -> bool:
    """Whether PEFT would adapt an ``nn.MultiheadAttention``."""
    return any(
        isinstance(m, nn.MultiheadAttention) for m in backbone.modules())


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


TIME_GOALS: Dict[Type[TrainContender], Dict[str, float]] = {
    OurExpert: dict(segformer_b0=0.60, segformer_b2=0.75),
    OurLaterStages: dict(segformer_b0=0.50, segformer_b2=0.65)
}
MEMORY_GOALS: Dict[Type[TrainContender], Dict[str, float]] = {
    OurExpert: dict(segformer_b0=0.60, segformer_b2=0.60)
}
MAX_LOSS_DIFFERENCE = 1e-4
_REFERENCE = FullFineTuning.name
_COLUMNS = dict(
    model='model',
    contender='contender',
    trainable='trained values',
    milliseconds='ms per step',
    ratio_text='time / stock (quartiles)',
    goal='goal',
    mebibytes='peak MiB',
    memory_ratio='memory / stock',
    memory_goal='goal memory',
    loss='loss',
    loss_difference='loss differs',
    note='note')


def benchmark_training(configs: Sequence[str], settings: Settings) -> Report:
    """Forward, backward and AdamW step on one batch.

    The loss of every contender that starts from the same expert is compared
    first, in fp32 and without dropout, with that of the merged checkpoint
    in plain MMSegmentation. Memory is measured in processes of their own,
    see :func:`peak_training_bytes`.

    Args:
        configs (Sequence[str]): Files whose model is an ``ExpertSegmentor``.
        settings (Settings): Of the benchmark.

    Returns:
        Report: Its ``failures`` name every contender of another loss.
    """
    rows: List[Dict[str, Any]] = []
    failures: List[str] = []
    with settings.computing():
        for config in configs:
            rows += measure_training(config, settings, failures)
    return Report(
        'train', f'Training step, batch of {settings.batch}, '
        f'{settings.size} px, {settings.dtype}', settings, _COLUMNS, rows,
        failures)


def measure_training(path: str, settings: Settings,
                     failures: List[str]) -> List[Dict[str, Any]]:
    """Compare, then time, all contenders of one config.

    Args:
        path (str): File of the config.
        settings (Settings): Of the benchmark.
        failures (list[str]): Appended to.

    Returns:
        list[dict]: One row per contender.
    """
    config = load_model_config(path, settings)
    contenders = [
        kind(config, settings) for kind in CONTENDERS if kind.fits(config)
    ]
    losses = {c.name: _losses(c) for c in contenders}
    name = model_name(path)
    for contender in contenders:
        mine, reference = losses[contender.name]
        # written so that NaN fails
        if contender.must_equal and not (abs(mine - reference)
                                         <= MAX_LOSS_DIFFERENCE * reference):
            failures.append(f'{name}, {contender.name}: loss {mine}, the '
                            f'merged checkpoint has {reference}')
            contender.note = f'WRONG LOSS {contender.note}'
    seconds = interleaved_seconds({c.name: c.step
                                   for c in contenders}, settings)
    peaks = {
        c.name: peak_training_bytes(path, c.name, settings)
        for c in contenders
    }
    return [
        dict(
            model=name,
            **_row(c, seconds, peaks),
            goal=goal_of(TIME_GOALS.get(type(c), {}), path),
            memory_goal=goal_of(MEMORY_GOALS.get(type(c), {}), path),
            loss=losses[c.name][0],
            loss_difference=abs(losses[c.name][0] - losses[c.name][1]),
            note=c.note) for c in contenders
    ]


def _losses(contender: TrainContender) -> List[float]:
    """Its loss, and that of the checkpoint with its expert merged in.

    The contender is left ready for its first step.
    """
    config: ConfigDict = contender.config
    source = draw_source(config, contender.settings)
    reference = FullFineTuning(config, contender.settings)
    reference.prepare(source)
    contender.prepare(source)
    return [contender.loss(), reference.loss()]


def _row(contender: TrainContender, seconds: Dict[str, List[float]],
         peaks: Dict[str, int]) -> Dict[str, Any]:
    name = contender.name
    ratio = ratios(seconds, _REFERENCE)[name]
    return dict(
        contender=name,
        trainable=contender.num_trainable,
        milliseconds=round(1e3 * Spread.of(seconds[name]).median, 1),
        ratio=ratio.median,
        ratio_lower=ratio.lower,
        ratio_upper=ratio.upper,
        ratio_text=range_text(ratio),
        seconds=seconds[name],
        mebibytes=round(peaks[name] / 2**20),
        memory_ratio=peaks[name] / peaks[_REFERENCE])


if __name__ == '__main__':
    given = json.loads(sys.argv[1])
    print_figures(
        measure(given['config'], given['contender'],
                Settings(**given['settings'])))
