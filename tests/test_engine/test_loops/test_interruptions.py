# SPDX-License-Identifier: Apache-2.0
"""A stream that is stopped at every kind of moment, and goes on."""
from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from mmengine.hooks import Hook
from run_comparison import differences, library_tensors, results_of

from mmseg_mile.engine import task_evaluator as cross_scores
from mmseg_mile.engine.snapshot import TaskSnapshot
from mmseg_mile.gates.prototype_gate import PrototypeGate
from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor

pytestmark = pytest.mark.integration


class Count:
    """Raises from a call, before or after what it does."""

    def __init__(self, owner, name, call=1, after=False):
        self.owner, self.name = owner, name
        self.call, self.after = call, after

    def __call__(self, patch):
        original, calls = getattr(self.owner, self.name), []

        def counted(*args, **kwargs):
            calls.append(None)
            if len(calls) == self.call and not self.after:
                raise KeyboardInterrupt
            answer = original(*args, **kwargs)
            if len(calls) == self.call:
                raise KeyboardInterrupt
            return answer

        patch.setattr(self.owner, self.name, counted)


class Iterations(Hook):
    """Counts training iterations, and stops after some."""

    def __init__(self, stop=None):
        self.stop, self.done, self.task = stop, Counter(), ''

    def before_stream_task(self, runner, tasks, index):
        self.task = tasks[index].name

    def after_train_iter(self,
                         runner,
                         batch_idx,
                         data_batch=None,
                         outputs=None):
        self.done[self.task] += 1
        if (self.task, batch_idx + 1) == self.stop:
            raise KeyboardInterrupt


class Images(Hook):
    """Counts evaluated images, and stops after some."""

    def __init__(self, stop=None):
        self.stop, self.row, self.seen = stop, None, Counter()

    def before_stream_row(self, runner, task_index):
        self.row = task_index

    def after_stream_val_iter(self, runner, task, data_samples,
                              oracle_samples):
        self.seen[self.row, task.name] += len(data_samples)
        if (self.row, task.name, self.seen[self.row, task.name]) == self.stop:
            raise KeyboardInterrupt


# In the order of the stream: each part goes on to the next stop.
MOMENTS = {
    'before the first snapshot': Iterations(('day', 1)),
    'inside the first task': Iterations(('day', 3)),
    'prototypes of the first task': Count(PrototypeGate, 'fit'),
    'before the first expert is saved': Count(ExpertStore, 'save'),
    'after the first expert is saved': Count(
        ExpertStore, 'save', after=True),
    'second image of a row': Images((0, 'night', 2)),
    'as a task begins': Count(ExpertSegmentor, 'begin_task', after=True),
    'between two snapshots': Iterations(('night', 5)),
    'as a snapshot is taken': Count(TaskSnapshot, 'save'),
    'last iteration': Iterations(('night', 6)),
    'before a snapshot is removed': Count(TaskSnapshot, 'discard'),
    'first image of a row': Images((1, 'day', 1)),
    'last image of a row': Images((1, 'infrared', 3)),
    'inside the last task': Iterations(('infrared', 4)),
    'prototypes of the last task': Count(PrototypeGate, 'fit'),
    'cross-expert pass': Count(cross_scores, 'evaluate_forced', call=3),
}  # yapf: disable


@pytest.fixture(scope='module')
def parts(learn, tiny_config, tmp_path_factory):
    """One stream in as many parts as there are moments, and one more."""
    cfg = tiny_config(tmp_path_factory.mktemp('stopped') / 'run')
    counters = []
    for stop in [*MOMENTS.values(), None]:
        hooks = [
            stop if isinstance(stop, kind) else kind()
            for kind in (Iterations, Images)
        ]
        counters.append(hooks)
        with pytest.MonkeyPatch.context() as patch:
            if isinstance(stop, Count):
                stop(patch)
            if stop is None:
                last = learn(cfg, *hooks)
            else:
                with pytest.raises(KeyboardInterrupt):
                    learn(cfg, *hooks)
        cfg.resume = True
    return last, counters


def test_end_state_equals_that_of_an_uninterrupted_run(parts, stream_run):
    assert differences(parts[0].work_dir, stream_run.work_dir) == []


def test_every_moment_was_reached(parts):
    _, counters = parts
    iterations = sum((hooks[0].done for hooks in counters), Counter())
    # Snapshots follow iterations 2, 4 and 6; what came after one is done
    # again in the next part.
    assert iterations == dict(
        day=1 + 3 + 4, night=5 + 2 + 2 + 2, infrared=4 + 4)


def test_only_an_unfinished_evaluation_is_repeated(parts):
    _, counters = parts
    images = sum((hooks[1].seen for hooks in counters), Counter())
    repeated = {key: count - 3 for key, count in images.items() if count != 3}
    assert repeated == {(0, 'night'): 2, (1, 'day'): 1, (1, 'infrared'): 3}


def test_training_time_adds_up(parts):
    results = parts[0].runner.train_loop.results
    assert (results.cost.train_seconds > 0).all()


# -- workers ------------------------------------------------------------------


@pytest.fixture(scope='module')
def with_workers(learn, tiny_config, tmp_path_factory):
    """Two tasks, with two workers and then with one."""
    cfg = tiny_config(
        tmp_path_factory.mktemp('workers') / 'run', ('day', 'night'),
        train_dataloader__num_workers=2)
    with pytest.raises(KeyboardInterrupt):
        learn(cfg, Iterations(('night', 3)))
    cfg.merge_from_dict({'resume': True, 'train_dataloader.num_workers': 1})
    return learn(cfg).work_dir


@pytest.mark.parametrize('task', ['day', 'night'])
def test_number_of_workers_changes_no_expert(with_workers, stream_run, task):
    mine, theirs = (
        {k: v for k, v in library_tensors(folder).items()
         if k.startswith(task)}
        for folder in (with_workers, stream_run.work_dir))  # yapf: disable
    assert mine and mine == theirs


# -- methods without experts --------------------------------------------------


@pytest.mark.parametrize('method',
                         ['FineTuneSegmentor', 'SingleTaskSegmentor'])
def test_baseline_goes_on_inside_a_task(learn, tiny_config, tmp_path, method):
    import mmseg_mile  # noqa: F401  registers the methods

    def config(name):
        cfg = tiny_config(tmp_path / name, ('day', 'infrared'))
        model = cfg.model
        model.type, model.backbone = method, model.backbone.backbone
        for key in ('gate', 'embedder', 'init_from'):
            del model[key]
        return cfg

    whole, cfg = learn(config('whole')), config('stopped')
    with pytest.raises(KeyboardInterrupt):
        learn(cfg, Iterations(('infrared', 3)))
    cfg.resume = True
    assert differences(learn(cfg).work_dir, whole.work_dir) == []


# -- the same again -----------------------------------------------------------


def test_two_runs_leave_the_same_files(learn, tiny_config, tmp_path,
                                       stream_run):
    again = learn(tiny_config(tmp_path / 'elsewhere'))
    assert differences(again.work_dir, stream_run.work_dir) == []


def test_results_say_nothing_of_the_work_dir(stream_run):
    config = results_of(stream_run.work_dir)['provenance']['config']
    assert 'IncrementalTaskLoop' in config
    assert str(Path(stream_run.work_dir)) not in config
