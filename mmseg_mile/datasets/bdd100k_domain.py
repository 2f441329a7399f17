# SPDX-License-Identifier: Apache-2.0
"""BDD100K as a domain of a stream."""
from __future__ import annotations

from mmseg.registry import DATASETS
from .driving import DrivingDataset, FolderPair
from .label_tables import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE


@DATASETS.register_module()
class BDD100KDomainDataset(DrivingDataset):
    """BDD100K, the 10k images with masks, the 19 classes of Cityscapes.

    (mmseg owns the name ``BDD100KDataset``.) The 10k images are no subset of
    the 100k images. Class 'train' hardly occurs in the val split, so that its
    IoU may be undefined there.
    """
    METAINFO = dict(classes=CITYSCAPES_CLASSES, palette=CITYSCAPES_PALETTE)
    SOURCE = ('http://bdd-data.berkeley.edu (registration; BDD licence, '
              'research and non-commercial use), "10K Images" and '
              '"Segmentation" labels')
    LAYOUT = ('images/10k/{train,val}/<name>.jpg\n'
              'labels/sem_seg/masks/{train,val}/<name>.png\n'
              'or, the older archive,\n'
              'seg/images/{train,val}/<name>.jpg\n'
              'seg/labels/{train,val}/<name>_train_id.png\n'
              '(either may have a parent folder bdd100k/)')
    default_domain = 'bdd100k'
    # Image folder, mask folder, suffix of masks.
    LAYOUTS = (('images/10k', 'labels/sem_seg/masks', '.png'),
               ('seg/images', 'seg/labels', '_train_id.png'))

    def folder_pairs(self) -> list[FolderPair]:
        """The first layout whose images are there."""
        pairs = [
            FolderPair(
                self.join(self.data_root, parent, images, self.split),
                self.join(self.data_root, parent, masks, self.split),
                ('.jpg', ), suffix) for parent in ('', 'bdd100k')
            for images, masks, suffix in self.LAYOUTS
        ]
        found = self.existing_folder([pair.images for pair in pairs])
        return [pair for pair in pairs if pair.images == found]
