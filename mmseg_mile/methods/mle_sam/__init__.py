# SPDX-License-Identifier: Apache-2.0
"""MLE-SAM: experts of sensors, and a router among them."""
from .sensor_expert_segmentor import SensorExpertSegmentor
from .sensor_preprocessor import SensorPreProcessor
from .sensor_router import SensorRouter

__all__ = ['SensorExpertSegmentor', 'SensorPreProcessor', 'SensorRouter']
