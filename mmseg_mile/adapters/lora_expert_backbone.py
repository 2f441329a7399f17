# SPDX-License-Identifier: Apache-2.0
"""Any mmseg backbone, frozen, with named LoRA experts beside it."""
from __future__ import annotations

import contextlib
import copy
from typing import (Any, Dict, Iterator, List, Mapping, Optional, Sequence,
                    Tuple, Union)

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmseg.registry import MODELS
from mmseg_mile.structures import Expert, Routing, check_task_name
from .adapter import Adapter, fused_adapter
from .adapter_library import AdapterLibrary, TensorSlots
from .attention import replace_attention
from .base_weights import (PretrainedCheck, accept_stock_keys, adapter_of,
                           check_base, fingerprint, hold_statistics,
                           load_strictly, take_over)
from .injection import LoRAInjection
from .low_rank_pass import LowRankPass
from .targets import check_lora_config, probe_images, resolve_targets

# What mmseg's backbones step through: a list of modules or names, or a count.
_STEPS = ('layers', 'stages', 'res_layers', 'blocks', 'num_stages')


class EarlyStages:
    """Computes the first outputs of a backbone and stops there.

    mmseg's backbones walk through a list of stages and collect outputs as
    they go. A copy of the backbone with the same modules but a shorter list
    gives the same first outputs; it is accepted if it does so on a probe,
    else every call runs the whole backbone.

    Args:
        backbone (nn.Module): At rest, in eval mode; its modules are shared.
        num_outputs (int): Outputs that are needed.
    """

    def __init__(self, backbone: nn.Module, num_outputs: int) -> None:
        self._num_outputs = num_outputs
        self.network = _shortest(backbone, num_outputs) or backbone

    def __call__(self, x: Tensor) -> List[Tensor]:
        """Outputs of (B, C, H, W) images, the first ``num_outputs``."""
        return list(_outputs(self.network, x)[:self._num_outputs])


def _outputs(network: nn.Module, x: Tensor) -> Sequence[Tensor]:
    outputs: Any = network(x)
    return (outputs, ) if isinstance(outputs, Tensor) else outputs


@torch.no_grad()
def _shortest(backbone: nn.Module, num_outputs: int) -> Any:
    """The shortest cut that gives the same outputs on a probe, or None."""
    probe = probe_images(backbone, 1, side=64)
    wanted = _outputs(backbone, probe)[:num_outputs]
    for network in _cuts(backbone):
        try:
            got = _outputs(network, probe)
        except (IndexError, RuntimeError, ValueError, TypeError):
            continue
        if len(got) >= num_outputs and all(
                torch.equal(a, b) for a, b in zip(got, wanted)):
            return network
    return None


def _cuts(backbone: nn.Module) -> Iterator[nn.Module]:
    """Copies that share all modules and step through fewer of them."""
    for name in _STEPS:
        steps = getattr(backbone, name, None)
        if isinstance(steps, int):
            shorter: Any = range(1, steps)
        elif isinstance(steps, (list, tuple, nn.ModuleList, nn.Sequential)):
            shorter = (steps[:length] for length in range(1, len(steps)))
        else:
            continue
        for cut in shorter:
            network = copy.copy(backbone)
            # the copy of a module still shares its dict of children
            network._modules = dict(backbone._modules)
            setattr(network, name, cut)
            yield network


def checkpoint_blocks(backbone: nn.Module) -> None:
    """Switch on mmseg's ``with_cp`` in every block that has it.

    A block recomputes its activations if its input requires a gradient; so
    the blocks below the lowest adapter, and the first one above, do not.
    Batch norms that train count each batch once, not once more when their
    block is recomputed, as mmseg's own ``with_cp`` has it.

    Args:
        backbone (nn.Module): Changed in place.

    Raises:
        ValueError: If no block can be recomputed.
    """
    # a backbone's own field only hands the value on to new blocks
    blocks: Any = [
        m for m in backbone.modules()
        if m is not backbone and hasattr(m, 'with_cp')
    ]
    if not blocks:
        raise ValueError(
            f'with_cp=True, but no block of {type(backbone).__name__} has a '
            "field 'with_cp', so that nothing would be recomputed: leave "
            'with_cp out, or train with smaller batches.')
    for block in blocks:
        block.with_cp = True
    backbone.register_forward_pre_hook(_count_batches)
    backbone.register_forward_hook(_stop_counting, always_call=True)


