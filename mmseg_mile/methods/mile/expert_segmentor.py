# SPDX-License-Identifier: Apache-2.0
"""MILE: a frozen base, one LoRA expert per task, a gate that picks one."""
from __future__ import annotations

import contextlib
import copy
from functools import partial
from itertools import islice
from pathlib import Path
from typing import (TYPE_CHECKING, Any, Callable, ContextManager, Dict,
                    Iterable, Iterator, List, Mapping, Optional, Sequence,
                    Tuple, Union)

import torch
from mmengine.dist import all_gather_object
from torch import Tensor, nn

from mmseg.registry import MODELS, TASK_UTILS
from mmseg_mile.adapters.lora_expert_backbone import LoRAExpertBackbone
from mmseg_mile.gates.base_gate import (BaseGate, apply_ood_policy,
                                        check_ood_policy)
from mmseg_mile.gates.embedders import augmented_views
from mmseg_mile.gates.prototype_gate import PrototypeGate
from mmseg_mile.gates.simple_gates import FixedGate
from mmseg_mile.library.expert_store import ExpertStore, StoredExpert
from mmseg_mile.structures import Expert, Routing, Task
from mmseg_mile.structures.interleaving import interleave
from ..continual_segmentor import (ContinualSegmentor, copy_matching,
                                   head_config)
from ..prediction import Decoder, PredictedSamples
from .child_averaging import Lineage, child_mixtures, mixed
from .expert_heads import ExpertHeads, LabelSpace, heaviest


def routing_info(routing: Routing, index: int,
                 labels: LabelSpace) -> Dict[str, Any]:
    """Metainfo of the prediction for one image.

    Args:
        routing (Routing): Of its batch.
        index (int): Position of the image.
        labels (LabelSpace): Of the expert whose head spoke.

    Returns:
        dict: ``expert``, the heaviest one, None for the base alone and for
        no prediction; ``mixture``, weights above zero; ``classes`` and
        ``palette``; ``distances`` per expert; ``ood``, and
        ``ood_score``, None where the gate does not measure it;
        ``abstained``, whether there is no prediction.
    """
    mixture = routing.mixture(index)
    return dict(
        expert=routing.top_expert(index) if mixture else None,
        classes=labels.classes,
        palette=labels.palette,
        mixture=mixture,
        distances=dict(
            zip(routing.expert_names, routing.distances[index].tolist())),
        ood=bool(routing.ood[index]),
        ood_score=None
        if routing.ood_score is None else float(routing.ood_score[index]),
        abstained=routing.abstains is not None
        and bool(routing.abstains[index]))


Start = Dict[str, float]
_STARTS = ('base', 'nearest', 'previous', 'fused')
# Asked of the gate, by the start that needs it.
_ASKED = dict(nearest='nearest', fused='neighbours')


def check_start(task: Task, default: str, known: Sequence[str],
                gate: BaseGate) -> None:
    """Refuse a start that there is not.

    Args:
        task (Task): The task.
        default (str): For a task that names no ``init_from``.
        known (Sequence[str]): The tasks before it, in order.
        gate (BaseGate): Is asked for the nearest of those.

    Raises:
        ValueError: If the start is unknown, or the gate knows no nearest.
    """
    start = task.init_from or default
    if start not in _STARTS and start not in known:
        raise ValueError(
            f'init_from of task {task.name!r} must be one of {_STARTS} '
            f'or an earlier task {tuple(known)}, got {start!r}')
    if known and start in _ASKED and not hasattr(gate, _ASKED[start]):
        raise ValueError(
            f'init_from={start!r} asks the gate for distances, which '
            f'{type(gate).__name__} has not: use PrototypeGate, '
            "or init_from='previous'")


def start_of(task: Task, default: str, known: Sequence[str],
             nearest: Callable[[], str],
             neighbours: Callable[[], Start]) -> Optional[Start]:
    """The experts that a task starts from when tasks come one by one.

    Args:
        task (Task): The task.
        default (str): For a task that names no ``init_from``: 'base',
            'previous', 'nearest', 'fused' or an earlier task.
        known (Sequence[str]): The tasks before it, in order.
        nearest (Callable): Gives the nearest of those.
        neighbours (Callable): Gives the nearest ones and their weights.

    Returns:
        dict[str, float] | None: Weights, of sum 1, of earlier tasks; None
        for the base.
    """
    start = task.init_from or default
    if not known or start == 'base':
        return None
    if start == 'fused':
        return neighbours()
    if start == 'previous':
        start = known[-1]
    return {nearest() if start == 'nearest' else start: 1.0}


