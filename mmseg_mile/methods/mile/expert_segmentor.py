# SPDX-License-Identifier: Apache-2.0
"""MILE: a frozen base, one LoRA expert per task, a gate that picks one."""
from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import (Any, Dict, Iterable, Iterator, List, Mapping, Optional,
                    Sequence, Tuple)

import torch
from mmengine.dist import all_gather_object
from torch import Tensor

from mmseg.registry import MODELS, TASK_UTILS
from mmseg_mile.adapters.base_weights import weights_checksum
from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone
from mmseg_mile.gates.base_gate import (BaseGate, apply_ood_policy,
                                        check_ood_policy)
from mmseg_mile.gates.embedders import augmented_views
from mmseg_mile.gates.prototype_gate import PrototypeGate
from mmseg_mile.gates.simple_gates import FixedGate
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.structures import Expert, Routing, Task
from mmseg_mile.structures.expert import TensorDict
from ..continual_segmentor import (ContinualSegmentor, copy_matching,
                                   head_config)
from ..prediction import abstain, blank_samples
from .expert_heads import ExpertHeads, heaviest
from .lineage import (check_start, child_weights, initial_experts, origin_from,
                      origin_of)

# Shape legend: B images, N images of a task, L views of each, D embedding,
# E experts, C classes, h x w grid of the logits

_FUSIONS = ('weights', 'logits')
# What results.json calls the sizes of an expert's parts.
_COST_FIELDS = dict(
    adapter='lora_params',
    head='head_params',
    norm='norm_params',
    prototypes='prototype_values')


