# SPDX-License-Identifier: Apache-2.0
"""An mmseg transformer, frozen, with a mixture of experts in each block."""
from __future__ import annotations

import contextlib
from typing import (Any, Dict, Iterator, List, Mapping, Optional, Sequence,
                    Tuple)

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from mmseg.registry import MODELS
from mmseg_mile.adapters.attention import replace_attention
from mmseg_mile.adapters.base_weights import (accept_stock_keys,
                                              checked_loading, fingerprint,
                                              hold_statistics, load_strictly)
from mmseg_mile.gates.embedders import small_copy
from mmseg_mile.structures.expert import TensorDict
from .bilevel_moe import BiLevelMoE, LayerRouting, RoutingRule

# Shape legend: B images, N tokens, d width, P regions, T tasks

_MODES = ('ahead', 'inline')
_CHOICES = dict(
    perceptron=('slda', 'learned'),
    relevance=('presence', 'entropy'),
    combine=('weighted', 'sum'))


@MODELS.register_module()
class BiLevelMoEBackbone(BaseModule):
    """Frozen ViT, MiT or Swin with bi-level routed experts in its blocks.

    The routing of CaRE (BR-MoE): beside the FFN of a block runs a mixture of
    bottleneck experts, one per task, which class perceptrons (level 1) and
    routers (level 2) choose. Mixtures are added by hooks on the FFNs, so
    that modules and keys of the stock backbone stay.

    In mode 'inline', the paper's, each block routes by its own input. In
    mode 'ahead' all blocks route by what the frozen base alone sees in a
    small copy of the images: what is relevant never drifts when experts are
    added, and is known before the pass.

    Args:
        backbone (dict): Config of an mmseg ViT, MiT or Swin.
        bottleneck (float): Of an expert, as a share of the width, at least
            4 channels. Defaults to 1/48, the paper's 16 of 768.
        shared_bottleneck (float): Of the expert that all tasks share, which
            is trained on the first task, then frozen; 0 for none. Defaults
            to 1/12.
        mode (str): 'ahead' or 'inline'. Defaults to 'ahead'.
        scale (float): Of each side of the images of mode 'ahead', in (0, 1].
            Defaults to 0.5.
        regions (tuple[int, int]): Rows and columns of regions that are
            routed apart. With a single one, the CLS token describes the
            image where there is one in mode 'inline'. Defaults to (1, 1).
        first_block (float): Share of the blocks, from the input, that get
            no experts. Defaults to 1/3.
        perceptron (str): 'slda': one row per task in closed form, the mean
            of its regions under a variance that all tasks share; needs mode
            'ahead'. 'learned': one output per class, trained with the task.
            Defaults to 'slda'.
        relevance (str): Of learned perceptrons. 'entropy': low entropy of
            the classes, the paper's. 'presence': 1 - p(other), with another
            output for pixels of no class of the task. Defaults to
            'presence'.
        pool (int, optional): Earlier experts that a router scores beside its
            own: the first one and the most relevant ones. None for all of
            them, the paper's, whose routers grow. Defaults to 16.
        top_routers (int): M, tasks per region. Defaults to 2.
        top_experts (int): K, experts per router. Defaults to 3.
        combine (str): 'weighted': routers count by their relevance, and the
            weights of experts sum to 1. 'sum': routers count 1 each, the
            paper's. Defaults to 'weighted'.
        max_active (int): Experts that run per image, those of the largest
            weights. Defaults to 8.
        base_training (str): 'first_task' trains the base in full on the
            first task, then freezes it. Defaults to 'none': as loaded.

    Raises:
        ValueError: If a block has no FFN that mixtures can run beside, or a
            setting is out of range.
    """

    def __init__(self,
                 backbone: Dict[str, Any],
                 bottleneck: float = 1 / 48,
                 shared_bottleneck: float = 1 / 12,
                 mode: str = 'ahead',
                 scale: float = 0.5,
                 regions: Sequence[int] = (1, 1),
                 first_block: float = 1 / 3,
                 perceptron: str = 'slda',
                 relevance: str = 'presence',
                 pool: Optional[int] = 16,
                 top_routers: int = 2,
                 top_experts: int = 3,
                 combine: str = 'weighted',
                 max_active: int = 8,
                 base_training: str = 'none',
                 init_cfg: Optional[Dict[str, Any]] = None) -> None:
        super().__init__(init_cfg)
        rule = RoutingRule(perceptron, relevance, top_routers, top_experts,
                           combine, max_active)
        _check(rule, mode, scale, regions, first_block, pool, base_training)
        self.rule, self.mode, self.scale = rule, mode, scale
        self.regions = (int(regions[0]), int(regions[1]))
        self.pool = pool
        self.base_training = base_training
        self.backbone = MODELS.build(backbone)
        replace_attention(self.backbone)
        if any(getattr(m, 'with_cp', False) for m in self.backbone.modules()):
            raise ValueError(
                'backbone.with_cp=True would run a mixture twice: leave '
                'with_cp out of the backbone of a BiLevelMoEBackbone')
        ffns = _ffns(self.backbone)
        ffns = ffns[int(first_block * len(ffns)):]
        self.moe: Any = nn.ModuleList(
            BiLevelMoE(ffn.embed_dims,
                       max(4, round(bottleneck * ffn.embed_dims)),
                       round(shared_bottleneck * ffn.embed_dims), rule)
            for ffn in ffns)
        for index, ffn in enumerate(ffns):
            ffn.register_forward_hook(
                _BlockHook(self, index), with_kwargs=True)
        for module in self.backbone.modules():
            # Swin's FFN is not told the shape of its tokens, ViT has one
            if type(module).__name__ == 'SwinBlock':
                module.register_forward_pre_hook(_ShapeHook(self))
        if type(self.backbone).__name__ == 'VisionTransformer':
            self.backbone.patch_embed.register_forward_hook(_PatchHook(self))
        self.set_trainable(base=False, shared=False)
        self._shape: Optional[Tuple[int, int]] = None
        self._plan: Optional[List[LayerRouting]] = None
        self._taken: Dict[int, Any] = {}
        self._task = 'route'
        self._candidates: Optional[List[int]] = None
        self.register_load_state_dict_pre_hook(accept_stock_keys)

    def init_weights(self) -> None:
        """Load or draw the base's weights.

        Raises:
            ValueError: If the configured checkpoint leaves weights unset.
        """
        with checked_loading(self.backbone):
            self.backbone.init_weights()
        self._is_init = True

    # -- tasks -----------------------------------------------------------

    @property
    def num_tasks(self) -> int:
        """int: Finished ones, and the one in training."""
        return self.moe[0].num_tasks

    def set_trainable(self, base: bool, shared: bool) -> None:
        """Let base and shared experts train, or not."""
        self._base_trains = base
        self.backbone.requires_grad_(base)
        for layer in self.moe:
            for value in layer.parameters(recurse=False):
                value.requires_grad_(shared)

    def train(self, mode: bool = True) -> 'BiLevelMoEBackbone':
        """A frozen base has neither dropout nor moving statistics."""
        super().train(mode)
        if mode and not self._base_trains:
            self.backbone.train(False)
            hold_statistics(self.backbone, ())
        return self

    def base_state(self) -> TensorDict:
        """Tensors of the base under stock keys, and of shared experts."""
        shared = {
            f'shared.{index}.{name}': value.detach()
            for index, layer in enumerate(self.moe)
            for name, value in layer.named_parameters(recurse=False)
        }
        return {**self.backbone.state_dict(), **shared}

    def load_base(self, state: TensorDict) -> None:
        """Take over what :meth:`base_state` gave.

        Raises:
            ValueError: If it does not fit.
        """
        own = {k: v for k, v in state.items() if not k.startswith('shared.')}
        load_strictly(self.backbone, own)
        shared = {
            k.removeprefix('shared.'): v
            for k, v in state.items() if k.startswith('shared.')
        }
        wanted = {
            f'{index}.{name}': value
            for index, layer in enumerate(self.moe)
            for name, value in layer.named_parameters(recurse=False)
        }
        wrong = sorted(k for k in wanted.keys() | shared.keys()
                       if k not in wanted or k not in shared
                       or wanted[k].shape != shared[k].shape)
        if wrong:
            raise ValueError('the shared experts of the library do not fit: '
                             f'{wrong[:3]}. Keep shared_bottleneck and '
                             'first_block as they were.')
        with torch.no_grad():
            for key, value in wanted.items():
                value.copy_(shared[key])

    def fingerprint(self) -> str:
        """SHA-256 over base and shared experts."""
        return fingerprint(self.base_state())

    # -- running ---------------------------------------------------------

    def forward(self, x: Tensor) -> Any:
        """Features of (B, C, H, W) images, by the plan of :meth:`using`."""
        self._taken = {}
        return self.backbone(x)

    @contextlib.contextmanager
    def using(self, plan: Optional[List[LayerRouting]]) -> Iterator[None]:
        """Run forwards inside the block with decisions made before."""
        previous, self._plan = self._plan, plan
        try:
            yield
        finally:
            self._plan = previous

    @contextlib.contextmanager
    def visible(self, candidates: Optional[Sequence[int]]) -> Iterator[None]:
        """Choose among some tasks only inside the block; None for all."""
        previous = self._candidates
        self._candidates = None if candidates is None else list(candidates)
        try:
            yield
        finally:
            self._candidates = previous

    def plan(self, x: Tensor) -> List[LayerRouting]:
        """Decisions of all blocks for (B, C, H, W) images."""
        if self.mode == 'ahead':
            return self.plan_from(
                [None] * len(self.moe) if self._single else self.describe(x),
                x)
        with self.using(None):
            self.forward(x)
        return [self._taken[index] for index in range(len(self.moe))]

    @property
    def _single(self) -> bool:
        """Whether there is but one task to choose."""
        return len(self.candidates) == 1

    @property
    def candidates(self) -> List[int]:
        """list[int]: Tasks that may be chosen."""
        if self._candidates is not None:
            return self._candidates
        return list(range(self.num_tasks))

    def plan_from(self, descriptors: Sequence[Optional[Tensor]],
                  x: Tensor) -> List[LayerRouting]:
        """Decisions by descriptors of :meth:`describe`."""
        if self._single:
            one = x.new_ones(len(x), 1, 1)
            experts = torch.full((len(x), 1),
                                 self.candidates[0],
                                 device=x.device)
            return [LayerRouting(experts, one, one)] * len(self.moe)
        always = self.num_tasks - 1 if len(self.moe[0].new) else None
        return [
            layer.route(u, self.candidates, always)
            for layer, u in zip(self.moe, descriptors)
        ]

    @torch.no_grad()
    def describe(self, x: Tensor) -> List[Tensor]:
        """What the frozen base sees: (B, P, d) per block with experts.

        Args:
            x (Tensor): (B, C, H, W) images; a small copy is looked at.
        """
        training = self.training
        self.eval()
        self._taken, self._task = {}, 'describe'
        try:
            self.backbone(small_copy(x, self.scale))
        finally:
            self._task = 'route'
            self.train(training)
        return [self._taken[index] for index in range(len(self.moe))]

    def perceptron_loss(self, target: Tensor) -> Tensor:
        """Cross-entropy of the newest perceptrons in the last forward.

        Args:
            target (Tensor): (B, P, G) area shares of the outputs; rows of
                zeros count nothing.
        """
        losses = []
        for index, layer in enumerate(self.moe):
            logits, _ = layer.perceptron_logits(
                F.layer_norm(self._seen[index], self._seen[index].shape[-1:]),
                [layer.num_tasks - 1])
            losses.append(-(target * logits.log_softmax(-1)).sum(-1).mean())
        return torch.stack(losses).mean()

    def pooled(self, values: Tensor, lead: int,
               shape: Optional[Tuple[int, int]]) -> Tensor:
        """(B, P, d) descriptors of (B, N, d) tokens."""
        if self.regions == (1, 1) or shape is None:
            if lead and self.mode == 'inline':
                return values[:, :1]
            return values[:, lead:].mean(1, keepdim=True)
        maps = values[:, lead:].transpose(1, 2).unflatten(2, shape)
        return F.adaptive_avg_pool2d(maps,
                                     self.regions).flatten(2).transpose(1, 2)

    def block(self, index: int, z: Tensor,
              shape: Optional[Tuple[int, int]]) -> Optional[Tensor]:
        """What is added in a block, None for nothing."""
        layer = self.moe[index]
        lead = z.shape[1] - shape[0] * shape[1] if shape else 0
        if self._task == 'describe':
            self._taken[index] = self.pooled(z, lead, shape)
            return None
        if not layer.num_tasks:
            return None
        if self._plan is not None:
            routing = self._plan[index]
        else:
            u = self.pooled(z, lead, shape)
            self._seen[index] = u
            routing = self.plan_inline(layer, u)
            self._taken[index] = routing
        return layer(z, routing, self.regions, shape)

    def plan_inline(self, layer: BiLevelMoE, u: Tensor) -> LayerRouting:
        """Decision of a block by its own input."""
        if self._single:
            return self.plan_from([u], u)[0]
        always = self.num_tasks - 1 if len(layer.new) else None
        return layer.route(u, self.candidates, always)

    @property
    def _seen(self) -> Dict[int, Tensor]:
        return self.__dict__.setdefault('_descriptors', {})


