# SPDX-License-Identifier: Apache-2.0
import json
import math
import os
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
import pytest

from mmseg_mile.evaluation.results import StreamResults

TASKS = ['day', 'dusk']
ROUTED = [[60, 40], [50, 70]]
ORACLE = [[60, math.nan], [58, 71]]


def fill(results: StreamResults, kind: str, matrix: list) -> None:
    for after, row in enumerate(matrix):
        for task, value in enumerate(row):
            results.set_miou(kind, after, task, value)


def expert_cost(task: str) -> Dict[str, Any]:
    return dict(
        task=task,
        lora_params=4,
        head_params=3,
        norm_params=2,
        prototype_values=1,
        bytes=2048)


@pytest.fixture
def results() -> StreamResults:
    results = StreamResults.new('city', 'MILE', 3, TASKS)
    fill(results, 'routed', ROUTED)
    fill(results, 'oracle', ORACLE)
    results.set_gate(0.95, [[9, 1], [0, 10]])
    results.set_class_iou('routed', 'day', {'road': 90.5, 'sky': math.nan})
    results.set_prototype_distances([[0, 3], [4, 0]])
    results.cost.base_params, results.cost.macs = 100, 10**9
    results.cost.set_experts([expert_cost(task) for task in TASKS], TASKS)
    for index, seconds in enumerate((7.5, 8)):
        results.cost.set_task(index, seconds, 4 * 10**6 + index, 2048)
    results.set_provenance('abc', {'torch': '2.13'}, 'c.py', 'cpu')
    results.compute_scores(forced=[[60, 30], [20, 71]])
    return results


def test_document_has_the_keys_of_the_schema(results: StreamResults) -> None:
    document = results.to_document()

    assert list(document) == [
        'schema', 'stream', 'method', 'setting', 'seed', 'tasks', 'miou',
        'class_iou', 'gate', 'scores', 'cost', 'provenance'
    ]
    assert list(document['miou']) == ['routed', 'oracle']
    assert list(
        document['gate']) == ['accuracy', 'confusion', 'prototype_distances']
    assert list(document['setting']) == ['task_label_at_test', 'old_images']
    assert list(document['scores']) == [
        'average_miou', 'backward_transfer', 'forward_transfer', 'forgetting',
        'stability', 'plasticity', 'oracle_gap', 'mismatch_drop',
        'harmonic_mean_miou', 'net_score'
    ]
    assert list(document['cost']) == [
        'base_params', 'experts', 'train_seconds', 'kept_params', 'kept_bytes',
        'macs'
    ]
    assert list(document['cost']['experts'][0]) == [
        'task', 'lora_params', 'head_params', 'norm_params',
        'prototype_values', 'bytes'
    ]
    assert list(
        document['provenance']) == ['commit', 'versions', 'config', 'device']


def test_file_round_trip_keeps_everything(results: StreamResults,
                                          tmp_path: Path) -> None:
    results.save(tmp_path / 'results.json')
    loaded = StreamResults.load(tmp_path / 'results.json')

    assert loaded.to_document() == results.to_document()
    np.testing.assert_array_equal(loaded.miou['oracle'], ORACLE)
    assert math.isnan(loaded.class_iou['routed']['day']['sky'])
    assert loaded.num_finished_rows == 2


def test_new_results_round_trip(tmp_path: Path) -> None:
    StreamResults.new('s', 'm', 0, TASKS).save(tmp_path / 'r.json')

    assert not StreamResults.load(tmp_path / 'r.json').has_gate


def test_unevaluated_cell_is_null(results: StreamResults,
                                  tmp_path: Path) -> None:
    results.save(tmp_path / 'r.json')

    assert '[60.0, null]' in (tmp_path / 'r.json').read_text()


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
    fill(results, 'routed', [[60, 40, 5], [50, 70, 6]])
    results.set_miou('routed', 2, 2, 80)
    results.compute_scores()

    assert results.num_finished_rows == 2
    assert results.scores['average_miou'] == 60
    assert results.scores['forward_transfer'] == 40


