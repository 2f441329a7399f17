# SPDX-License-Identifier: Apache-2.0
"""Freiburg Thermal, the dataset of HeatNet: RGB and infrared, day and night.
"""
from __future__ import annotations

import re
from collections import defaultdict
from typing import Any, Iterable, Iterator, Optional, Sequence

import mmengine.fileio as fileio
from mmengine.logging import print_log

from mmseg.registry import DATASETS
from .driving import DrivingDataset, Frame
from .label_tables import (HEATNET_BACKGROUND, HEATNET_CLASSES, HEATNET_IGNORE,
                           HEATNET_PALETTE)

Stamp = tuple[str, str]
_STAMP = re.compile(r'(\d+)_(\d+)(?:_rgb|_ir)?\.(?:png|npy)$')


@DATASETS.register_module()
class HeatNetDataset(DrivingDataset):
    """Freiburg Thermal with 12 classes, one modality at a time.

    - The train split has pseudo-labels (a teacher's predictions on RGB, by day
      only), the test split human labels; ``metainfo['annotation']`` says
      'pseudo' or 'human'. There is no official val split: hold out whole
      ``sequences``.
    - Both 12 (background) and 13 (ignore) become 255. HeatNet's own score
      leaves out 13 only: a prediction on a background pixel counts as a false
      positive there and not here, so our IoU can only be the higher one.
    - Images and masks are paired by the time stamp in their names. In an
      infrared name the nanoseconds may lack trailing zeros. Frames without a
      partner are left out and counted in the log.
    - Infrared files are 16-bit counts: read them with
      ``LoadSingleChannelImage(low=21800, high=25000)``. Their columns outside
      [300, 1710) are empty: see ``CropColumns``.

    Args:
        data_root (str): The dataset's own folder.
        split (str): 'train' or 'test'.
        modality (str): 'rgb' or 'thermal'. Defaults to 'rgb'.
        time (str): 'day', 'night' or 'all'; 'train' has 'day' only. Defaults
            to 'day'.
        sequences (Sequence[str], optional): Train sequences to use, such as
            'seq_00_day', or drives of them, such as 'seq_00_day/02'. Defaults
            to None, which means all.
        **kwargs: See :class:`DrivingDataset`.
    """
    METAINFO = dict(classes=HEATNET_CLASSES, palette=HEATNET_PALETTE)
    SPLITS = ('train', 'test')
    SOURCE = ('http://thermal.cs.uni-freiburg.de (terms are named there), '
              'Freiburg Thermal train and test archives')
    LAYOUT = ('train/seq_<nn>_{day,night}/<drive>/fl_rgb/'
              'fl_rgb_<sec>_<nsec>.png\n'
              'train/seq_<nn>_{day,night}/<drive>/fl_ir_aligned/'
              'fl_ir_aligned_<sec>_<nsec>.png\n'
              'train/seq_<nn>_day/<drive>/fl_rgb_labels/'
              'fl_rgb_labels_<sec>_<nsec>.png\n'
              'test/{day,night}/ImagesRGB/<name>_<sec>_<nsec>_rgb.png\n'
              'test/{day,night}/ImagesIR/<name>_<sec>_<nsec>_ir.png\n'
              'test/{day,night}/SegmentationClass/<name>_<sec>_<nsec>_rgb.png')
    raw_label_map = {HEATNET_BACKGROUND: 255, HEATNET_IGNORE: 255}
    TRAIN_FOLDERS = dict(rgb='fl_rgb', thermal='fl_ir_aligned')
    TEST_FOLDERS = dict(rgb='ImagesRGB', thermal='ImagesIR')

    def __init__(self,
                 data_root: str,
                 split: str,
                 *,
                 modality: str = 'rgb',
                 time: str = 'day',
                 sequences: Optional[Sequence[str]] = None,
                 **kwargs: Any) -> None:
        self.check_choice('time', time, ('day', 'night', 'all'))
        if split == 'train' and time != 'day':
            raise ValueError(
                f'HeatNetDataset: split \'train\' has labels by day only, got '
                f'time={time!r}. Use time=\'day\', or split=\'test\'.')
        if split == 'test' and sequences is not None:
            raise ValueError(
                'HeatNetDataset: split \'test\' has no sequences, got '
                f'sequences={sequences!r}. Leave it out.')
        self.time = time
        self.sequences = sequences
        self.image_modality = modality
        self.default_domain = '_'.join(
            ['heatnet', modality, *([] if time == 'all' else [time])])
        if split == 'test':
            self.CONVERTER = 'python tools/dataset_converters/heatnet.py'
        super().__init__(data_root, split, modality=modality, **kwargs)
        self._metainfo['annotation'] = ('pseudo'
                                        if split == 'train' else 'human')

    def find_frames(self) -> list[Frame]:
        """Pair by time stamp; log how many files found no partner."""
        frames: list[Frame] = []
        files = 0
        for images, masks in self.image_and_mask_folders():
            image_files = self.png_files(images)
            mask_files = self.png_files(masks)
            files += len(image_files) + len(mask_files)
            for image, mask in pair_by_time(image_files, mask_files):
                path = self.join(images, image)
                frames.append(
                    Frame(path[:-len('.png')], path, self.join(masks, mask),
                          True))
        alone = files - 2 * len(frames)
        if alone:
            print_log(
                f'HeatNetDataset: {len(frames)} {self.image_modality} frames '
                f'of split {self.split!r}; left out {alone} files without a '
                'partner of the same time stamp.',
                logger='current')
        return frames

    def sequence_of(self, img_path: str) -> str:
        """The run of data collection, such as seq_00_day, with all its drives.

        Names of the test split tell none: there it is 'day' or 'night'.
        """
        parts = img_path.split('/')
        return parts[-4] if self.split == 'train' else parts[-3]

    def image_and_mask_folders(self) -> Iterator[tuple[str, str]]:
        """Pairs of folders whose files have the same time stamps."""
        if self.split == 'train':
            folder = self.TRAIN_FOLDERS[self.image_modality]
            for drive in self.train_drives():
                masks = self.join(drive, 'fl_rgb_labels')
                yield self.join(drive, folder), masks
            return
        folder = self.TEST_FOLDERS[self.image_modality]
        for time in ('day', 'night') if self.time == 'all' else (self.time, ):
            root = self.join(self.data_root, 'test', time)
            masks = self.join(root, 'SegmentationClass')
            self.require_converted(masks)
            yield self.existing_folder([self.join(root, folder)]), masks

    def train_drives(self) -> list[str]:
        """Folders of the chosen day drives, in order."""
        root = self.existing_folder([self.join(self.data_root, 'train')])
        drives = [
            f'{sequence}/{drive}' for sequence in self.subfolders(root)
            if re.fullmatch(r'seq_\d+_day', sequence)
            for drive in self.subfolders(self.join(root, sequence))
        ]
        if self.sequences is not None:
            known = {
                name
                for drive in drives
                for name in (drive, drive.split('/')[0])
            }
            for name in self.sequences:
                self.check_choice('sequences', name, sorted(known))
            drives = [
                drive for drive in drives if drive in self.sequences
                or drive.split('/')[0] in self.sequences
            ]
        return [self.join(root, drive) for drive in drives]

    def require_converted(self, masks: str) -> None:
        """Refuse a test folder whose arrays were not all converted."""
        pngs = {name[:-4] for name in self.list_files(masks, ('.png', ))}
        arrays = [
            name for name in self.list_files(masks, ('.npy', ))
            if name[:-4] not in pngs
        ]
        if arrays:
            raise self.data_error(
                f'{len(arrays)} label arrays below {masks!r} were not '
                f'converted to png, for example {min(arrays)!r}.')

    def png_files(self, folder: str) -> list[str]:
        """Names of the png files; none where a drive lacks the folder."""
        if not self.is_folder(folder):
            return []
        return list(self.list_files(folder, ('.png', )))

    def subfolders(self, folder: str) -> list[str]:
        """Names of the folders right below ``folder``."""
        return sorted(
            fileio.list_dir_or_file(
                folder, list_file=False, backend_args=self.backend_args))


