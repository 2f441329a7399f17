# SPDX-License-Identifier: Apache-2.0
"""ACDC: driving in adverse conditions."""
from __future__ import annotations

from typing import Any, Sequence, Union

from mmseg.registry import DATASETS
from .driving import DrivingDataset, FolderPair
from .label_tables import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE

CONDITIONS = ('fog', 'night', 'rain', 'snow')


@DATASETS.register_module()
class ACDCDataset(DrivingDataset):
    """ACDC, the 19 classes of Cityscapes.

    The clear-weather partners (``*_ref`` folders) are never used, and pixels
    that the archive marks as uncertain (``invIds``) count like any other.

    Args:
        condition (str or Sequence[str]): One or several of 'fog', 'night',
            'rain' and 'snow', or 'all'.
        *args, **kwargs: See :class:`DrivingDataset`.
    """
    METAINFO = dict(classes=CITYSCAPES_CLASSES, palette=CITYSCAPES_PALETTE)
    SOURCE = ('https://acdc.vision.ee.ethz.ch (registration; non-commercial '
              'research licence), rgb_anon_trainvaltest.zip and '
              'gt_trainval.zip')
    LAYOUT = ('rgb_anon/{fog,night,rain,snow}/{train,val}/<sequence>/'
              '<name>_rgb_anon.png\n'
              'gt/{fog,night,rain,snow}/{train,val}/<sequence>/'
              '<name>_gt_labelTrainIds.png\n'
              '(or rgb_anon_trainvaltest/rgb_anon/... and gt_trainval/gt/...)')

    def __init__(self,
                 *args: Any,
                 condition: Union[str, Sequence[str]] = 'all',
                 **kwargs: Any) -> None:
        names = [condition] if isinstance(condition, str) else list(condition)
        for name in names or (None, ):
            self.check_choice('condition', name, (*CONDITIONS, 'all'))
        everything = 'all' in names
        self.conditions = [
            name for name in CONDITIONS if everything or name in names
        ]
        self.default_domain = '_'.join(
            ['acdc'] if everything else ['acdc', *self.conditions])
        super().__init__(*args, **kwargs)

    def folder_pairs(self) -> list[FolderPair]:
        """One pair of folders per condition."""
        images = self.existing_folder([
            self.join(self.data_root, 'rgb_anon'),
            self.join(self.data_root, 'rgb_anon_trainvaltest', 'rgb_anon')
        ])
        masks = self.existing_folder([
            self.join(self.data_root, 'gt'),
            self.join(self.data_root, 'gt_trainval', 'gt')
        ])
        return [
            FolderPair(
                self.join(images, condition, self.split),
                self.join(masks, condition, self.split), ('_rgb_anon.png', ),
                '_gt_labelTrainIds.png') for condition in self.conditions
        ]
