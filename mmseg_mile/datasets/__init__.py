# SPDX-License-Identifier: Apache-2.0
"""Driving datasets, and transforms for other sensors."""
from .checked_pipeline import CheckedPipeline, check_dataset
from .driving import (ACDCDataset, BDD100KDomainDataset, CamVidDataset,
                      CityscapesDomainDataset, DrivingDataset, IDDLiteDataset)
from .heatnet import HeatNetDataset
from .idd import IDDDataset
from .sensors import (DropSensors, LoadSensors, OnSensors, PackSensorInputs,
                      SensorFolders)
from .transforms import CropColumns, LoadSingleChannelImage

__all__ = [
    'ACDCDataset', 'BDD100KDomainDataset', 'CamVidDataset', 'CheckedPipeline',
    'CityscapesDomainDataset', 'CropColumns', 'DrivingDataset', 'DropSensors',
    'HeatNetDataset', 'IDDDataset', 'IDDLiteDataset', 'LoadSensors',
    'LoadSingleChannelImage', 'OnSensors', 'PackSensorInputs', 'SensorFolders',
    'check_dataset'
]
