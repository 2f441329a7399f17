# SPDX-License-Identifier: Apache-2.0
"""Prediction with the experts that a gate chooses."""
from __future__ import annotations

import contextlib
import copy
from functools import partial
from typing import (Any, Callable, Dict, Iterator, List, Mapping, Optional,
                    Sequence, Tuple)

from torch import Tensor, nn

from mmseg.registry import TASK_UTILS
from mmseg_mile.structures import Routing
from ..backbones import LoRAExpertBackbone
from ..gates import BaseGate, FixedGate, PrototypeGate
from ..gates.unfamiliar_policy import check_policy, handle_unfamiliar
from .batch_decoding import Decoder
from .continual_segmentor import ContinualSegmentor
from .expert_heads import ExpertHeads
from .late_fusion import decode_late
from .lineage import Lineage, descendant_mixtures, mixed
from .predicted_samples import PredictedSamples
from .routing_info import routing_info

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
        unfamiliar (str): What becomes of an image that the gate flags.
            'nearest': what the gate says; 'fuse': the nearest experts
            predict one by one, as by ``fusion='logits'``, with the weights
            of :func:`nearest_weights`; 'base': it gets no expert;
            'abstain': it gets no prediction, its label map is 255
            throughout. Defaults to 'nearest'.
        descendant_temperature (float, optional): Where the gate chooses one
            expert, mix in those that started from it, see
            :func:`descendant_mixtures`. Defaults to None: not.
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
                 unfamiliar: str = 'nearest',
                 descendant_temperature: Optional[float] = None,
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
        self.unfamiliar = check_policy(unfamiliar)
        self.gate: BaseGate = TASK_UTILS.build(gate)
        self.embedder = TASK_UTILS.build(embedder)
        if hasattr(self.embedder, 'look_through'):
            # a network of its own wants another normalisation
            self.embedder.look_through(self.data_preprocessor)
        self.heads = ExpertHeads(self.backbone.experts.cache)
        self.lineage = Lineage()
        self.descendant_temperature = self._checked(descendant_temperature)
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
        if (self.descendant_temperature is not None
                and isinstance(self.gate, PrototypeGate)):
            routing = mixed(routing, self._descendant_mixtures(self.gate))
        return handle_unfamiliar(routing, self.unfamiliar)

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
            raise ValueError('model.descendant_temperature must be > 0 or '
                             f'None, got {temperature}')
        if not isinstance(self.gate, PrototypeGate):
            raise ValueError(
                'model.descendant_temperature weighs experts by distances, '
                f'which {type(self.gate).__name__} has not: use '
                'PrototypeGate, or leave it out')
        return temperature

    def _descendant_mixtures(self, gate: PrototypeGate) -> Dict[str, Dict]:
        """Made once for a set of experts."""
        names = gate.expert_names
        if self._mixtures[0] is not gate or self._mixtures[1] != names:
            assert self.descendant_temperature is not None
            mixtures = descendant_mixtures(
                self.lineage, names, gate.mean_distances(),
                self.descendant_temperature,
                {n: self.heads.labels(n).classes
                 for n in names})
            self._mixtures = (gate, names, mixtures)
        return self._mixtures[2]

    def _is_late(self, routing: Routing, index: int) -> bool:
        """Whether the experts of an image predict one by one.

        Experts that did not start from one another gain from it: their
        heads were drawn apart, and a mean of weights is no head.
        """
        return self.fusion == 'logits' or (self.unfamiliar == 'fuse'
                                           and bool(routing.unfamiliar[index]))

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
        for groups in self.backbone.passes(chosen, inputs[indices]):
            where = [i for _, own in groups for i in own]
            decoders: List[Decoder] = []
            for mixture, own in groups:
                first = sum(len(d.indices) for d in decoders)
                decoders.append(
                    Decoder(
                        self._head_of(mixture), range(first,
                                                      first + len(own))))
            with self.backbone.using(chosen.take(where)):
                places = [indices[i] for i in where]
                self.decode_into(predicted, inputs[places], decoders, places)

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
