# SPDX-License-Identifier: Apache-2.0
"""Stop at the first bad file, and say which one it is."""
from __future__ import annotations

from typing import Any, Callable, Optional

import numpy as np
from mmengine.dataset import Compose
from PIL import Image

from .driving import sequence_of


def check_label_depth(path: Any) -> None:
    """Refuse a label map with values that 8 bits cannot hold.

    mmseg casts labels to uint8, which turns 256 into class 0 without a word.
    Files that no local path leads to are not looked at.

    Args:
        path (Any): Of the label map.

    Raises:
        ValueError: Naming the file and the values.
    """
    try:
        with open(path, 'rb') as file, Image.open(file) as image:
            # the modes of more than 8 bits, whatever the format of the file
            if image.mode[0] not in 'IF':
                return
            values = np.asarray(image)
    except (OSError, TypeError):
        return
    with np.errstate(invalid='ignore'):
        cut = values[values != values.astype(np.uint8)]
    if cut.size:
        raise ValueError(
            f'label {str(path)!r} has more than 8 bits and holds '
            f'{np.unique(cut)[:5].tolist()}, but mmseg reads labels as 8 '
            'bits: values must be whole, 0 to 255. Convert the labels '
            '(tools/dataset_converters).')


class CheckedPipeline:
    """A dataset's pipeline that answers for its files.

    mmseg reports a broken image without its mask, an unknown label value as a
    CUDA assertion, and a mask of another size than its image as a broadcast
    error. Here each is a ``ValueError`` that names the files. Packed samples
    get the metainfo ``sequence``, see :func:`sequence_of`.

    Args:
        pipeline (Compose): The built pipeline.
        num_classes (int): Labels must be below it.
        ignore_index (int): Or equal to this. Defaults to 255.

    Raises:
        ValueError: From a call, if a file cannot be read, a label is out of
            range, or a mask has another size than its image.
    """

    def __init__(self,
                 pipeline: Compose,
                 num_classes: int,
                 ignore_index: int = 255) -> None:
        self.pipeline = pipeline
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    @property
    def transforms(self) -> list[Callable]:
        """list[Callable]: The steps, as ``Compose`` offers them."""
        return self.pipeline.transforms

    def __call__(self, data: dict) -> Optional[dict]:
        """Run the pipeline on one entry of the data list."""
        img_path = data.get('img_path')
        mask_path = data.get('seg_map_path')
        sample = data
        size = None
        for step in self.transforms:
            unread = 'gt_seg_map' not in sample
            try:
                result = step(sample)
            except Exception as error:
                raise ValueError(
                    f'{type(step).__name__} failed on image {img_path!r}, '
                    f'label {mask_path!r}: {type(error).__name__}: {error}. '
                    'Check that both files open, or leave the frame out of '
                    'the dataset.') from error
            if result is None:
                return None
            sample = result
            if size is None and 'img' in sample:
                size = sample['img'].shape[:2]
            if unread and 'gt_seg_map' in sample:
                # a crop of both would make their sizes equal
                self.check_file(sample['gt_seg_map'], size, img_path,
                                mask_path)
        for mask, sizes in masks_of(sample):
            self.check_size(mask, sizes, img_path, mask_path)
            self.check_values(mask, mask_path)
        if img_path is not None:
            packed = sample.get('data_samples', ())
            for each in packed if isinstance(packed,
                                             (list, tuple)) else [packed]:
                each.set_metainfo(dict(sequence=sequence_of(data)))
        return sample

    @staticmethod
    def check_file(mask: np.ndarray, size: Optional[tuple[int, ...]],
                   img_path: Any, mask_path: Any) -> None:
        """Refuse a mask that was just read and is not as its image."""
        if mask.ndim != 2:
            raise ValueError(
                f'label {mask_path!r} has the shape {mask.shape}, not rows '
                'and columns: a label map has one channel that holds class '
                'indices. Convert the labels (tools/dataset_converters).')
        if size is not None and mask.shape != size:
            raise ValueError(
                f'label {mask_path!r} is {mask.shape} (rows, columns) where '
                f'image {img_path!r} is {size}: both files must have one '
                'size. Take the label of this image, or leave the frame out '
                'of the dataset.')
        check_label_depth(mask_path)

    def check_values(self, mask: np.ndarray, mask_path: Any) -> None:
        """Refuse labels that are no class."""
        wrong = (mask >= self.num_classes) & (mask != self.ignore_index)
        if wrong.any():
            raise ValueError(
                f'label {mask_path!r} holds {np.unique(mask[wrong]).tolist()},'
                f' but the task has {self.num_classes} classes: values must '
                f'be 0 to {self.num_classes - 1}, or {self.ignore_index} for '
                'ignored pixels. Convert the labels '
                '(tools/dataset_converters), or correct the classes of the '
                'task.')

    @staticmethod
    def check_size(mask: np.ndarray, sizes: list[tuple[int, int]],
                   img_path: Any, mask_path: Any) -> None:
        """Refuse a mask that lies on no stage of its image."""
        if sizes and mask.shape[-2:] not in sizes:
            raise ValueError(
                f'label {mask_path!r} is {mask.shape[-2:]} (rows, columns) '
                f'where image {img_path!r} is {sizes[-1]}. Masks must have '
                'the size of their images; a CropColumns in the pipeline '
                'must also follow LoadAnnotations.')

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(num_classes={self.num_classes}, '
                f'ignore_index={self.ignore_index}, {self.pipeline})')


