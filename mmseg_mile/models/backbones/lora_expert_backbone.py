# SPDX-License-Identifier: Apache-2.0
"""Any mmseg backbone, frozen, with named LoRA experts beside it."""
from __future__ import annotations

import contextlib
import hashlib
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Union

import torch
from mmcv.cnn import is_norm
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.func import functional_call

from mmseg.registry import MODELS
from mmseg_mile.structures import Expert, Routing, check_task_name
from ..lora import (Adapter, AdapterLibrary, LoRAInjection, check_lora_config,
                    lora_scaling, replace_attention, resolve_targets)

Target = Union[str, Mapping[str, float], Routing]
Features = Sequence[Tensor]


@MODELS.register_module()
class LoRAExpertBackbone(BaseModule):
    """Frozen base, named experts: ``W + alpha / r * B A`` per adapted layer.

    At rest the inner backbone holds its own modules only. An expert in
    training sits in it as PEFT layers; a finished expert is a set of tensors
    that :meth:`using` merges into copies of the weights. The base's own
    tensors are never written to.

    Args:
        backbone (dict): Config of any mmseg backbone.
        lora (dict): ``r``, ``lora_alpha``, and optionally ``target_modules``
            (PEFT's meaning; default: attention and FFN of transformers, all
            dense convolutions of CNNs), ``lora_dropout``, ``use_rslora``.
        train_norm (bool): Whether an expert owns copies of the norm layers,
            affine parameters and running statistics. Defaults to False:
            norm layers stay as pretrained.
        base_training (str): 'none' uses the base as loaded; 'first_task'
            trains it in full on the first task, then freezes it. Defaults
            to 'none'.
        merge_cache_size (int): Merged weight sets kept, least recently used
            dropped first. Defaults to 4.

    Raises:
        ValueError: If ``lora`` has missing or unknown keys or a target that
            no adapter could train, or ``base_training`` is unknown.
    """

    def __init__(self,
                 backbone: Dict[str, Any],
                 lora: Dict[str, Any],
                 train_norm: bool = False,
                 base_training: str = 'none',
                 merge_cache_size: int = 4,
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
        self.backbone.requires_grad_(False)
        self.targets = resolve_targets(self.backbone,
                                       lora.get('target_modules'))
        self.experts = AdapterLibrary(merge_cache_size)
        self._injection: Optional[LoRAInjection] = None
        self._training_name: Optional[str] = None
        self._base_trains = False
        self._active: Optional[Target] = None
        self._loaded_missing: List[str] = []
        self.register_load_state_dict_pre_hook(_accept_stock_keys)
        self.backbone.register_load_state_dict_post_hook(self._note_missing)

    def init_weights(self) -> None:
        """Load or draw the base's weights.

        Raises:
            ValueError: If a pretrained checkpoint was configured and leaves
                weights of the backbone unset.
        """
        self._loaded_missing = []
        super().init_weights()
        self.backbone.requires_grad_(False)
        pretrained = (self.backbone.init_cfg or {})
        if isinstance(pretrained, dict) and self._loaded_missing and (
                pretrained.get('type') == 'Pretrained'):
            raise ValueError(
                f'backbone.init_cfg.checkpoint {pretrained["checkpoint"]!r} '
                f'does not fit {type(self.backbone).__name__}: it lacks '
                f'{len(self._loaded_missing)} weights, for example '
                f'{self._loaded_missing[:3]}. Give the checkpoint of this '
                'backbone, with its bare keys or a `prefix`.')

    # -- experts ---------------------------------------------------------

    def add_expert(self, name: str, init_from: Optional[str] = None) -> None:
        """Create an expert that equals the base, or a copy of another.

        Raises:
            ValueError: If the name is taken, or ``init_from`` unknown.
        """
        if check_task_name(name) in self.experts:
            raise ValueError(f'expert {name!r} exists already; experts: '
                             f'{list(self.experts.names)}')
        if init_from is not None:
            source = self.experts[init_from]
            self.experts[name] = Adapter(
                {k: v.clone() for k, v in source.lora.items()},
                {k: v.clone() for k, v in source.norm.items()},
                source.scaling)
            return
        injection = self._inject()
        injection.detach()
        self.experts[name] = Adapter(injection.lora_state(),
                                     injection.norm_state(),
                                     lora_scaling(self.lora_config))

    def load_expert(self, expert: Expert) -> None:
        """Take over the adapter of a stored expert.

        Raises:
            ValueError: If it belongs to another base, or does not fit this
                backbone's layers.
        """
        mine = self.fingerprint()
        if expert.base_fingerprint != mine:
            raise ValueError(
                f'expert {expert.name!r} was trained on the base '
                f'{expert.base_fingerprint[:16]}, this backbone is '
                f'{mine[:16]}: load the base it was trained on, or train '
                'the expert again.')
        device = next(self.backbone.parameters()).device
        self.experts[expert.name] = Adapter(
            {k: v.to(device) for k, v in expert.lora.items()},
            {k: v.to(device) for k, v in expert.norm.items()},
            lora_scaling(expert.lora_config))

    def train_expert(self, name: str) -> None:
        """Put an expert into the backbone to be trained.

        Raises:
            ValueError: If the expert is unknown.
            RuntimeError: If another one is still in training.
        """
        adapter = self.experts[name]
        if self._injection is not None:
            raise RuntimeError(f'expert {self._training_name!r} is still in '
                               'training: call finish_training() first')
        self._injection = self._inject()
        self._injection.load(adapter.lora, adapter.norm)
        self._training_name = name

    def train_base(self) -> None:
        """Make every weight of the base trainable (first task only)."""
        self.backbone.requires_grad_(True)
        self._base_trains = True

    def finish_training(self) -> None:
        """Keep the trained values and give the base its own layers back."""
        self.backbone.requires_grad_(False)
        self._base_trains = False
        if self._injection is None:
            return
        assert self._training_name is not None
        self.experts[self._training_name] = Adapter(
            self._injection.lora_state(), self._injection.norm_state(),
            lora_scaling(self.lora_config))
        self._injection.detach()
        self._injection = None
        self._training_name = None

    def base_state(self) -> Dict[str, Tensor]:
        """The base's tensors under the stock backbone's keys."""
        with self._at_rest():
            return self.backbone.state_dict()

    def load_base(self, state: Dict[str, Tensor], fingerprint: str) -> None:
        """Take over a stored base.

        Raises:
            ValueError: If a pretrained base was loaded and is another one,
                or if the tensors do not fit.
        """
        pretrained = (self.backbone.init_cfg or {})
        mine = self.fingerprint()
        if mine == fingerprint:
            return
        if self.is_init and self.base_training == 'none' and isinstance(
                pretrained, dict) and pretrained.get('type') == 'Pretrained':
            raise ValueError(
                f'the library belongs to the base {fingerprint[:16]}, '
                f'backbone.init_cfg loaded {mine[:16]} from '
                f'{pretrained["checkpoint"]!r}: give the checkpoint that '
                'the library was made with.')
        try:
            self.backbone.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise ValueError('the base of the library does not fit '
                             f'{type(self.backbone).__name__}: {error}'
                             ) from error

    def fingerprint(self) -> str:
        """SHA-256 over names, types and bytes of the base's tensors."""
        digest = hashlib.sha256()
        with self._at_rest():
            for name, value in sorted(self.backbone.state_dict().items()):
                digest.update(f'{name} {value.dtype} {list(value.shape)}\n'.
                              encode())
                array = value.detach().cpu().contiguous()
                digest.update(array.view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    # -- forward ---------------------------------------------------------

    @contextlib.contextmanager
    def using(self, target: Target) -> Iterator[None]:
        """Run every forward inside the block with the given experts.

        Args:
            target (str | Mapping[str, float] | Routing): One expert, a
                mixture of experts for the whole batch, or a mixture per
                image of the batch.

        Raises:
            ValueError: If an expert is unknown.
        """
        names = (target, ) if isinstance(target, str) else (
            target.expert_names if isinstance(target, Routing) else target)
        for name in names:
            self.experts[name]
        with self._activated(target):
            yield

    @contextlib.contextmanager
    def base(self) -> Iterator[None]:
        """Run every forward inside the block with no expert at all."""
        with self._activated({}):
            yield

    def forward(self, x: Tensor) -> Features:
        """Features of the inner backbone.

        Args:
            x (Tensor): (B, C, H, W) images.

        Returns:
            Sequence[Tensor]: What the inner backbone returns, with the
            experts of the enclosing :meth:`using` block; outside of one,
            with the expert in training, or the base.
        """
        if self._active is None:
            return self.backbone(x)
        if isinstance(self._active, str):
            return self._forward_mixture(x, {self._active: 1.0})
        if isinstance(self._active, Routing):
            return self._forward_routing(x, self._active)
        return self._forward_mixture(x, self._active)

    def train(self, mode: bool = True) -> 'LoRAExpertBackbone':
        """Norm layers that no expert owns keep their statistics."""
        super().train(mode)
        if mode and not self._base_trains:
            owned = self._injection.owned_norms() if self._injection else ()
            kept = {id(m) for m in owned}
            for module in self.backbone.modules():
                if is_norm(module) and id(module) not in kept:
                    module.eval()
        return self

    def _forward_mixture(self, x: Tensor,
                         mixture: Mapping[str, float]) -> Features:
        if not mixture:
            return self.backbone(x)
        tensors = dict(self.backbone.named_parameters())
        tensors.update(self.backbone.named_buffers())
        merged = self.experts.merged(mixture, tensors)
        return functional_call(self.backbone, merged, (x, ))

    def _forward_routing(self, x: Tensor, routing: Routing) -> Features:
        groups = routing.groups()
        if len(groups) == 1:
            return self._forward_mixture(x, groups[0][0])
        parts = [(i, self._forward_mixture(x[i], m)) for m, i in groups]
        merged = [f.new_empty(len(x), *f.shape[1:]) for f in parts[0][1]]
        for indices, features in parts:
            for whole, part in zip(merged, features):
                whole[indices] = part
        return tuple(merged)

    # -- state -----------------------------------------------------------

    @contextlib.contextmanager
    def _activated(self, target: Target) -> Iterator[None]:
        previous, self._active = self._active, target
        try:
            with self._at_rest():
                yield
        finally:
            self._active = previous

    @contextlib.contextmanager
    def _at_rest(self) -> Iterator[None]:
        """The base's own layers in place, in eval mode; then as before."""
        injection, training = self._injection, self.training
        attached = injection is not None and injection.attached
        if attached:
            injection.detach()
        if training:
            self.eval()
        try:
            yield
        finally:
            if attached:
                injection.attach()
            if training:
                self.train()

    def _inject(self) -> LoRAInjection:
        return LoRAInjection(self.backbone, self.targets, self.lora_config,
                             self.train_norm)

    def _note_missing(self, _: nn.Module, keys: Any) -> None:
        self._loaded_missing += [
            k for k in keys.missing_keys if 'num_batches_tracked' not in k
        ]


def _accept_stock_keys(module: nn.Module, state_dict: Dict[str, Tensor],
                       prefix: str, *args: Any) -> None:
    """Let a checkpoint of the bare backbone load into the wrapper."""
    mine = [k for k in state_dict if k.startswith(prefix)]
    own = f'{prefix}backbone.'
    if not any(k.startswith(own) for k in mine):
        for key in mine:
            state_dict[own + key[len(prefix):]] = state_dict.pop(key)
