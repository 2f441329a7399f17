# SPDX-License-Identifier: Apache-2.0
"""What a task's images score when some experts are not there."""
from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import (Any, Dict, Iterable, List, Mapping, Optional, Sequence,
                    Tuple)

from mmseg_mile.files import PathLike, write_text
from .results import write_numbers
from .routing_log import RoutedImage

SCORE_KEYS = ('target', 'removed', 'method', 'images', 'answered', 'flagged',
              'miou', 'class_iou')
LINE_KEYS = ('seed', 'method', 'removed', 'abstained',
             'out-of-distribution score')


@dataclass(frozen=True)
class LeftOutScore:
    """One method on the images of one task, without some experts.

    Args:
        target (str): The task.
        removed (tuple[str]): Experts that are not there.
        method (str): See ``left_out_methods``.
        images (int): Of the task.
        answered (int): That got a prediction.
        flagged (int): That the gate flags as out-of-distribution.
        miou (float): In per cent, over the images that got a prediction and
            the target's own classes, compared by name; NaN without any.
        class_iou (dict[str, float]): The same by class.
    """
    target: str
    removed: Tuple[str, ...]
    method: str
    images: int
    answered: int
    flagged: int
    miou: float
    class_iou: Mapping[str, float] = field(default_factory=dict)

    def to_document(self) -> Dict[str, Any]:
        """As plain JSON values, NaN as null."""
        return write_numbers(asdict(self))

    @classmethod
    def from_document(cls, document: Any) -> 'LeftOutScore':
        """What :meth:`to_document` gave.

        Raises:
            ValueError: If a field is missing, unknown or out of range.
        """
        check_keys(document, SCORE_KEYS, 'a score')
        for name in ('target', 'method'):
            check_type(document[name], str, name)
        for name in ('images', 'answered', 'flagged'):
            check_type(document[name], int, name)
            if not 0 <= document[name] <= document['images']:
                raise ValueError(f'{name} is {document[name]} of '
                                 f'{document["images"]} images')
        check_type(document['removed'], list, 'removed')
        check_type(document['class_iou'], dict, 'class_iou')
        values = {
            name: _percentage(value, f'class_iou.{name}')
            for name, value in document['class_iou'].items()
        }
        return cls(
            **{
                **document, 'removed': tuple(document['removed']),
                'miou': _percentage(document['miou'], 'miou'),
                'class_iou': values
            })


@dataclass(frozen=True)
class LeftOutImage:
    """How one method dealt with one image.

    Args:
        seed (int): Of the run.
        method (str): See ``left_out_methods``.
        removed (tuple[str]): Experts that were not there.
        abstained (bool): Whether the image got no prediction.
        image (RoutedImage): Image file, task, weights, distances and mIoU.
        ood_score (float, optional): What the flag is made of, see
            ``Routing``. Defaults to None: not measured.
    """
    seed: int
    method: str
    removed: Tuple[str, ...]
    abstained: bool
    image: RoutedImage
    ood_score: Optional[float] = None

    def __post_init__(self) -> None:
        value = self.ood_score
        known = value is not None and math.isfinite(value)
        object.__setattr__(self, 'out-of-distribution score',
                           float(f'{value:.6g}') if known else None)

    def to_document(self) -> Dict[str, Any]:
        """As plain JSON values, on one level."""
        return dict(
            seed=self.seed,
            method=self.method,
            removed=list(self.removed),
            abstained=self.abstained,
            ood_score=self.ood_score,
            **self.image.to_document())

    @classmethod
    def from_document(cls, document: Any) -> 'LeftOutImage':
        """What :meth:`to_document` gave.

        Raises:
            ValueError: If a field is missing, unknown or of another type.
        """
        check_type(document, dict, 'the line')
        own = {key: document[key] for key in LINE_KEYS if key in document}
        check_keys(own, LINE_KEYS, 'the line')
        for name, kind in zip(LINE_KEYS, (int, str, list, bool)):
            check_type(own[name], kind, name)
        score = read_number(own['out-of-distribution score'],
                            'out-of-distribution score')
        image = RoutedImage.from_document({
            k: v
            for k, v in document.items() if k not in LINE_KEYS
        })
        return cls(own['seed'], own['method'], tuple(own['removed']),
                   own['abstained'], image, score)


def write_left_out_images(path: PathLike,
                          images: Iterable[LeftOutImage]) -> None:
    """Write one line per image; a crash leaves the old file whole."""
    lines = [
        json.dumps(image.to_document(), allow_nan=False, ensure_ascii=False)
        for image in images
    ]
    write_text(path, ''.join(f'{line}\n' for line in lines))


def read_left_out_images(path: PathLike) -> List[LeftOutImage]:
    """Read what :func:`write_left_out_images` wrote.

    Raises:
        ValueError: If a line is broken; names file and line.
        FileNotFoundError: If there is no such file.
    """
    found = []
    text = Path(path).read_text(encoding='utf-8')
    # not splitlines(): names may hold what it takes for the end of a line
    for number, line in enumerate(text.split('\n')[:-1], 1):
        try:
            found.append(LeftOutImage.from_document(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise ValueError(f'{path}, line {number} is no entry of a log of '
                             f'left-out experts ({error}): evaluate '
                             'again.') from error
    return found


def _percentage(value: Any, field: str) -> float:
    return check_range(read_number(value, field), 0, 100, field)


def check_keys(value: Any, keys: Sequence[str], field: str) -> None:
    """Require an object with exactly ``keys``."""
    if not isinstance(value, dict):
        raise ValueError(f'{field} must be an object with the keys '
                         f'{list(keys)}, got {type(value).__name__}')
    missing = [key for key in keys if key not in value]
    extra = [key for key in value if key not in keys]
    if missing or extra:
        raise ValueError(f'{field} must have the keys {list(keys)}, missing '
                         f'are {missing}, unknown are {extra}')


def check_type(value: Any, kind: type, field: str) -> None:
    """Require a ``kind``; a bool is no integer."""
    if not isinstance(value, kind) or (kind is int
                                       and isinstance(value, bool)):
        raise ValueError(f'{field} must be of type {kind.__name__}, '
                         f'got {value!r}')


def check_tasks(tasks: Any, field: str = 'tasks') -> List[str]:
    """Require one or more different task names; returns them as a list."""
    names = list(tasks) if isinstance(tasks, (list, tuple)) else []
    if not names or len(set(map(str, names))) < len(names) or not all(
            isinstance(name, str) for name in names):
        raise ValueError(f'{field} must be a list of one or more different '
                         f'names, got {tasks!r}')
    return names


def check_range(value: float, low: float, high: float, field: str) -> float:
    """Require ``low <= value <= high``; NaN, not evaluated, may pass."""
    value = float(value)
    if not (math.isnan(value) or low <= value <= high):
        raise ValueError(f'{field} must lie in {low} to {high}, or be NaN '
                         f'where it was not evaluated, got {value}')
    return value


def read_number(value: Any, field: str) -> float:
    """Float of a JSON number, NaN of null."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f'{field} must be a number or null, got {value!r}')
    if abs(value) > sys.float_info.max:
        raise ValueError(f'{field} must be finite, got {value!r}')
    return float(value)
