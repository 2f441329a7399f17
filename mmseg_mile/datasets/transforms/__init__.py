# SPDX-License-Identifier: Apache-2.0
from .crop_columns import CropColumns
from .load_single_channel_image import LoadSingleChannelImage

__all__ = ['CropColumns', 'LoadSingleChannelImage']
