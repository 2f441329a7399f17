# SPDX-License-Identifier: Apache-2.0
from .acdc import ACDCDataset
from .bdd100k_domain import BDD100KDomainDataset
from .camvid import CamVidDataset
from .checked_pipeline import CheckedPipeline, check_dataset
from .cityscapes_domain import CityscapesDomainDataset
from .driving import DrivingDataset
from .heatnet import HeatNetDataset
from .idd import IDDDataset
from .idd_lite import IDDLiteDataset
from .transforms import CropColumns, LoadSingleChannelImage

__all__ = [
    'ACDCDataset', 'BDD100KDomainDataset', 'CamVidDataset', 'CheckedPipeline',
    'CityscapesDomainDataset', 'CropColumns', 'DrivingDataset',
    'HeatNetDataset', 'IDDDataset', 'IDDLiteDataset', 'LoadSingleChannelImage',
    'check_dataset'
]
