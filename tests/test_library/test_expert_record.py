# SPDX-License-Identifier: Apache-2.0
"""Records that no expert and no library would write.

Their checksums are right, so they are not damage, but the work of a newer
version, of a slip of the hand or of somebody with bad intentions.
"""
from __future__ import annotations

import pytest

from mmseg_mile.library.expert_store import (read_expert_record,
                                             read_library_index)
from mmseg_mile.library.files import read_json, sha256, write_json

ADAPTER = 'adapter_model.safetensors'


@pytest.fixture
def changed_record(store):
    """``changed_record(**fields)``: 'day' with other fields."""
    path = store.root / 'day' / 'expert.json'

    def change(**fields):
        write_json(path, {**read_json(path), **fields})
        return path.parent, sha256(path)

    return change


@pytest.fixture
def changed_index(store):
    """``changed_index(**fields)``: the index with other fields."""
    path = store.root / 'library.json'

    def change(**fields):
        write_json(path, {**read_json(path), **fields})
        return path

    return change


@pytest.mark.parametrize('field, value', [
    ('name', '../night'),
    ('name', None),
    ('classes', []),
    ('classes', 'road'),
    ('classes', ['road', 'road']),
    ('classes', ['road', 7]),
    ('palette', [[1, 2]]),
    ('palette', [1, 2, 3]),
    ('configs', dict(adapter={})),
    ('configs', dict(adapter=dict(r=0, lora_alpha=4))),
    ('configs', dict(adapter=dict(r=True, lora_alpha=4))),
    ('configs', dict(adapter=dict(r=2, lora_alpha='4'))),
    ('configs', dict(adapter=dict(r=2, lora_alpha=4, auto_mapping='os'))),
    ('configs', dict(head=[])),
    ('base_fingerprint', 7),
    ('provenance', None),
    ('files', []),
    ('files', {
        ADAPTER: 'a' * 64
    }),
])
def test_field_that_no_expert_has_is_refused_by_name(changed_record, field,
                                                     value):
    with pytest.raises(ValueError, match=f'day/expert.json: {field} holds'):
        read_expert_record(*changed_record(**{field: value}))


@pytest.mark.parametrize('file', ['../day/x', '/etc/passwd', 'x.pkl'])
def test_record_lists_no_file_but_those_of_an_expert(store, changed_record,
                                                     file):
    files = read_json(store.root / 'day' / 'expert.json')['files']
    with pytest.raises(ValueError, match='day/expert.json: files holds'):
        read_expert_record(*changed_record(files={**files, file: 'a' * 64}))


@pytest.mark.parametrize('schema', [0, 1, True, '2', None])
def test_record_of_another_schema_is_refused(changed_record, schema):
    with pytest.raises(ValueError, match='is no expert of schema 2'):
        read_expert_record(*changed_record(schema=schema))


def test_record_with_a_field_too_many_is_refused(changed_record):
    with pytest.raises(ValueError, match='must have exactly the fields'):
        read_expert_record(*changed_record(extra=1))


def test_head_of_a_type_outside_the_registries_is_refused(changed_record):
    head = dict(type='subprocess.Popen', args=['true'], num_classes=2)
    with pytest.raises(ValueError, match='expert.json names the type'):
        read_expert_record(*changed_record(configs=dict(head=head)))


def test_record_in_the_folder_of_another_expert_is_refused(store):
    day, fog = store.root / 'day', store.root / 'fog'
    day.rename(fog)
    with pytest.raises(ValueError, match="fog/expert.json belongs .* 'day'"):
        read_expert_record(fog, sha256(fog / 'expert.json'))


@pytest.mark.parametrize('field, value', [
    ('base_fingerprint', ''),
    ('experts', 'day'),
    ('experts', [['day']]),
    ('experts', ['day', 'day']),
    ('experts', ['../day']),
    ('experts', ['/etc']),
    ('files', ['base.safetensors']),
    ('files', {
        'base.safetensors': 'abc'
    }),
])
def test_field_that_no_library_has_is_refused_by_name(changed_index, field,
                                                      value):
    with pytest.raises(ValueError, match=f'library.json: {field} holds'):
        read_library_index(changed_index(**{field: value}))


def test_index_must_list_the_record_of_each_expert(changed_index):
    with pytest.raises(ValueError, match='library.json: files must list'):
        read_library_index(changed_index(experts=['day']))


@pytest.mark.parametrize('schema', [1, 3, True, None])
def test_index_of_another_schema_is_refused(changed_index, schema):
    with pytest.raises(ValueError, match='is no library of schema 2'):
        read_library_index(changed_index(schema=schema))
