# SPDX-License-Identifier: Apache-2.0
"""MDIL: shared convolutions; norms, adapters and a decoder per domain."""
from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import (Any, Dict, Iterable, Iterator, List, NamedTuple, Optional,
                    Sequence, Set, Tuple)

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmseg.models.backbones.erfnet import NonBottleneck1d
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import InvertedResidual
from mmseg.registry import MODELS
from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone
from mmseg_mile.library.expert_store import load_model, save_model
from mmseg_mile.structures import Task
from mmseg_mile.structures.expert import TensorDict
from ..continual_segmentor import copy_matching
from .fine_tune_segmentor import with_rate_of
from .lwf_segmentor import distillation_loss
from .single_task_segmentor import GivenTaskSegmentor


class ParallelAdapter(nn.Conv2d):
    """A 1x1 convolution beside a chain of convolutions, added to its end.

    ``y = last(...first(x)) + P x``, before the norm layer behind. It begins
    with zeros, which change nothing, and has no bias, which the norm would
    take out.

    Args:
        chain (Sequence[nn.Conv2d]): The convolutions, first to last; it
            becomes the child ``adapter`` of the last.
    """

    def __init__(self, chain: List[nn.Conv2d]) -> None:
        first, last = chain[0], chain[-1]
        super().__init__(
            first.in_channels,
            last.out_channels,
            kernel_size=1,
            groups=first.groups if len(chain) == 1 else 1,
            bias=False)
        nn.init.zeros_(self.weight)
        self.to(last.weight)
        self.steps = [
            math.prod(conv.stride[axis] for conv in chain) for axis in (0, 1)
        ]
        self._seen: Optional[Tensor] = None
        first.register_forward_pre_hook(self._see)
        last.register_forward_hook(self._add)
        last.add_module('adapter', self)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, C, H, W) to (n, C', H / stride, W / stride), rounded up."""
        # a stride of the convolution's own is the same, but in torch 2.13 its
        # gradient crashes on CPUs for few channels that are laid out last
        down, right = self.steps
        return super().forward(inputs[:, :, ::down, ::right])

    def _see(self, module: nn.Module, args: Tuple[Tensor, ...]) -> None:
        self._seen = args[0]

    def _add(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen, self._seen = self._seen, None
        return output + self(seen)


def adapted_chains(backbone: nn.Module) -> Dict[str, List[nn.Conv2d]]:
    """Convolutions that get a parallel adapter, by the last one's name.

    - ERFNet's pair of a 3x1 and a 1x3 convolution gets one, as in MDIL;
    - the three convolutions of an inverted residual block (MobileNetV2),
      which are one convolution taken apart in another way, get one;
    - every other convolution larger than 1x1 gets one of its own, in as
      many groups.

    Only where padding keeps the size up to the stride, so that both outputs
    have one shape.

    Args:
        backbone (nn.Module): Without adapters.

    Returns:
        dict[str, list[nn.Conv2d]]: From first to last.
    """
    names = {module: name for name, module in backbone.named_modules()}
    chains: Dict[str, List[nn.Conv2d]] = {}
    inside: Set[nn.Module] = set()
    # a block comes before what it consists of
    for module in backbone.modules():
        for chain in _chains_of(module):
            if not inside.intersection(chain) and all(map(_fits, chain)):
                chains[names[chain[-1]]] = chain
            inside.update(chain)
    return chains


def add_adapters(backbone: nn.Module) -> None:
    """Give every chain of :func:`adapted_chains` its adapter."""
    for chain in adapted_chains(backbone).values():
        ParallelAdapter(chain)


def owned_by_domains(backbone: nn.Module) -> Set[str]:
    """Names of parameters and buffers of norm layers and adapters."""
    return {
        f'{prefix}.{name}'
        for prefix, module in backbone.named_modules()
        if isinstance(module, (_BatchNorm, ParallelAdapter))
        for name in module.state_dict()
    }


def check_adaptable(backbone: nn.Module) -> None:
    """Refuse a backbone without anything that a domain could own.

    Args:
        backbone (nn.Module): Without adapters.

    Raises:
        ValueError: If it has no batch norm, no convolution to adapt, or
            computes activations again in backward, when they would be those
            of another domain.
    """
    kind = type(backbone).__name__
    modules = list(backbone.modules())
    if not any(isinstance(module, _BatchNorm) for module in modules):
        raise ValueError(
            f'model.backbone {kind} has no batch norm that each domain could '
            'own: use a convolutional backbone with norm_cfg of type BN, such '
            'as ResNetV1c or MobileNetV2.')
    if not adapted_chains(backbone):
        raise ValueError(
            f'model.backbone {kind} has no convolution larger than 1x1 that '
            'keeps its size by padding, so no place for an adapter: use '
            'ResNetV1c, MobileNetV2 or ERFNet.')
    if any(getattr(module, 'with_cp', False) for module in modules):
        raise ValueError(
            f'model.backbone {kind} has with_cp=True, and would compute '
            'again with the layers of another domain: set with_cp=False.')


@torch.no_grad()
def copied(values: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Tensors that no longer change, in the memory layout that they have."""
    return {name: value.detach().clone() for name, value in values.items()}


def _chains_of(module: nn.Module) -> List[List[nn.Conv2d]]:
    """Chains that a module alone tells of."""
    if isinstance(module, InvertedResidual):
        return [_convolutions(module.conv)]
    if isinstance(module, NonBottleneck1d):
        convs = _convolutions(module.convs_layers)
        return [list(pair) for pair in zip(convs[::2], convs[1::2])]
    if isinstance(module, nn.Conv2d) and math.prod(module.kernel_size) > 1:
        return [[module]]
    return []


def _convolutions(module: nn.Module) -> List[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


def _fits(conv: nn.Conv2d) -> bool:
    """Whether the output has the size of the input, divided by the stride."""
    if isinstance(conv.padding, str):
        return conv.padding == 'same'
    return all(2 * pad == reach * (size - 1) for pad, reach, size in zip(
        conv.padding, conv.dilation, conv.kernel_size))


class _Domain(NamedTuple):
    """What one domain owns."""

    state: TensorDict
    classes: Tuple[str, ...]
    palette: Tuple[Tuple[int, ...], ...]


@MODELS.register_module()
class MDILSegmentor(GivenTaskSegmentor):
    """Multi-domain incremental learning (Garg et al., WACV 2022, 2110.12205).

    All domains share the backbone's convolutions. Each owns its batch norms,
    1x1 adapters in parallel to convolutions (Rebuffi et al. 2018,
    1803.10082) and its decoder, which here is neck and decode head; they
    begin as those of the domain before, and are frozen once their task has
    ended. From the second task on, the convolutions go on at a hundredth of
    the learning rate, and ``loss + mdil_weight * sum_d KL_d`` is trained: for
    each earlier domain d, how its answers to the new images have moved since
    the task began, per pixel. They can move with the convolutions only, so
    there is forgetting. Each earlier domain costs a step two more passes
    forward and one back. The true task is given at test time.

    Where we depart from paper or public code:

    - ERFNet is one backbone of many. :func:`adapted_chains` says what gets
      an adapter; on ERFNet the paper's layers, and its downsamplers too.
      Adapters begin with zeros in the first domain, so that a pretrained
      network begins as it is, and have no bias.
    - The classifier begins with the rows of classes that it knows by name;
      the code draws it anew.
    - Both losses make one step. The code takes two, and so two rounds of
      Adam's moments.
    - Earlier domains answer in eval mode, with their own statistics and
      without dropout; in the code they see the new images in training mode,
      which overwrites the statistics of their norms.
    - A KL divergence, summed over classes. The code gives probabilities
      where its loss wants their logarithms, which makes it none, and
      averages over classes as well.
    - Optimizer, schedule and class weights are those of the config.

    Args:
        mdil_weight (float): Strength of the distillation. Defaults to 0.1,
            the paper's.
        shared_lr_mult (float): Learning rate of the shared convolutions from
            the second task on, as a multiple of what ``optim_wrapper`` gives
            them. Defaults to 0.01, the paper's 5e-6 to 5e-4.
        *args, **kwargs: As in :class:`ContinualSegmentor`.

    Raises:
        ValueError: If a number is below 0, the backbone has nothing that a
            domain could own, or the head computes its loss from other things
            than one map of logits.
    """

    METHOD = 'MDIL'

    def __init__(self,
                 *args: Any,
                 mdil_weight: float = 0.1,
                 shared_lr_mult: float = 0.01,
                 **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, value in dict(
                mdil_weight=mdil_weight,
                shared_lr_mult=shared_lr_mult).items():
            if value < 0:
                raise ValueError(f'model.{name} must be >= 0, got {value}')
        if isinstance(self.backbone, LoRAExpertBackbone):
            raise ValueError(
                'model.backbone is a LoRAExpertBackbone, whose LoRA '
                'MDILSegmentor has no use for: name the backbone inside it.')
        check_adaptable(self.backbone)
        head: Any = type(self.decode_head)
        # those that decode to several maps need a loss for them
        if any(
                getattr(head, name, None) is not getattr(BaseDecodeHead, name)
                for name in ('loss', 'loss_by_feat')):
            raise ValueError(
                'MDILSegmentor distils one map of logits, but decode_head.'
                f'type {head.__name__!r} computes its loss in its own way: '
                'use a head with the loss of BaseDecodeHead, such as '
                'SegformerHead.')
        self.mdil_weight = mdil_weight
        self.shared_lr_mult = shared_lr_mult
        self._domains: Dict[str, _Domain] = {}
        self._present = ''
        self._before: TensorDict = {}
        self._is_adapted = False

    # -- learning --------------------------------------------------------

    def begin_task(self, task: Task, loader: Iterable[dict]) -> None:
        """A new domain, which begins as the newest one."""
        self._adapt()
        head = self.new_head(task.num_classes)
        self._before = {}
        if self._domains:
            self.take(self.expert_names[-1])
            copy_matching(head, self.decode_head.state_dict(), task.classes,
                          self.classes)
            self._before = copied({
                name: value
                for name, value in self.state_dict().items()
                if name in self._shared()
            })
        self.set_decode_head(head, task.classes, task.palette)
        self._present = ''
        self.renew_auxiliary_heads(task.num_classes)

    def end_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Keep aside what the domain owns."""
        self.drop_auxiliary_heads()
        self._before = {}
        self._keep(task.name)

    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """mmseg's loss, and ``loss_mdil`` from the second task on."""
        losses = super().loss(inputs, data_samples)
        if self._before and self.mdil_weight:
            losses['loss_mdil'] = self.mdil_weight * self._moved(inputs)
        return losses

    def optim_wrapper_config(self, config: Dict[str, Any]) -> Dict[str, Any]:
        """See :meth:`ContinualSegmentor.optim_wrapper_config`.

        Raises:
            ValueError: See :func:`with_rate_of`; for the first task already.
        """
        if self.shared_lr_mult == 1:
            return config
        slower = with_rate_of(
            sorted(self._shared()), self.shared_lr_mult, config)
        return slower if self._before else config

    def _moved(self, inputs: Tensor) -> Tensor:
        """Divergence of the earlier domains' answers, summed over them."""
        terms: List[Tensor] = []
        with _evaluating(self):
            for domain in self._domains.values():
                with torch.no_grad():
                    wanted = self._answer(inputs,
                                          dict(domain.state, **self._before))
                terms.append(
                    distillation_loss(
                        self._answer(inputs, domain.state), wanted, 1.0))
        return torch.stack(terms).sum()

    def _answer(self, inputs: Tensor, values: TensorDict) -> Tensor:
        """Logits with some parameters and buffers replaced."""
        return torch.func.functional_call(self, values, (inputs, ),
                                          dict(mode='tensor'))

    # -- domains ---------------------------------------------------------

    @property
    def expert_names(self) -> Tuple[str, ...]:
        """tuple[str]: Domains in the order in which they were learned."""
        return tuple(self._domains)

    def take(self, name: str) -> None:
        """See :meth:`GivenTaskSegmentor.take`."""
        if name == self._present:
            return
        state, classes, palette = self._domains[name]
        self._load(state, classes, palette, strict=False)
        self._present = name

    def _keep(self, name: str) -> None:
        """What the network is now, apart from what is shared, is ``name``."""
        shared = self._shared()
        state = copied({
            key: value
            for key, value in self.state_dict().items() if key not in shared
        })
        self._domains[name] = _Domain(state, self.classes, self.palette)
        self._present = name

    def _load(self, state: TensorDict, classes: Sequence[str],
              palette: Sequence[Sequence[int]], strict: bool) -> None:
        head = self.decode_head
        if len(classes) != self.num_classes:
            head = self.new_head(len(classes)).train(self.training)
        self.set_decode_head(head, classes, palette)
        self.load_state_dict(state, strict=strict)

    def _adapt(self) -> None:
        """Only now, since no checkpoint of a backbone has adapters."""
        if not self._is_adapted:
            add_adapters(self.backbone)
            self._laid_out(self.backbone)
            self._is_adapted = True

    def _shared(self) -> Set[str]:
        """Names in the state dict of what all domains share."""
        owned = owned_by_domains(self.backbone)
        return {
            f'backbone.{name}'
            for name in self.backbone.state_dict() if name not in owned
        }

    # -- keeping ---------------------------------------------------------

    def save_task(self, task: Task, folder: Path,
                  provenance: Dict[str, Any]) -> None:
        """Write what is shared, as it is now, and what the domain owns."""
        self.take(task.name)
        save_model(folder / task.name, self.state_dict(), self.classes,
                   self.palette, provenance)

    def load_tasks(self, tasks: Sequence[Task], folder: Path) -> None:
        """Read the tasks' domains; what is shared is that of the last."""
        for task in tasks:
            self._adapt()
            self._load(*load_model(folder / task.name), strict=True)
            self._keep(task.name)

    def kept_state(self) -> Dict[str, Tensor]:
        """See :meth:`ContinualSegmentor.kept_state`; what is shared, once."""
        shared = self._shared()
        held = {k: v for k, v in self.state_dict().items() if k in shared}
        for name, domain in self._domains.items():
            for key, value in domain.state.items():
                held[f'{name}/{key}'] = value
        return held


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; some backbones' ``train`` does more."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
