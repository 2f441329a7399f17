# SPDX-License-Identifier: Apache-2.0
"""What a library tells of its experts."""
from __future__ import annotations

from types import SimpleNamespace

import pytest

from mmseg_mile.library.edits import merge_experts
from mmseg_mile.library.report import (list_experts, show_expert, started_from,
                                       task_data)


def test_table_has_a_row_for_each_expert_in_order(cnn):
    rows = list_experts(cnn.store.root)
    assert [row.name for row in rows] == ['day', 'night', 'fog']
    assert {(r.classes, r.rank, r.state) for r in rows} == {(3, 2, 'ok')}
    values = show_expert(cnn.store.root, 'day')['parameters']
    assert rows[0].parameters == (
        values['adapter'] + values['head'] + values['norm'])
    assert rows[0].num_bytes == sum(
        p.stat().st_size for p in (cnn.store.root / 'day').iterdir())


def test_broken_expert_is_a_row_that_says_so(cnn):
    (cnn.store.root / 'day' / 'expert.json').unlink()
    (cnn.store.root / 'night' / 'head.safetensors').write_bytes(b'')
    day, night, fog = list_experts(cnn.store.root)
    assert 'day/expert.json' in day.state and day.rank is None
    assert 'night/head.safetensors' in night.state
    assert fog.state == 'ok'


def test_record_is_shown_whole(cnn):
    record = show_expert(cnn.store.root, 'night')
    assert record['name'] == 'night'
    assert record['classes'] == ['sky', 'road', 'car']
    assert record['base_fingerprint'] == cnn.store.base_fingerprint
    assert record['provenance']['seed'] == 1
    head = record['files']['head.safetensors']
    assert head['bytes'] == (cnn.store.root / 'night' /
                             'head.safetensors').stat().st_size
    assert len(head['sha256']) == 64
    assert record['prototypes']['centroids'] == [1, 2 * (8 + 16)]


def test_unknown_expert_is_refused(cnn):
    with pytest.raises(ValueError, match="no expert 'noon'"):
        show_expert(cnn.store.root, 'noon')


def test_merge_names_its_parts(cnn):
    merge_experts(cnn.store.root, ['day', 'fog'], 'both', [0.25, 0.75])
    row = list_experts(cnn.store.root)[-1]
    assert (row.data, row.init) == ('0.25 day + 0.75 fog', 'merged')


@pytest.mark.parametrize('provenance, text', [
    (dict(train_dataset=dict(type='A', data_root='b', x=1)), 'A b'),
    (dict(imported_from='x/y'), 'PEFT folder x/y'),
    (dict(), 'unknown'),
])  # yapf: disable
def test_data_is_told_in_a_few_words(provenance, text):
    assert task_data(provenance) == text


@pytest.mark.parametrize('provenance, text', [
    (dict(started_from={}), 'base'),
    (dict(started_from=dict(day='1')), 'day'),
    (dict(started_from=dict(day='1', india='2')), 'day, idd'),
    (dict(imported_from='x'), 'imported'),
    (dict(), 'unknown'),
])  # yapf: disable
def test_start_is_read_from_the_record(provenance, text):
    expert = SimpleNamespace(provenance=provenance)
    # 'india' was renamed since
    assert started_from(expert, {'2': 'idd'}) == text
