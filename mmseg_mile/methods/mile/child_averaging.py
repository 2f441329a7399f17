# SPDX-License-Identifier: Apache-2.0
"""Which expert started from which, and mixtures along that line."""
from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set

from torch import Tensor

from mmseg_mile.structures import Routing


class Lineage:
    """Parents of experts, known by the checksums of their weights.

    So an expert may be renamed, and its children still know it. The fields
    of an expert's provenance are ``weights_sha256``, of its own weights, and
    ``started_from``, names and checksums of its parents: {} for the base.
    """

    def __init__(self) -> None:
        self._checksums: Dict[str, str] = {}
        self._parents: Dict[str, Dict[str, str]] = {}

    def begin(self, name: str, parents: Mapping[str, str]) -> None:
        """Note the parents, by their names, and what checksums they have."""
        self._checksums.update(parents)
        self._parents[name] = dict(parents)

    def add(self, name: str, provenance: Mapping[str, Any]) -> None:
        """Take over what the provenance of an expert says."""
        if 'weights_sha256' in provenance:
            self._checksums[name] = provenance['weights_sha256']
        if 'started_from' in provenance:
            self._parents[name] = dict(provenance['started_from'])

    def provenance(self, name: str) -> Dict[str, Any]:
        """``started_from`` of an expert's record; {} if it is not known."""
        if name not in self._parents:
            return {}
        return dict(started_from=self._parents[name])

    def children(self, name: str) -> List[str]:
        """Experts that started from this one, or from one that did."""
        line: Set[Optional[str]] = {self._checksums.get(name)} - {None}
        found: List[str] = []
        # parents are learned first, but need not be added first
        while True:
            more = [
                other for other, parents in self._parents.items()
                if other not in found and other != name
                and line.intersection(parents.values())
            ]
            if not more:
                return found
            found += more
            line.update(self._checksums[other] for other in more
                        if other in self._checksums)


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
