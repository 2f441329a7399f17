# SPDX-License-Identifier: Apache-2.0
"""Promises that hold whatever the modules of the package are.

Each test goes through commands, registered names, ``mmseg_mile.apis`` and
files on disk only, and stays as it is when the package is reorganised.
"""
from __future__ import annotations

import json
import re
import shutil
import signal
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from peft import PeftModel
from safetensors.torch import load_file

import mmseg_mile  # noqa: F401  registers the components
from mmseg.apis import inference_model
from mmseg.registry import MODELS
from mmseg_mile.apis import MILEInferencer

pytestmark = pytest.mark.integration
TASKS = ('day', 'night')
TENSORS, DIGESTS = '**/*.safetensors', 'oracle_digests.json'
# Ends the process after an iteration, counted over all tasks.
KILL_SWITCH = '''
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class KillSwitch(Hook):
    iterations = 0

    def after_train_iter(self, runner, batch_idx, **kwargs):
        KillSwitch.iterations += 1
        if KillSwitch.iterations == int(os.environ.get('KILL_AFTER', 0)):
            os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.fixture(params=['run', 'mit_run'], ids=['cnn', 'mit'])
def any_run(request):
    """The run of each network."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope='module')
def killed(world):
    """A run as it was killed in its second task, and after ``--resume``."""
    (world.root / 'kill_switch.py').write_text(KILL_SWITCH)
    killed = world.stream(
        'killed', 'cnn', TASKS, """
custom_imports['imports'].append('kill_switch')
custom_hooks = [dict(type='KillSwitch')]""")  # yapf: disable
    done = world.shell(
        *(sys.executable, 'tools/train.py', killed.config),
        *('--work-dir', killed.work_dir),
        KILL_AFTER=str(world.max_iters + world.interval + 2))
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = killed.copy(world.root / 'when_killed')
    return before, world.learn(killed, resume=True)


def predict(run, images, expert=None):
    """Predictions of a library and nothing else."""
    inferencer = MILEInferencer(run.library, device='cpu')
    return list(inferencer.stream(images, batch_size=3, expert=expert))


def assert_same_labels(mine, theirs):
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
        # not that all is one class
        assert one.classes == other.classes and one.labels.std() > 0


def measured(run):
    """What a run measured: all of its results but times, sizes, origin."""
    results = run.json('results.json')
    return {k: results[k] for k in ('tasks', 'miou', 'class_iou', 'gate')}


def tensors(run, expert):
    """Tensors of an expert by file and name."""
    return {(path.name, key): value
            for path in (run.library / expert).glob('*.safetensors')
            for key, value in load_file(path).items()}  # yapf: disable


@pytest.mark.parametrize('network', ['cnn', 'mit'])
def test_fresh_expert_is_the_base_bit_for_bit(world, network):
    config = world.stream('fresh', network, TASKS).config
    backbone = MODELS.build(Config.fromfile(config).model.backbone)
    backbone.init_weights()
    backbone.eval()
    backbone.add_expert('fresh')
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        with backbone.base():
            base = backbone(image)
        with backbone.using('fresh'):
            fresh = backbone(image)
    for mine, theirs in zip(fresh, base, strict=True):
        assert torch.equal(mine, theirs) and mine.std() > 0


def test_first_expert_stays_when_the_second_is_learned(world, run, killed):
    before, after = killed
    for pattern in ('day/*', 'base*'):
        assert after.files(pattern) == before.files(pattern)
    for each in (run, after):
        digests = each.json(DIGESTS)
        assert digests['night']['day'] == digests['day']['day']
    images = world.images(*TASKS)
    assert_same_labels(
        predict(run, images, 'day'), predict(before, images, 'day'))


def test_library_alone_predicts_as_the_trained_model(world, run, tmp_path):
    alone = run._replace(work_dir=tmp_path)
    shutil.copytree(run.library, alone.library)
    init_default_scope('mmseg')
    run.model.cfg = Config.fromfile(run.config)
    loaded = predict(alone, world.images(*TASKS))
    trained = inference_model(run.model, world.images(*TASKS))
    for mine, theirs in zip(loaded, trained, strict=True):
        labels = theirs.pred_sem_seg.data[0].numpy()
        np.testing.assert_array_equal(mine.labels, labels)
        assert mine.expert == theirs.expert


# in the first row there was only the expert of the day
@pytest.mark.parametrize('gate, row', [('day', 0), ('prototype', 1)])
def test_saved_run_scores_as_it_did(world, run, tmp_path, gate, row):
    out = tmp_path / 'out.json'
    world.command('test.py', run.config, run.work_dir, '--gate', gate, '--out',
                  out)
    tasks = json.loads(out.read_text())['tasks']
    assert [tasks[name]['miou'] for name in TASKS] == pytest.approx(
        measured(run)['miou']['routed'][row], abs=1e-4)


def test_routed_batch_is_the_stock_model_of_each_expert(world, any_run):
    images = world.images(*TASKS)
    inferencer = MILEInferencer(
        any_run.library, device='cpu', cfg_options={'model.keep_logits': True})
    samples = inferencer(
        images, batch_size=len(images), return_datasamples=True)['predictions']
    for expert in TASKS:
        own = [i for i, s in enumerate(samples) if s.expert == expert]
        assert own
        stock = inference_model(
            world.stock(any_run, expert), [images[i] for i in own])
        for index, theirs in zip(own, stock, strict=True):
            mine, logits = samples[index], theirs.seg_logits.data
            limit = 1e-4 * float(logits.abs().max())
            torch.testing.assert_close(
                mine.seg_logits.data, logits, rtol=0, atol=limit)
            labels = mine.pred_sem_seg.data
            lost = logits.amax(0, keepdim=True) - logits.gather(0, labels)
            # ties aside, the labels are the same
            assert float(lost.max()) <= 2 * limit
            assert (labels == theirs.pred_sem_seg.data).float().mean() > 0.99


def test_killed_run_goes_on_as_if_it_had_not_been(world, run, killed):
    resumed = killed[1]
    # in this process, that is after the kill: at most an interval is lost
    iterations = sys.modules['kill_switch'].KillSwitch.iterations
    assert 0 < iterations <= world.max_iters - 2
    assert resumed.files(TENSORS) == run.files(TENSORS)
    assert measured(resumed) == measured(run)
    assert resumed.json(DIGESTS) == run.json(DIGESTS)


@pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason='torch has no gloo')
def test_two_processes_learn_what_one_learns(world, mit_run):
    two = world.stream('two', 'mit', TASKS,
                       "train_dataloader['batch_size'] = 2")
    done = world.shell('bash', 'tools/dist_train.sh', two.config, 2,
                       '--work-dir', two.work_dir)
    assert done.returncode == 0, done.stderr
    for pattern in ('base*', '*/prototypes.safetensors'):
        assert two.files(pattern) == mit_run.files(pattern)
    for expert in TASKS:
        mine, theirs = tensors(two, expert), tensors(mit_run, expert)
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    mine, theirs = measured(two), measured(mit_run)
    assert mine['gate'] == theirs['gate']
    np.testing.assert_allclose(
        mine['miou']['routed'], theirs['miou']['routed'], atol=0.1)


def test_plain_peft_and_back(world, any_run, tmp_path):
    copied = any_run.copy(tmp_path / 'copy')
    folder = tmp_path / 'lora'
    world.command('experts.py', 'export', copied.work_dir, 'night', folder)
    model = Config.fromfile(any_run.config).model
    backbone = MODELS.build(model.backbone.backbone)
    backbone.load_state_dict(load_file(any_run.library / 'base.safetensors'))
    backbone.eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        base = backbone(image)
        adapted = PeftModel.from_pretrained(backbone, folder).eval()(image)
        wanted = world.stock(any_run, 'night').backbone(image)
    for mine, theirs, before in zip(adapted, wanted, base, strict=True):
        limit = 1e-4 * float(theirs.abs().max())
        torch.testing.assert_close(mine, theirs, rtol=0, atol=limit)
        assert (mine - before).abs().max() > 100 * limit

    world.command('experts.py', 'import', copied.work_dir, folder, '--as',
                  'back', '--config', copied.config, '--head-from', 'night',
                  '--prototypes-from', 'night')
    old, new = (tensors(copied, name) for name in ('night', 'back'))
    torch.testing.assert_close(new, old, rtol=0, atol=0)
    images = world.images(*TASKS)
    assert_same_labels(
        predict(copied, images, 'back'), predict(any_run, images, 'night'))


def test_expert_of_another_base_is_refused_with_both(world, run, tmp_path):
    foreign = world.learn(
        world.stream('foreign', 'cnn', ['day'], "randomness['seed'] = 4"))
    copied = run.copy(tmp_path / 'copy')
    bases = set()
    for each in (copied, foreign):
        shown = world.command('experts.py', 'show', each.work_dir, 'day')
        bases.update(re.findall('base_fingerprint.*?([0-9a-f]{64})', shown))
    assert len(bases) == 2
    with pytest.raises(SystemExit) as refused:
        world.command('experts.py', 'add', copied.work_dir, foreign.work_dir,
                      'day', '--as', 'other')
    assert all(base[:12] in str(refused.value.code) for base in bases)
    assert copied.files('**/*') == run.files('**/*')


def test_same_seed_gives_the_same_results(world, run):
    again = world.stream('again', 'cnn', TASKS)
    world.command('train.py', again.config, '--work-dir', again.work_dir)
    assert measured(again) == measured(run)
    assert again.files(TENSORS) == run.files(TENSORS)


@pytest.mark.parametrize('column, domain', enumerate(TASKS))
@pytest.mark.parametrize('row, expert', [(0, 'day'), (1, None)])
def test_scores_are_the_miou_by_name(world, run, column, domain, row, expert):
    # in the first row there was only the expert of the day
    images, classes = world.images(domain), np.array(world.classes[domain])
    union, both = np.zeros((2, len(classes)))
    for path, prediction in zip(images, predict(run, images, expert)):
        label = cv2.imread(
            path.replace('/img/', '/ann/'), cv2.IMREAD_UNCHANGED)
        found = np.array(prediction.classes)[prediction.labels]
        for index, name in enumerate(classes):
            union[index] += ((label == index) | (found == name)).sum()
            both[index] += ((label == index) & (found == name)).sum()
    score = measured(run)['miou']['routed'][row][column]
    assert 100 * (both / union).mean() == pytest.approx(score, abs=1e-4)


def test_extended_stream_keeps_what_it_had(world, run):
    extended = world.stream('extended', 'cnn', (*TASKS, 'fog'))
    shutil.copytree(run.work_dir, extended.work_dir)
    world.command('train.py', extended.config, '--work-dir', extended.work_dir,
                  '--resume')
    for pattern in ('day/*', 'night/*', 'base*'):
        assert extended.files(pattern) == run.files(pattern)
    mine, theirs = measured(extended)['miou'], measured(run)['miou']
    for kind in ('routed', 'oracle'):
        assert [row[:2] for row in mine[kind][:2]] == theirs[kind]
        assert None not in mine[kind][2]
    mine, theirs = (r.json(DIGESTS) for r in (extended, run))
    assert {**mine, **theirs} == mine
    assert {**mine['fog'], **theirs['night']} == mine['fog']
