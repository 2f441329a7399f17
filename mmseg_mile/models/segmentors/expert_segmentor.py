# SPDX-License-Identifier: Apache-2.0
"""MILE: a frozen base, one LoRA expert per task, a gate that picks one."""
from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Union

from torch import Tensor

from mmseg.registry import MODELS
from mmseg_mile.experts import ExpertStore, StoredExpert
from mmseg_mile.structures import Expert, Task
from .embedding import check_embedder, embed_images
from .expert_heads import heaviest
from .routed_segmentor import RoutedSegmentor
from .task_head import copy_matching, head_config
from .task_start import Start, check_start, start_of


@MODELS.register_module()
class ExpertSegmentor(RoutedSegmentor):
    """Mixture of Incremental LoRA Experts (MILE, arXiv 2605.03555).

    An expert is an adapter of the frozen base, a decode head, and the gate's
    prototypes of its task. Earlier experts are never touched, so nothing is
    forgotten; only the gate can err.

    Args:
        init_from (str): Where a new expert starts: 'base' (the paper's
            setting), 'previous', 'nearest' (the expert whose prototypes lie
            nearest to the new images), 'fused' (the nearest ones, weighted
            as SemLA weighs them and cut to the rank) or the name of a task.
            Defaults to 'nearest'.
        **kwargs: As in :class:`RoutedSegmentor`.

    Raises:
        ValueError: If the backbone holds no experts, or an argument is out
            of range.
    """

    METHOD = 'MILE'
    #: Whether every expert will be taken over by :meth:`adopt_task`, so that
    #: none starts from another one.
    adopts_experts = False

    def __init__(self,
                 *args: Any,
                 init_from: str = 'nearest',
                 **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.init_from = init_from
        self._embeddings: Optional[Tensor] = None

    # -- learning --------------------------------------------------------

    def check_stream(self, tasks: Sequence[Task]) -> None:
        """See :meth:`ContinualSegmentor.check_stream`."""
        super().check_stream(tasks)
        for index, task in enumerate(() if self.adopts_experts else tasks):
            check_start(task, self.init_from, [t.name for t in tasks[:index]],
                        self.gate)

    def begin_task(self, task: Task, loader: Iterable[dict]) -> None:
        """A new expert, started from the base or from an earlier one."""
        source = self._start_of(task, loader)
        first = not self.expert_names
        if first and self.gate.needs_embeddings:
            # an embedder that does not fit must not show after the training
            check_embedder(self, loader)
        self.backbone.add_expert(task.name, source)
        self.lineage.begin(task.name, source)
        head = self.new_head(task.num_classes)
        if source is not None:
            copy_matching(head, self.heads.fused_state(source), task.classes,
                          self.heads.labels(heaviest(source)).classes)
        self.speak(head, task.classes, task.palette)
        self.renew_auxiliary_heads(task.num_classes)
        if first and self.backbone.base_training == 'first_task':
            self.backbone.train_base()
        else:
            self.backbone.train_expert(task.name)

    def end_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Freeze the expert and fit its prototypes."""
        self.backbone.finish_training()
        self.drop_auxiliary_heads()
        self.heads.keep(task, self.decode_head,
                        head_config(self.head_template, task.num_classes))
        self._fit_gate(task, loader)

    def adopt_task(self, task: Task, loader: Iterable[dict],
                   expert: StoredExpert) -> None:
        """Take over a finished expert; the gate learns the task anew.

        Args:
            task (Task): The task.
            loader (Iterable[dict]): Its training images through the test
                pipeline.
            expert (StoredExpert): Its prototypes are not looked at.

        Raises:
            ValueError: If it is of another base, or its adapter is not what
                the config would train.
        """
        self.backbone.load_experts([expert])
        self.backbone.check_settings(task.name)
        self.heads.add(expert, self.device)
        self.lineage.add(task.name, expert.provenance)
        self._fit_gate(task, loader)

    def _fit_gate(self, task: Task, loader: Iterable[dict]) -> None:
        if self._embeddings is None and self.gate.needs_embeddings:
            self._embeddings = embed_images(self, loader)
        self.gate.fit(task.name, self._embeddings)
        self._embeddings = None

    def _start_of(self, task: Task, loader: Iterable[dict]) -> Optional[Start]:
        """The experts that the new one starts from, or None for the base."""
        check_start(task, self.init_from, self.expert_names, self.gate)
        gate: Any = self.gate
        return start_of(task, self.init_from, self.expert_names,
                        lambda: gate.nearest(self._embedded(loader)),
                        lambda: gate.neighbours(self._embedded(loader)))

    def _embedded(self, loader: Iterable[dict]) -> Tensor:
        # the gate learns from them once the task has ended
        self._embeddings = embed_images(self, loader)
        return self._embeddings

    # -- keeping ---------------------------------------------------------

    def export_expert(self,
                      name: str,
                      provenance: Optional[Dict[str, Any]] = None) -> Expert:
        """Everything that the expert ``name`` consists of."""
        adapter, head = self.backbone.experts[name], self.heads[name]
        return Expert(
            name=name,
            classes=head.classes,
            palette=head.palette,
            lora_config=self.backbone.lora_config,
            lora=adapter.lora,
            norm=adapter.norm,
            head=head.state,
            head_config=head.config,
            prototypes=self.gate.state(name),
            base_fingerprint=self.backbone.fingerprint(),
            provenance=dict(provenance or {}, **self.lineage.provenance(name)))

    def import_expert(self, expert: Union[Expert, StoredExpert]) -> None:
        """Make an expert routable; see :meth:`import_experts`."""
        self.import_experts([expert])

    def import_experts(self, experts: Sequence[Union[Expert,
                                                     StoredExpert]]) -> None:
        """Make experts routable; stored ones are read when first used.

        Raises:
            ValueError: If one belongs to another base or does not fit.
        """
        self.backbone.load_experts(experts)
        for expert in experts:
            self.heads.add(expert, self.device)
            self.lineage.add(expert.name, expert.provenance)
            self.gate.load_state(expert.name, expert.prototypes)

    def save_task(self, task: Task, folder: Path,
                  provenance: Dict[str, Any]) -> None:
        """Write the task's expert, and with the first one the base."""
        store = ExpertStore(folder)
        if not store.names:
            store.save_base(self.backbone.base_state(),
                            self.backbone.fingerprint())
        store.save(self.export_expert(task.name, provenance))
        stored, = store.open([task.name])
        self.backbone.experts.release(
            task.name, partial(self.backbone.adapter_of, stored))
        self.heads.release(stored, self.device)

    def load_tasks(self, tasks: Sequence[Task], folder: Path) -> None:
        """Read the tasks' experts, and with the first ones the base."""
        if tasks:
            store = ExpertStore(folder)
            if not self.expert_names:
                self.backbone.load_base(*store.load_base())
            self.import_experts(store.open_tasks(tasks))

    def expert_costs(self, folder: Path) -> List[Dict[str, Any]]:
        """See :meth:`ContinualSegmentor.expert_costs`."""
        store = ExpertStore(folder)
        # one that was loaded from elsewhere is no cost of this library
        kept = [name for name in store.names if name in self.expert_names]
        return [
            dict(task=e.name, bytes=store.num_bytes(e.name), **e.num_values())
            for e in store.open(kept)
        ]

    def kept_state(self) -> Dict[str, Tensor]:
        """See :meth:`ContinualSegmentor.kept_state`: the base."""
        return self.backbone.state_dict()