@MODELS.register_module()
class ExpertSegmentor(ContinualSegmentor):
    """Mixture of Incremental LoRA Experts (MILE, arXiv 2605.03555).

    An expert is an adapter of the frozen base, a decode head, and the gate's
    prototypes of its task. Earlier experts are never touched, so nothing is
    forgotten; only the gate can err.

    Args:
        backbone (dict): Config of a ``LoRAExpertBackbone``.
        decode_head (dict): Template of the experts' heads.
        gate (dict): Config of the gate.
        embedder (dict): Config of the gate's embedder.
        init_from (str): Where a new expert starts: 'base' (the paper's
            setting), 'previous', 'nearest' (the expert whose prototypes lie
            nearest to the new images), 'fused' (the nearest ones, weighted
            as SemLA weighs them and cut to the rank) or the name of a task.
            Defaults to 'base'.
        fusion (str): How the experts of a mixture become one prediction.
            'weights': their updates of the base are summed with the
            weights, and heads of one kind are averaged. 'logits': each
            predicts alone, and the class probabilities are averaged, which
            takes as many forwards (the late fusion that SemLA, arXiv
            2503.21780, compares itself with). Defaults to 'weights'.
        ood_policy (str): What becomes of an image that the gate flags.
            'nearest': what the gate says; 'fuse': the nearest experts
            predict one by one, as by ``fusion='logits'``, with the weights
            of :func:`nearest_weights`; 'base': it gets no expert, and the
            head that was trained with the base, or that of the nearest
            expert where none is loaded that was; 'abstain': it gets no
            prediction, its label map is 255 throughout, which evaluations
            count as wrong. Defaults to
            'nearest'.
        child_averaging (float, optional): Temperature T at which the
            children of an expert, those that started from it, are mixed in
            where the gate chooses it alone, see :func:`child_weights`.
            Defaults to None: not.
        **kwargs: As in :class:`ContinualSegmentor`.

    Raises:
        ValueError: If the backbone holds no experts, or an argument is out
            of range.
    """

    METHOD = 'MILE'
    supports_parallel = True

    def __init__(self,
                 backbone: Dict[str, Any],
                 decode_head: Dict[str, Any],
                 gate: Dict[str, Any],
                 embedder: Dict[str, Any],
                 init_from: str = 'base',
                 fusion: str = 'weights',
                 ood_policy: str = 'nearest',
                 child_averaging: Optional[float] = None,
                 **kwargs: Any) -> None:
        super().__init__(backbone, decode_head, **kwargs)
        if not isinstance(self.backbone, LoRAExpertBackbone):
            raise ValueError(
                'model.backbone must be a LoRAExpertBackbone, got '
                f'{type(self.backbone).__name__}: wrap it as '
                "dict(type='LoRAExpertBackbone', backbone=..., lora=...)")
        if fusion not in _FUSIONS:
            raise ValueError(f'model.fusion must be one of {_FUSIONS}, got '
                             f'{fusion!r}')
        self.gate: BaseGate = TASK_UTILS.build(gate)
        self.embedder = TASK_UTILS.build(embedder)
        if hasattr(self.embedder, 'bind_preprocessor'):
            # a network of its own wants another normalisation
            self.embedder.bind_preprocessor(self.data_preprocessor)
        if child_averaging is not None and not child_averaging > 0:
            raise ValueError('model.child_averaging must be > 0 or None, got '
                             f'{child_averaging}')
        if child_averaging and not isinstance(self.gate, PrototypeGate):
            raise ValueError(
                'model.child_averaging weighs experts by distances, which '
                f'{type(self.gate).__name__} has not: use PrototypeGate, or '
                'leave it out')
        self.init_from = init_from
        self.fusion = fusion
        self.ood_policy = check_ood_policy(ood_policy)
        self.child_averaging = child_averaging
        self.heads = ExpertHeads(self.backbone.experts.cache)
        self.origins: Dict[str, Dict[str, Any]] = {}
        # the gate, its experts, and weights of children that hold for them
        self._children: Optional[Tuple[Any, Tuple[str, ...], Tensor]] = None
        self._embeddings: Optional[Tensor] = None

    @property
    def expert_names(self) -> Tuple[str, ...]:
        """tuple[str]: Experts in the order in which they were learned."""
        return self.heads.names

    # -- learning --------------------------------------------------------

    def check_stream(self, tasks: Sequence[Task]) -> None:
        """See :meth:`ContinualSegmentor.check_stream`."""
        super().check_stream(tasks)
        for index, task in enumerate(() if self.reuses_experts else tasks):
            check_start(task, self.init_from, [t.name for t in tasks[:index]],
                        self.gate)

    def begin_task(self, task: Task, loader: Iterable[dict]) -> None:
        """A new expert, started from the base or from earlier ones."""
        source = initial_experts(task, self.init_from, self.expert_names,
                                 self.gate, partial(self._embed_task, loader))
        first = not self.expert_names
        if first and self.gate.needs_embeddings:
            # an embedder that does not fit must not show after the training
            with torch.random.fork_rng(devices=[]):
                for batch in islice(loader, 1):
                    self.gate.check_embeddings(self.embed_views(batch))
        self.backbone.add_expert(task.name, source or None)
        parents = {n: weights_checksum(self._weights(n)) for n in source}
        self.origins[task.name] = origin_from(parents, self.origins)
        head = self.new_head(task.num_classes)
        if source:
            copy_matching(head, self.heads.fused_state(source), task.classes,
                          self.heads.labels(heaviest(source)).classes)
        self.set_decode_head(head, task.classes, task.palette)
        self.renew_auxiliary_heads(task.num_classes)
        if first and self.backbone.base_training == 'first_task':
            self.origins[task.name]['trained_base'] = True
            self.backbone.train_base()
        else:
            self.backbone.train_expert(task.name)

    def end_task(self, task: Task, loader: Iterable[dict]) -> None:
        """Freeze the expert and fit its prototypes."""
        self.backbone.finish_training()
        self.drop_auxiliary_heads()
        self.heads.keep(task, self.decode_head,
                        head_config(self.head_template, task.num_classes))
        self.origins[task.name]['weights_sha256'] = weights_checksum(
            self._weights(task.name))
        self._fit_gate(task, loader)

    def reuse_expert(self, task: Task, loader: Iterable[dict],
                     expert: Expert) -> None:
        """See :meth:`ContinualSegmentor.reuse_expert`.

        The gate learns the task anew from the images.

        Raises:
            ValueError: If the expert is of another base, or its adapter is
                not what the config would train.
        """
        with self._all_or_nothing():
            self.backbone.load_experts([expert])
            self.backbone.check_settings(task.name)
            self.heads.add(expert, self.device)
            self._fit_gate(task, loader)
        self.origins[task.name] = origin_of(expert)

    def _fit_gate(self, task: Task, loader: Iterable[dict]) -> None:
        if self._embeddings is None and self.gate.needs_embeddings:
            self._embed_task(loader)
        embeddings, self._embeddings = self._embeddings, None
        self._children = None
        self.gate.fit(task.name, embeddings)

    def _embed_task(self, loader: Iterable[dict]) -> Tensor:
        # a start from the nearest asks for what the gate learns from later
        self._embeddings = self.embed_images(loader)
        return self._embeddings

    def embed_images(self,
                     loader: Iterable[dict],
                     num_views: Optional[int] = None) -> Tensor:
        """Embed every image of a loader with the frozen base.

        However many processes share the images, rows and their order are
        those of a single process. The random state stays as it was.

        Args:
            loader (Iterable[dict]): Batches of test-pipeline images, those
                of this process only: r, r + W, ... for process r of W.
            num_views (int, optional): L, see :meth:`BaseGate.fit`. Defaults
                to None: as the gate wants.

        Returns:
            Tensor: (N, D) on the CPU, or (N, L, D) for several views.
        """
        count = self.gate.num_views if num_views is None else num_views
        # a loader draws a seed whenever it starts, which must not change what
        # is learned afterwards
        with torch.random.fork_rng(devices=[]):
            parts = [self.embed_views(batch, count) for batch in loader]
        # of a small dataset, the last processes have no image
        shares = all_gather_object(torch.cat(parts) if parts else ())
        return torch.stack([
            row for turn in zip_longest(*shares) for row in turn
            if row is not None
        ])

    @torch.no_grad()
    def embed_views(self,
                    batch: dict,
                    num_views: int = 1,
                    embedder: Any = None) -> Tensor:
        """Embed images and augmented views of them with the frozen base.

        Args:
            batch (dict): B images of the test pipeline.
            num_views (int): L. Defaults to 1: the images alone.
            embedder (Any, optional): Defaults to None: the model's.

        Returns:
            Tensor: (B, D) on the CPU, or (B, L, D) for several views.
        """
        embedder = embedder or self.embedder
        found = [
            embedder(self.backbone,
                     self.data_preprocessor(view, False)['inputs']).cpu() for
            view in augmented_views(batch, num_views, self.gate.perturbations)
        ]
        return found[0] if num_views == 1 else torch.stack(found, 1)

    # -- routing ---------------------------------------------------------

    def route(self,
              inputs: Tensor,
              data_samples: Optional[list] = None) -> Routing:
        """Ask the gate once per image, and deal with what it flags.

        Args:
            inputs (Tensor): (B, C, H, W), normalised.
            data_samples (list[SegDataSample], optional): Name the true
                ``task`` where it is known; only the oracle looks.
        """
        samples = data_samples or blank_samples(inputs)
        embeddings = self.embedder(
            self.backbone, inputs) if self.gate.needs_embeddings else None
        routing = self.gate.route(embeddings, [s.get('task') for s in samples])
        if self.child_averaging and isinstance(self.gate, PrototypeGate):
            routing = self._with_children(routing, self.gate)
        return apply_ood_policy(routing, self.ood_policy)

    def _with_children(self, routing: Routing, gate: PrototypeGate) -> Routing:
        """The routing, children mixed in where one expert was chosen."""
        names = routing.expert_names
        if self._children is None or self._children[:2] != (gate, names):
            assert self.child_averaging is not None
            classes = [self.heads.labels(name).classes for name in names]
            table = child_weights(names, self.origins, classes,
                                  gate.mean_distances(), self.child_averaging)
            self._children = (gate, names, table)
        weights = routing.weights.clone()
        single = (weights > 0).sum(1) == 1
        weights[single] = weights[single] @ self._children[2].to(weights)
        return replace(routing, weights=weights)

    @contextlib.contextmanager
    def forced(self, expert: str) -> Iterator[None]:
        """Predict every image inside the block with one expert."""
        gate = FixedGate(expert)
        for name in self.expert_names:
            gate.fit(name, None)
        with self.gated(gate):
            yield

    @contextlib.contextmanager
    def gated(self, gate: BaseGate) -> Iterator[None]:
        """Route with another gate inside the block."""
        previous, self.gate = self.gate, gate
        try:
            yield
        finally:
            self.gate = previous

    # -- predicting ------------------------------------------------------

    def predict(self,
                inputs: Tensor,
                data_samples: Optional[list] = None) -> list:
        """Route each image, then predict images of one mixture together.

        Returns:
            list[SegDataSample]: mmseg's fields, and in the metainfo
            ``expert``, the heaviest one, None for the base alone and for no
            prediction; ``head_expert``, whose head it has, and the
            ``classes`` and ``palette`` of that; ``mixture``, weights above
            zero; ``distances`` per expert; ``ood``, and ``ood_score``, None
            where the gate has none; ``abstained``, True for no prediction.
        """
        samples = data_samples or blank_samples(inputs)
        routing = self.route(inputs, samples)
        groups: Dict[Any, List[int]] = {}
        for index, sample in enumerate(samples):
            info = self._routing_info(routing, index)
            sample.set_metainfo(info)
            if info['abstained']:
                abstain(sample, self.device)
                continue
            shares = tuple(info['mixture'].items())
            late = len(shares) > 1 and (self.fusion == 'logits'
                                        or self.ood_policy == 'fuse'
                                        and info['ood'])
            key = shares, info['head_expert'], late
            groups.setdefault(key, []).append(index)
        for (shares, expert, late), indices in groups.items():
            most = self.images_per_forward(samples[indices[0]])
            for start in range(0, len(indices), most):
                part = indices[start:start + most]
                images = inputs if len(part) == len(samples) else inputs[part]
                self.predict_mixture(images, [samples[i] for i in part],
                                     dict(shares), expert, late)
        return samples

    def _routing_info(self, routing: Routing, index: int) -> Dict[str, Any]:
        """Metainfo of the prediction for one image of a batch."""
        mixture = routing.mixture(index)
        head_expert = heaviest(mixture) if mixture else self.base_head(
            routing, index)
        classes, palette = self.heads.labels(head_expert)
        distances = routing.distances[index].tolist()
        score, abstains = routing.ood_score, routing.abstains
        return dict(
            expert=head_expert if mixture else None,
            head_expert=head_expert,
            classes=classes,
            palette=palette,
            mixture=mixture,
            distances=dict(zip(routing.expert_names, distances)),
            ood=bool(routing.ood[index]),
            ood_score=None if score is None else float(score[index]),
            abstained=abstains is not None and bool(abstains[index]))

    def base_head(self, routing: Routing, index: int) -> str:
        """The expert whose head the base gets for an image."""
        for name in routing.expert_names:
            if self.origins[name].get('trained_base'):
                return name
        return routing.top_expert(index)

    def predict_mixture(self,
                        inputs: Tensor,
                        samples: list,
                        mixture: Mapping[str, float],
                        head_expert: str,
                        late: bool = False,
                        fuse_heads: bool = True) -> None:
        """Predict images with one mixture of experts.

        Args:
            inputs (Tensor): (n, C, H, W), normalised.
            samples (list[SegDataSample]): Of the n images; get the result.
            mixture (Mapping[str, float]): Weights of sum 1; {} for the base.
            head_expert (str): Whose head the base gets.
            late (bool): Whether each expert predicts alone: ``p = sum_i w_i
                softmax(z_i)`` over those that share the classes of the
                heaviest one, at the resolution of the head; ``log p`` stands
                for the logits. Defaults to False.
            fuse_heads (bool): Whether heads are averaged, instead of taking
                that of ``head_expert``. Defaults to True.
        """
        metas = [sample.metainfo for sample in samples]
        average: Any = 0
        alone = self.heads.fusable(mixture) if late else {}
        for name, weight in alone.items():
            head = self.heads.fused({name: 1.0}, self.device)
            with self.backbone.using(name), self.decoding_with(head):
                average += weight * _probabilities(
                    self.inference(inputs, metas))
        heads = mixture if mixture and fuse_heads else {head_expert: 1.0}
        head = self.heads.fused(heads, self.device)
        with self.backbone.using(mixture), self.decoding_with(head):
            logits = _log(average) if late else self.inference(inputs, metas)
            self.postprocess_result(logits, samples)

    # -- keeping ---------------------------------------------------------

    def export_expert(self,
                      name: str,
                      provenance: Optional[Dict[str, Any]] = None) -> Expert:
        """Everything that the expert ``name`` consists of."""
        head, weights = self.heads[name], self._weights(name)
        origin = dict(
            self.origins[name], weights_sha256=weights_checksum(weights))
        return Expert(
            name=name,
            classes=head.classes,
            palette=head.palette,
            parts=dict(weights, prototypes=self.gate.state(name)),
            configs=dict(adapter=self.backbone.lora_config, head=head.config),
            base_fingerprint=self.backbone.fingerprint(),
            provenance=dict(provenance or {}, **origin))

    def _weights(self, name: str) -> Dict[str, TensorDict]:
        adapter = self.backbone.experts[name]
        norm = dict(norm=adapter.norm) if adapter.norm else {}
        return dict(adapter=adapter.lora, head=self.heads[name].state, **norm)

    def import_expert(self, expert: Expert) -> None:
        """Make an expert routable; see :meth:`import_experts`."""
        self.import_experts([expert])

    def import_experts(self, experts: Sequence[Expert]) -> None:
        """Make experts routable; stored ones are read when first used.

        Raises:
            ValueError: If one belongs to another base or does not fit; then
                none is taken over.
        """
        with self._all_or_nothing():
            self.backbone.load_experts(experts)
            for expert in experts:
                self.heads.add(expert, self.device)
                self.gate.load_state(expert.name,
                                     expert.parts.get('prototypes', {}))
        self.origins.update({e.name: origin_of(e) for e in experts})
        self._children = None

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Keep the experts that there are, if the block does not end well."""
        adapters = self.backbone.experts
        owners = (adapters, adapters.cache, self.heads, self.gate)
        before = [{
            key: value.copy() if isinstance(value, dict) else value
            for key, value in vars(owner).items()
        } for owner in owners]
        try:
            yield
        except BaseException:
            for owner, values in zip(owners, before):
                vars(owner).update(values)
            raise

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
            experts = store.open_tasks(tasks)
            if not self.expert_names:
                self.backbone.load_base(*store.load_base())
            self.import_experts(experts)

    def expert_costs(self, folder: Path) -> List[Dict[str, Any]]:
        """See :meth:`ContinualSegmentor.expert_costs`."""
        store = ExpertStore(folder)
        # one that was loaded from elsewhere is no cost of this library
        kept = [name for name in store.names if name in self.expert_names]
        costs = []
        for expert in store.open(kept):
            values, size = expert.num_values(), store.num_bytes(expert.name)
            parts = {f: values.get(p, 0) for p, f in _COST_FIELDS.items()}
            costs.append(dict(task=expert.name, bytes=size, **parts))
        return costs

    def kept_state(self) -> Dict[str, Tensor]:
        """See :meth:`ContinualSegmentor.kept_state`: the base."""
        return self.backbone.state_dict()


def _probabilities(logits: Tensor) -> Tensor:
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def _log(probabilities: Tensor) -> Tensor:
    """Logits of (B, C, h, w) probabilities."""
    if probabilities.shape[1] == 1:
        return probabilities.logit(eps=1e-7)
    tiny = torch.finfo(probabilities.dtype).tiny
    return probabilities.clamp_min(tiny).log()
