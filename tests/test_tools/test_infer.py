# SPDX-License-Identifier: Apache-2.0
"""``tools/infer.py`` on the work dir of the tiny stream."""
from __future__ import annotations

import json
import shutil

import pytest

pytestmark = pytest.mark.integration


@pytest.fixture
def images(tiny_data, tmp_path):
    """Three images of each colour domain, in a folder of its own."""
    for domain in ('day', 'night'):
        shutil.copytree(tiny_data / domain / 'img' / 'val',
                        tmp_path / 'in' / domain)  # yapf: disable
    return tmp_path / 'in'


@pytest.fixture
def infer(run_tool, stream_run, capsys):
    """``infer(images, '--out', dir)``: what the tool printed."""

    def call(*arguments):
        capsys.readouterr()
        run_tool('infer.py', stream_run.work_dir, *arguments, '--device',
                 'cpu')
        return capsys.readouterr().out

    return call


def rows(printed):
    """Images and out-of-distribution ones per expert, of the table."""
    cells = [[c.strip() for c in line.split('|')[1:-1]]
             for line in printed.splitlines() if line.startswith('|')]
    return {name: (images, ood)
            for name, images, ood in cells[1:]}  # yapf: disable


def test_every_image_gets_its_files_and_its_line(infer, images, tmp_path):
    out = tmp_path / 'out'
    printed = infer(images, '--task', 'day', '--out', out, '--batch-size', 4)
    found = rows(printed)
    assert sum(int(n) for n, _ in found.values()) == 6
    assert '6 images' in printed and '6 predicted now' in printed
    lines = [
        json.loads(line)
        for line in (out / 'predictions.jsonl').read_text().splitlines()
    ]
    assert len(lines) == 6
    for line in lines:
        assert line['expert'] in found
        assert set(line['distances']) == {'day', 'night', 'infrared'}
        assert line['ood'] in (True, False)
        assert (out / 'labels' / line['name']).is_file()
        assert (out / line['overlay']).is_file()


def test_same_command_goes_on_and_another_is_refused(infer, images, tmp_path):
    arguments = (images, '--expert', 'day', '--out', tmp_path / 'out')
    infer(*arguments)
    printed = infer(*arguments)
    assert rows(printed) == dict(day=('6', '0'))
    assert '0 predicted now' in printed
    other = (images, '--expert', 'night', '--out', tmp_path / 'out')
    with pytest.raises(SystemExit, match=r'infer.py: .*\(.*expert.*\)'):
        infer(*other)
    assert rows(infer(*other, '--overwrite')) == dict(night=('6', '0'))


def test_broken_image_is_told_or_skipped(infer, images, tmp_path):
    (images / 'day' / '1.png').write_text('no image')
    arguments = (images, '--expert', 'day', '--out', tmp_path / 'out')
    with pytest.raises(SystemExit, match='infer.py: .*day/1.png is no image'):
        infer(*arguments)
    printed = infer(*arguments, '--skip-broken')
    assert 'skipped day/1.png: ' in printed and '1 skipped' in printed
    assert rows(printed) == dict(day=('5', '0'))


@pytest.mark.parametrize('arguments, match', [
    (['missing', '--expert', 'day'], 'there is no file or folder missing'),
    (['.', '--expert', 'noon'], "unknown expert 'noon'"),
    (['.'], '.*load their images in one way'),
])
def test_mistakes_are_explained(infer, tmp_path, monkeypatch, arguments,
                                match):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f'infer.py: .*{match}'):
        infer(*arguments, '--out', 'out')
    assert not (tmp_path / 'out').exists()


def test_folder_without_a_library_is_named(run_tool, tmp_path):
    with pytest.raises(SystemExit, match='is no library'):
        run_tool('infer.py', tmp_path, tmp_path, '--out', tmp_path / 'out')
