# SPDX-License-Identifier: Apache-2.0
"""From stacks of sensors to normalised channels for the network."""
from __future__ import annotations

from typing import Any

import pytest
import torch

from mmseg.structures import SegDataSample
from mmseg_mile.methods import SensorPreProcessor

SENSORS: dict[str, Any] = dict(
    rgb=dict(mean=[1, 2, 3], std=[1, 2, 4], bgr_to_rgb=True),
    events=dict(mean=[0, 0], std=[2, 2]),
    thermal=dict(mean=[10], std=[5]))


def batch_of(present: dict[str, bool]) -> dict[str, Any]:
    """A batch of one stack: blue 3, green 4, red 5, events 6 and 8, 20."""
    stack = torch.tensor([3, 4, 5, 6, 8, 20], dtype=torch.uint8)
    sample = SegDataSample(
        metainfo=dict(sensor_present=present, img_path='frame.png'))
    return dict(
        inputs=[stack.view(6, 1, 1).expand(6, 2, 4)], data_samples=[sample])


def channels(present: dict[str, bool]) -> list[float]:
    """What the network gets of a constant image."""
    inputs = SensorPreProcessor(SENSORS)(batch_of(present))['inputs']
    assert inputs.shape == (1, 9, 2, 4)
    assert (inputs == inputs[:, :, :1, :1]).all()
    return inputs[0, :, 0, 0].tolist()


def test_each_sensor_has_its_own_statistics_and_three_channels():
    # (5-1)/1, (4-2)/2, (3-3)/4; 6/2, 8/2 and none; (20-10)/5 three times
    assert channels(dict.fromkeys(SENSORS,
                                  True)) == [4, 1, 0, 3, 4, 0, 2, 2, 2]


def test_absent_sensor_is_zero_whatever_the_stack_holds():
    assert channels(dict(rgb=True, events=True,
                         thermal=False)) == [4, 1, 0, 3, 4, 0, 0, 0, 0]


def test_tensors_without_samples_have_all_sensors():
    batch = dict(inputs=batch_of({})['inputs'])
    inputs = SensorPreProcessor(SENSORS)(batch)['inputs']
    assert inputs[0, -1, 0, 0] == 2


def test_padding_is_as_in_mmseg():
    batch = batch_of(dict.fromkeys(SENSORS, True))
    processor = SensorPreProcessor(SENSORS, test_cfg=dict(size_divisor=8))
    out = processor(batch)
    assert out['inputs'].shape == (1, 9, 8, 8)
    assert out['data_samples'][0].pad_shape == (8, 8)


@pytest.mark.parametrize('present, message', [
    (None, 'PackSensorInputs'),
    (dict(thermal=True, rgb=True, events=True), 'same order'),
    (dict.fromkeys(SENSORS, False), 'none of its sensors'),
])  # yapf: disable
def test_samples_of_other_sensors_are_refused(present, message):
    with pytest.raises(ValueError, match=f"'frame.png'.*{message}"):
        SensorPreProcessor(SENSORS)(batch_of(present))


def test_stack_of_other_channels_is_refused():
    batch = batch_of(dict.fromkeys(SENSORS, True))
    batch['inputs'] = [batch['inputs'][0][:5]]
    with pytest.raises(ValueError, match='5 channels'):
        SensorPreProcessor(SENSORS)(batch)


@pytest.mark.parametrize('sensors, more, message', [
    ({}, {}, 'no sensor'),
    (dict(rgb=dict(mean=[1])), {}, 'sensors.rgb must have'),
    (dict(rgb=dict(mean=[1], std=[1, 2])), {}, 'sensors.rgb must have'),
    (dict(rgb=dict(mean=[1], std=[0])), {}, 'above 0'),
    (dict(rgb=dict(mean=[1], std=[1], gain=2)), {}, 'gain'),
    (SENSORS, dict(mean=[1, 2, 3]), r"\['mean'\] belong to a sensor"),
])  # yapf: disable
def test_wrong_statistics_are_refused(sensors, more, message):
    with pytest.raises(ValueError, match=message):
        SensorPreProcessor(sensors, **more)
