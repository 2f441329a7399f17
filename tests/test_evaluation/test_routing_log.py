# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmseg_mile.evaluation import (RoutedImage, read_routing_log,
                                   routing_log_path, write_routing_log)


def image(**changes: Any) -> RoutedImage:
    values = dict(
        after='dusk',
        task='day',
        dataset='CamVidDataset',
        file='day/img/0.png',
        expert='dusk',
        mixture=dict(dusk=0.75, day=0.25),
        distances=dict(day=3.5, dusk=2),
        ood=False,
        miou=40.0,
        oracle_miou=52.5)
    return RoutedImage(**{**values, **changes})


def test_log_comes_back_line_by_line(tmp_path: Path) -> None:
    images = [
        image(),
        image(file='straße/☃ \u2028.png', ood=True),
        RoutedImage('dusk', 'day', 'CamVidDataset', 'b.png')
    ]
    path = routing_log_path(tmp_path, 'dusk')
    write_routing_log(path, images)

    assert path == tmp_path / 'routing_log' / 'dusk.jsonl'
    assert read_routing_log(path) == images
    assert path.read_text(encoding='utf-8').count('\n') == 3


def test_line_is_an_object_with_the_fields(tmp_path: Path) -> None:
    write_routing_log(tmp_path / 'a.jsonl', [image()])

    line = json.loads((tmp_path / 'a.jsonl').read_text())
    assert list(line) == [
        'after', 'task', 'dataset', 'file', 'expert', 'mixture', 'distances',
        'ood', 'miou', 'oracle_miou', 'sequence', 'areas'
    ]
    assert line['mixture'] == {'dusk': 0.75, 'day': 0.25}


def test_numbers_are_cut_as_in_the_file() -> None:
    found = image(
        miou=100 / 3, oracle_miou=np.float32(50), distances={'day': 2e5 / 3})

    assert (found.miou, found.oracle_miou) == (33.3333, 50)
    assert found.distances == {'day': 66666.7}
    assert RoutedImage.from_document(found.to_document()) == found


def test_what_was_not_measured_is_left_out() -> None:
    found = image(distances=dict(day=math.nan, dusk=1), miou=math.nan)

    assert found.distances == {'dusk': 1}
    assert found.miou is None


def test_routing_cost_is_what_the_own_expert_does_better() -> None:
    assert image().routing_cost == 12.5
    assert image(miou=60.0).routing_cost == -7.5
    assert math.isnan(image(oracle_miou=None).routing_cost)
    assert math.isnan(image(miou=None).routing_cost)


def test_missing_file_is_no_broken_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='none.jsonl'):
        read_routing_log(tmp_path / 'none.jsonl')


@pytest.mark.parametrize('line', [
    b'',
    b'{',
    b'[]',
    b'null',
    b'\xff\xfe{}',
    b'[' * 100_000,
    b'{"task": "day"}',
    json.dumps(dict(image().to_document(), surprise=1)).encode(),
    json.dumps(dict(image().to_document(), mixture=[1])).encode(),
    json.dumps(dict(image().to_document(), miou='40')).encode(),
    json.dumps(dict(image().to_document(), distances={'a': 10**400})).encode(),
])  # yapf: disable
def test_line_that_is_no_entry_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / 'dusk.jsonl'
    write_routing_log(path, [image()] * 2)
    path.write_bytes(path.read_bytes() + line + b'\n')

    with pytest.raises(
            ValueError, match='dusk.jsonl, line 3 is no entry.*Restore'):
        read_routing_log(path)


# a loaded machine is no failure
@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[
        HealthCheck.too_slow, HealthCheck.function_scoped_fixture
    ])
@given(
    position=st.integers(0, 10**6),
    byte=st.integers(0, 255),
    cut=st.booleans())
def test_damaged_log_is_refused_or_still_whole(tmp_path: Path, position: int,
                                               byte: int, cut: bool) -> None:
    path = tmp_path / 'damaged.jsonl'
    write_routing_log(path, [image(), image(file='1.png')])
    content = bytearray(path.read_bytes())
    if cut:
        content = content[:position % len(content)]
    else:
        content[position % len(content)] = byte
    path.write_bytes(content)
    try:
        found = read_routing_log(path)
    except ValueError as error:
        assert f'{path}, line ' in str(error)
    else:
        assert all(isinstance(i, RoutedImage) for i in found)
