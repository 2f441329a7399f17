# SPDX-License-Identifier: Apache-2.0
"""What the incremental loop asks of a method."""
from __future__ import annotations

import contextlib
import copy
from abc import abstractmethod
from pathlib import Path
from typing import (Any, ContextManager, Dict, Iterable, Iterator, List,
                    Optional, Sequence, Tuple)

import torch
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS
from mmseg_mile.gates.base_gate import BaseGate
from mmseg_mile.structures import Task
from .prediction import Decoded, Decoder, PredictedSamples, decode_batch


def head_config(template: Dict[str, Any], num_classes: int) -> Dict[str, Any]:
    """The config of a head with a task's own number of classes.

    Raises:
        ValueError: If the template fixes class weights of another length.
    """
    config = copy.deepcopy(dict(template))
    config['num_classes'] = num_classes
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
                continue
            for mine, theirs in shared:
                value[mine].copy_(other[theirs])


_DTYPES = ('float32', 'bfloat16', 'float16')


class ContinualSegmentor(EncoderDecoder):
    """An encoder-decoder that learns one task after another.

    A method says what happens when a task begins and ends, and what it
    leaves on disk; ``loss`` and ``predict`` are mmseg's. Every predicted
    ``SegDataSample`` says in its metainfo which label space it speaks:
    ``classes``, ``palette``, and ``expert`` (None for methods without).

    Args:
        backbone (dict): Config of the backbone.
        decode_head (dict): Template of the decode head; each task sets its
            own ``num_classes``.
        auxiliary_head (dict | list[dict], optional): Templates of heads
            that only help training. Defaults to None.
        channels_last (bool): Whether to lay weights out as torch's
            ``channels_last``, which speeds up most networks and changes no
            result. Defaults to False.
        keep_logits (bool): Whether predictions carry ``seg_logits``, a
            full-size float map per class that takes memory and time;
            ``SegTTAModel`` needs them. Defaults to False.
        predict_dtype (str): 'float32', or 'bfloat16' or 'float16' to predict
            under autocast. Defaults to 'float32'.
        **kwargs: As in mmseg's ``EncoderDecoder``.

    Raises:
        ValueError: If ``predict_dtype`` is unknown.
    """

    #: Name of the method in results and tables.
    METHOD = ''
    #: Whether images come with their true task when they are predicted.
    needs_task_label = False
    #: Values of ``train_cfg.rehearsal.tasks`` that it can learn from; None
    #: is to see the images of one task at a time.
    rehearses: Tuple[Optional[str], ...] = (None, )
    #: Chooses among experts; None for methods without.
    gate: Optional[BaseGate] = None

    def __init__(self,
                 backbone: Dict[str, Any],
                 decode_head: Dict[str, Any],
                 auxiliary_head: Any = None,
                 channels_last: bool = False,
                 keep_logits: bool = False,
                 predict_dtype: str = 'float32',
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
        self._laid_out(self)
        self.keep_logits = keep_logits
        if predict_dtype not in _DTYPES:
            raise ValueError(f'model.predict_dtype must be one of {_DTYPES}, '
                             f'got {predict_dtype!r}')
        self.predict_dtype: torch.dtype = getattr(torch, predict_dtype)
        self.classes: Tuple[str, ...] = ()
        self.palette: Tuple[Tuple[int, ...], ...] = ()

    # -- the contract ----------------------------------------------------

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

    @abstractmethod
    def save_task(self, task: Task, folder: Path,
                  provenance: Dict[str, Any]) -> None:
        """Write what the task left behind below ``folder``."""

    @abstractmethod
    def load_tasks(self, tasks: Sequence[Task], folder: Path) -> None:
        """Restore the state after ``tasks`` were learned and saved."""

    @property
    def expert_names(self) -> Tuple[str, ...]:
        """tuple[str]: Experts that can be forced; () without experts."""
        return ()

    @contextlib.contextmanager
    def forced(self, expert: str) -> Iterator[None]:
        """Predict every image inside the block with one expert."""
        raise ValueError(f'{type(self).__name__} has no expert {expert!r}')
        yield

    def expert_costs(self, folder: Path) -> List[Dict[str, Any]]:
        """Size of each expert as in ``results.json``; [] without experts."""
        return []

    def kept_state(self) -> Dict[str, Tensor]:
        """Tensors to keep so as to predict, and to go on learning.

        Without those of experts, whose sizes :meth:`expert_costs` gives.
        """
        return self.state_dict()

    def kept_cost(self, experts: Sequence[Dict[str, Any]]) -> Dict[str, int]:
        """Size of what must be kept to predict, and to go on learning.

        Args:
            experts (Sequence[dict]): What :meth:`expert_costs` gave.

        Returns:
            dict[str, int]: ``params``, values of weights, statistics and
            prototypes, and ``bytes``, of what holds them.
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

    def optim_wrapper_config(self, config: Dict[str, Any]) -> Dict[str, Any]:
        """The optimizer's config for the task that has begun.

        Args:
            config (dict): A copy of the config's ``optim_wrapper``.

        Returns:
            dict: The same, unless a method's rates depend on the task.
        """
        return config

    # -- shared by the methods -------------------------------------------

    def predict(self,
                inputs: Tensor,
                data_samples: Optional[list] = None) -> list:
        """As mmseg's, and names the label space of each prediction.

        Args:
            inputs (Tensor): (B, C, H, W), normalised.
            data_samples (list[SegDataSample], optional): Of the B images.
                Defaults to None.

        Returns:
            list[SegDataSample]: With ``pred_sem_seg``, (1, H, W) in the
            original size, and ``seg_logits`` if the model keeps them.
        """
        predicted = PredictedSamples(inputs, data_samples, self.keep_logits)
        self.decode_into(
            predicted, inputs,
            [Decoder(lambda: self.decode_head, range(len(inputs)))])
        for sample in predicted.samples:
            sample.set_metainfo(
                dict(classes=self.classes, palette=self.palette, expert=None))
        return predicted.samples

    def decode_into(self,
                    predicted: PredictedSamples,
                    inputs: Tensor,
                    decoders: Sequence[Decoder],
                    where: Optional[Sequence[int]] = None) -> None:
        """Encode images once and write what the heads make of them.

        Args:
            predicted (PredictedSamples): Of the whole batch.
            inputs (Tensor): (n, C, H, W), all of the batch or some of it.
            decoders (Sequence[Decoder]): Heads for all n images.
            where (Sequence[int], optional): Positions of the n images in the
                batch. Defaults to None: they are the batch.
        """
        order = range(len(inputs)) if where is None else where
        metas = predicted.metas()
        decoded = self.decode(inputs, [metas[i] for i in order], decoders)
        for decoder, (logits, head) in zip(decoders, decoded):
            predicted.write([order[i] for i in decoder.indices], logits, head)

    def decode(self, inputs: Tensor, metas: List[Dict[str, Any]],
               decoders: Sequence[Decoder]) -> List[Decoded]:
        """See :func:`decode_batch`; in the precision of predictions."""
        # not `enabled=False`, which would undo a test loop's own autocast
        lowered: ContextManager = contextlib.nullcontext()
        if self.predict_dtype is not torch.float32:
            lowered = torch.autocast(
                inputs.device.type, dtype=self.predict_dtype)
        with lowered:
            return decode_batch(self, inputs, metas, decoders)

    def set_decode_head(self, head: nn.Module, classes: Sequence[str],
                        palette: Sequence[Sequence[int]]) -> None:
        """Decode with ``head``, in its label space."""
        self.decode_head = head
        self.align_corners = head.align_corners
        self.num_classes = head.num_classes
        self.out_channels = head.out_channels
        self.classes = tuple(classes)
        self.palette = tuple(tuple(c) for c in palette)

    def new_head(self, num_classes: int) -> nn.Module:
        """A fresh decode head from the template."""
        head = build_head(
            head_config(self.head_template, num_classes), self.device)
        return self._laid_out(head)

    def _laid_out(self, module: Any) -> Any:
        return module.to(memory_format=self._memory_format)

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

    @property
    def device(self) -> torch.device:
        """torch.device: Where the backbone's weights lie."""
        return next(self.backbone.parameters()).device
