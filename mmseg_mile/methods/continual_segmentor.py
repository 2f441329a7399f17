# SPDX-License-Identifier: Apache-2.0
"""The contract of a method: all that the rest of the package asks of it."""
from __future__ import annotations

import contextlib
import copy
from abc import abstractmethod
from pathlib import Path
from typing import (Any, Dict, Iterable, Iterator, List, Mapping, Optional,
                    Sequence, Tuple)

import torch
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from mmseg.registry import MODELS
from mmseg_mile.adapters.base_weights import checked_loading
from mmseg_mile.gates.base_gate import BaseGate
from mmseg_mile.structures import Task
from .prediction import CoarseEncoderDecoder


def head_config(template: Dict[str, Any], num_classes: int) -> Dict[str, Any]:
    """The config of a head with a task's own number of classes.

    Raises:
        ValueError: If the template fixes outputs of another number, or class
            weights of another length.
    """
    config = copy.deepcopy(dict(template))
    config['num_classes'] = num_classes
    outputs = config.get('out_channels')
    if outputs not in (None, num_classes) and (outputs, num_classes) != (1, 2):
        raise ValueError(
            f'decode_head.out_channels is {outputs}, the task has '
            f'{num_classes} classes: leave it out, or set it to 1 where every '
            'task has two.')
    losses = config.get('loss_decode', {})
    for loss in losses if isinstance(losses, (list, tuple)) else [losses]:
        weights = loss.get('class_weight')
        if weights is not None and len(weights) != num_classes:
            raise ValueError(
                f'decode_head.loss_decode.class_weight has {len(weights)} '
                f'values, the task has {num_classes} classes: give one per '
                'class, or leave it out.')
    return config


def build_head(config: Dict[str, Any], device: torch.device) -> nn.Module:
    """Build and initialise a head, see :func:`trainable_norms`."""
    head = MODELS.build(config)
    head.init_weights()
    return trainable_norms(head).to(device)


def trainable_norms(module: nn.Module) -> nn.Module:
    """SyncBN becomes BN in a single process and on CPUs.

    It needs a group of processes with a GPU each; its values fit BN as they
    are.
    """
    if is_distributed() and get_device() != 'cpu':
        return module
    return revert_sync_batchnorm(module)


def copy_matching(head: nn.Module, source: Dict[str, Tensor],
                  classes: Sequence[str],
                  source_classes: Sequence[str]) -> None:
    """Start a head from another one's values.

    Tensors of equal shape are copied; in those that have one row per class,
    the rows of classes that both label spaces name.

    Args:
        head (nn.Module): Changed in place.
        source (dict[str, Tensor]): State dict of the other head.
        classes (Sequence[str]): Label space of ``head``.
        source_classes (Sequence[str]): Label space of the other head.
    """
    same = tuple(classes) == tuple(source_classes)
    shared = [(classes.index(c), source_classes.index(c)) for c in classes
              if c in source_classes]
    classifier = {
        id(p)
        for p in getattr(head, 'conv_seg', nn.Identity()).parameters()
    }
    values = head.state_dict(keep_vars=True)
    with torch.no_grad():
        for key, value in values.items():
            other = source.get(key)
            if other is None or other.shape[1:] != value.shape[1:]:
                continue
            if id(value) not in classifier or same:
                if other.shape == value.shape:
                    value.copy_(other)
            # one output stands for the second of two classes
            elif (len(value), len(other)) == (len(classes),
                                              len(source_classes)):
                for mine, theirs in shared:
                    value[mine].copy_(other[theirs])


