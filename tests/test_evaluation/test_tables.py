# SPDX-License-Identifier: Apache-2.0
import math
from typing import Callable, List

import numpy as np
import pandas as pd
import pytest

from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.evaluation.tables import (confusion_table, cost_table,
                                          cross_expert_table, markdown_table,
                                          row_table, score_table,
                                          summary_table)

TABLES = [
    score_table, confusion_table, cost_table, summary_table,
    lambda results: row_table(results,
                              len(results.tasks) - 1)
]


def make_results(tasks: List[str]) -> StreamResults:
    """``routed[i, j] = 10 i + j + 0.5``, the oracle 2 above on seen tasks."""
    results = StreamResults.new('city', 'MILE', 3, tasks)
    size = len(tasks)
    for i in range(size):
        for j in range(size):
            results.set_miou('routed', i, j, (10 * i + j + 0.5) % 90)
            if j <= i:
                results.set_miou('oracle', i, j, (10 * i + j + 2.5) % 90)
    counts = np.eye(size) * 30
    counts[-1, 0] = 10
    results.set_gate(np.trace(counts) / counts.sum(), counts)
    results.cost.base_params = 1000
    results.cost.set_experts([
        dict(
            task=name,
            lora_params=40,
            head_params=30,
            norm_params=5,
            prototype_values=1234,
            bytes=2048) for name in tasks
    ], tasks)
    for index in range(size):
        results.cost.set_task(index, 7.25, 2e6, 8e6)
    results.compute_scores()
    return results


@pytest.fixture
def results() -> StreamResults:
    return make_results(['day', 'dusk', 'idd'])


def cells(table: str, first: str) -> List[str]:
    """Cells of the line that begins with ``first``."""
    lines = [[cell.strip() for cell in line.split('|')[1:-1]]
             for line in table.splitlines()]
    return next(line for line in lines if line and line[0] == first)


def test_score_table_has_routed_beside_oracle(results: StreamResults) -> None:
    row = cells(score_table(results), 'dusk')

    # Means of the two seen tasks: (10.5 + 11.5) / 2 and (12.5 + 13.5) / 2.
    assert row[1:5] == ['10.5', '11.5', '12.5', '11.0']
    assert row[-4:] == ['12.5', '13.5', '-', '13.0']


def test_score_table_leaves_out_an_unmeasured_oracle(
        results: StreamResults) -> None:
    results.miou['oracle'][:] = math.nan

    assert 'oracle' not in score_table(results)


def test_long_streams_keep_only_the_means() -> None:
    results = make_results([f'task-{i}' for i in range(12)])

    assert cells(score_table(results),
                 '2 task-1') == ['2 task-1', '11.5', '11.0', '13.5', '13.0']


def test_row_table_shows_one_row(results: StreamResults) -> None:
    table = row_table(results, 2)

    assert 'task 3 of 3: idd' in table
    assert cells(table, 'day') == ['day', 'seen', '20.5', '22.5', '100.00']
    assert cells(table, 'idd') == ['idd', 'new', '22.5', '24.5', '75.00']
    assert cells(table, 'mean of seen')[2:4] == ['21.5', '23.5']


def test_row_table_of_an_old_row_has_no_gate(results: StreamResults) -> None:
    assert cells(row_table(results, 1),
                 'idd') == ['idd', 'unseen', '12.5', '-', '-']


def test_confusion_table_counts_images(results: StreamResults) -> None:
    table = confusion_table(results)

    assert '90.00 % right' in table
    assert cells(table, '3 idd') == ['3 idd', '10', '0', '30', '75.00']


def test_confusion_of_a_long_stream_names_the_worst_expert() -> None:
    table = confusion_table(make_results([f't{i}' for i in range(12)]))

    assert cells(table, '12 t11') == ['12 t11', '40', 't0 (10)', '75.00']
    assert cells(table, '1 t0') == ['1 t0', '30', '-', '100.00']


def test_unmeasured_gate_is_said(results: StreamResults) -> None:
    results.gate_confusion[:] = math.nan

    assert confusion_table(results) == 'Gate: not measured.'


def test_cost_table_compares_with_the_base(results: StreamResults) -> None:
    assert cells(cost_table(results), 'dusk') == [
        'dusk', '40', '30', '5', '1,234', '7.50', '2', '2.00', '7.2'
    ]


def test_cost_table_without_experts_keeps_the_time(
        results: StreamResults) -> None:
    results.cost.set_experts([], [])

    assert cells(cost_table(results), 'day') == ['day', '2.00', '7.2']


def test_parts_of_experts_are_those_of_the_method(
        results: StreamResults) -> None:
    results.cost.set_experts([dict(task='day', router_params=50, bytes=1024)],
                             results.tasks)
    table = cost_table(results)

    assert cells(table, 'task')[1:4] == ['router', '% of base', 'KiB']
    assert cells(table, 'day')[1:4] == ['50', '5.00', '1']
    assert cells(table, 'dusk')[1:4] == ['-', '-', '-']


def test_forced_experts_stand_beside_their_mean_drop() -> None:
    table = cross_expert_table(['day', 'dusk'], np.array([[60, 40], [55,
                                                                     70.]]))

    assert cells(table, 'mIoU of task')[1:] == [
        'expert day', 'expert dusk', 'drop']  # yapf: disable
    assert cells(table, 'dusk') == ['dusk', '55.0', '70.0', '15.0']


def test_markdown_aligns_figures_and_escapes_pipes() -> None:
    frame = pd.DataFrame([['A|B', '-', '1.20 ± 0.1'], ['C', '', '0.625 / 6']],
                         columns=['method', 'method', 'x|y'])

    assert markdown_table(frame).splitlines()[:3] == [
        '| method   |   method |       x\\|y |',
        '|:---------|---------:|-----------:|',
        '| A\\|B     |        - | 1.20 ± 0.1 |']  # yapf: disable


def test_summary_shows_scores(results: StreamResults) -> None:
    table = summary_table(results)

    assert cells(table, 'average mIoU')[1] == '21.50'
    assert cells(table, 'backward transfer')[1] == '15.00'
    assert cells(table, 'backward transfer oracle')[1] == '15.00'
    assert cells(table, 'oracle gap')[1] == '2.00'
    assert cells(table, 'mismatch drop')[1] == '-'
    assert cells(table, 'gate accuracy')[1] == '90.00'


def test_oracle_transfer_is_taken_from_the_oracle(
        results: StreamResults) -> None:
    results.miou['oracle'][2] = [2.5, 13.5, 24.5]

    assert cells(summary_table(results),
                 'backward transfer oracle')[1] == '0.00'


@pytest.mark.parametrize('table', TABLES)
@pytest.mark.parametrize('size', [1, 3, 5, 8, 12])
def test_tables_fit_a_terminal(table: Callable[[StreamResults], str],
                               size: int) -> None:
    results = make_results(
        [f'a rather long task name {i}' for i in range(size)])

    lines = table(results).splitlines()

    assert max(map(len, lines)) <= 100
    assert len(lines) > size


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('table', TABLES)
def test_tables_of_an_empty_run_can_be_printed(
        table: Callable[[StreamResults], str]) -> None:
    assert table(StreamResults.new('s', 'm', 0, ['a', 'b', 'c']))


def test_tasks_may_be_named_like_columns() -> None:
    table = score_table(make_results(['after', 'mean', 'task']))

    assert cells(table, 'mean')[1:4] == ['10.5', '11.5', '12.5']
