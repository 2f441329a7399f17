# SPDX-License-Identifier: Apache-2.0
"""The routing log that a stream leaves, and what it costs to keep."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from run_comparison import results_of
from safetensors.torch import load_file

from mmseg_mile.evaluation import read_routing_log, routing_log_path

DOMAINS = ['day', 'night', 'infrared']
VALUES = ('adapter_model', 'head', 'norm', 'prototypes')

pytestmark = pytest.mark.integration


class StopInRow(Hook):
    """Ends the process at the second image of the second row's last task."""

    def __init__(self):
        self.row, self.seen = None, 0

    def before_stream_row(self, runner, task_index):
        self.row = task_index

    def after_stream_val_iter(self, runner, task, data_samples,
                              oracle_samples):
        if (self.row, task.name) == (1, 'infrared'):
            self.seen += 1
            if self.seen == 2:
                raise KeyboardInterrupt


def lines_of(work_dir, after):
    return read_routing_log(routing_log_path(work_dir, after))


@pytest.fixture(scope='module')
def rows(stream_run):
    """Lines of each row."""
    return {after: lines_of(stream_run.work_dir, after) for after in DOMAINS}


# -- lines -------------------------------------------------------------------


def test_each_row_has_a_file_of_its_own(stream_run):
    folder = stream_run.work_dir / 'routing_log'
    assert {path.stem for path in folder.iterdir()} == set(DOMAINS)


@pytest.mark.parametrize('after', DOMAINS)
def test_each_image_has_one_line_in_the_order_of_the_stream(rows, after):
    assert [(line.after, line.task, line.file) for line in rows[after]
            ] == [(after, task, f'{task}/img/val/{index}.png')
                  for task in DOMAINS for index in range(3)]
    assert {line.dataset for line in rows[after]} == {'BaseSegDataset'}


def test_lines_name_the_experts_that_predicted(rows, stream_run):
    routed = [(DOMAINS.index(line.after), line.task, line.expert)
              for after in DOMAINS for line in rows[after]]
    assert routed == stream_run.diary.routed


@pytest.mark.parametrize('index', range(3))
def test_lines_measure_the_experts_of_their_row(rows, index):
    for line in rows[DOMAINS[index]]:
        assert list(line.distances) == DOMAINS[:index + 1]
        assert line.expert == min(line.distances, key=line.distances.get)
        assert line.mixture == {line.expert: 1}
        assert line.ood in (True, False)


def test_gate_in_the_results_is_that_of_the_lines(rows, document):
    confusion = [[
        sum((line.task, line.expert) == (task, expert)
            for line in rows['infrared']) for expert in DOMAINS
    ] for task in DOMAINS]
    assert document['gate']['confusion'] == confusion


@pytest.mark.parametrize('after', DOMAINS)
def test_only_learned_tasks_have_an_own_expert(rows, after):
    learned = DOMAINS[:DOMAINS.index(after) + 1]
    for line in rows[after]:
        assert line.miou is not None
        assert (line.oracle_miou is not None) == (line.task in learned)
        if line.expert == line.task:
            assert line.routing_cost == 0


def test_score_of_an_image_is_the_mean_over_the_classes_in_it(loop, rows):
    # Routed right throughout, so that predictions speak the task's classes.
    for task in loop.tasks:
        lines = [line for line in rows['infrared'] if line.task == task.name]
        loader = loop.data.val_loader(loop.runner, task, loop.val_dataloader)
        for batch, line in zip(loader, lines):
            with torch.no_grad():
                sample, = loop.model.test_step(batch)
            truth, found = (
                data.data.squeeze(0).numpy()
                for data in (sample.gt_sem_seg, sample.pred_sem_seg))
            ious = [((truth == c) & (found == c)).sum() / ((truth == c) |
                                                           (found == c)).sum()
                    for c in np.unique(truth)]
            assert line.expert == task.name
            assert line.miou == pytest.approx(100 * np.mean(ious), abs=1e-3)


# -- interrupted -------------------------------------------------------------


def test_resumed_row_has_every_line_once(stream_run, learn, tiny_config,
                                         tmp_path):
    cfg = tiny_config(tmp_path / 'run')
    with pytest.raises(KeyboardInterrupt):
        learn(cfg, StopInRow())
    folder = tmp_path / 'run' / 'routing_log'
    assert [path.stem for path in folder.iterdir()] == ['day']
    cfg.resume = True
    learn(cfg)
    assert {
        p.name: p.read_bytes()
        for p in folder.iterdir()
    } == {
        p.name: p.read_bytes()
        for p in (stream_run.work_dir / 'routing_log').iterdir()
    }


# -- costs -------------------------------------------------------------------


def test_kept_values_are_the_base_and_the_experts_so_far(stream_run, document):
    library = stream_run.work_dir / 'library'
    kept = sum(v.numel()
               for v in load_file(library / 'base.safetensors').values())
    for index, task in enumerate(DOMAINS):
        kept += sum(v.numel() for name in VALUES
                    for v in load_file(library / task /
                                       f'{name}.safetensors').values())
        assert document['cost']['kept_params'][index] == kept


def test_kept_bytes_grow_by_each_expert(document):
    kept = document['cost']['kept_bytes']
    grown = np.diff(kept).tolist()
    assert grown == [e['bytes'] for e in document['cost']['experts'][1:]]
    # four bytes for each value of the base
    assert kept[0] > 4 * document['cost']['base_params']


def test_multiply_adds_of_an_image_are_known(document):
    # The stem alone: 24 x 32 positions, 4 outputs of 3 x 3 x 3 inputs.
    assert document['cost']['macs'] > 24 * 32 * 4 * 27
    assert document['scores']['net_score'] is not None


def test_longer_stream_counts_as_one_learned_at_once(stream_run, learn,
                                                     tiny_config, tmp_path):
    learn(tiny_config(tmp_path / 'run', DOMAINS[:2]))
    short = results_of(tmp_path / 'run')['cost']
    learn(tiny_config(tmp_path / 'run', resume=True))
    mine, theirs = (
        results_of(run)['cost']
        for run in (tmp_path / 'run', stream_run.work_dir))
    assert mine['macs'] == theirs['macs'] is not None
    assert mine['kept_params'] == theirs['kept_params']
    assert short['kept_params'] == mine['kept_params'][:2]
    assert short['macs'] is not None
