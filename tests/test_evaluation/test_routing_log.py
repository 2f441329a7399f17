# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmseg_mile.evaluation import (RoutedImage, read_routing_log,
                                   routing_log_path, write_routing_log)

FIELDS = ('after', 'task', 'dataset', 'file', 'expert', 'mixture', 'distances',
          'ood', 'miou', 'oracle_miou')
# a loaded machine is no failure
bounded = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow])
json_values = st.recursive(
    # a training loop that ran before has turned subnormal numbers off
    st.none() | st.booleans() | st.integers()
    | st.floats(allow_subnormal=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6)


def image(**changes: Any) -> RoutedImage:
    values = dict(
        after='dusk',
        task='day',
        dataset='CamVidDataset',
        file='day/img/0.png',
        expert='dusk',
        mixture={
            'dusk': 0.75,
            'day': 0.25
        },
        distances={
            'day': 3.5,
            'dusk': 2
        },
        ood=False,
        miou=40.0,
        oracle_miou=52.5)
    return RoutedImage(**{**values, **changes})


@pytest.fixture(scope='module')
def folder() -> Iterator[Path]:
    """A place for one file that each example writes anew."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


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


def test_line_is_an_object_with_the_agreed_keys(tmp_path: Path) -> None:
    write_routing_log(tmp_path / 'a.jsonl', [image()])

    line = json.loads((tmp_path / 'a.jsonl').read_text())
    assert list(line) == list(FIELDS)
    assert line['mixture'] == {'dusk': 0.75, 'day': 0.25}
    assert (line['miou'], line['oracle_miou']) == (40, 52.5)


def test_log_of_no_image_is_empty(tmp_path: Path) -> None:
    write_routing_log(tmp_path / 'a.jsonl', [])

    assert read_routing_log(tmp_path / 'a.jsonl') == []


def test_numbers_are_cut_as_in_the_file() -> None:
    found = image(
        miou=100 / 3, oracle_miou=np.float32(50), distances={'day': 2e5 / 3})

    assert (found.miou, found.oracle_miou) == (33.3333, 50)
    assert found.distances == {'day': 66666.7}
    assert RoutedImage.from_document(found.to_document()) == found


def test_what_was_not_measured_is_left_out() -> None:
    found = image(
        distances={
            'day': math.nan,
            'dusk': 1
        },
        miou=math.nan,
        oracle_miou=None)

    assert found.distances == {'dusk': 1}
    assert (found.miou, found.oracle_miou) == (None, None)


def test_routing_cost_is_what_the_own_expert_does_better() -> None:
    assert image().routing_cost == 12.5
    assert image(miou=60.0).routing_cost == -7.5
    assert math.isnan(image(oracle_miou=None).routing_cost)
    assert math.isnan(image(miou=None).routing_cost)


def test_failing_write_leaves_the_old_log(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'a.jsonl'
    write_routing_log(path, [image()])

    def fail(*args: object) -> None:
        raise OSError('disk full')

    monkeypatch.setattr('os.replace', fail)
    with pytest.raises(OSError, match='disk full'):
        write_routing_log(path, [])

    assert read_routing_log(path) == [image()]


def test_missing_file_is_no_broken_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='none.jsonl'):
        read_routing_log(tmp_path / 'none.jsonl')


@pytest.mark.parametrize('field, value', [
    ('after', None),
    ('task', 3),
    ('dataset', ['CamVidDataset']),
    ('file', None),
    ('expert', 1),
    ('mixture', None),
    ('mixture', [0.5]),
    ('mixture', {
        'day': '1'
    }),
    ('mixture', {
        'day': True
    }),
    ('distances', {
        'day': None
    }),
    ('distances', {
        'day': math.inf
    }),
    ('distances', {
        'day': math.nan
    }),
    ('distances', {
        'day': 10**400
    }),
    ('ood', 1),
    ('miou', '40'),
    ('miou', True),
    ('miou', math.nan),
    ('miou', 100.1),
    ('oracle_miou', -1),
    ('oracle_miou', 10**400),
    ('surprise', 1),
])
def test_wrong_field_is_named_with_file_and_line(tmp_path: Path, field: str,
                                                 value: Any) -> None:
    lines = [
        image().to_document(),
        dict(image().to_document(), **{field: value})
    ]
    path = tmp_path / 'dusk.jsonl'
    path.write_text('\n'.join(map(json.dumps, lines)))

    with pytest.raises(
            ValueError, match=f'dusk.jsonl, line 2 is no .*{field}.*Restore'):
        read_routing_log(path)


@pytest.mark.parametrize('field', FIELDS)
def test_missing_field_is_named(tmp_path: Path, field: str) -> None:
    document = image().to_document()
    del document[field]
    (tmp_path / 'a.jsonl').write_text(json.dumps(document))

    with pytest.raises(ValueError, match=f'line 1 is no .*keys .*{field}'):
        read_routing_log(tmp_path / 'a.jsonl')


@pytest.mark.parametrize('line', [
    b'', b'{', b'[]', b'null', b'\xff\xfe{}', b'[' * 100_000,
    json.dumps(image().to_document()).encode()[:-1]
])
def test_line_that_is_no_entry_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / 'dusk.jsonl'
    write_routing_log(path, [image()] * 2)
    path.write_bytes(path.read_bytes() + line + b'\n')

    with pytest.raises(ValueError, match='dusk.jsonl, line 3 is no entry'):
        read_routing_log(path)


def read_or_refuse(path: Path) -> list[RoutedImage] | None:
    try:
        return read_routing_log(path)
    except ValueError as error:
        assert f'{path}, line ' in str(error)
        return None


@bounded
@given(content=st.binary(min_size=1, max_size=100))
def test_bytes_that_nobody_wrote_are_refused(folder: Path,
                                             content: bytes) -> None:
    path = folder / 'bytes.jsonl'
    path.write_bytes(content)

    assert read_or_refuse(path) is None


@bounded
@given(changes=st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_changed_line_is_refused_or_written_the_same_again(
        folder: Path, changes: dict) -> None:
    path = folder / 'changed.jsonl'
    path.write_text(json.dumps(dict(image().to_document(), **changes)))
    found = read_or_refuse(path)

    if found is not None:
        write_routing_log(path, found)
        assert read_routing_log(path) == found


@bounded
@given(
    position=st.integers(0, 10**6),
    byte=st.integers(0, 255),
    cut=st.booleans())
def test_damaged_log_is_refused_or_still_whole(folder: Path, position: int,
                                               byte: int, cut: bool) -> None:
    path = folder / 'damaged.jsonl'
    write_routing_log(path, [image(), image(file='1.png')])
    content = bytearray(path.read_bytes())
    if cut:
        content = content[:position % len(content)]
    else:
        content[position % len(content)] = byte
    path.write_bytes(content)
    found = read_or_refuse(path)

    assert found is None or all(isinstance(i, RoutedImage) for i in found)
