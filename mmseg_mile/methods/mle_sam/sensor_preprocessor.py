# SPDX-License-Identifier: Apache-2.0
"""Normalisation of stacked sensors, each by its own statistics."""
from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence

import torch
from torch import Tensor

from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.registry import MODELS

# Shape legend: B images, M sensors, C channels of a stack, H x W image

#: Channels that a network gets of each sensor.
NETWORK_CHANNELS = 3
_FIELDS = ('mean', 'std', 'bgr_to_rgb')


@MODELS.register_module()
class SensorPreProcessor(SegDataPreProcessor):
    """mmseg's preprocessor, for stacks of several sensors.

    From the channels of a stack, in the order of ``sensors``, it makes three
    normalised channels per sensor, (B, 3 M, H, W): a sensor of one channel is
    repeated on the device, so that it travels as one; to one of two, such as
    counts of positive and negative events, a third of zeros is added. Absent
    sensors are zero, whatever the stack holds.

    Args:
        sensors (dict[str, dict]): By name ``mean`` and ``std``, one to three
            values each, in the units of the stack and in the order of
            channels that the network gets, and optionally ``bgr_to_rgb``.
        **kwargs: As in ``SegDataPreProcessor``, but for its normalisation.

    Raises:
        ValueError: If a sensor has other fields or numbers of values, or,
            from a call, if images do not have these sensors.
    """

    def __init__(self, sensors: Mapping[str, Mapping[str, Any]],
                 **kwargs: Any) -> None:
        given = sorted({'mean', 'std', 'bgr_to_rgb', 'rgb_to_bgr'}
                       & set(kwargs))
        if given:
            raise ValueError(f'data_preprocessor: {given} belong to a sensor; '
                             'give them in data_preprocessor.sensors')
        super().__init__(**kwargs)
        if not sensors:
            raise ValueError('data_preprocessor.sensors names no sensor')
        self.sensors = tuple(sensors)
        self.num_channels: List[int] = []
        self._flips: List[bool] = []
        means: List[float] = []
        stds: List[float] = []
        for name, fields in sensors.items():
            mean, std = _statistics(name, fields)
            self.num_channels.append(len(mean))
            self._flips.append(bool(fields.get('bgr_to_rgb', False)))
            means += mean
            stds += std
        self.register_buffer('sensor_mean',
                             torch.tensor(means).view(-1, 1, 1), False)
        self.register_buffer('sensor_std',
                             torch.tensor(stds).view(-1, 1, 1), False)

    def forward(self, data: dict, training: bool = False) -> Dict[str, Any]:
        """Normalise a batch, see :class:`SensorPreProcessor`."""
        data = self.cast_data(data)
        present = self.presence(data.get('data_samples'), len(data['inputs']))
        inputs = [
            self._normalised(stack, flags)
            for stack, flags in zip(data['inputs'], present.tolist())
        ]
        return super().forward(dict(data, inputs=inputs), training)

    def presence(self,
                 data_samples: Optional[Sequence[Any]],
                 num_images: int = 0) -> Tensor:
        """Which sensors each image has, (B, M) bool on the CPU.

        Args:
            data_samples (Sequence[SegDataSample], optional): Of the images,
                with the metainfo ``sensor_present``; None: all sensors.
            num_images (int): B, where there are no samples. Defaults to 0.

        Raises:
            ValueError: If an image has other sensors, or none.
        """
        if data_samples is None:
            return torch.ones(num_images, len(self.sensors), dtype=torch.bool)
        rows = []
        for sample in data_samples:
            flags = sample.metainfo.get('sensor_present')
            path = sample.metainfo.get('img_path')
            if flags is None:
                raise ValueError(
                    f'image {path!r} does not say which sensors it has: load '
                    'it with LoadSensors and pack it with PackSensorInputs')
            if tuple(flags) != self.sensors:
                raise ValueError(
                    f'image {path!r} has the sensors {tuple(flags)}, '
                    f'data_preprocessor.sensors are {self.sensors}: name the '
                    'same in the same order in LoadSensors')
            if not any(flags.values()):
                raise ValueError(f'image {path!r} has none of its sensors: '
                                 'leave it out')
            rows.append(list(flags.values()))
        return torch.tensor(rows, dtype=torch.bool)

    def blocks(self) -> List[slice]:
        """Channels of each sensor in a stack, in their order."""
        found, start = [], 0
        for channels in self.num_channels:
            found.append(slice(start, start + channels))
            start += channels
        return found

    def _normalised(self, stack: Tensor, present: Sequence[bool]) -> Tensor:
        """(3 M, H, W) of a stack (C, H, W)."""
        if len(stack) != sum(self.num_channels):
            raise ValueError(
                f'an image has {len(stack)} channels, the sensors '
                f'{self.sensors} have {self.num_channels}: give mean and std '
                'one value for each channel that LoadSensors stacks')
        result = stack.new_zeros(
            (len(self.sensors) * NETWORK_CHANNELS, *stack.shape[1:]),
            dtype=torch.float32)
        targets = result.split(NETWORK_CHANNELS)
        for index, channels in enumerate(self.blocks()):
            if present[index]:
                block = stack[channels]
                if self._flips[index]:
                    block = block.flip(0)
                block = (block.float() - self.sensor_mean[channels]
                         ) / self.sensor_std[channels]
                repeats = NETWORK_CHANNELS if len(block) == 1 else len(block)
                targets[index][:repeats] = block
        return result


def _statistics(name: str, fields: Mapping[str, Any]) -> Any:
    """Mean and standard deviation of a sensor."""
    unknown = sorted(set(fields) - set(_FIELDS))
    lists: List[Any] = [fields.get(field) for field in ('mean', 'std')]
    good = all(
        isinstance(values, (list, tuple)) and 1 <= len(values) <= 3
        for values in lists)
    if unknown or not good or len(lists[0]) != len(lists[1]):
        raise ValueError(
            f'data_preprocessor.sensors.{name} must have mean and std, lists '
            f'of one to three values each, and may have bgr_to_rgb, got '
            f'{dict(fields)}')
    if min(lists[1]) <= 0:
        raise ValueError(f'data_preprocessor.sensors.{name}.std must be above '
                         f'0, got {lists[1]}')
    return [list(map(float, values)) for values in lists]
