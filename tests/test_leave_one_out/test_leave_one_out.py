# SPDX-License-Identifier: Apache-2.0
"""A finished run without each of its experts."""
from __future__ import annotations

import json

import pytest
from fabricated_runs import write_run

from mmseg_mile.apis import leave_one_out as module
from mmseg_mile.apis.leave_one_out import leave_one_out
from mmseg_mile.evaluation.leave_one_out import Leak, LeaveOneOut
from mmseg_mile.evaluation.left_out_score import read_left_out_images

pytestmark = pytest.mark.integration
TASKS = ('day', 'night', 'infrared')
FILES = ('leave_one_out.json', 'leave_one_out.md', 'leave_one_out.csv',
         'leave_one_out.png', 'images.jsonl')


@pytest.fixture(scope='module')
def done(stream_run, quick, forget_runner, tmp_path_factory):
    """Folder, scores and what was said of the tiny stream."""
    out = tmp_path_factory.mktemp('left_out')
    said: list[str] = []
    forget_runner()
    with quick():
        results = leave_one_out([stream_run.work_dir], out, say=said.append)
    return out, results, said


@pytest.fixture
def again(done, stream_run, quick, forget_runner):
    """``again(**options)``: the same once more, and what was said."""

    def run(**options):
        said: list[str] = []
        forget_runner()
        with quick():
            results = leave_one_out([stream_run.work_dir],
                                    done[0],
                                    say=said.append,
                                    **options)
        return results, said

    return run


def test_files_are_written_and_read(done):
    out, results, _ = done
    for name in FILES:
        assert (out / name).stat().st_size > 0
    assert LeaveOneOut.load(out / FILES[0]).tasks == results.tasks == TASKS
    assert results.families == {name: (name, ) for name in TASKS}


def test_oracle_and_nearest_are_those_of_the_run(done, stream_run):
    """The run has forced every expert on every task itself."""
    out, results, _ = done
    cross = json.loads(
        (stream_run.work_dir / 'cross_expert_miou.json').read_text())['miou']
    own = results.values('none', 'oracle')[0]
    assert own == pytest.approx([cross[i][i] for i in range(3)], abs=1e-3)
    compared = 0
    for row, task in enumerate(TASKS):
        chosen = {
            line.image.expert
            for line in read_left_out_images(out / 'images.jsonl')
            if line.method == 'nearest' and line.removed == (
                task, ) and line.image.task == task
        }
        if len(chosen) == 1:
            column = TASKS.index(chosen.pop())
            assert column != row
            assert results.values('own', 'nearest')[0, row] == pytest.approx(
                cross[row][column], abs=1e-3)
            compared += 1
    assert compared


def test_every_image_is_logged_in_every_cell(done):
    out, results, _ = done
    lines = read_left_out_images(out / 'images.jsonl')
    cells = {(line.image.task, line.removed, line.method) for line in lines}
    assert cells == {(s.target, s.removed, s.method)
                     for s in results.runs[0].scores}
    assert len(lines) == 3 * len(cells)
    files = {line.image.file for line in lines if line.image.task == 'night'}
    assert files == {f'night/img/val/{i}.png' for i in range(3)}


def test_base_and_descendants_that_saw_the_target_are_told(done):
    _, results, _ = done
    leaks = results.runs[0].leaks
    assert Leak(('day', ), 'base', ('day', )) in leaks
    # night started from day, as every nearest start of a second task does
    through = [
        leak.through for leak in leaks
        if leak.removed == ('day', ) and leak.kind == 'experts'
    ]
    assert through and 'night' in through[0]
    assert not results.leaks_of(('infrared', ))


def test_second_call_computes_nothing(done, again, monkeypatch):
    monkeypatch.setattr(module, 'evaluate_cells', None)
    results, said = again()
    assert results.runs[0].scores == done[1].runs[0].scores
    assert said == []


def test_sweep_computes_what_is_new(done, again, monkeypatch):
    computed = []
    evaluate = module.evaluate_cells

    def noted(model, task, loader, oracle, cells, *rest):
        computed.extend(cell.method.name for cell in cells)
        return evaluate(model, task, loader, oracle, cells, *rest)

    monkeypatch.setattr(module, 'evaluate_cells', noted)
    results, said = again(taus=[0.1])
    assert computed == ['fused_adapters_tau_0.1'] * 3
    assert any('3 of 3 images in 1 cells' in line for line in said)
    assert results.values('own', 'fused_adapters_tau_0.1').shape == (1, 3)


def test_family_of_the_config_is_left_out_together(stream_run, quick,
                                                   forget_runner, tmp_path):
    options = {
        'train_cfg.tasks.0.family': 'colour',
        'train_cfg.tasks.1.family': 'colour'
    }
    forget_runner()
    with quick():
        results = leave_one_out([stream_run.work_dir],
                                tmp_path,
                                options=options,
                                say=lambda text: None)
    assert results.families['day'] == ('day', 'night')
    score = next(s for s in results.runs[0].scores
                 if s.removed == ('day', 'night') and s.method == 'nearest')
    # only the infrared expert is left, whose classes are others but for one
    assert score.class_iou['sky'] == score.class_iou['road'] == 0


def test_wrong_option_of_the_gate_is_refused(again):
    with pytest.raises(ValueError, match="--gate has no option 'heat'"):
        again(gate=dict(heat=3))


def test_run_without_experts_is_refused(tmp_path):
    write_run(tmp_path / 'run', 'fine-tuning')
    with pytest.raises(ValueError, match='run is no library'):
        leave_one_out([tmp_path / 'run'], tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
