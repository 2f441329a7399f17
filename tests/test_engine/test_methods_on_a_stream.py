# SPDX-License-Identifier: Apache-2.0
"""Every method learns a stream, goes on after a stop, and is extended."""
from __future__ import annotations

import copy

import pytest
from run_comparison import library_tensors, results_of
from tiny import AUXILIARY_HEAD, TINY_MODEL, StopAt, one_model_config
from tiny_care import PAPER, care_config

DOMAINS = ('day', 'night', 'infrared')
JOINT = dict(tasks='all', share=None)
REPLAY = dict(tasks='seen', images_per_task=2)
# Name in the results, model, rehearsal
METHODS = {
    'ExpertSegmentor': ('MILE', TINY_MODEL, None),
    'CaRESegmentor': ('CaRE', care_config('mit',
                                          base_training='first_task'), None),
    'CaRE paper': ('CaRE', care_config('vit', **PAPER), None),
    'FineTuneSegmentor':
    ('sequential fine-tuning',
     one_model_config('FineTuneSegmentor',
                      auxiliary_head=AUXILIARY_HEAD), None),
    'replay':
    ('sequential fine-tuning', one_model_config('FineTuneSegmentor'), REPLAY),
    'JointSegmentor':
    ('joint training', one_model_config('JointSegmentor'), JOINT),
    'SingleTaskSegmentor': ('one model per task',
                            one_model_config('SingleTaskSegmentor'), None),
    'EWCSegmentor': ('EWC', one_model_config('EWCSegmentor',
                                             ewc_weight=100.0), None),
    'LwFSegmentor': ('LwF', one_model_config('LwFSegmentor'), None),
    'MDILSegmentor': ('MDIL',
                      one_model_config(
                          'MDILSegmentor',
                          channels_last=True,
                          auxiliary_head=AUXILIARY_HEAD), None),
    'SharedLoRASegmentor': ('one shared LoRA',
                            one_model_config('SharedLoRASegmentor'), None),
}

pytestmark = pytest.mark.integration


@pytest.fixture(scope='module', params=METHODS)
def method(request, tiny_config):
    """Name in the results, and ``config(work_dir, domains, **changes)``."""
    name, model, rehearsal = METHODS[request.param]

    def config(work_dir, domains=DOMAINS, **changes):
        cfg = tiny_config(
            work_dir,
            domains,
            train_cfg__max_iters=2,
            train_cfg__checkpoint_interval=1,
            **changes)
        cfg.model = copy.deepcopy(model)
        cfg.train_cfg.rehearsal = rehearsal
        return cfg

    return name, config


@pytest.fixture(scope='module')
def whole(method, learn, tmp_path_factory):
    """The stream in one go."""
    return learn(method[1](tmp_path_factory.mktemp('whole') / 'run'))


def test_every_task_is_learned_and_scored(method, whole):
    results = results_of(whole.work_dir)
    assert results['method'] == method[0]
    assert whole.diary.learned == list(DOMAINS)
    assert all(None not in row for row in results['miou']['routed'])
    assert all(results['cost']['kept_params'])


def test_stopped_and_extended_stream_ends_like_the_whole_one(
        method, whole, learn, tmp_path):
    """Stopped inside the second of two tasks, resumed with three."""
    cfg = method[1](tmp_path / 'run', DOMAINS[:2])
    known = 2
    if cfg.train_cfg.rehearsal == JOINT:
        # trains all tasks from the beginning
        cfg, known = method[1](tmp_path / 'run'), 3
    with pytest.raises(KeyboardInterrupt):
        learn(cfg, StopAt('night', 1))
    run = learn(method[1](tmp_path / 'run', resume=True))
    assert run.diary.learned == ['night', 'infrared']
    assert library_tensors(run.work_dir) == library_tensors(whole.work_dir)
    mine, theirs = results_of(run.work_dir), results_of(whole.work_dir)
    for field in ('class_iou', 'gate', 'setting'):
        assert mine[field] == theirs[field]
    for kind in ('routed', 'oracle'):
        assert mine['miou'][kind][1:] == theirs['miou'][kind][1:]
        assert mine['miou'][kind][0][:known] == (
            theirs['miou'][kind][0][:known])
    digests = [(folder / 'oracle_digests.json').read_text()
               for folder in (run.work_dir, whole.work_dir)]
    assert digests[0] == digests[1]


def test_joint_stream_cannot_be_extended(learn, tiny_config, tmp_path):
    cfg = tiny_config(tmp_path / 'run', ('day', ), train_cfg__max_iters=1)
    cfg.model = one_model_config('JointSegmentor')
    cfg.train_cfg.rehearsal = JOINT
    learn(cfg)
    longer = tiny_config(tmp_path / 'run', DOMAINS[:2], resume=True)
    cfg.train_cfg.tasks, cfg.resume = longer.train_cfg.tasks, True
    with pytest.raises(ValueError, match=r"the tasks \['night'\] would have"):
        learn(cfg)