class ContinualSegmentor(CoarseEncoderDecoder):
    """An encoder-decoder that learns one task after another.

    A method says what happens when a task begins and ends, and what it
    leaves on disk; the other answers stand for methods without experts.
    Every predicted ``SegDataSample`` says in its metainfo which label space
    it has: ``classes``, ``palette``, and ``expert`` (None without).

    Args:
        backbone (dict): Config of the backbone.
        decode_head (dict): Template of the decode head; each task sets its
            own ``num_classes``.
        auxiliary_head (dict | list[dict], optional): Templates of heads
            that only help training. Defaults to None.
        channels_last (bool): Whether to lay weights out as torch's
            ``channels_last``, which speeds up most networks and changes no
            result. Defaults to False.
        **kwargs: As in :class:`CoarseEncoderDecoder`.
    """

    #: Name of the method in results and tables.
    METHOD = ''
    #: Whether images come with their true task when they are predicted.
    needs_task_label = False
    #: Values of ``train_cfg.rehearsal.tasks`` that it can learn from; None
    #: is to see the images of one task at a time.
    rehearses: Tuple[Optional[str], ...] = (None, )
    #: Chooses among experts; None for methods without, and for those that
    #: route inside the network, see :meth:`routing_stats`.
    gate: Optional[BaseGate] = None
    #: Whether what it learns of a task is an expert over a frozen base: tasks
    #: can be learned at the same time, and :meth:`reuse_expert` works.
    supports_parallel = False
    #: Set where :meth:`reuse_expert` will take over every expert of the
    #: stream, so that none starts from another one.
    reuses_experts = False

    def __init__(self,
                 backbone: Dict[str, Any],
                 decode_head: Dict[str, Any],
                 auxiliary_head: Any = None,
                 channels_last: bool = False,
                 **kwargs: Any) -> None:
        self.head_template = dict(decode_head)
        if auxiliary_head is None:
            auxiliary_head = []
        elif isinstance(auxiliary_head, dict):
            auxiliary_head = [auxiliary_head]
        self._auxiliary_templates = [dict(h) for h in auxiliary_head]
        num_classes = decode_head.get('num_classes', 2)
        super().__init__(
            backbone=backbone,
            decode_head=dict(decode_head, num_classes=num_classes),
            **kwargs)
        trainable_norms(self.backbone)
        self._memory_format = (
            torch.channels_last if channels_last else torch.preserve_format)
        self.to(memory_format=self._memory_format)
        self.classes: Tuple[str, ...] = ()
        self.palette: Tuple[Tuple[int, ...], ...] = ()

    def init_weights(self) -> None:
        """Load or draw the weights.

        Raises:
            ValueError: If the backbone's checkpoint cannot be loaded, or does
                not fit, see :func:`checked_loading`.
        """
        with checked_loading(self.backbone):
            super().init_weights()

    # -- learning --------------------------------------------------------

    def check_stream(self, tasks: Sequence[Task]) -> None:
        """Refuse tasks that could not begin, before any is trained.

        Raises:
            ValueError: If a head of the config does not fit a task.
        """
        for template in (self.head_template, *self._auxiliary_templates):
            for task in tasks:
                head_config(template, task.num_classes)

    @abstractmethod
    def begin_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Make ready to train a task.

        Args:
            task (Task): The task.
            loader (Iterable[dict]): Its training images through the test
                pipeline.
        """

    @abstractmethod
    def end_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Keep what was learned; arguments as in :meth:`begin_task`."""

    def reuse_expert(self, task: Task, loader: Iterable[dict],
                     expert: Any) -> None:
        """Take over a finished expert instead of training the task.

        Args:
            task (Task): The task.
            loader (Iterable[dict]): As in :meth:`begin_task`.
            expert (Expert): Of the same base.

        Raises:
            ValueError: If the method has no experts.
        """
        raise ValueError(f'{type(self).__name__} has no experts to reuse')

    def optim_wrapper_config(self, config: Dict[str, Any]) -> Dict[str, Any]:
        """The optimizer's config for the task that has begun.

        Args:
            config (dict): A copy of the config's ``optim_wrapper``.

        Returns:
            dict: The same, unless a method's rates depend on the task.
        """
        return config

    # -- keeping ---------------------------------------------------------

    @abstractmethod
    def save_task(self, task: Task, folder: Path,
                  provenance: Dict[str, Any]) -> None:
        """Write what the task left behind below ``folder``."""

    @abstractmethod
    def load_tasks(self, tasks: Sequence[Task], folder: Path) -> None:
        """Restore the state after ``tasks`` were learned and saved."""

    def kept_state(self) -> Dict[str, Tensor]:
        """Tensors to keep so as to predict, and to go on learning.

        Without those of experts, whose sizes :meth:`expert_costs` gives.
        """
        return self.state_dict()

    def expert_costs(self, folder: Path) -> List[Dict[str, Any]]:
        """Size of each expert as in ``results.json``; [] without experts."""
        return []

    def kept_cost(self, experts: Sequence[Dict[str, Any]]) -> Dict[str, int]:
        """Size of what must be kept to predict, and to go on learning.

        Args:
            experts (Sequence[dict]): What :meth:`expert_costs` gave.

        Returns:
            dict[str, int]: ``params``, all values, and ``bytes``.
        """
        held = self.kept_state().values()
        counted = ('lora_params', 'head_params', 'norm_params',
                   'prototype_values')
        return dict(
            params=sum(v.numel() for v in held) + sum(expert[key]
                                                      for expert in experts
                                                      for key in counted),
            bytes=sum(v.nbytes for v in held) + sum(expert['bytes']
                                                    for expert in experts))

    # -- predicting ------------------------------------------------------

    @property
    def expert_names(self) -> Tuple[str, ...]:
        """tuple[str]: Experts that can be forced; () without experts."""
        return ()

    @contextlib.contextmanager
    def forced(self, expert: str) -> Iterator[None]:
        """Predict every image inside the block with one expert."""
        raise ValueError(f'{type(self).__name__} has no expert {expert!r}')
        yield

    def routing_stats(self) -> Mapping[str, Any]:
        """Shares of experts in what was predicted since the last call.

        For methods that route inside the network: per layer, region or
        image, as JSON can say it; {} if the samples say all.
        """
        return {}

    def predict(self,
                inputs: Tensor,
                data_samples: Optional[list] = None) -> list:
        """As :meth:`CoarseEncoderDecoder.predict`; names the label space."""
        samples = super().predict(inputs, data_samples)
        for sample in samples:
            sample.set_metainfo(
                dict(classes=self.classes, palette=self.palette, expert=None))
        return samples

    # -- heads -----------------------------------------------------------

    def set_decode_head(self, head: nn.Module, classes: Sequence[str],
                        palette: Sequence[Sequence[int]]) -> None:
        """Decode with ``head``, in its label space."""
        self._hold_head(head)
        self.classes = tuple(classes)
        self.palette = tuple(tuple(c) for c in palette)

    @contextlib.contextmanager
    def decoding_with(self, head: nn.Module) -> Iterator[None]:
        """Decode with another head inside the block."""
        previous = self.decode_head
        self._hold_head(head)
        try:
            yield
        finally:
            self._hold_head(previous)

    def _hold_head(self, head: nn.Module) -> None:
        self.decode_head = head
        self.align_corners = head.align_corners
        self.num_classes = head.num_classes
        self.out_channels = head.out_channels

    def new_head(self, num_classes: int) -> nn.Module:
        """A fresh decode head from the template."""
        head: Any = build_head(
            head_config(self.head_template, num_classes), self.device)
        return head.to(memory_format=self._memory_format)

    def renew_auxiliary_heads(self, num_classes: int) -> None:
        """Fresh auxiliary heads for the task that begins."""
        if self._auxiliary_templates:
            self.auxiliary_head = nn.ModuleList(
                build_head(head_config(template, num_classes), self.device)
                for template in self._auxiliary_templates)

    def drop_auxiliary_heads(self) -> None:
        """Auxiliary heads are of no use once a task has ended."""
        if self._auxiliary_templates:
            del self.auxiliary_head