if TYPE_CHECKING:
    pass


def embed_images(model: 'ExpertSegmentor',
                 loader: Iterable[dict],
                 num_views: Optional[int] = None) -> Tensor:
    """Embed every image of a loader with the frozen base.

    However many processes share the images, the rows and their order are
    those of a single process, and so is all that a gate makes of them. The
    random state stays as it was. Where more looks than one are wanted,
    disturbed copies are embedded as well.

    Args:
        model (ExpertSegmentor): Whose preprocessor, base, embedder and gate.
        loader (Iterable[dict]): Batches of test-pipeline images, those of
            this process only.
        num_views (int, optional): L, at each image, see
            :meth:`BaseGate.fit`. Defaults to None: as the model's gate
            wants.

    Returns:
        Tensor: (N, D) on the CPU, or (N, L, D) for several looks; the images
        of all processes.
    """
    count = model.gate.num_views if num_views is None else num_views
    with _random_state_kept():
        parts = [_embed(model, batch, count) for batch in loader]
    # of a small dataset, the last processes have no image
    mine = torch.cat(parts) if parts else None
    shares: List[List[Tensor]] = [[] if share is None else list(share)
                                  for share in all_gather_object(mine)]
    return torch.stack(interleave(shares))


def check_embedder(model: 'ExpertSegmentor', loader: Iterable[dict]) -> None:
    """Show one batch of this process to embedder and gate.

    Raises:
        ValueError: If one of them could not work with the images.
    """
    with _random_state_kept():
        for batch in islice(loader, 1):
            model.gate.check_embeddings(_embed(model, batch, 1))


def prepared_views(model: 'ExpertSegmentor', batch: dict,
                   count: int) -> List[Tensor]:
    """Images of a batch, then disturbed copies of them, as the base sees them.

    Args:
        model (ExpertSegmentor): Whose preprocessor.
        batch (dict): B images.
        count (int): L, looks at each image.

    Returns:
        list[Tensor]: L of (B, C, H, W).
    """
    return [
        model.data_preprocessor(look, False)['inputs']
        for look in augmented_views(batch, count)
    ]


@torch.no_grad()
def embed_views(model: 'ExpertSegmentor', embedder: Any,
                looks: Sequence[Tensor]) -> Tensor:
    """Embed what :func:`prepared_views` gave.

    Args:
        model (ExpertSegmentor): Whose frozen base.
        embedder (Any): The model's, or another one.
        looks (Sequence[Tensor]): L of (B, C, H, W).

    Returns:
        Tensor: (B, D) on the CPU, or (B, L, D) for several looks.
    """
    found = [embedder(model.backbone, images).cpu() for images in looks]
    return found[0] if len(found) == 1 else torch.stack(found, 1)


def _embed(model: 'ExpertSegmentor', batch: dict, num_views: int) -> Tensor:
    return embed_views(model, model.embedder,
                       prepared_views(model, batch, num_views))


def _random_state_kept() -> ContextManager[None]:
    # a loader draws a seed whenever it starts; how often images are looked
    # at must not change what is learned afterwards
    return torch.random.fork_rng(devices=[])


if TYPE_CHECKING:
    pass

# Shape legend: n images, C classes, h x w grid of the logits


def decode_late(model: 'RoutedSegmentor', predicted: PredictedSamples,
                inputs: Tensor, routing: Routing,
                indices: Sequence[int]) -> None:
    """Write predictions of images, one forward per expert of a mixture.

    ``p = sum_i w_i softmax(z_i)`` over the experts that share the classes of
    the heaviest one, at the resolution of the head; ``log p`` stands for
    the logits.

    Args:
        model (RoutedSegmentor): Its backbone and heads.
        predicted (PredictedSamples): Of the whole batch.
        inputs (Tensor): (B, C, H, W), all of the batch.
        routing (Routing): Of the batch.
        indices (Sequence[int]): The images to write.
    """
    metas = predicted.metas()
    chosen = routing.take(indices)
    for mixture, own in chosen.groups():
        places = [indices[i] for i in own]
        logits, head = _averaged(model, inputs[places],
                                 [metas[i] for i in places], mixture)
        predicted.write(places, logits, head)


def _averaged(model: 'RoutedSegmentor', inputs: Tensor,
              metas: List[Dict[str, Any]], mixture: Mapping[str,
                                                            float]) -> Any:
    """(n, C, h, w) log-probabilities, and a head to resize them."""
    total: Optional[Tensor] = None
    head: Any = None
    for name, weight in model.heads.fusable(mixture).items():
        decoder = Decoder(
            partial(model.heads.fused, {name: 1.0}, model.device),
            range(len(inputs)))
        with model.backbone.using(name):
            (logits, head), = model.decode(inputs, metas, [decoder])
        part = weight * _probabilities(logits)
        total = part if total is None else total + part
    assert total is not None
    return _logits(total), head


