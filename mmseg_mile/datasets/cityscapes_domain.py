# SPDX-License-Identifier: Apache-2.0
"""Cityscapes as a domain of a stream."""
from __future__ import annotations

from mmseg.registry import DATASETS
from .driving import DrivingDataset, FolderPair
from .label_tables import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE


@DATASETS.register_module()
class CityscapesDomainDataset(DrivingDataset):
    """Cityscapes, finely annotated images, 19 classes.

    (mmseg owns the name ``CityscapesDataset``.) The archive has no train-id
    masks; the converter makes them.
    """
    METAINFO = dict(classes=CITYSCAPES_CLASSES, palette=CITYSCAPES_PALETTE)
    SOURCE = ('https://www.cityscapes-dataset.com (registration; '
              'non-commercial research licence), leftImg8bit_trainvaltest.zip '
              'and gtFine_trainvaltest.zip')
    LAYOUT = ('leftImg8bit/{train,val}/<city>/<name>_leftImg8bit.png\n'
              'gtFine/{train,val}/<city>/<name>_gtFine_labelTrainIds.png')
    CONVERTER = 'python tools/dataset_converters/cityscapes.py'
    default_domain = 'cityscapes'

    def folder_pairs(self) -> list[FolderPair]:
        """Images and fine annotations of the split."""
        return [
            FolderPair(
                self.join(self.data_root, 'leftImg8bit', self.split),
                self.join(self.data_root, 'gtFine', self.split),
                ('_leftImg8bit.png', ), '_gtFine_labelTrainIds.png')
        ]