def masks_of(sample: dict) -> list[tuple[np.ndarray, list[tuple[int, int]]]]:
    """Ground truths of a sample, each with the sizes it may have.

    A sample is packed, packed several times (test-time augmentation) or, below
    a mixing wrapper, not packed yet.
    """
    if 'data_samples' not in sample:
        if 'gt_seg_map' not in sample:
            return []
        shapes = [
            sample[key][:2] for key in ('img_shape', 'ori_shape')
            if key in sample
        ]
        return [(sample['gt_seg_map'], [tuple(s) for s in shapes])]
    if isinstance(sample['data_samples'], (list, tuple)):
        packed = list(zip(sample['data_samples'], sample['inputs']))
    else:
        packed = [(sample['data_samples'], sample.get('inputs'))]
    found = []
    for data_sample, img in packed:
        if 'gt_sem_seg' not in data_sample:
            continue
        shapes = [] if img is None else [tuple(img.shape[-2:])]
        if 'ori_shape' in data_sample.metainfo:
            shapes.append(tuple(data_sample.metainfo['ori_shape'][:2]))
        found.append((data_sample.gt_sem_seg.data.numpy(), shapes))
    return found


def check_dataset(dataset: Any,
                  num_classes: int,
                  ignore_index: int = 255) -> None:
    """Give a built dataset, or those a wrapper holds, a checked pipeline.

    A second call replaces the first one's numbers.

    Args:
        dataset (Any): A dataset with a ``pipeline``, or a wrapper with
            ``datasets`` or ``dataset``, such as ``ConcatDataset`` or
            ``RepeatDataset``.
        num_classes (int): Labels must be below it.
        ignore_index (int): Or equal to this. Defaults to 255.

    Raises:
        ValueError: If ``dataset`` is neither.
    """
    if hasattr(dataset, 'datasets'):
        inner = list(dataset.datasets)
    elif hasattr(dataset, 'dataset'):
        inner = [dataset.dataset]
    elif hasattr(dataset, 'pipeline'):
        pipeline = dataset.pipeline
        if isinstance(pipeline, CheckedPipeline):
            pipeline = pipeline.pipeline
        dataset.pipeline = CheckedPipeline(pipeline, num_classes, ignore_index)
        return
    else:
        raise ValueError(
            f'cannot check a {type(dataset).__name__}: it has neither a '
            '`pipeline` nor `dataset` or `datasets` inside.')
    for each in inner:
        check_dataset(each, num_classes, ignore_index)
