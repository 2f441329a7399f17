# SPDX-License-Identifier: Apache-2.0
"""Where every evaluated image was sent: one JSON line per image."""
from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional

from mmseg_mile.files import PathLike, write_text
from .results import check_keys

# Digits that distances and weights keep.
_DIGITS = 6
_KINDS: Dict[str, Any] = dict(
    after=str,
    task=str,
    dataset=str,
    file=str,
    expert=(str, type(None)),
    mixture=dict,
    distances=dict,
    ood=(bool, type(None)),
    miou=(int, float, type(None)),
    oracle_miou=(int, float, type(None)))
_LARGEST = sys.float_info.max


@dataclass(frozen=True)
class RoutedImage:
    """One image of an evaluation row.

    Args:
        after (str): Task that was learned last.
        task (str): Task that the image belongs to.
        dataset (str): Class of the dataset that it comes from.
        file (str): The image file, relative to the data root where it lies
            below it.
        expert (str, optional): Chosen expert; None without experts.
        mixture (dict[str, float]): Weights above zero; {} without experts.
        distances (dict[str, float]): To every expert, in the gate's unit;
            {} where the gate measures none.
        ood (bool, optional): Whether the gate flags the image.
        miou (float, optional): mIoU of this image as routed, in per cent,
            over the classes that its truth holds; None if it holds none.
        oracle_miou (float, optional): The same with the expert of its own
            task; None if there is none.
    """
    after: str
    task: str
    dataset: str
    file: str
    expert: Optional[str] = None
    mixture: Mapping[str, float] = field(default_factory=dict)
    distances: Mapping[str, float] = field(default_factory=dict)
    ood: Optional[bool] = None
    miou: Optional[float] = None
    oracle_miou: Optional[float] = None

    def __post_init__(self) -> None:
        for name in ('mixture', 'distances'):
            values = getattr(self, name)
            object.__setattr__(
                self, name, {
                    k: float(f'{v:.{_DIGITS}g}')
                    for k, v in values.items() if math.isfinite(v)
                })
        for name in ('miou', 'oracle_miou'):
            value = getattr(self, name)
            known = value is not None and not math.isnan(value)
            object.__setattr__(self, name,
                               round(float(value), 4) if known else None)

    @property
    def routing_cost(self) -> float:
        """float: Points of mIoU lost to the routing; NaN if unknown."""
        if self.miou is None or self.oracle_miou is None:
            return math.nan
        return self.oracle_miou - self.miou

    def to_document(self) -> Dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Any) -> 'RoutedImage':
        """What :meth:`to_document` gave.

        Raises:
            ValueError: If a field is missing, unknown, of another type or
                out of range.
        """
        check_keys(document, tuple(_KINDS), 'the line')
        for name, kind in _KINDS.items():
            if not isinstance(document[name], kind):
                raise ValueError(f'{name} is {document[name]!r}')
        for name in ('mixture', 'distances'):
            if not all(
                    _lies_in(v, -_LARGEST, _LARGEST)
                    for v in document[name].values()):
                raise ValueError(f'{name} must hold numbers, got '
                                 f'{document[name]!r}')
        for name in ('miou', 'oracle_miou'):
            value = document[name]
            if value is not None and not _lies_in(value, 0, 100):
                raise ValueError(f'{name} must be null or lie in 0 to 100, '
                                 f'got {value!r}')
        return cls(**document)


def routing_log_path(work_dir: PathLike, after: str) -> Path:
    """File of the images that were evaluated after learning a task."""
    return Path(work_dir) / 'routing_log' / f'{after}.jsonl'


def write_routing_log(path: PathLike, images: Iterable[RoutedImage]) -> None:
    """Write one line per image; a crash leaves the old file whole.

    Raises:
        OSError: If the disk is full or fails.
    """
    lines = [
        json.dumps(image.to_document(), allow_nan=False, ensure_ascii=False)
        for image in images
    ]
    write_text(path, ''.join(f'{line}\n' for line in lines))


def read_routing_log(path: PathLike) -> List[RoutedImage]:
    """Read what :func:`write_routing_log` wrote.

    Raises:
        ValueError: If a line is broken; names file and line.
        FileNotFoundError: If there is no such file.
    """
    found = []
    with open(path, 'rb') as file:
        for number, line in enumerate(file, 1):
            try:
                found.append(_parse(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f'{path}, line {number} is no entry of a routing log '
                    f'({error}). Restore a copy of the file, or evaluate '
                    'the run again.') from error
    return found


def _parse(line: bytes) -> RoutedImage:
    return RoutedImage.from_document(json.loads(line.decode('utf-8')))


def _lies_in(value: Any, low: float, high: float) -> bool:
    """Whether a JSON value is a number in a range; no bool is, nor NaN."""
    return type(value) in (int, float) and low <= value <= high
