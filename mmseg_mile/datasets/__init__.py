# SPDX-License-Identifier: Apache-2.0
"""Driving datasets, and transforms for other sensors."""
from .checked_pipeline import CheckedPipeline, check_dataset
from .driving import (ACDCDataset, BDD100KDomainDataset, CamVidDataset,
                      CityscapesDomainDataset, DrivingDataset, IDDLiteDataset)
from .heatnet import HeatNetDataset
from .idd import IDDDataset
from .transforms import CropColumns, LoadSingleChannelImage

__all__ = [
    'ACDCDataset', 'BDD100KDomainDataset', 'CamVidDataset', 'CheckedPipeline',
    'CityscapesDomainDataset', 'CropColumns', 'DrivingDataset',
    'HeatNetDataset', 'IDDDataset', 'IDDLiteDataset', 'LoadSingleChannelImage',
    'check_dataset'
]
