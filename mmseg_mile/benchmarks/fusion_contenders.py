# SPDX-License-Identifier: Apache-2.0
"""Ways to predict images each of which mixes experts in its own way."""
from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterator, List

import torch
from torch import Tensor

from mmseg.registry import TASK_UTILS
from mmseg.structures import SegDataSample
from mmseg_mile.apis import export_expert
from mmseg_mile.structures import Routing
from .contenders import Contender, Ours, OursLowRank, Stock, Subject

# So warm that every expert has a share, and another one in every run.
_TAU = 1.0
_TAU_STEP = 0.01


class PlainStock(Stock):
    """Plain MMSegmentation: one checkpoint for the whole batch."""

    def prepare(self) -> None:
        """Export the first expert only."""
        first = self.subject.experts[0]
        self._model = self.subject.stock()
        self._states = {
            first.name: export_expert(self.subject.model,
                                      first.name)['state_dict']
        }
        self._load(first)

    @torch.no_grad()
    def outputs(self) -> List[SegDataSample]:
        """Of the one checkpoint; see :meth:`mixed` for what is right."""
        return self.predict(self.subject.inputs)

    @torch.no_grad()
    def mixed(self, routing: Routing) -> List[SegDataSample]:
        """What a mixture has to predict, image by image.

        The weights of a checkpoint are linear in those of its expert, so a
        weighted mean of checkpoints, taken in float64, is the checkpoint of
        the mixture.

        Args:
            routing (Routing): Of the batch.
        """
        found = []
        for index, image in enumerate(self.subject.inputs):
            self._model.load_state_dict(
                _mean_checkpoint(self.subject, routing.mixture(index)))
            found += self.predict(image[None])
        self._load(self.subject.experts[0])
        return found


class Fusing(Contender):
    """Retrieves experts for each image as SemLA does.

    The weights are others in every run: nothing that was merged for one run
    serves the next, as with a stream of images.
    """

    must_equal = True
    #: Experts per image; None for all.
    top_k: Any = None

    def prepare(self) -> None:
        """Give SemLA's gate the experts' prototypes."""
        subject = self.subject
        count = len(subject.experts)
        own = min(self.top_k or count, count)
        metric = subject.config.gate.get('metric', 'mahalanobis')
        self._gate: Any = TASK_UTILS.build(
            dict(
                type='SemLAGate', top_k=own, metric=metric, relative=True,
                tau=_TAU))  # yapf: disable
        for expert in subject.experts:
            self._gate.load_state(expert.name, expert.parts['prototypes'])
        self._runs = 0
        _check_weightings(self.routing(), own)

    @torch.no_grad()
    def routing(self) -> Routing:
        """That of :meth:`outputs`."""
        with self.retrieving(0):
            return self.subject.model.route(self.subject.inputs)

    @contextlib.contextmanager
    def retrieving(self, run: int) -> Iterator[None]:
        """Route with SemLA's gate, and with the weights of a run."""
        self._gate.tau = _TAU + _TAU_STEP * run
        with self.subject.model.gated(self._gate):
            yield

    def run(self) -> List[SegDataSample]:
        """With weights that no other run has."""
        self._runs += 1
        with self.retrieving(self._runs):
            return super().run()

    def outputs(self) -> List[SegDataSample]:
        """With the weights of :meth:`routing`."""
        with self.retrieving(0):
            return super().outputs()


class OursAllFused(Fusing, Ours):
    """A batch of images that mix all experts, each with its own weights."""

    name = 'ours, all experts fused'


class OursFiveFused(OursAllFused):
    """The same with SemLA's five nearest."""

    name = 'ours, 5 nearest fused'
    top_k = 5


class OursLowRankFused(Fusing, OursLowRank):
    """All experts, in one pass with low-rank terms on each image."""

    name = 'ours, all fused, low rank'


def _mean_checkpoint(subject: Subject,
                     mixture: Dict[str, float]) -> Dict[str, Tensor]:
    mean: Dict[str, Tensor] = {}
    for name, weight in mixture.items():
        state = export_expert(subject.model, name)['state_dict']
        for key, value in state.items():
            if not value.is_floating_point():
                mean.setdefault(key, value)
            elif key in mean:
                mean[key] += weight * value.double()
            else:
                mean[key] = weight * value.double()
    return mean


def _check_weightings(routing: Routing, count: int) -> None:
    """Raise unless each image mixes ``count`` experts in its own way.

    Raises:
        AssertionError: Naming what was found instead.
    """
    groups = routing.groups()
    sizes = [len(mixture) for mixture, _ in groups]
    if sizes != [count] * len(routing):
        raise AssertionError(
            f'each of {len(routing)} images must mix {count} experts in its '
            f'own way, the gate made {len(groups)} mixtures of {sizes}: this '
            'would measure something else')
