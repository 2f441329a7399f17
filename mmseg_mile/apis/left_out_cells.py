# SPDX-License-Identifier: Apache-2.0
"""Scores of a target that are kept, and those that are still to compute."""
from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Tuple

from mmseg_mile.engine.left_out_evaluator import LeftOutResult
from mmseg_mile.engine.left_out_gates import LeftOutMethod
from mmseg_mile.evaluation.left_out_methods import SCOPES, methods_of, removals
from mmseg_mile.evaluation.left_out_score import LeftOutImage, LeftOutScore
from mmseg_mile.files import read_json, write_json

CellName = Tuple[Tuple[str, ...], str]


class Wanted(NamedTuple):
    """A cell to be scored.

    Args:
        removed (tuple[str]): Experts that are not there.
        method (LeftOutMethod): How the others are used.
    """
    removed: Tuple[str, ...]
    method: LeftOutMethod

    @property
    def name(self) -> CellName:
        """tuple: Removed experts and name of the method."""
        return self.removed, self.method.name


def wanted_cells(target: str, family: Tuple[str, ...], names: Iterable[str],
                 methods: Mapping[str, LeftOutMethod],
                 taus: Iterable[float]) -> List[Wanted]:
    """All cells of a target, each once.

    Args:
        target (str): The task.
        family (tuple[str]): Its family.
        names (Iterable[str]): Of all experts; where none is left there is no
            cell.
        methods (Mapping[str, LeftOutMethod]): By name, with the oracle.
        taus (Iterable[float]): Further temperatures.
    """
    everyone, taus = set(names), list(taus)
    found: Dict[CellName, Wanted] = {}
    removed = removals(target, family)
    for scope in SCOPES:
        if everyone - set(removed[scope]):
            for method in methods_of(scope, taus):
                cell = Wanted(removed[scope], methods[method])
                found.setdefault(cell.name, cell)
    return list(found.values())


class KeptCells:
    """Finished cells of one target in a file.

    Args:
        path (Path): The file; need not exist.
        settings (Mapping[str, Any]): What all scores depend on.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._settings = settings
        self._known: Dict[str, Any] = read_json(path) if path.exists() else {}

    def missing(self, cells: Iterable[Wanted]) -> List[Wanted]:
        """Those that are not scored, or under other settings."""
        return [c for c in cells if self._digest(c) not in self._known]

    def outdated(self, cells: Iterable[Wanted]) -> int:
        """Cells of the file that none of these is."""
        return len(set(self._known) - set(map(self._digest, cells)))

    def keep(self, cells: Iterable[Wanted],
             results: Iterable[LeftOutResult]) -> None:
        """Add scored cells and write the file.

        Raises:
            OSError: If the disk is full or fails.
        """
        for cell, result in zip(cells, results):
            self._known[self._digest(cell)] = dict(
                score=result.score.to_document(),
                images=[image.to_document() for image in result.images])
        write_json(self._path, self._known)

    def read(self, cells: Iterable[Wanted]) -> List[LeftOutResult]:
        """The results of cells that are kept.

        Raises:
            ValueError: If the file was edited; names it.
        """
        found = []
        for cell in cells:
            try:
                entry = self._known[self._digest(cell)]
                found.append(
                    LeftOutResult(
                        LeftOutScore.from_document(entry['score']), [
                            LeftOutImage.from_document(line)
                            for line in entry['images']
                        ]))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f'{self._path} was changed ({error}): '
                                 'remove it, and its target is evaluated '
                                 'again') from error
        return found

    def _digest(self, cell: Wanted) -> str:
        text = json.dumps(
            [self._settings, cell.removed,
             cell.method._asdict()],
            sort_keys=True,
            default=str)
        return hashlib.sha256(text.encode()).hexdigest()
