# SPDX-License-Identifier: Apache-2.0
"""One LoRA adapter for all tasks over a frozen base."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterable, Optional, Sequence

from torch import Tensor

from mmseg.registry import MODELS
from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.structures import Expert, Task
from ..continual_segmentor import head_config
from .fine_tune_segmentor import FineTuneSegmentor


@MODELS.register_module()
class SharedLoRASegmentor(FineTuneSegmentor):
    """The same adapter goes on training on each new task.

    The setting of CLoRA (arXiv 2507.19887), with nothing against forgetting
    but the small number of weights that move: what MILE is without an expert
    per task and without a gate. Only its abstract was at hand, so ranks and
    layers are those of the MILE config beside it. One head predicts the union
    of all classes, and trains in full, as do the norm layers that
    ``train_norm`` gives the adapter. No task label is used at test time.

    A library of it holds the base once, and adapter and head as they were
    after each task, in the files of an expert; the last ones are all that
    must be kept.

    Args:
        *args, **kwargs: As in :class:`FineTuneSegmentor`; ``backbone`` is
            the config of a ``LoRAExpertBackbone``.

    Raises:
        ValueError: If the backbone holds no adapter, or there is a neck,
            which would be trained and not be stored.
    """

    METHOD = 'one shared LoRA'

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.backbone, LoRAExpertBackbone):
            raise ValueError(
                'model.backbone must be a LoRAExpertBackbone, got '
                f'{type(self.backbone).__name__}: wrap it as '
                "dict(type='LoRAExpertBackbone', backbone=..., lora=...)")
        if self.with_neck:
            raise ValueError(
                'model.neck would be trained but is part of neither adapter '
                'nor head: remove it, or make it part of the decode head.')

    @property
    def adapter(self) -> Optional[str]:
        """str, optional: Name of the adapter, that of the newest task."""
        names = self.backbone.experts.names
        return names[-1] if names else None

    def begin_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Grow the head; the adapter takes the task's name."""
        super().begin_task(task, loader)
        previous = self.adapter
        self.backbone.add_expert(task.name, previous)
        if previous is not None:
            del self.backbone.experts[previous]
        if previous is None and self.backbone.base_training == 'first_task':
            self.backbone.train_base()
        else:
            self.backbone.train_expert(task.name)

    def end_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Take the adapter out of the base."""
        self.backbone.finish_training()
        super().end_task(task, loader)

    def predict(self,
                inputs: Tensor,
                data_samples: Optional[list] = None) -> list:
        """See :meth:`ContinualSegmentor.predict`; with the adapter merged.

        Raises:
            ValueError: If no task was learned.
        """
        if self.adapter is None:
            raise ValueError('SharedLoRASegmentor has learned no task yet: '
                             'train it, or load its tasks.')
        with self.backbone.using(self.adapter):
            return super().predict(inputs, data_samples)

    def save_task(self, task: Task, folder: Path,
                  provenance: Dict[str, Any]) -> None:
        """Write adapter and head, and with the first ones the base."""
        store = ExpertStore(folder)
        base = self.backbone.fingerprint()
        if not store.names:
            store.save_base(self.backbone.base_state(), base)
        adapter = self.backbone.experts[task.name]
        store.save(
            Expert(
                name=task.name,
                classes=self.classes,
                palette=self.palette,
                parts=dict(
                    adapter=adapter.lora,
                    head=self.decode_head.state_dict(),
                    **(dict(norm=adapter.norm) if adapter.norm else {})),
                configs=dict(
                    adapter=self.backbone.lora_config,
                    head=head_config(self.head_template, len(self.classes))),
                base_fingerprint=base,
                provenance=provenance))

    def load_tasks(self, tasks: Sequence[Task], folder: Path) -> None:
        """Read adapter and head as they were after the last of ``tasks``."""
        if not tasks:
            return
        store = ExpertStore(folder)
        stored, = store.open([tasks[-1].name])
        if self.adapter is None:
            self.backbone.load_base(*store.load_base())
        else:
            del self.backbone.experts[self.adapter]
        self.backbone.load_experts([stored])
        head = self.new_head(len(stored.classes))
        head.load_state_dict(stored.parts['head'], strict=True)
        self.set_decode_head(head, stored.classes, stored.palette)

    def kept_state(self) -> Dict[str, Tensor]:
        """See :meth:`ContinualSegmentor.kept_state`: base, adapter, head."""
        state = super().kept_state()
        if self.adapter is not None:
            adapter = self.backbone.experts[self.adapter]
            for part in ('lora', 'norm'):
                for key, value in getattr(adapter, part).items():
                    state[f'{part}/{key}'] = value
        return state
