# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest

from mmseg_mile.evaluation import RoutedImage
from mmseg_mile.reports import routing_sections
from mmseg_mile.reports.routing_sections import (costly_images, embedding_map,
                                                 gate_confusion, routing_rows,
                                                 routing_summary)
from mmseg_mile.reports.run_record import read_run

NONE = '\u2013'


def image(task, expert, own, other, **known) -> RoutedImage:
    return RoutedImage(
        'night',
        task,
        'D',
        f'{task}.png',
        expert,
        distances={
            task: own,
            'day' if task == 'night' else 'night': other
        },
        **known)


def test_shares_and_distances_by_hand(make_run) -> None:
    run = dataclasses.replace(
        read_run(make_run()),
        images=[
            image('day', 'day', 1, 9, miou=50, oracle_miou=50),
            image('day', 'day', 2, 8, ood=False),
            image('day', 'day', 6, 7, ood=True),
            image('night', 'day', 5, 3, miou=40, oracle_miou=43),
            image('night', 'night', 4, 7, miou=40, oracle_miou=40),
        ])

    assert routing_rows(run) == [
        # one of two flagged; the middle of 1, 2, 6 and of 9, 8, 7
        ['day', '3', '100.0', NONE, '50.0', '2.00', '8.00', '0.00'],
        ['night', '2', '50.0', 'day (1)', NONE, '4.50', '5.00', '1.50'],
    ]


def test_columns_of_which_nothing_is_known_are_left_out(make_run) -> None:
    run = dataclasses.replace(
        read_run(make_run()),
        images=[RoutedImage('night', 'day', 'D', 'a', 'day')])

    html = routing_summary(run)

    assert '% right' in html
    assert 'distance' not in html and 'wrong expert' not in html


def test_task_that_is_not_learned_has_no_right_expert(make_run) -> None:
    run = read_run(make_run(('day', 'night', 'rain'), rows=2))

    task, count, right, wrong = routing_rows(run)[-1][:4]

    assert (task, count, right, wrong) == ('rain (not learned)', '4', NONE,
                                           NONE)


def test_costliest_images_come_first_and_gains_are_no_cost(make_run,
                                                           words_of) -> None:
    run = dataclasses.replace(
        read_run(make_run()),
        costly=None,
        images=[
            image('day', 'night', 2, 1, miou=40, oracle_miou=41.5),
            image('night', 'day', 2, 1, miou=30, oracle_miou=37),
            # the wrong expert was better
            image('day', 'night', 2, 1, miou=40, oracle_miou=30),
            image('day', 'day', 1, 2, miou=40, oracle_miou=40),
        ])

    words = words_of(costly_images(run))

    assert '2 of 4 images would have scored higher' in words
    first = words.index('night.png night \u2717 day 30.0 37.0 7.0 1.00 2.00')
    assert first < words.index('day.png day \u2717 night 40.0 41.5 1.5')
    assert 'kept no pictures' in words


def test_long_list_of_costly_images_is_cut(make_run, monkeypatch) -> None:
    monkeypatch.setattr(routing_sections, 'MAX_COSTLY', 2)
    run = dataclasses.replace(
        read_run(make_run()),
        costly=None,
        images=[
            image('day', 'night', 2, 1, miou=40, oracle_miou=41 + i)
            for i in range(5)
        ])

    html = costly_images(run)

    assert html.count('scope="row"') == 2
    assert '45.0' in html and '44.0' in html and '43.0' not in html


def test_routing_that_cost_nothing_is_said_in_words(make_run) -> None:
    run = dataclasses.replace(
        read_run(make_run()),
        images=[image('day', 'day', 1, 2, miou=40, oracle_miou=40)])

    assert 'None of 1 images' in costly_images(run)


def test_costly_images_are_shown_with_both_predictions(make_run,
                                                       read_page) -> None:
    html = costly_images(read_run(make_run()))

    # image, truth, and both predictions of one image of each task
    assert read_page(html).count('img') == 2 * 4


def test_map_and_confusion_are_drawn(make_run, read_page) -> None:
    run = read_run(make_run())

    assert 'Map of 8 images around the prototypes of 2 tasks; 2 images are ' \
        'ood' in embedding_map(run)
    assert '87.50 % right' in gate_confusion(run)


def test_map_of_many_points_is_made_of_pixels(make_run, monkeypatch) -> None:
    monkeypatch.setattr(routing_sections, 'MAX_DRAWN_POINTS', 7)

    assert 'data:image/png' in embedding_map(read_run(make_run()))


@pytest.mark.parametrize(
    'part', [gate_confusion, embedding_map, routing_summary, costly_images])
def test_method_without_experts_has_no_routing(make_run, part) -> None:
    assert part(read_run(make_run(gate=False))) is None
