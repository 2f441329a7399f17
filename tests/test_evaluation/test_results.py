# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmseg_mile.evaluation.results import StreamCost, StreamResults

NAN = math.nan
TASKS = ['day', 'dusk']
ROUTED = [[60, 40], [50, 70]]
ORACLE = [[60, NAN], [58, 71]]


def fill(results: StreamResults, kind: str, matrix: list) -> None:
    for after, row in enumerate(matrix):
        for task, value in enumerate(row):
            results.set_miou(kind, after, task, value)


def expert(task: str) -> dict[str, Any]:
    return dict(task=task, lora_params=4, router_params=3, bytes=2048)


@pytest.fixture
def results() -> StreamResults:
    results = StreamResults.new('city', 'MILE', 3, TASKS)
    fill(results, 'routed', ROUTED)
    fill(results, 'oracle', ORACLE)
    results.set_gate(0.95, [[9, 1], [0, 10]])
    results.set_class_iou('routed', 'day', {'road': 90.5, 'sky': NAN})
    results.set_prototype_distances([[0, 1 / 3], [4, 0]])
    results.routing_stats[1] = dict(entropy=[0.5, 1 / 3])
    results.cost.base_params, results.cost.macs = 100, 10**9
    results.cost.set_experts([expert(task) for task in TASKS], TASKS)
    for index, seconds in enumerate((7.5, 8)):
        results.cost.set_task(index, seconds, 4 * 10**6 + index, 2**40 + 1)
    results.set_provenance('abc', {'torch': '2.13'}, dict(a=1), 'cpu')
    results.compute_scores(forced=[[60, 30], [20, 71]])
    return results


def test_file_round_trip_keeps_everything(results: StreamResults,
                                          tmp_path: Path) -> None:
    results.save(tmp_path / 'results.json')
    loaded = StreamResults.load(tmp_path / 'results.json')

    assert loaded.to_document() == results.to_document()
    assert vars(loaded).keys() == vars(results).keys()
    np.testing.assert_array_equal(loaded.miou['oracle'], ORACLE)
    assert math.isnan(loaded.class_iou['routed']['day']['sky'])
    assert loaded.num_finished_rows == 2 and loaded.has_gate


def test_run_that_measured_nothing_round_trips(tmp_path: Path) -> None:
    StreamResults.new('s', 'm', 0, TASKS).save(tmp_path / 'r.json')
    loaded = StreamResults.load(tmp_path / 'r.json')

    assert not loaded.has_gate and loaded.num_finished_rows == 0
    assert not loaded.cost.is_learned.any()
    assert all(math.isnan(value) for value in loaded.scores.values())


def test_file_says_null_rounds_and_counts_in_whole_numbers(
        results: StreamResults, tmp_path: Path) -> None:
    results.save(tmp_path / 'r.json')
    document = json.loads((tmp_path / 'r.json').read_text())

    assert '[60.0, null]' in (tmp_path / 'r.json').read_text()
    assert document['gate']['prototype_distances'][0] == [0, 0.3333]
    assert document['routing_stats'] == [None, dict(entropy=[0.5, 0.3333])]
    assert '[9, 1]' in json.dumps(document['gate']['confusion'])
    assert document['cost']['kept_bytes'] == [2**40 + 1] * 2


