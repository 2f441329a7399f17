# SPDX-License-Identifier: Apache-2.0
"""Any mmseg backbone, frozen, with named LoRA experts beside it."""
from __future__ import annotations

import contextlib
from functools import cached_property, partial
from typing import (Any, ContextManager, Dict, Iterator, List, Mapping,
                    Optional, Sequence, Union)

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmseg.registry import MODELS
from mmseg_mile.structures import Expert, Routing, check_task_name
from .adapter import Adapter, fused_adapter
from .adapter_library import AdapterLibrary, TensorSlots
from .attention import replace_attention
from .base_weights import (accept_stock_keys, adapter_of, check_base,
                           checked_loading, fingerprint, hold_statistics,
                           load_strictly, pretrained_checkpoint)
from .injection import LoRAInjection
from .stages import EarlyStages, checkpoint_blocks
from .targets import check_lora_config, resolve_targets

Mixture = Mapping[str, float]
Features = Union[Sequence[Tensor], Tensor]

# Pixels per forward on a CPU: features of more than a 512x512 image leave the
# caches, and a batch of them takes longer than its images one by one.
_CPU_PIXELS = 1 << 18


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
        self.with_cp = with_cp
        if with_cp:
            checkpoint_blocks(self.backbone)
        self.backbone.requires_grad_(False)
        self.targets = [] if lora is None else resolve_targets(
            self.backbone, lora.get('target_modules'))
        self.experts = AdapterLibrary(merge_cache_size, memory_budget_mb)
        self._active: Union[Mixture, Routing, None] = None
        self._injection: Optional[LoRAInjection] = None
        self._training_name: Optional[str] = None
        # several experts that train beside each other, out of the base
        self._joint: Dict[str, LoRAInjection] = {}
        self.joint_values = nn.ModuleList()
        self._base_trains = False
        self._early: Dict[int, EarlyStages] = {}
        self.register_load_state_dict_pre_hook(accept_stock_keys)

    def init_weights(self) -> None:
        """Load or draw the base's weights.

        Raises:
            ValueError: If the configured checkpoint leaves weights unset, or
                holds more than weights.
        """
        with checked_loading(self.backbone):
            super().init_weights()
        self.backbone.requires_grad_(False)

    @cached_property
    def tensors(self) -> TensorSlots:
        """TensorSlots: The base's parameters and buffers by name."""
        return TensorSlots(self.backbone)

    # -- running ---------------------------------------------------------

    @contextlib.contextmanager
    def using(self, target: Union[str, Mixture, Routing]) -> Iterator[None]:
        """Run every forward inside the block with the given experts.

        Args:
            target (str | Mapping[str, float] | Routing): An expert, a
                mixture for the whole batch, or a mixture per image; {} is
                the base alone.

        Raises:
            ValueError: If an expert is unknown.
        """
        active = {target: 1.0} if isinstance(target, str) else target
        self.experts.require(
            active.expert_names if isinstance(active, Routing) else active)
        previous, self._active = self._active, active
        try:
            with self._at_rest():
                yield
        finally:
            self._active = previous

    def base(self) -> ContextManager[None]:
        """Run every forward inside the block with no expert at all."""
        return self.using({})

    def forward(self, x: Tensor) -> Features:
        """Features of (B, C, H, W) images.

        Of the experts of a :meth:`using` block, of the one in training, or
        of the base.
        """
        if isinstance(self._active, Routing):
            return self._routed(x, self._active)
        return self._mixed(x, self._active or {})

    def _mixed(self, x: Tensor, mixture: Mixture) -> Features:
        """One forward with ``W + sum_i w_i s_i B_i A_i`` in place of W."""
        if not mixture:
            return self.backbone(x)
        merged = self.experts.merged(mixture, self.tensors)
        with self.tensors.holding(merged):
            return self.backbone(x)

    def _routed(self, x: Tensor, routing: Routing) -> Features:
        """Forwards of the images that share a mixture, back in order.

        On a CPU few of them at once, which then stay in its caches: with an
        expert they cost what they cost without.
        """
        assert len(routing) == len(x)
        most = len(x)
        if x.device.type == 'cpu':
            most = max(1, _CPU_PIXELS // x.shape[2:].numel())
        outputs: List[Any] = []
        order: List[int] = []
        for mixture, indices in routing.groups():
            for start in range(0, len(indices), most):
                part = indices[start:start + most]
                order += part
                images = x if len(part) == len(x) else x[part]
                outputs.append(self._mixed(images, mixture))
        if len(outputs) == 1:
            return outputs[0]
        back = torch.tensor(order).argsort()
        if isinstance(outputs[0], Tensor):
            return torch.cat(outputs)[back]
        return tuple(torch.cat(level)[back] for level in zip(*outputs))

    def base_features(self, x: Tensor, num_outputs: int) -> Sequence[Tensor]:
        """First outputs of the base alone; later stages are not run.

        Args:
            x (Tensor): (B, C, H, W) images.
            num_outputs (int): Outputs that are needed.
        """
        with self.base():
            if num_outputs not in self._early:
                self._early[num_outputs] = EarlyStages(self.backbone,
                                                       num_outputs)
            return self._early[num_outputs](x)

    @contextlib.contextmanager
    def _at_rest(self) -> Iterator[None]:
        """The base's own layers in place, in eval mode; then as before."""
        training, injection = self.training, self._injection
        if injection is not None and not injection.attached:
            injection = None
        if not training and injection is None:
            yield
            return
        if injection is not None:
            injection.detach()
        self.eval()
        try:
            yield
        finally:
            if injection is not None:
                injection.attach()
            self.train(training)

    # -- experts and their training --------------------------------------

    def add_expert(self,
                   name: str,
                   init_from: Union[str, Mixture, None] = None) -> None:
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
                                           self.tensors, self.lora_config)

    def load_experts(self, experts: Sequence[Expert]) -> None:
        """Take over adapters; stored ones are read when first used.

        Raises:
            ValueError: If one belongs to another base, or does not fit.
        """
        check_base(experts, self.fingerprint())
        for expert in experts:
            name = check_task_name(expert.name)
            if expert.is_stored:
                self.experts.defer(name, partial(self.adapter_of, expert))
            else:
                self.experts[name] = self.adapter_of(expert)

    def adapter_of(self, expert: Expert) -> Adapter:
        """An expert's adapter, read and checked here and now."""
        with self._at_rest():
            return adapter_of(expert, self.tensors, bool(self.targets))

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
        self._injection.load(adapter)
        self._training_name = name

    def train_experts(self, names: Sequence[str]) -> None:
        """Let several experts train in every step, each on its own rows.

        The base rests between forwards: :meth:`training_with` puts one of
        them in.

        Raises:
            ValueError: If an expert is unknown or does not fit ``lora``, or
                blocks are recomputed, which would happen in backward, when
                another expert or none is in place.
            RuntimeError: If others are still in training.
        """
        if self.with_cp:
            raise ValueError(
                'model.backbone.with_cp=True recomputes a block when its '
                'expert is out of place: leave it out to train several '
                'experts together')
        if self._injection is not None or self._joint:
            raise RuntimeError('experts are still in training: call '
                               'finish_training() first')
        for name in names:
            adapter = self.check_settings(name)
            injection = self._inject()
            injection.load(adapter)
            injection.detach()
            injection.enable_gradients()
            self._joint[name] = injection
            self.joint_values.append(injection.values())
        self.train(self.training)

    def training_with(self, name: str) -> ContextManager[None]:
        """Train through one of the experts inside the block."""
        return self._joint[name].in_place(self.training)

    def train_base(self) -> None:
        """Make every weight of the base trainable."""
        self.backbone.requires_grad_(True)
        self._base_trains = True

    def finish_training(self) -> None:
        """Keep the trained values and give the base its own layers back."""
        self.backbone.requires_grad_(False)
        if self._base_trains:
            self._base_trains = False
            self.experts.copy_norms(self.tensors)
        for name, injection in self._joint.items():
            self.experts[name] = injection.adapter()
        self._joint.clear()
        self.joint_values = nn.ModuleList()
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
        checkpoint = pretrained_checkpoint(self.backbone)
        if self.is_init and checkpoint and self.base_training == 'none':
            mine = self.fingerprint()
            if mine != stored:
                raise ValueError(
                    f'the library belongs to the base {stored[:16]}, '
                    f'backbone.init_cfg loaded {mine[:16]} from '
                    f'{checkpoint!r}: give the checkpoint that the library '
                    'was made with.')
        load_strictly(self.backbone, state)

    def fingerprint(self) -> str:
        """SHA-256 over names, types and bytes of the base's tensors."""
        return fingerprint(self.base_state())

    def train(self, mode: bool = True) -> 'LoRAExpertBackbone':
        """Norm layers that no expert owns keep their statistics."""
        super().train(mode)
        if self._injection is not None:
            self._injection.enable_gradients()
        for injection in self._joint.values():
            injection.enable_gradients()
        if mode and not self._base_trains:
            owned = self._injection.owned_norms() if self._injection else ()
            hold_statistics(self.backbone, owned)
        return self

    def _inject(self) -> LoRAInjection:
        return LoRAInjection(self.backbone, self.targets, self.lora_config,
                             self.train_norm)