def _count_batches(backbone: nn.Module, *args: Any) -> None:
    for norm in _training_norms(backbone):
        norm.track_running_stats = True


def _stop_counting(backbone: nn.Module, *args: Any) -> None:
    """What runs after the forward, in backward, is a recomputation."""
    for norm in _training_norms(backbone):
        norm.track_running_stats = False


def _training_norms(backbone: nn.Module) -> Iterator[Any]:
    for module in backbone.modules():
        if module.training and getattr(module, 'running_mean',
                                       None) is not None:
            yield module


# Pixels per forward on a CPU: features of more than a 512x512 image leave the
# caches, and a batch of them takes longer than its images one by one.
_CPU_PIXELS = 1 << 18
EXECUTORS = ('auto', 'merged', 'low_rank')
Active = Union[Mapping[str, float], Routing]
Group = Tuple[Dict[str, float], List[int]]


class ExpertForward:
    """Runs a backbone at rest with experts, as a whole or its first stages.

    'merged' forwards the images of one mixture of experts at a time, on a CPU
    few of them at once, with ``W + s B A`` in place of ``W``. 'low_rank'
    forwards a whole batch once and adds ``s B A x`` to each image's rows.
    'auto' is 'merged', which measured faster on a CPU for every network: few
    images stay in the caches, and with an expert they cost what they cost
    without (``tools/benchmark.py predict`` times both). So it is where each
    image mixes 20 experts (``tools/benchmark.py fuse``): merging costs a
    layer as much as forwarding R more positions, R being the sum of the
    ranks, and low-rank terms cost R (I + O) / (I O) of all positions.

    Args:
        backbone (nn.Module): The inner backbone.
        experts (AdapterLibrary): The adapters.
        targets (Sequence[str]): Layers that adapters may hold.
        executor (str): 'auto', 'merged' or 'low_rank'.

    Raises:
        ValueError: If the executor is unknown.
    """

    def __init__(self, backbone: nn.Module, experts: AdapterLibrary,
                 targets: Sequence[str], executor: str) -> None:
        self._backbone = backbone
        self._experts = experts
        self._targets = targets
        self.executor = executor
        self._slots: Optional[TensorSlots] = None
        self._low_rank: Optional[LowRankPass] = None
        self._early: Dict[int, EarlyStages] = {}

    @property
    def executor(self) -> str:
        """str: The way in use; may be set between predictions."""
        return self._executor

    @executor.setter
    def executor(self, executor: str) -> None:
        if executor not in EXECUTORS:
            raise ValueError(f'backbone.executor must be one of {EXECUTORS}, '
                             f'got {executor!r}')
        self._executor = executor

    @property
    def tensors(self) -> TensorSlots:
        """TensorSlots: The backbone's parameters and buffers by name."""
        if self._slots is None:
            self._slots = TensorSlots(self._backbone)
        return self._slots

    def passes(self, groups: List[Group], x: Tensor) -> List[List[Group]]:
        """Which images share a forward.

        Args:
            groups (list[Group]): Images by mixture.
            x (Tensor): (B, C, H, W), for its size and device.

        Returns:
            list[list[Group]]: Per forward, its groups.
        """
        if self._executor == 'low_rank' and len(groups) > 1:
            return [groups]
        most = len(x)
        if x.device.type == 'cpu':
            most = max(1, _CPU_PIXELS // (x.shape[2] * x.shape[3]))
        return [[(mixture, indices[start:start + most])]
                for mixture, indices in groups
                for start in range(0, len(indices), most)]

    def __call__(self, x: Tensor, active: Active) -> Any:
        """Forward images with one mixture for all, or one for each."""
        if isinstance(active, Routing):
            return self.routing(x, active)
        return self.mixture(x, active)

    def mixture(self, x: Tensor, mixture: Mapping[str, float]) -> Any:
        """Forward images that all have one mixture; {} is the base."""
        if not mixture:
            return self._backbone(x)
        merged = self._experts.merged(mixture, self.tensors)
        with self.tensors.holding(merged):
            return self._backbone(x)

    def routing(self, x: Tensor, routing: Routing) -> Any:
        """Forward images that have a mixture each."""
        assert len(routing) == len(x)
        groups = routing.groups()
        outputs: List[Any] = []
        order: List[int] = []
        for joint in self.passes(groups, x):
            indices = sum((i for _, i in joint), [])
            images = x if indices == list(range(len(x))) else x[indices]
            outputs.append(
                self.mixture(images, joint[0][0]) if len(joint) ==
                1 else self._jointly(images, joint))
            order += indices
        return _joined(outputs, order)

    def early(self, x: Tensor, num_outputs: int) -> Any:
        """The base's first outputs, without the stages behind them."""
        if num_outputs not in self._early:
            self._early[num_outputs] = EarlyStages(self._backbone, num_outputs)
        return self._early[num_outputs](x)

    def _jointly(self, x: Tensor, groups: List[Group]) -> Any:
        if self._low_rank is None:
            self._low_rank = LowRankPass(self._backbone, self._targets)
        mixtures = [([(weight, self._experts[name])
                      for name, weight in mixture.items()], len(indices))
                    for mixture, indices in groups]
        return self._low_rank(x, mixtures, self.tensors)


def _joined(outputs: List[Any], order: List[int]) -> Any:
    """Outputs of several passes, images back in their order."""
    if len(outputs) == 1 and order == sorted(order):
        return outputs[0]
    back = torch.tensor(order).argsort()
    if isinstance(outputs[0], Tensor):
        return torch.cat(outputs)[back]
    return tuple(torch.cat(level)[back] for level in zip(*outputs))


Target = Union[str, Active]
Start = Union[str, Mapping[str, float], None]
Features = Union[Sequence[Tensor], Tensor]


@MODELS.register_module()
class LoRAExpertBackbone(BaseModule):
    """Frozen base, named experts: ``W + alpha / r * B A`` per adapted layer.

    At rest the inner backbone holds its own modules only. An expert in
    training sits in it as layers; a finished expert is a set of tensors
    that :meth:`using` merges into copies of the weights. The base's own
    tensors are never written to.

    Args:
        backbone (dict): Config of any mmseg backbone.
        lora (dict, optional): ``r``, ``lora_alpha``, and optionally
            ``target_modules`` (PEFT's meaning; default: attention and FFN of
            transformers, all dense convolutions of CNNs), ``lora_dropout``,
            ``use_rslora``. None: no layer is adapted.
        train_norm (bool): Whether an expert owns copies of the norm layers,
            affine parameters and running statistics. Defaults to False:
            norm layers stay as pretrained.
        base_training (str): 'first_task' trains the base in full on the
            first task, then freezes it. Defaults to 'none': as loaded.
        merge_cache_size (int): Merged weight sets kept, least recently used
            dropped first. Defaults to 4.
        executor (str): How images of different experts are run, see
            :class:`ExpertForward`. Defaults to 'auto'.
        with_cp (bool): Recompute blocks in backward. Defaults to False.
        memory_budget_mb (float, optional): MiB of stored adapters and heads
            kept, least recently used dropped first. Defaults to None: all.

    Raises:
        ValueError: If ``lora`` has missing or unknown keys or a target that
            no adapter could train, or another field cannot be met.
    """

    def __init__(self,
                 backbone: Dict[str, Any],
                 lora: Optional[Dict[str, Any]],
                 train_norm: bool = False,
                 base_training: str = 'none',
                 merge_cache_size: int = 4,
                 executor: str = 'auto',
                 with_cp: bool = False,
                 memory_budget_mb: Optional[float] = None,
                 init_cfg: Optional[Dict[str, Any]] = None) -> None:
        super().__init__(init_cfg)
        if base_training not in ('none', 'first_task'):
            raise ValueError("base_training must be 'none' or 'first_task', "
                             f'got {base_training!r}')
        self.lora_config = check_lora_config(lora)
        self.train_norm = train_norm
        self.base_training = base_training
        self.backbone = MODELS.build(backbone)
        replace_attention(self.backbone)
        if with_cp:
            checkpoint_blocks(self.backbone)
        self.backbone.requires_grad_(False)
        self.targets = [] if lora is None else resolve_targets(
            self.backbone, lora.get('target_modules'))
        self.experts = AdapterLibrary(merge_cache_size, memory_budget_mb)
        self.execution = ExpertForward(self.backbone, self.experts,
                                       self.targets, executor)
        self._injection: Optional[LoRAInjection] = None
        self._training_name: Optional[str] = None
        self._base_trains = False
        self._active: Optional[Active] = None
        self._pretrained = PretrainedCheck(self.backbone)
        self.register_load_state_dict_pre_hook(accept_stock_keys)

    def init_weights(self) -> None:
        """Load or draw the base's weights.

        Raises:
            ValueError: If the configured checkpoint leaves weights unset.
        """
        self._pretrained.forget()
        super().init_weights()
        self.backbone.requires_grad_(False)
        self._pretrained.check()

    def add_expert(self, name: str, init_from: Start = None) -> None:
        """Create an expert that equals the base, one, or weights of several.

        Raises:
            ValueError: If the name is taken, or ``init_from`` does not fit.
        """
        if check_task_name(name) in self.experts:
            raise ValueError(f'expert {name!r} exists already; experts: '
                             f'{list(self.experts.names)}')
        if init_from is None:
            injection = self._inject()
            injection.detach()
            self.experts[name] = injection.adapter()
            return
        weights = {init_from: 1.0} if isinstance(init_from, str) else init_from
        self.experts[name] = fused_adapter([(w, self.check_settings(n))
                                            for n, w in weights.items()],
                                           self.execution.tensors,
                                           self.lora_config)

    def load_experts(self, experts: Sequence[Expert]) -> None:
        """Take over adapters; stored ones are read when first used.

        Raises:
            ValueError: If one belongs to another base, or does not fit.
        """
        check_base(experts, self.fingerprint())
        take_over(experts, self.experts, self.adapter_of)

    def adapter_of(self, expert: Expert) -> Adapter:
        """An expert's adapter, read and checked here and now."""
        with self._at_rest():
            return adapter_of(expert, self.execution.tensors,
                              bool(self.targets))

    def check_settings(self, name: str) -> Adapter:
        """The adapter of an expert, if it could be trained further.

        Raises:
            ValueError: If it has other settings than the config.
        """
        adapter = self.experts[name]
        adapter.check_settings(name, self.targets, self.lora_config,
                               self.train_norm)
        return adapter

    def train_expert(self, name: str) -> None:
        """Put an expert into the backbone to be trained.

        Raises:
            ValueError: If the expert is unknown or does not fit ``lora``.
            RuntimeError: If another one is still in training.
        """
        adapter = self.check_settings(name)
        if self._injection is not None:
            raise RuntimeError(f'expert {self._training_name!r} is still in '
                               'training: call finish_training() first')
        self._injection = self._inject()
        self._injection.load(adapter.lora, adapter.norm)
        self._training_name = name

    def train_base(self) -> None:
        """Make every weight of the base trainable."""
        self.backbone.requires_grad_(True)
        self._base_trains = True

    def finish_training(self) -> None:
        """Keep the trained values and give the base its own layers back."""
        self.backbone.requires_grad_(False)
        if self._base_trains:
            self._base_trains = False
            self.experts.copy_norms(self.execution.tensors)
        if self._injection is None:
            return
        assert self._training_name is not None
        self.experts[self._training_name] = self._injection.adapter()
        self._injection.detach()
        self._injection = None
        self._training_name = None
        # the layers that come back missed changes of mode
        self.train(self.training)

    def base_state(self) -> Dict[str, Tensor]:
        """The base's tensors under the stock backbone's keys."""
        with self._at_rest():
            return self.backbone.state_dict()

    def load_base(self, state: Dict[str, Tensor], stored: str) -> None:
        """Take over a stored base.

        Args:
            state (dict[str, Tensor]): Under the stock backbone's keys.
            stored (str): Fingerprint of ``state``.

        Raises:
            ValueError: If a pretrained base was loaded and is another one,
                or if the tensors do not fit.
        """
        if self.is_init and self.base_training == 'none':
            self._pretrained.refuse_other_base(self.fingerprint, stored)
        load_strictly(self.backbone, state)

    def fingerprint(self) -> str:
        """SHA-256 over names, types and bytes of the base's tensors."""
        return fingerprint(self.base_state())

    @contextlib.contextmanager
    def using(self, target: Target) -> Iterator[None]:
        """Run every forward inside the block with the given experts.

        Args:
            target (str | Mapping[str, float] | Routing): An expert, a
                mixture for the whole batch, or a mixture per image.

        Raises:
            ValueError: If an expert is unknown.
        """
        active = {target: 1.0} if isinstance(target, str) else target
        self.experts.require(
            active.expert_names if isinstance(active, Routing) else active)
        with self._activated(active):
            yield

    @contextlib.contextmanager
    def base(self) -> Iterator[None]:
        """Run every forward inside the block with no expert at all."""
        with self._activated({}):
            yield

    def forward(self, x: Tensor) -> Features:
        """Features of (B, C, H, W) images.

        Of the experts of a :meth:`using` block, of the one in training, or
        of the base.
        """
        if self._active is None:
            return self.backbone(x)
        return self.execution(x, self._active)

    def base_features(self, x: Tensor, num_outputs: int) -> Sequence[Tensor]:
        """First outputs of the base alone.

        Later stages are not run where the backbone has a list of stages.

        Args:
            x (Tensor): (B, C, H, W) images.
            num_outputs (int): Outputs that are needed.
        """
        with self.base():
            return self.execution.early(x, num_outputs)

    def passes(self, routing: Routing, x: Tensor) -> List[List[Group]]:
        """See :meth:`ExpertForward.passes`."""
        return self.execution.passes(routing.groups(), x)

    def train(self, mode: bool = True) -> 'LoRAExpertBackbone':
        """Norm layers that no expert owns keep their statistics."""
        super().train(mode)
        if self._injection is not None:
            self._injection.enable_gradients()
        if mode and not self._base_trains:
            owned = self._injection.owned_norms() if self._injection else ()
            hold_statistics(self.backbone, owned)
        return self

    @contextlib.contextmanager
    def _activated(self, target: Active) -> Iterator[None]:
        previous, self._active = self._active, target
        try:
            with self._at_rest():
                yield
        finally:
            self._active = previous

    @contextlib.contextmanager
    def _at_rest(self) -> Iterator[None]:
        """The base's own layers in place, in eval mode; then as before."""
        training, injection = self.training, self._injection
        if injection is not None and not injection.attached:
            injection = None
        if injection is not None:
            injection.detach()
        switched = training or injection is not None
        if switched:
            self.eval()
        try:
            yield
        finally:
            if injection is not None:
                injection.attach()
            if switched:
                self.train(training)

    def _inject(self) -> LoRAInjection:
        return LoRAInjection(self.backbone, self.targets, self.lora_config,
                             self.train_norm)
