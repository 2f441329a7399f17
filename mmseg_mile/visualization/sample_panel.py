# SPDX-License-Identifier: Apache-2.0
"""From a predicted data sample to what a gallery shows of it."""
from __future__ import annotations

import os.path as osp
from logging import Logger
from pathlib import PurePath
from typing import Any, Dict, Optional, Sequence, Tuple

import cv2
import numpy as np
from torch import Tensor

from mmseg.structures import SegDataSample
from mmseg_mile.evaluation import DomainIoU
from mmseg_mile.structures import Task
from .display_image import read_image_for_display
from .panel import Panel

# Width of a kept picture in pixels; more would not show in the gallery.
MAX_WIDTH = 640


def make_panel(task: Task,
               sample: SegDataSample,
               logger: Logger,
               oracle: Optional[SegDataSample] = None,
               data_root: str = '') -> Panel:
    """The image, ground truth and predictions of one data sample.

    An image that cannot be shown, such as an array file, is left grey: a
    picture is no reason to end a training.

    Args:
        task (Task): That the image belongs to.
        sample (SegDataSample): As routed.
        logger (Logger): Hears of an image that cannot be shown.
        oracle (SegDataSample, optional): The prediction of the task's own
            expert; ``sample`` itself where that was chosen. Defaults to
            None.
        data_root (str): The file is named relative to it where it lies
            below. Defaults to ''.
    """
    truth = _label_map(sample.gt_sem_seg.data)
    prediction, classes, palette = _prediction(task, sample)
    other: Dict[str, Any] = {}
    if oracle is not None:
        other['oracle_miou'] = image_miou(task, oracle)
    if oracle is not None and oracle is not sample:
        labels, other['oracle_classes'], other['oracle_palette'] = (
            _prediction(task, oracle))
        other['oracle'] = _shrink(labels, cv2.INTER_NEAREST)

    try:
        image = as_evaluated(
            read_image_for_display(sample.img_path), cropped_columns(sample),
            truth.shape)
    except (OSError, ValueError) as error:
        logger.warning(f'an image is left out of the pictures: {error}')
        image = np.full((*truth.shape, 3), 128, np.uint8)
    # The score is that of the full size; only what is shown shrinks.
    return Panel(
        _shrink(image, cv2.INTER_AREA),
        _shrink(truth, cv2.INTER_NEAREST),
        _shrink(prediction, cv2.INTER_NEAREST),
        task.classes,
        task.palette,
        classes,
        palette,
        task.name,
        sample.get('expert'),
        sample.get('ood'),
        image_miou(task, sample),
        file=_name(sample.img_path, data_root),
        **other)


def image_miou(task: Task, sample: SegDataSample) -> float:
    """mIoU of one image in per cent; NaN if its truth holds no class."""
    prediction, classes, _ = _prediction(task, sample)
    score = DomainIoU(task.classes)
    score.update(prediction, classes, _label_map(sample.gt_sem_seg.data))
    return score.miou()


def _prediction(task: Task,
                sample: SegDataSample) -> Tuple[np.ndarray, Any, Any]:
    """(H, W) labels and their label space, that of the expert."""
    return (_label_map(sample.pred_sem_seg.data),
            tuple(sample.get('classes') or task.classes), sample.get('palette')
            or task.palette)


def _name(path: str, data_root: str) -> str:
    """As the routing log names the file."""
    absolute, root = osp.abspath(path), osp.abspath(data_root)
    below = osp.commonpath([absolute, root]) == root
    return PurePath(osp.relpath(absolute, root) if below else path).as_posix()


def _label_map(data: Tensor) -> np.ndarray:
    return data.squeeze(0).cpu().numpy().astype(np.int16)


def as_evaluated(image: np.ndarray, columns: Optional[Sequence[int]],
                 shape: Tuple[int, ...]) -> np.ndarray:
    """The part and size of the image on disk that the labels cover.

    Args:
        image (np.ndarray): (H, W, 3), as it is on disk.
        columns (Sequence[int], optional): First column that was kept, and
            first that was not; None of an image that was not cropped.
        shape (tuple[int]): Of the labels.
    """
    if image.shape[:2] != shape and columns is not None:
        image = image[:, columns[0]:columns[1]]
    if image.shape[:2] != shape:
        image = cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA)
    return image


def cropped_columns(sample: SegDataSample) -> Optional[Sequence[int]]:
    """The columns that a ``CropColumns`` kept, where the sample tells."""
    # CropColumns notes a range per key of the sample.
    per_key = sample.get('cropped_columns') or {}
    return per_key.get('img', sample.get('crop_columns'))


def _shrink(picture: np.ndarray, interpolation: int) -> np.ndarray:
    high, wide = picture.shape[:2]
    if wide <= MAX_WIDTH:
        return picture
    return cv2.resize(
        picture, (MAX_WIDTH, max(1, high * MAX_WIDTH // wide)),
        interpolation=interpolation)
