# SPDX-License-Identifier: Apache-2.0
from mmseg_mile.reports.run_record import read_run
from mmseg_mile.reports.score_sections import (class_iou, cost, curves,
                                               score_matrix)


def test_matrix_has_its_numbers_below(make_run, words_of) -> None:
    html = score_matrix(read_run(make_run()))

    text = words_of(html)
    assert html.count('<img') == 1
    assert 'mIoU in %, routed' in text and 'mIoU in %, oracle' in text
    # the mean is that of the learned tasks alone
    assert 'day 50.0 49.9 50.0 night 49.0 48.9 49.0' in text
    assert 'day 52.0 \u2013 52.0 night 51.0 50.9 51.0' in text


def test_oracle_is_left_out_where_it_was_not_measured(make_run) -> None:
    html = score_matrix(read_run(make_run(gate=False)))

    assert 'routed' in html and 'oracle' not in html


def test_classes_have_routed_oracle_and_difference(make_run, words_of) -> None:
    text = words_of(class_iou(read_run(make_run())))

    assert text.count('road 60.0 61.0 1.0') == 2
    assert text.count('<b>sky</b> & "more" 40.0 43.0 3.0') == 2


def test_classes_without_an_oracle_have_dashes(make_run, words_of) -> None:
    text = words_of(class_iou(read_run(make_run(gate=False))))

    assert 'road 60.0 \u2013 \u2013' in text


def test_cost_has_the_size_of_each_expert(make_run, words_of) -> None:
    text = words_of(cost(read_run(make_run())))

    # (4000 + 500 + 100) of 2 million is 0.23 %; 20480 bytes are 20 KiB
    assert 'day 12.5 3.00 11.4 4,000 500 100 64 0.23 20' in text
    assert 'takes 0.40 billion multiply-adds' in text


def test_method_without_experts_has_fewer_columns(make_run, words_of) -> None:
    text = words_of(cost(read_run(make_run(gate=False))))

    assert 'night 12.5 3.40 12.4' in text and 'LoRA' not in text


def test_nothing_is_drawn_of_a_run_without_a_row(make_run) -> None:
    run = read_run(make_run(rows=0))

    for part in (score_matrix, curves, class_iou, cost):
        assert part(run) is None
