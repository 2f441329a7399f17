# SPDX-License-Identifier: Apache-2.0
"""Whatever stands in a library's files: it loads, or it is a ValueError.

Checksums are made to fit, so that the readers behind them are met.
"""
from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmseg_mile.library.expert_store import ExpertStore, read_library_index
from mmseg_mile.library.files import (num_values, read_json, read_tensors,
                                      sha256, write_json, write_tensors)

FIELDS = ('schema', 'name', 'classes', 'palette', 'configs',
          'base_fingerprint', 'provenance', 'files')
DTYPES = ('F64', 'F32', 'F16', 'BF16', 'I64', 'I8', 'U8', 'BOOL', 'F8_E4M3',
          'F4', 'C64', 'X', '')


def bounded(max_examples):
    """The same examples in every run, and no files of hypothesis."""
    return settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture])


texts = st.text(st.characters(exclude_categories=['Cs']), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12)
headers = st.dictionaries(
    texts | st.just('__metadata__'),
    st.fixed_dictionaries(
        dict(
            dtype=st.sampled_from(DTYPES),
            shape=st.lists(st.integers(-1, 2**40) | st.integers(0, 3)),
            data_offsets=st.lists(st.integers(-1, 64), min_size=2,
                                  max_size=2)))
    | json_values,
    max_size=3)


@pytest.fixture(autouse=True)
def subnormal_numbers():
    """A loop rounds them to zero for the whole process; JSON has them."""
    torch.set_flush_denormal(False)


@pytest.fixture(scope='module')
def folder():
    """A place for one file that each example writes anew."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def refused_or(read, path):
    """The result of a reader, or None if it refuses the file by name."""
    try:
        return read()
    except ValueError as error:
        assert str(path) in str(error)
        return None


@bounded(200)
@given(content=st.binary(max_size=200))
def test_bytes_that_nobody_wrote_are_refused(folder, content):
    path = folder / 'x'
    path.write_bytes(content)
    assert refused_or(lambda: read_json(path), path) is None
    assert refused_or(lambda: read_json(path, sha256(path)), path) is None
    assert refused_or(lambda: read_tensors(path, '0' * 64), path) is None


@bounded(200)
@given(value=json_values)
def test_json_that_nobody_wrote_is_refused(folder, value):
    path = folder / 'x.json'
    path.write_text(json.dumps(value))
    assert refused_or(lambda: read_json(path), path) is None


@bounded(200)
@given(value=st.dictionaries(texts, json_values, max_size=4))
def test_json_object_comes_back(folder, value):
    value.pop('checksum', None)
    path = folder / 'x.json'
    write_json(path, value)
    again = read_json(path)
    # as text, in which NaN equals itself
    assert json.dumps(
        again, sort_keys=True) == json.dumps(
            value, sort_keys=True)


@bounded(200)
@given(
    changes=st.dictionaries(
        st.sampled_from(['schema', 'experts', 'files', 'base_fingerprint']),
        json_values,
        min_size=1))
def test_index_with_other_fields_is_refused_or_whole(folder, changes):
    path = folder / 'library.json'
    write_json(
        path,
        dict(
            dict(
                schema=2,
                base_fingerprint='b',
                experts=[],
                files={'base.safetensors': 'a' * 64}), **changes))
    index = refused_or(lambda: read_library_index(path), path)
    assert index is None or index['schema'] == 2 and index['experts'] == []


@bounded(150)
@given(field=st.sampled_from(FIELDS), value=json_values)
def test_record_with_another_field_is_refused_or_whole(store, field, value):
    record, index = store.root / 'day/expert.json', store.root / 'library.json'
    shutil.copytree(store.root, store.root.with_name('whole'))
    try:
        write_json(record, dict(read_json(record), **{field: value}))
        listed = read_json(index)
        listed['files']['day/expert.json'] = sha256(record)
        write_json(index, listed)
        found = refused_or(lambda: ExpertStore(store.root).load('day'),
                           record.parent)
        assert found is None or found.name == 'day'
    finally:
        shutil.rmtree(store.root)
        store.root.with_name('whole').rename(store.root)


@bounded(300)
@given(header=headers, size=st.integers(0, 64), wrong=st.integers(-3, 3))
def test_header_of_tensors_is_refused_or_whole(folder, header, size, wrong):
    path = folder / 'x.safetensors'
    text = json.dumps(header).encode()
    length = max(0, len(text) + wrong * (abs(wrong) == 3))
    path.write_bytes(length.to_bytes(8, 'little') + text + bytes(size))
    tensors = refused_or(lambda: read_tensors(path, sha256(path)), path)
    count = refused_or(lambda: num_values(path), path)
    if tensors is not None:
        assert count == sum(t.numel() for t in tensors.values())


dtypes = st.sampled_from([
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64,
    torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool
])


@st.composite
def tensors(draw):
    """A tensor of any type, with 0 to 3 axes, some of them empty."""
    dtype = draw(dtypes)
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    values = torch.empty(shape, dtype=dtype)
    if values.numel():
        size = values.numel() * values.element_size()
        raw = draw(st.binary(min_size=size, max_size=size))
        if dtype is torch.bool:
            raw = bytes(b & 1 for b in raw)
        values = torch.frombuffer(
            bytearray(raw), dtype=dtype).reshape(shape).clone()
    return values.mT if values.dim() > 1 and draw(st.booleans()) else values


def bits(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).tolist()


named_tensors = st.dictionaries(
    texts.filter(lambda name: name != '__metadata__'), tensors(), max_size=4)


@bounded(200)
@given(written=named_tensors)
def test_tensors_come_back_bit_for_bit(folder, written):
    path = folder / 'x.safetensors'
    write_tensors(path, written)
    again = read_tensors(path, sha256(path))
    assert again.keys() == written.keys()
    for key, value in written.items():
        assert again[key].dtype == value.dtype
        assert again[key].shape == value.shape
        assert bits(again[key]) == bits(value)
    assert num_values(path) == sum(t.numel() for t in written.values())


@bounded(60)
@given(
    name=st.from_regex(r'\w[\w .+-]{0,20}\w', fullmatch=True),
    classes=st.lists(texts.filter(bool), min_size=1, max_size=5, unique=True),
    provenance=st.dictionaries(texts, json_values, max_size=3),
    norm=named_tensors,
    head=named_tensors)
def test_expert_comes_back(store, make, name, classes, provenance, norm, head):
    expert = make(
        name,
        classes=tuple(classes),
        palette=((1, 2, 3), ) * len(classes),
        provenance=provenance,
        parts=dict(norm=norm, head=head))
    store.save(expert)
    again = ExpertStore(store.root).load(name)
    assert (again.name, again.classes) == (name, tuple(classes))
    assert json.dumps(again.provenance) == json.dumps(
        json.loads(json.dumps(provenance, sort_keys=True)))
    for mine, theirs in ((again.parts['norm'], norm), (again.parts['head'],
                                                       head)):
        assert {
            k: bits(v)
            for k, v in mine.items()
        } == {
            k: bits(v)
            for k, v in theirs.items()
        }
