# SPDX-License-Identifier: Apache-2.0
"""Any mmseg backbone, frozen, with named LoRA experts beside it."""
from __future__ import annotations

import contextlib
from typing import (Any, Dict, Iterator, List, Mapping, Optional, Sequence,
                    Union)

from mmengine.model import BaseModule
from torch import Tensor

from mmseg.registry import MODELS
from mmseg_mile.structures import Routing, check_task_name
from ..lora import (Adapter, AdapterLibrary, LoRAInjection, check_lora_config,
                    fused_adapter, replace_attention, resolve_targets)
from .activation_checkpointing import checkpoint_blocks
from .base_weights import (PretrainedCheck, accept_stock_keys, fingerprint,
                           hold_statistics, load_strictly)
from .expert_forward import Active, ExpertForward, Group
from .stored_adapters import AnyExpert, adapter_of, check_base, take_over

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

    def load_experts(self, experts: Sequence[AnyExpert]) -> None:
        """Take over adapters; stored ones are read when first used.

        Raises:
            ValueError: If one belongs to another base, or does not fit.
        """
        check_base(experts, self.fingerprint())
        take_over(experts, self.experts, self.adapter_of)

    def adapter_of(self, expert: AnyExpert) -> Adapter:
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
