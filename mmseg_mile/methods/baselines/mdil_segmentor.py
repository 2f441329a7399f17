# SPDX-License-Identifier: Apache-2.0
"""MDIL: shared convolutions; norms, adapters and a decoder per domain."""
from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import (Any, Dict, Iterable, Iterator, List, Optional, Sequence,
                    Set, Tuple)

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmseg.models.backbones.erfnet import NonBottleneck1d
from mmseg.models.utils import InvertedResidual
from mmseg.registry import MODELS
from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone
from mmseg_mile.structures import Task
from mmseg_mile.structures.expert import TensorDict
from ..continual_segmentor import copy_matching
from .lwf_segmentor import check_distillation, distillation_loss, scale_lr
from .single_task_segmentor import GivenTaskSegmentor


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
        check_distillation(
            self, mdil_weight=mdil_weight, shared_lr_mult=shared_lr_mult)
        check_adaptable(self.backbone)
        self.mdil_weight = mdil_weight
        self.shared_lr_mult = shared_lr_mult
        # of what is shared, the values when the present task began
        self._before: TensorDict = {}
        self._is_adapted = False

    def begin_task(self, task: Task, loader: Iterable[dict]) -> None:
        """A new domain, which begins as the newest one."""
        self._adapt()
        head = self.new_head(task.num_classes)
        self._before = {}
        if self.expert_names:
            self.activate(self.expert_names[-1])
            copy_matching(head, self.decode_head.state_dict(), task.classes,
                          self.classes)
            shared = self.shared_names()
            self._before = {
                name: value.detach().clone()
                for name, value in self.state_dict().items() if name in shared
            }
        self.set_decode_head(head, task.classes, task.palette)
        self._active = ''
        self.renew_auxiliary_heads(task.num_classes)

    def end_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Keep aside what the domain owns."""
        self.drop_auxiliary_heads()
        self._before = {}
        self._keep(task.name)

    def load_tasks(self, tasks: Sequence[Task], folder: Path) -> None:
        """Read the tasks' domains; what is shared is that of the last."""
        if tasks:
            self._adapt()
        super().load_tasks(tasks, folder)

    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """mmseg's loss, and ``loss_mdil`` from the second task on."""
        losses = super().loss(inputs, data_samples)
        if self._before and self.mdil_weight:
            losses['loss_mdil'] = self.mdil_weight * self._divergence(inputs)
        return losses

    def _divergence(self, inputs: Tensor) -> Tensor:
        """How the earlier domains' answers have moved, summed over them."""
        terms: List[Tensor] = []
        with _evaluating(self):
            for state, _, _ in self._kept.values():
                with torch.no_grad():
                    wanted = self._answer(inputs, {**state, **self._before})
                terms.append(
                    distillation_loss(
                        self._answer(inputs, state), wanted, 1.0))
        return torch.stack(terms).sum()

    def _answer(self, inputs: Tensor, values: TensorDict) -> Tensor:
        """Logits with some parameters and buffers replaced."""
        return torch.func.functional_call(self, values, (inputs, ),
                                          dict(mode='tensor'))

    def optim_wrapper_config(self, config: Dict[str, Any]) -> Dict[str, Any]:
        """See :meth:`ContinualSegmentor.optim_wrapper_config`.

        Raises:
            ValueError: See :func:`scale_lr`; for the first task already.
        """
        if self.shared_lr_mult == 1:
            return config
        slower = scale_lr(
            sorted(self.shared_names()), self.shared_lr_mult, config)
        return slower if self._before else config

    def shared_names(self) -> Set[str]:
        """Of the backbone, all but norm layers and adapters."""
        owned = owned_by_domains(self.backbone)
        return {
            f'backbone.{name}'
            for name in self.backbone.state_dict() if name not in owned
        }

    def _adapt(self) -> None:
        """Only now, since no checkpoint of a backbone has adapters."""
        if not self._is_adapted:
            for chain in adapted_chains(self.backbone).values():
                ParallelAdapter(chain)
            self.backbone.to(memory_format=self._memory_format)
            self._is_adapted = True


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
            if not inside.intersection(chain) and all(map(_keeps_size, chain)):
                chains[names[chain[-1]]] = chain
            inside.update(chain)
    return chains


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


def _keeps_size(conv: nn.Conv2d) -> bool:
    """Whether the output has the size of the input, divided by the stride."""
    if isinstance(conv.padding, str):
        return conv.padding == 'same'
    return all(2 * pad == dilation * (size - 1) for pad, dilation, size in zip(
        conv.padding, conv.dilation, conv.kernel_size))


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
        ValueError: If it has LoRA, no batch norm, no convolution to adapt,
            or computes activations again in backward, when they would be
            those of another domain.
    """
    kind = type(backbone).__name__
    if isinstance(backbone, LoRAExpertBackbone):
        raise ValueError(
            'model.backbone is a LoRAExpertBackbone, whose LoRA '
            'MDILSegmentor has no use for: name the backbone inside it.')
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
