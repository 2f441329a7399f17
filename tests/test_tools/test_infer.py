# SPDX-License-Identifier: Apache-2.0
"""``tools/infer.py`` on the work dir of the tiny stream."""
from __future__ import annotations

import argparse
import json
import shutil
from inspect import signature
from pathlib import Path

import pytest

from mmseg_mile.apis.inferencer import MILEInferencer

TOOLS = str(Path(__file__).resolve().parents[2] / 'tools')


@pytest.fixture
def infer(run_tool, stream_run, tiny_data, tmp_path, capsys):
    """``infer('--expert', ...)``: what the tool printed of six images."""
    for domain in ('day', 'night'):
        shutil.copytree(tiny_data / domain / 'img' / 'val',
                        tmp_path / 'in' / domain)  # yapf: disable

    def call(*arguments):
        run_tool('infer.py', stream_run.work_dir, tmp_path / 'in', '--out',
                 tmp_path / 'out', '--device', 'cpu', *arguments)
        return capsys.readouterr().out

    return call


def rows(printed):
    """Images and out-of-distribution ones per expert, of the table."""
    cells = [[c.strip() for c in line.split('|')[1:-1]]
             for line in printed.splitlines() if line.startswith('|')]
    return {name: (images, ood)
            for name, images, ood in cells[1:]}  # yapf: disable


@pytest.mark.integration
def test_every_image_gets_its_files_and_its_line(infer, tmp_path):
    printed = infer('--task', 'day', '--batch-size', 4)
    found = rows(printed)
    assert sum(int(n) for n, _ in found.values()) == 6
    assert '6 images' in printed and '6 predicted now' in printed
    out = tmp_path / 'out'
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


@pytest.mark.integration
def test_same_command_goes_on_and_another_is_refused(infer, tmp_path):
    (tmp_path / 'in' / 'day' / '1.png').write_text('no image')
    with pytest.raises(SystemExit, match='infer.py: .*day/1.png is no image'):
        infer('--expert', 'day')
    printed = infer('--expert', 'day', '--skip-broken')
    assert 'skipped day/1.png: ' in printed and '1 skipped' in printed
    assert rows(printed) == dict(day=('5', '0'))
    (tmp_path / 'in' / 'day' / '1.png').unlink()
    assert '0 predicted now' in infer('--expert', 'day')
    with pytest.raises(SystemExit, match=r'infer.py: .*\(.*expert.*\)'):
        infer('--expert', 'night')
    printed = infer('--expert', 'night', '--overwrite')
    assert rows(printed) == dict(night=('5', '0'))


@pytest.mark.integration
@pytest.mark.parametrize('arguments, match', [
    (['--expert', 'noon'], "unknown expert 'noon'"),
    ([], "pipelines of .'day', 'night', 'infrared'. differ"),
])
def test_mistakes_are_explained(infer, tmp_path, arguments, match):
    with pytest.raises(SystemExit, match=f'infer.py: .*{match}'):
        infer(*arguments)
    assert not (tmp_path / 'out').exists()


@pytest.fixture
def parse(monkeypatch):
    """``parse('--experts', ...)``: arguments of the inferencer."""
    monkeypatch.syspath_prepend(TOOLS)
    from library_arguments import add_library_arguments, library_arguments
    parser = argparse.ArgumentParser()
    add_library_arguments(parser)
    return lambda *given: library_arguments(parser.parse_args(given))


def test_defaults_are_those_of_the_inferencer(parse):
    parameters = signature(MILEInferencer).parameters
    assert parse() == {name: parameters[name].default for name in parse()}


def test_every_option_arrives(parse):
    given = parse('--experts', 'day', 'night', '--ood-policy', 'abstain',
                  '--fusion', 'logits', '--vocabulary', 'traffic sign', 'road',
                  '--task', 'day', '--config', 'a.py', '--cfg-options',
                  'model.gate.top_k=3', '--device', 'cpu')
    assert given == dict(
        expert=None,
        experts=['day', 'night'],
        ood_policy='abstain',
        fusion='logits',
        vocabulary=['traffic sign', 'road'],
        task='day',
        config='a.py',
        cfg_options={'model.gate.top_k': 3},
        device='cpu')