def test_scores_of_no_finished_row_are_nan() -> None:
    results = StreamResults.new('s', 'm', 0, TASKS)
    results.compute_scores()

    assert all(math.isnan(value) for value in results.scores.values())


def test_mismatch_drop_needs_forced_scores(results: StreamResults) -> None:
    results.compute_scores()

    assert math.isnan(results.scores['mismatch_drop'])


def test_forced_scores_of_all_tasks_are_cut_to_the_finished_ones() -> None:
    results = StreamResults.new('s', 'm', 0, ['a', 'b', 'c'])
    for kind in ('routed', 'oracle'):
        fill(results, kind, [[60, 40], [60, 70]])
    forced = np.full((3, 3), math.nan)
    forced[:2, :2] = [[60, 50], [40, 70]]
    results.compute_scores(forced)

    assert results.scores['mismatch_drop'] == (10 + 30) / 2


def test_row_is_finished_by_its_learned_tasks_alone() -> None:
    results = StreamResults.new('s', 'm', 0, TASKS)
    results.set_miou('routed', 0, 0, 60)
    assert results.num_finished_rows == 1

    results.set_miou('routed', 1, 1, 60)
    assert results.num_finished_rows == 1

    results.set_miou('routed', 1, 0, 60)
    assert results.num_finished_rows == 2


def test_a_gap_ends_the_finished_rows() -> None:
    results = StreamResults.new('s', 'm', 0, TASKS)
    fill(results, 'routed', [[math.nan, 1], [50, 70]])

    assert results.num_finished_rows == 0


def test_extend_keeps_what_was_measured(results: StreamResults) -> None:
    results.extend(['day', 'dusk', 'snow'])

    assert results.num_finished_rows == 2
    np.testing.assert_array_equal(results.miou['routed'][:2, :2], ROUTED)
    assert np.isnan(results.miou['routed'][2]).all()
    assert results.gate_confusion[0].tolist()[:2] == [9, 1]
    assert len(results.cost.train_seconds) == 3
    StreamResults.from_document(results.to_document())


@pytest.mark.parametrize('tasks', [['dusk', 'day', 'snow'], ['day']])
def test_extend_refuses_another_order_or_a_shorter_stream(
        results: StreamResults, tasks: list) -> None:
    with pytest.raises(
            ValueError, match=r"\['day', 'dusk'\], the stream "
            r"has \['d"):
        results.extend(tasks)


def test_gate_of_the_first_tasks_is_padded() -> None:
    results = StreamResults.new('s', 'm', 0, TASKS)
    results.set_gate(1.0, [[5]])

    assert results.to_document()['gate']['confusion'] == [[5, None],
                                                          [None, None]]


@pytest.mark.parametrize('confusion',
                         [[[1, 2]], [[0.5, 0], [0, 1]], [[-1, 0], [0, 1]],
                          np.zeros((3, 3)), [[math.inf, 0], [0, 1]]])
def test_gate_counts_must_be_images(results: StreamResults,
                                    confusion: Any) -> None:
    with pytest.raises(ValueError, match='gate.confusion'):
        results.set_gate(0.5, confusion)


@pytest.mark.parametrize('value', [-1, 101, math.inf])
def test_miou_must_be_per_cent(results: StreamResults, value: float) -> None:
    with pytest.raises(ValueError, match=r'miou.routed\[0\]\[1\] must lie'):
        results.set_miou('routed', 0, 1, value)


@pytest.mark.parametrize('after, task', [(2, 0), (0, -1)])
def test_cell_outside_the_matrix_is_refused(results: StreamResults, after: int,
                                            task: int) -> None:
    with pytest.raises(ValueError, match='0 to 1'):
        results.set_miou('routed', after, task, 1)


def test_unknown_kind_is_refused(results: StreamResults) -> None:
    with pytest.raises(ValueError, match="got 'forced'"):
        results.set_miou('forced', 0, 0, 1)