class _BlockHook:
    """Adds the mixture of a block to what its FFN gives."""

    def __init__(self, owner: BiLevelMoEBackbone, index: int) -> None:
        self.owner, self.index = owner, index

    def __call__(self, ffn: nn.Module, args: Tuple[Any, ...],
                 kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
        z = kwargs['identity']
        shape = args[1] if len(args) > 1 else self.owner._shape
        added = self.owner.block(self.index, z, shape)
        return output if added is None else output + added


class _ShapeHook:
    """Notes the shape of the tokens that a block of Swin gets."""

    def __init__(self, owner: BiLevelMoEBackbone) -> None:
        self.owner = owner

    def __call__(self, block: nn.Module, args: Tuple[Any, ...]) -> None:
        self.owner._shape = tuple(args[1])


class _PatchHook:
    """Notes the shape of ViT's tokens."""

    def __init__(self, owner: BiLevelMoEBackbone) -> None:
        self.owner = owner

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.owner._shape = tuple(output[1])


def _ffns(backbone: nn.Module) -> List[Any]:
    """FFNs of the blocks, in order.

    Raises:
        ValueError: If there is none.
    """
    found = [
        module for name, module in backbone.named_modules()
        if name.rpartition('.')[2] == 'ffn' and hasattr(module, 'embed_dims')
    ]
    if not found:
        raise ValueError(
            f'{type(backbone).__name__} has no block with an FFN that experts '
            'can run beside: use VisionTransformer, MixVisionTransformer or '
            'SwinTransformer')
    return found


def _check(rule: RoutingRule, mode: str, scale: float, regions: Sequence[int],
           first_block: float, pool: Optional[int],
           base_training: str) -> None:
    """Raise a ValueError that names the first setting out of range."""
    choices = dict(_CHOICES, mode=_MODES, base_training=('none', 'first_task'))
    values = dict(rule._asdict(), mode=mode, base_training=base_training)
    for field, allowed in choices.items():
        if values[field] not in allowed:
            raise ValueError(f'backbone.{field} must be one of {allowed}, got '
                             f'{values[field]!r}')
    for field in ('top_routers', 'top_experts', 'max_active'):
        if values[field] < 1:
            raise ValueError(f'backbone.{field} must be at least 1, got '
                             f'{values[field]}')
    if not 0 < scale <= 1:
        raise ValueError(f'backbone.scale must be in (0, 1], got {scale}')
    if not 0 <= first_block < 1:
        raise ValueError('backbone.first_block must be in [0, 1), got '
                         f'{first_block}')
    if len(regions) != 2 or min(regions) < 1:
        raise ValueError('backbone.regions must be (rows, columns), both at '
                         f'least 1, got {tuple(regions)}')
    if pool is not None and pool < 0:
        raise ValueError(f'backbone.pool must be at least 0, got {pool}')
    if rule.perceptron == 'slda' and mode == 'inline':
        raise ValueError(
            "backbone.perceptron='slda' is fitted on what the frozen base "
            "sees: use mode='ahead', or perceptron='learned'")
    if rule.perceptron == 'slda' and rule.relevance == 'entropy':
        raise ValueError(
            "backbone.relevance='entropy' is of learned perceptrons: one row "
            "per task has none. Use relevance='presence'")
    if rule.perceptron == 'learned' and mode == 'ahead':
        raise ValueError(
            "backbone.perceptron='learned' reads the running pass: use "
            "mode='inline', or perceptron='slda'")