def test_failing_save_leaves_the_old_file(
        results: StreamResults, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'r.json'
    results.save(path)
    old = path.read_bytes()
    results.set_miou('routed', 1, 1, 99)

    def fail(*args: object) -> None:
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'):
        results.save(path)

    assert path.read_bytes() == old


def test_scores_by_hand(results: StreamResults) -> None:
    assert results.scores == pytest.approx(
        dict(
            average_miou=60,
            backward_transfer=-10,
            forward_transfer=40,
            forgetting=10,
            stability=50 / 60,
            plasticity=65,
            oracle_gap=(8 + 1) / 2,
            mismatch_drop=((58 - 30) + (71 - 20)) / 2,
            harmonic_mean_miou=2 / (1 / 50 + 1 / 70),
            net_score=20 * math.log10(60**2 / 4.000001**0.5)))


def test_scores_use_only_finished_rows() -> None:
    results = StreamResults.new('s', 'm', 0, ['a', 'b', 'c'])
    fill(results, 'routed', [[60, 40, 5], [60, 70, 6]])
    fill(results, 'oracle', [[60, 40], [60, 70]])
    results.set_miou('routed', 2, 2, 80)
    results.compute_scores([[60, 50, NAN], [40, 70, NAN], [NAN] * 3])

    assert results.num_finished_rows == 2
    assert results.scores['average_miou'] == 65
    assert results.scores['forward_transfer'] == 40
    assert results.scores['mismatch_drop'] == (10 + 30) / 2


def test_row_is_finished_by_its_learned_tasks_alone() -> None:
    results = StreamResults.new('s', 'm', 0, TASKS)
    for after, task, rows in ((0, 0, 1), (1, 1, 1), (1, 0, 2)):
        results.set_miou('routed', after, task, 60)
        assert results.num_finished_rows == rows


def test_a_gap_ends_the_finished_rows() -> None:
    results = StreamResults.new('s', 'm', 0, TASKS)
    fill(results, 'routed', [[NAN, 1], [50, 70]])

    assert results.num_finished_rows == 0


def test_longer_stream_keeps_what_was_measured(results: StreamResults) -> None:
    results.extend([*TASKS, 'snow'])

    assert results.num_finished_rows == 2
    np.testing.assert_array_equal(results.miou['routed'][:2, :2], ROUTED)
    assert np.isnan(results.miou['routed'][2]).all()
    assert results.gate_confusion[0].tolist()[:2] == [9, 1]
    assert results.cost.is_learned.tolist() == [True, True, False]
    assert results.cost.kept_params[:2].tolist() == [4e6, 4e6 + 1]
    # a prediction among more experts is more work
    assert results.cost.macs is None
    again = StreamResults.from_document(results.to_document())
    assert again.routing_stats[2] is None


def test_stream_of_the_same_length_keeps_its_work(
        results: StreamResults) -> None:
    results.extend(TASKS)

    assert results.cost.macs == 10**9


@pytest.mark.parametrize('tasks', [['dusk', 'day', 'snow'], ['day']])
def test_another_order_or_a_shorter_stream_is_refused(results: StreamResults,
                                                      tasks: list) -> None:
    with pytest.raises(ValueError, match=r"\['day', 'dusk'\], the stream "):
        results.extend(tasks)


def test_gate_of_the_first_tasks_is_padded() -> None:
    results = StreamResults.new('s', 'm', 0, TASKS)
    results.set_gate(1.0, [[5]])

    assert results.to_document()['gate']['confusion'] == [[5, None],
                                                          [None, None]]


def test_task_without_known_size_is_learned_all_the_same() -> None:
    cost = StreamCost.new(1)
    cost.set_task(0, 0, NAN, NAN)

    assert cost.is_learned.tolist() == [True]


@pytest.mark.parametrize('entry', [expert('snow'), dict(task='day')])
def test_expert_of_no_task_or_without_size_is_refused(entry: dict) -> None:
    with pytest.raises(ValueError, match=r"cost.experts .*\['day', 'dusk'\]"):
        StreamCost.new(2).set_experts([entry], TASKS)


@pytest.mark.parametrize('path, value, message', [
    ('schema', 2, "'schema' must be 3, got 2.*another --work-dir"),
    ('tasks', ['day'], r"'miou.routed' must have shape \(1, 1\)"),
    ('tasks', None, 'NoneType'),
    ('miou.routed', [[1, 2], [3]], "'miou.routed' must hold numbers"),
    ('miou.oracle', None, r"'miou.oracle' must have shape \(2, 2\)"),
    ('miou.oracle', [['x', 1], [1, 1]], "'miou.oracle' must hold numbers"),
    ('class_iou', [], "'class_iou.routed' is missing"),
    ('gate.confusion', [[1]], "'gate.confusion' must have shape"),
    ('gate.accuracy', [1], "'gate.accuracy' must have shape"),
    ('scores', {}, "'scores.average_miou' is missing"),
    ('cost.experts', [1], 'int'),
    ('cost.train_seconds', [1], "'cost.train_seconds' must have shape"),
    ('', [], "'schema' is missing: this is no results file of a stream"),
])
def test_broken_field_is_named_with_the_file(results: StreamResults,
                                             tmp_path: Path, path: str,
                                             value: Any, message: str) -> None:
    whole = {'': results.to_document()}
    inner, *parts = whole, *f'.{path}'.rstrip('.').split('.')
    for key in parts[:-1]:
        inner = inner[key]
    inner[parts[-1]] = value
    file = tmp_path / 'results.json'
    file.write_text(json.dumps(whole['']))

    with pytest.raises(ValueError, match=f'results.json .*{message}'):
        StreamResults.load(file)


@pytest.mark.parametrize('key', [
    'stream', 'method', 'setting', 'seed', 'tasks', 'miou', 'class_iou',
    'gate', 'routing_stats', 'scores', 'cost', 'provenance'
])
def test_missing_field_is_named(results: StreamResults, key: str) -> None:
    document = results.to_document()
    del document[key]

    with pytest.raises(ValueError, match=f"field '{key}.*' is missing"):
        StreamResults.from_document(document)


@pytest.mark.parametrize('content', ['{"schema": 3, "stre', 'NaN'])
def test_broken_json_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / 'results.json').write_text(content)

    with pytest.raises(ValueError, match='results.json is not valid JSON'):
        StreamResults.load(tmp_path / 'results.json')
