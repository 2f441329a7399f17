# SPDX-License-Identifier: Apache-2.0
"""Routing log: one JSON line per evaluated image."""
from __future__ import annotations

import json
import math
import os.path as osp
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence

from mmseg_mile.files import PathLike, printable, write_text

# Significant digits of distances and weights, decimals of scores.
_DIGITS, _DECIMALS = 6, 4


def image_name(path: str, data_root: str) -> str:
    """Name of an image file, relative to the data root where it lies below.

    With '/' and in UTF-8 on every machine; '' for no file.
    """
    absolute, root = osp.abspath(path), osp.abspath(data_root)
    below = osp.commonpath([absolute, root]) == root
    name = osp.relpath(absolute, root) if path and below else path
    return PurePath(printable(name)).as_posix() if name else ''


@dataclass(frozen=True)
class RoutedImage:
    """One image of an evaluation row.

    Args:
        after (str): Task that was learned last.
        task (str): Task that the image belongs to.
        dataset (str): Class of the dataset that it comes from.
        file (str): The image file, see :func:`image_name`.
        expert (str, optional): Chosen expert; None without experts.
        mixture (dict[str, float]): Weights above zero; {} without experts.
        distances (dict[str, float]): To every expert, in the gate's unit;
            {} where the gate measures none.
        ood (bool, optional): Whether the gate flags the image as
            out-of-distribution.
        miou (float, optional): mIoU of this image as routed, in per cent,
            over the classes that its truth holds; None if it holds none.
        oracle_miou (float, optional): The same with the expert of its own
            task; None if there is none.
        sequence (str, optional): Sequence, such as a drive, that the image
            belongs to; None if its dataset knows none.
        areas (dict[str, tuple[int, int, int]]): By class, pixels hit, true
            and predicted, of classes with any; {} in logs of earlier
            versions.
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
    sequence: Optional[str] = None
    areas: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # as in the file, so that an image is the same after it was read
        for name in ('mixture', 'distances'):
            values = {
                key: float(f'{value:.{_DIGITS}g}')
                for key, value in getattr(self, name).items()
                if math.isfinite(value)
            }
            object.__setattr__(self, name, values)
        for name in ('miou', 'oracle_miou'):
            value = getattr(self, name)
            known = value is not None and not math.isnan(value)
            object.__setattr__(
                self, name,
                round(float(value), _DECIMALS) if known else None)

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
    def from_document(cls, document: Dict[str, Any]) -> 'RoutedImage':
        """The image that :meth:`to_document` gave.

        Raises:
            ValueError: If a field is missing, unknown or of another kind.
        """
        try:
            return cls(**document)
        except (TypeError, AttributeError, OverflowError) as error:
            raise ValueError(str(error)) from error


def routing_log_path(work_dir: PathLike, after: str) -> Path:
    """File of the images that were evaluated after learning a task."""
    return Path(work_dir) / 'routing_log' / f'{after}.jsonl'


def write_routing_log(path: PathLike, images: Iterable[RoutedImage]) -> None:
    """Write one line per image; a crash leaves the old file whole."""
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
                found.append(RoutedImage.from_document(json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f'{path}, line {number} is no entry of a routing log '
                    f'({error}). Restore a copy of the file, or evaluate '
                    'the run again.') from error
    return found
