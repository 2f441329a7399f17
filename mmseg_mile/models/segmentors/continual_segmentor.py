# SPDX-License-Identifier: Apache-2.0
"""What the incremental loop asks of a method."""
from __future__ import annotations

import contextlib
from abc import abstractmethod
from pathlib import Path
from typing import (Any, Dict, Iterable, Iterator, List, Optional, Sequence,
                    Tuple)

import torch
from mmengine.dist import is_distributed
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from mmseg.models import EncoderDecoder
from mmseg_mile.structures import Task
from .task_head import build_head, head_config


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
            ``channels_last``, which speeds up many CNNs and changes no
            result. Defaults to False.
        **kwargs: As in mmseg's ``EncoderDecoder``.
    """

    #: Name of the method in results and tables.
    METHOD = ''

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
        if not is_distributed():
            # SyncBN needs a process group; its values fit BN as they are
            revert_sync_batchnorm(self.backbone)
        self._memory_format = (
            torch.channels_last if channels_last else torch.preserve_format)
        self._laid_out(self)
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

    # -- shared by the methods -------------------------------------------

    def predict(self,
                inputs: Tensor,
                data_samples: Optional[list] = None) -> list:
        """As mmseg's, and names the label space of each prediction."""
        predicted = super().predict(inputs, data_samples)
        for sample in predicted:
            sample.set_metainfo(
                dict(classes=self.classes, palette=self.palette, expert=None))
        return predicted

    def speak(self, head: nn.Module, classes: Sequence[str],
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
