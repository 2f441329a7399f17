# SPDX-License-Identifier: Apache-2.0
"""IDD-Lite: small frames of IDD in seven coarse classes."""
from __future__ import annotations

from mmseg.registry import DATASETS
from .driving import DrivingDataset, FolderPair
from .label_tables import IDD_LITE_CLASSES, IDD_LITE_PALETTE


@DATASETS.register_module()
class IDDLiteDataset(DrivingDataset):
    """IDD-Lite, 320x227 pixels, seven classes."""
    METAINFO = dict(classes=IDD_LITE_CLASSES, palette=IDD_LITE_PALETTE)
    SOURCE = ('https://idd.insaan.iiit.ac.in (registration; research licence '
              'named there), "IDD Lite"')
    LAYOUT = ('leftImg8bit/{train,val}/<sequence>/<id>_image.jpg\n'
              'gtFine/{train,val}/<sequence>/<id>_label.png')
    HAS_DEMO = False
    default_domain = 'idd_lite'

    def folder_pairs(self) -> list[FolderPair]:
        """Images and masks of the split."""
        return [
            FolderPair(
                self.join(self.data_root, 'leftImg8bit', self.split),
                self.join(self.data_root, 'gtFine', self.split),
                ('_image.jpg', ), '_label.png')
        ]