def _probabilities(logits: Tensor) -> Tensor:
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def _logits(probabilities: Tensor) -> Tensor:
    tiny = torch.finfo(probabilities.dtype).tiny
    if probabilities.shape[1] == 1:
        return probabilities.logit(eps=1e-7)
    return probabilities.clamp_min(tiny).log()


_FUSIONS = ('weights', 'logits')


class RoutedSegmentor(ContinualSegmentor):
    """A frozen base, experts, and a gate that chooses them image by image.

    Args:
        backbone (dict): Config of a ``LoRAExpertBackbone``.
        decode_head (dict): Template of the experts' heads.
        gate (dict): Config of the gate.
        embedder (dict): Config of the gate's embedder.
        fusion (str): How the experts of a mixture become one prediction.
            'weights': their updates of the base are summed with the
            weights, and heads of one kind are averaged. 'logits': each
            predicts alone, and the class probabilities are averaged, which
            takes as many forwards (the late fusion that SemLA, arXiv
            2503.21780, compares itself with). Defaults to 'weights'.
        ood_policy (str): What becomes of an image that the gate flags.
            'nearest': what the gate says; 'fuse': the nearest experts
            predict one by one, as by ``fusion='logits'``, with the weights
            of :func:`nearest_weights`; 'base': it gets no expert;
            'abstain': it gets no prediction, its label map is 255
            throughout. Defaults to 'nearest'.
        child_averaging (float, optional): Where the gate chooses one
            expert, mix in those that started from it, see
            :func:`child_mixtures`. Defaults to None: not.
        **kwargs: As in :class:`ContinualSegmentor`.

    Raises:
        ValueError: If the backbone holds no experts, or an argument is out
            of range.
    """

    def __init__(self,
                 backbone: Dict[str, Any],
                 decode_head: Dict[str, Any],
                 gate: Dict[str, Any],
                 embedder: Dict[str, Any],
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
        self.fusion = fusion
        self.ood_policy = check_ood_policy(ood_policy)
        self.gate: BaseGate = TASK_UTILS.build(gate)
        self.embedder = TASK_UTILS.build(embedder)
        if hasattr(self.embedder, 'bind_preprocessor'):
            # a network of its own wants another normalisation
            self.embedder.bind_preprocessor(self.data_preprocessor)
        self.heads = ExpertHeads(self.backbone.experts.cache)
        self.lineage = Lineage()
        self.child_averaging = self._checked(child_averaging)
        # mixtures of descendants, and the gate and experts they hold for
        self._mixtures: Tuple[Any, Tuple[str, ...], Dict] = (None, (), {})

    @property
    def expert_names(self) -> Tuple[str, ...]:
        """tuple[str]: Experts in the order in which they were learned."""
        return self.heads.names

    def predict(self,
                inputs: Tensor,
                data_samples: Optional[list] = None) -> list:
        """Route each image, then predict images of one mixture together.

        Args:
            inputs (Tensor): (B, C, H, W), normalised.
            data_samples (list[SegDataSample], optional): Of the B images.
                Defaults to None.

        Returns:
            list[SegDataSample]: mmseg's fields, and in the metainfo what
            :func:`routing_info` says. Label maps are in the classes of the
            heaviest expert, without any of the one that lent its head.
        """
        routing = self.route(inputs, data_samples)
        predicted = PredictedSamples(inputs, data_samples, self.keep_logits)
        speakers = [self._speaker(routing, i) for i in range(len(routing))]
        together, alone, silent = _by_kind(routing)
        predicted.abstain(silent)
        for name in dict.fromkeys(speakers[i] for i in alone):
            self._decode_base(predicted, inputs, name,
                              [i for i in alone if speakers[i] == name])
        late = [i for i in together if self._is_late(routing, i)]
        if late:
            decode_late(self, predicted, inputs, routing, late)
        merged = [i for i in together if i not in late]
        if merged:
            self._decode_merged(predicted, inputs, routing, merged)
        for index, sample in enumerate(predicted.samples):
            labels = self.heads.labels(speakers[index])
            sample.set_metainfo(routing_info(routing, index, labels))
        return predicted.samples

    def route(self,
              inputs: Tensor,
              data_samples: Optional[list] = None) -> Routing:
        """Ask the gate once per image, and deal with what it flags.

        Args:
            inputs (Tensor): (B, C, H, W), normalised.
            data_samples (list[SegDataSample], optional): Carry the true task
                as metainfo 'task' where it is known; only the oracle looks.

        Returns:
            Routing: For the B images.
        """
        tasks = [s.metainfo.get('task') for s in data_samples
                 ] if data_samples else [None] * len(inputs)
        embeddings = self.embedder(
            self.backbone, inputs) if self.gate.needs_embeddings else None
        routing = self.gate.route(embeddings, tasks)
        if (self.child_averaging is not None
                and isinstance(self.gate, PrototypeGate)):
            routing = mixed(routing, self._child_mixtures(self.gate))
        return apply_ood_policy(routing, self.ood_policy)

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

    @contextlib.contextmanager
    def without(self, names: Sequence[str]) -> Iterator[None]:
        """Route inside the block as if some experts had not been learned.

        Raises:
            ValueError: If one is unknown to the gate, or none is left.
        """
        gate = copy.deepcopy(self.gate)
        for name in names:
            gate.remove(name)
        if not gate.expert_names:
            raise ValueError('no expert is left to predict with: leave one '
                             f'of {list(names)}')
        with self.gated(gate):
            yield

    def _checked(self, temperature: Optional[float]) -> Optional[float]:
        if temperature is None:
            return None
        if not temperature > 0:
            raise ValueError('model.child_averaging must be > 0 or '
                             f'None, got {temperature}')
        if not isinstance(self.gate, PrototypeGate):
            raise ValueError(
                'model.child_averaging weighs experts by distances, '
                f'which {type(self.gate).__name__} has not: use '
                'PrototypeGate, or leave it out')
        return temperature

    def _child_mixtures(self, gate: PrototypeGate) -> Dict[str, Dict]:
        """Made once for a set of experts."""
        names = gate.expert_names
        if self._mixtures[0] is not gate or self._mixtures[1] != names:
            assert self.child_averaging is not None
            mixtures = child_mixtures(
                self.lineage, names, gate.mean_distances(),
                self.child_averaging,
                {n: self.heads.labels(n).classes
                 for n in names})
            self._mixtures = (gate, names, mixtures)
        return self._mixtures[2]

    def _is_late(self, routing: Routing, index: int) -> bool:
        """Whether the experts of an image predict one by one.

        Experts that did not start from one another gain from it: their
        heads were drawn apart, and a mean of weights is no head.
        """
        return self.fusion == 'logits' or (self.ood_policy == 'fuse'
                                           and bool(routing.ood[index]))

    def _speaker(self, routing: Routing, index: int) -> str:
        """The expert in whose classes an image is labelled."""
        first = self.expert_names[0]
        if (not routing.weights[index].any() and first in routing.expert_names
                and self.backbone.base_training == 'first_task'):
            # its head was trained with the base itself
            return first
        return routing.top_expert(index)

    def _decode_merged(self, predicted: PredictedSamples, inputs: Tensor,
                       routing: Routing, indices: Sequence[int]) -> None:
        chosen = routing.take(indices)
        for mixture, own in self.backbone.passes(chosen, inputs[indices]):
            decoder = Decoder(self._head_of(mixture), range(len(own)))
            with self.backbone.using(mixture):
                places = [indices[i] for i in own]
                self.decode_into(predicted, inputs[places], [decoder], places)

    def _decode_base(self, predicted: PredictedSamples, inputs: Tensor,
                     speaker: str, indices: List[int]) -> None:
        head = self._head_of({speaker: 1.0})
        with self.backbone.base():
            self.decode_into(predicted, inputs[indices],
                             [Decoder(head, range(len(indices)))], indices)

    def _head_of(self, mixture: Mapping[str,
                                        float]) -> Callable[[], nn.Module]:
        return partial(self.heads.fused, mixture, self.device)


def _by_kind(routing: Routing) -> Tuple[List[int], List[int], List[int]]:
    """Images with experts, those for the base alone, those without label."""
    together: List[int] = []
    alone: List[int] = []
    silent: List[int] = []
    for index in range(len(routing)):
        if routing.abstains is not None and routing.abstains[index]:
            silent.append(index)
        elif routing.weights[index].any():
            together.append(index)
        else:
            alone.append(index)
    return together, alone, silent


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
    #: Whether every expert will be taken over by :meth:`reuse_expert`, so that
    #: none starts from another one.
    reuses_experts = False

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
        for index, task in enumerate(() if self.reuses_experts else tasks):
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
        self.set_decode_head(head, task.classes, task.palette)
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

    def reuse_expert(self, task: Task, loader: Iterable[dict],
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
