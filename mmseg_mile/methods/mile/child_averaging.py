# SPDX-License-Identifier: Apache-2.0
"""Which expert started from which, and mixtures along that line."""
from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set

from torch import Tensor

from mmseg_mile.structures import Routing

_NAME, _PARENTS = 'learned_as', 'started_from'


class Lineage:
    """Parents of experts by the names under which they were learned.

    So an expert may be renamed, and its parents and children still know it.
    An expert of which nothing is known has no parents.
    """

    def __init__(self) -> None:
        self._learned_as: Dict[str, str] = {}
        self._parents: Dict[str, List[str]] = {}

    def begin(self, name: str, source: Optional[Mapping[str, float]]) -> None:
        """Note where a new expert starts; None is the base."""
        self._learned_as[name] = name
        self._parents[name] = [self._learned_as[n] for n in source or ()]

    def add(self, name: str, provenance: Mapping[str, Any]) -> None:
        """Take over what :meth:`provenance` said of an expert."""
        self._learned_as[name] = provenance.get(_NAME, name)
        self._parents[name] = list(provenance.get(_PARENTS, ()))

    def provenance(self, name: str) -> Dict[str, Any]:
        """Fields for an expert's record; {} if nothing is known."""
        if name not in self._learned_as:
            return {}
        return {
            _NAME: self._learned_as[name],
            _PARENTS: list(self._parents[name])
        }

    def children(self, name: str) -> List[str]:
        """Experts that started from this one, or from one that did."""
        line: Set[str] = {self._learned_as.get(name, name)}
        found: List[str] = []
        # parents are learned first, but need not be added first
        while True:
            more = [
                other for other, parents in self._parents.items()
                if other not in found and other != name
                and line.intersection(parents)
            ]
            if not more:
                return found
            found += more
            line.update(self._learned_as[other] for other in more)


def child_mixtures(lineage: Lineage, names: Sequence[str],
                   distances_EE: Tensor, temperature: float,
                   labels: Mapping[str, Any]) -> Dict[str, Dict]:
    """What stands for each expert: itself and its descendants.

    A descendant went on training the weights of its ancestor, so the line
    between them passes through models that are better for the ancestor's
    images than where it stopped, as long as the descendant's domain is
    near: the weights are ``softmax_j(-d_ij / (d_ii T))`` with the root mean
    squared distance ``d_ij`` of expert i's training images to expert j.

    Args:
        lineage (Lineage): Of the experts.
        names (Sequence[str]): The experts that there are.
        distances_EE (Tensor): (E, E), of
            :meth:`PrototypeGate.mean_distances`.
        temperature (float): T, above 0.
        labels (Mapping[str, Any]): Label space of each expert; one of
            another label space is left out.

    Returns:
        dict[str, dict[str, float]]: By expert, weights of sum 1.
    """
    mixtures = {}
    for row, name in enumerate(names):
        later = lineage.children(name)
        columns = [row] + [
            i for i, other in enumerate(names)
            if other in later and labels[other] == labels[name]
        ]
        near = distances_EE[row, columns]
        # of equal images nothing else is as near
        scores = -near / (near[0] * temperature) if near[0] > 0 else None
        weights = [1.0] if scores is None else scores.softmax(0).tolist()
        mixtures[name] = dict(zip([names[i] for i in columns], weights))
    return mixtures


def mixed(routing: Routing, mixtures: Mapping[str, Dict]) -> Routing:
    """The routing, each single expert replaced by what stands for it."""
    weights = routing.weights.clone()
    for index in range(len(routing)):
        single = routing.mixture(index)
        if len(single) == 1:
            for name, weight in mixtures[next(iter(single))].items():
                weights[index, routing.expert_names.index(name)] = weight
    return replace(routing, weights=weights)