def time_stamp(name: str) -> Optional[Stamp]:
    """Seconds and nanoseconds at the end of a file name, as written."""
    match = _STAMP.search(name)
    return (match[1], match[2]) if match else None


def by_stamp(names: Iterable[str]) -> dict[Stamp, str]:
    """Index file names by time stamp; names without one are left out."""
    stamped = ((time_stamp(name), name) for name in names)
    return {stamp: name for stamp, name in stamped if stamp is not None}


def pair_by_time(images: Iterable[str],
                 masks: Iterable[str]) -> list[tuple[str, str]]:
    """Pair file names of equal time stamps.

    Equal stamps come first; what is left pairs if the stamps differ only in
    trailing zeros of the nanoseconds and the partner is the only one.

    Returns:
        list[tuple[str, str]]: Image and mask, in the order of the images.
    """
    image_at, mask_at = by_stamp(images), by_stamp(masks)
    partner = {stamp: stamp for stamp in image_at if stamp in mask_at}
    loose_images = by_loose_stamp(image_at.keys() - partner.keys())
    loose_masks = by_loose_stamp(mask_at.keys() - partner.keys())
    for loose, stamps in loose_images.items():
        if len(stamps) == len(loose_masks[loose]) == 1:
            partner[stamps[0]] = loose_masks[loose][0]
    return [(name, mask_at[partner[stamp]])
            for stamp, name in image_at.items() if stamp in partner]


def by_loose_stamp(stamps: Iterable[Stamp]) -> defaultdict[Stamp, list[Stamp]]:
    """Group stamps that differ only in trailing zeros of the nanoseconds."""
    groups: defaultdict[Stamp, list[Stamp]] = defaultdict(list)
    for seconds, nanoseconds in stamps:
        groups[seconds, nanoseconds.rstrip('0')].append((seconds, nanoseconds))
    return groups