def test_class_iou_of_an_unknown_task_is_refused(
        results: StreamResults) -> None:
    with pytest.raises(ValueError, match="'snow'"):
        results.set_class_iou('routed', 'snow', {})


def test_cost_with_a_missing_key_is_refused(results: StreamResults) -> None:
    cost = expert_cost('day')
    del cost['bytes']

    with pytest.raises(ValueError, match=r"cost.experts\[0\].*'bytes'"):
        results.cost.set_experts([cost], TASKS)


def set_in(document: Dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split('.')
    for key in parents:
        document = document[key]
    document[last] = value


@pytest.mark.parametrize('path, value, message', [
    ('schema', 1, "'schema' must be 2, got 1"),
    ('seed', '3', 'seed must be of type int'),
    ('stream', None, 'stream must be of type str'),
    ('tasks', ['day', 'day'], 'tasks must be a list'),
    ('tasks', ['day', 'dusk', 'snow'], 'miou.routed must be a list of 3'),
    ('surprise', 1, "unknown are .'surprise'"),
    ('miou.forced', [], "miou must have .*'forced'"),
    ('miou.routed', [[1, 2], [3]], r'miou.routed\[1\] must be a list of 2'),
    ('miou.oracle', None, 'miou.oracle must be a list'),
    ('miou.routed', [[1, 200], [3, 4]], r'miou.routed\[0\]\[1\] must lie'),
    ('class_iou.oracle', {
        'snow': {}
    }, "class_iou.oracle names the task"),
    ('class_iou.routed', {
        'day': {
            'road': 'x'
        }
    }, 'class_iou.routed.day.road'),
    ('gate.accuracy', 95, 'gate.accuracy must lie in 0 to 1'),
    ('gate.confusion', [[1]], 'gate.confusion must be a list of 2'),
    ('scores', {}, "scores must have .*missing are .'average_miou'"),
    ('scores.forgetting', 'low', 'scores.forgetting must be a number'),
    ('cost.experts', {}, 'cost.experts must be of type list'),
    ('cost.experts', [1], r'cost.experts\[0\] must be an object'),
    ('cost.base_params', 1.5, 'cost.base_params must be of type int'),
    ('cost.train_seconds', [1], 'cost.train_seconds must be a list of 2'),
    ('provenance', {
        'commit': None
    }, 'provenance must have'),
])
def test_wrong_field_is_named_with_the_file(results: StreamResults,
                                            tmp_path: Path, path: str,
                                            value: Any, message: str) -> None:
    document = results.to_document()
    set_in(document, path, value)
    file = tmp_path / 'results.json'
    file.write_text(json.dumps(document))

    with pytest.raises(ValueError, match=f'results.json: .*{message}'):
        StreamResults.load(file)


@pytest.mark.parametrize('key', [
    'schema', 'stream', 'method', 'setting', 'seed', 'tasks', 'miou',
    'class_iou', 'gate', 'scores', 'cost', 'provenance'
])
def test_missing_field_is_named(results: StreamResults, key: str) -> None:
    document = results.to_document()
    del document[key]

    with pytest.raises(ValueError, match=key):
        StreamResults.from_document(document)


def test_broken_json_is_named(tmp_path: Path) -> None:
    (tmp_path / 'results.json').write_text('{"schema": 2, "stre')

    with pytest.raises(ValueError, match='results.json is not valid JSON'):
        StreamResults.load(tmp_path / 'results.json')


@pytest.mark.parametrize('damage', [
    lambda text: text[:len(text) // 2],
    lambda text: '[]',
    lambda text: text.replace('null', 'NaN'),
])
def test_damaged_file_is_a_value_error(results: StreamResults, tmp_path: Path,
                                       damage: Callable[[str], str]) -> None:
    path = tmp_path / 'results.json'
    results.save(path)
    path.write_text(damage(path.read_text()))

    with pytest.raises(ValueError, match='results.json'):
        StreamResults.load(path)
