# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from mmseg_mile.reports.run_record import read_run


def test_all_that_a_run_left_is_read(make_run) -> None:
    run = read_run(make_run())

    assert run.learned == ['day', 'night']
    assert [image.task for image in run.images] == ['day'] * 4 + ['night'] * 4
    assert len(run.predictions.entries) == 4
    assert len(run.costly.entries) == 2


def test_log_and_pictures_may_be_missing(make_run) -> None:
    folder = make_run()
    (folder / 'routing_log' / 'night.jsonl').unlink()
    for name in ('predictions', 'routing_cost'):
        (folder / 'pictures' / name / 'index.json').unlink()

    run = read_run(folder)

    assert not run.images
    assert run.predictions is None and run.costly is None


def test_run_without_a_row_has_results_alone(make_run) -> None:
    run = read_run(make_run(rows=0))

    assert run.learned == [] and not run.images


def test_folder_without_results_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match='holds no results.json'):
        read_run(tmp_path)


def test_pictures_of_an_earlier_row_are_left_out(make_run) -> None:
    folder = make_run(('day', 'night', 'rain'), rows=2)
    index = folder / 'pictures' / 'predictions' / 'index.json'
    document = json.loads(index.read_text())
    index.write_text(json.dumps(dict(document, after='day')))

    assert read_run(folder).predictions is None


@pytest.mark.parametrize('name, content', [
    ('results.json', '{"schema": 2'),
    ('routing_log/night.jsonl', '{"task": "day"}\n'),
    ('pictures/predictions/index.json', '{"after": "night"'),
    ('pictures/predictions/index.json', '{"after": "night"}'),
    ('pictures/routing_cost/index.json', '[]'),
])
def test_broken_file_is_named(make_run, name, content) -> None:
    folder = make_run()
    (folder / name).write_text(content)

    with pytest.raises(ValueError, match=name.rsplit('/', 1)[-1]):
        read_run(folder)


@pytest.mark.parametrize('field, value', [('task', 'moon'), ('after', 'day')])
def test_log_of_another_run_is_refused(make_run, field, value) -> None:
    folder = make_run()
    path = folder / 'routing_log' / 'night.jsonl'
    lines = path.read_text().splitlines()
    lines[2] = json.dumps(dict(json.loads(lines[2]), **{field: value}))
    path.write_text('\n'.join(lines))

    with pytest.raises(ValueError, match='night.jsonl, line 3'):
        read_run(folder)
