# SPDX-License-Identifier: Apache-2.0
import pytest

from mmseg_mile.reports.run_record import read_run
from mmseg_mile.reports.summary_section import provenance, scores, summary


@pytest.fixture
def words(make_run, words_of):
    """``words(tasks, rows)`` is the summary's text on one line."""
    return lambda *args, **kwargs: words_of(
        summary(read_run(make_run(*args, **kwargs))))


def test_summary_says_what_was_measured(words) -> None:
    text = words()

    # after night: (49 + 48.9) / 2; day was at 50; the oracle is 2 above
    assert 'MILE <one> learned 2 of 2 tasks of the stream city & land' in text
    assert 'with seed 3: day \u2192 night.' in text
    assert 'not told which task' in text and 'keeps no image' in text
    assert 'average mIoU is 49.0 %; with the expert of the true task it ' \
        'would be 51.0 %' in text
    assert 'lost 1.0 points' in text
    # three of the four images of night, all of day
    assert 'sent 87.50 % of the images' in text and '(7 of 8)' in text
    assert '3.40 million values' in text and 'training took 25 s' in text
    assert 'not finished' not in text


def test_method_without_experts_has_no_gate_in_words(words) -> None:
    text = words(gate=False)

    assert 'gate' not in text and 'true task' not in text


def test_unfinished_run_says_so_first(words) -> None:
    text = words(('day', 'night', 'rain'), rows=2)

    assert text.startswith('This run is not finished: 2 of 3 tasks are')


def test_run_without_a_score_says_so(words) -> None:
    text = words(rows=0)

    assert 'not finished: 0 of 2' in text and 'there is no score' in text
    assert 'average mIoU is' not in text


def test_one_task_has_forgotten_nothing_to_tell(words) -> None:
    assert 'Earlier tasks' not in words(('day', ))


def test_long_streams_are_named_in_part(words) -> None:
    text = words(tuple(f't{i}' for i in range(14)))

    assert 't10 \u2192 \u2026 \u2192 t13.' in text and 't11' not in text


def test_setting_is_told(make_run) -> None:
    run = read_run(make_run())
    run.results.setting.update(task_label_at_test=True, old_images='buffer')

    html = summary(run)

    assert 'is told which task' in html and 'a buffer of images' in html


def test_what_rounds_to_nothing_is_neither_loss_nor_gain(make_run) -> None:
    run = read_run(make_run())
    run.results.scores['forgetting'] = -0.04

    assert 'kept their best score' in summary(run)


def test_every_score_has_its_meaning(make_run, words_of) -> None:
    text = words_of(scores(read_run(make_run())))

    assert 'average mIoU 48.95 %, mean over tasks' in text
    assert 'net score' in text and 'higher is better' in text


def test_config_is_folded_and_escaped(make_run) -> None:
    html = provenance(read_run(make_run()))

    assert '0123abcd' in html and '2.13' in html
    assert '<details>' in html and '&lt;ExpertSegmentor&gt;' in html


def test_run_that_noted_nothing_has_no_provenance(make_run) -> None:
    run = read_run(make_run())
    run.results.provenance = dict.fromkeys(run.results.provenance)

    assert provenance(run) is None
