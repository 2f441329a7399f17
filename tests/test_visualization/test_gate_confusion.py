# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Callable, List

import pytest
from matplotlib.figure import Figure

from mmseg_mile.evaluation.results import StreamResults
from mmseg_mile.visualization.gate_confusion import draw_gate_confusion


def test_counts_are_written_and_zeros_are_not(make_results: Callable,
                                              tmp_path: Path,
                                              drawn: List[Figure]) -> None:
    draw_gate_confusion(make_results(3), tmp_path / 'a.png')

    axes = drawn[0].axes[0]
    written = {
        t.get_position(): t.get_text()
        for t in axes.texts if t.get_text()
    }
    assert written == {(0, 0): '40', (2, 0): '3', (1, 1): '40', (2, 2): '40'}
    assert '87.50 %' in axes.get_title()


def test_colour_is_the_share_of_the_task(make_results: Callable,
                                         tmp_path: Path,
                                         drawn: List[Figure]) -> None:
    draw_gate_confusion(make_results(3), tmp_path / 'a.png')

    shares = drawn[0].axes[0].images[0].get_array()
    assert shares[0].tolist() == pytest.approx([4000 / 43, 0, 300 / 43])


@pytest.mark.parametrize('size', [1, 3, 5, 12])
def test_nothing_overlaps(make_results: Callable, tmp_path: Path, size: int,
                          drawn: List[Figure],
                          texts_that_collide: Callable) -> None:
    draw_gate_confusion(make_results(size), tmp_path / 'a.png')

    assert not texts_that_collide(drawn[0])


def test_same_results_give_the_same_bytes(make_results: Callable,
                                          tmp_path: Path) -> None:
    first, second = (
        draw_gate_confusion(make_results(3), tmp_path / name).read_bytes()
        for name in ('a.png', 'b.png'))

    assert first == second


def test_run_without_a_gate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='measured no routing'):
        draw_gate_confusion(
            StreamResults.new('s', 'm', 0, ['a']), tmp_path / 'a.png')
