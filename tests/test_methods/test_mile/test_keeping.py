# SPDX-License-Identifier: Apache-2.0
"""Experts on disk and back: saved, loaded, reused, hundreds of them."""
from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.structures import Task

STREAM = ('day', 'night', 'fog')
NUM_EXPERTS = 300
ORACLE = dict(type='OracleGate', fall_back=True)


@pytest.fixture
def tasks(toys):
    """The three tasks."""
    return [toys.task(name) for name in STREAM]


@pytest.fixture
def library(learned_once, tasks, tmp_path):
    """What the learned model wrote."""
    for task in tasks:
        learned_once.save_task(task, tmp_path / 'library', dict(seed=3))
    return tmp_path / 'library'


# -- loading -----------------------------------------------------------------


def test_loaded_model_goes_on_learning(toys, fresh, tasks, library):
    fresh.load_tasks([], library / 'nowhere')
    assert fresh.expert_names == ()
    fresh.load_tasks(tasks[:2], library)
    assert fresh.expert_names == STREAM[:2]
    toys.learn(fresh, 'fog', init_from='nearest')
    assert toys.predict(fresh, 'fog')[0].expert == 'fog'


def test_expert_that_no_image_chose_is_not_read(toys, fresh, tasks, library):
    fresh.load_tasks(tasks, library)
    for path in (library / 'fog').glob('*.safetensors'):
        path.write_bytes(b'')
    samples = toys.predict(fresh, 'day', 'night', 'day')
    assert [s.expert for s in samples] == ['day', 'night', 'day']
    with pytest.raises(ValueError, match='fog/head.safetensors'):
        toys.predict(fresh, 'day', 'fog')


def test_experts_without_adapters_are_kept_too(heads_only, toys, tasks,
                                               learned_once, tmp_path):
    model, again = heads_only(), heads_only()
    for task in tasks:
        toys.learn(model, task.name, init_from='nearest')
        model.save_task(task, tmp_path, {})
    for expert in ExpertStore(tmp_path).open(STREAM):
        expert.verify()
    again.load_tasks(tasks, tmp_path)
    for mine, theirs in zip(
            toys.predict(again, *STREAM), toys.predict(model, *STREAM)):
        assert torch.equal(mine.seg_logits.data, theirs.seg_logits.data)
    day, *_ = model.expert_costs(tmp_path)
    head = model.heads['day'].state
    assert (day['lora_params'], day['norm_params']) == (0, 0)
    assert day['head_params'] == sum(v.numel() for v in head.values())
    with pytest.raises(ValueError, match="'day' .* it has an adapter"):
        heads_only().import_expert(learned_once.export_expert('day'))
    with pytest.raises(ValueError, match="'day' .* it has no adapter"):
        toys.model().import_expert(model.export_expert('day'))


def test_expert_of_a_gate_without_statistics_is_kept_too(toys, tmp_path):
    model, again = (toys.model(gate=ORACLE) for _ in range(2))
    toys.learn(model, 'day')
    model.save_task(toys.task('day'), tmp_path, {})
    again.load_tasks([toys.task('day')], tmp_path)
    assert toys.predict(again, 'night')[0].expert == 'day'


def test_costs_count_what_an_expert_owns(learned_once, library):
    day, night, _ = learned_once.expert_costs(library)
    assert [c['task'] for c in (day, night)] == ['day', 'night']
    # a third class is one more row of 8 weights and a bias
    assert night['head_params'] - day['head_params'] == 9
    state = learned_once.gate.state('day').values()
    assert day['prototype_values'] == sum(v.numel() for v in state)
    size = sum(f.stat().st_size for f in (library / 'day').iterdir())
    assert day['bytes'] == size
    # the base, without experts
    assert set(learned_once.kept_state()) == set(
        learned_once.backbone.state_dict())


# -- foreign experts ---------------------------------------------------------


def test_saving_into_the_library_of_another_base_is_refused(
        learned, tasks, library):
    learned.backbone.backbone.layer1[0].conv1.weight.data.add_(1)
    with pytest.raises(ValueError, match="expert 'day' belongs to the base"):
        learned.save_task(tasks[0], library, {})


@pytest.mark.parametrize('change, message', [
    (dict(base_fingerprint='0' * 64), 'was trained on the base 00000000'),
    (dict(classes=('road', 'sky')), 'names 2 classes but its head ha'),
    (dict(adapter={}), 'does not fit the layers of this backbone'),
    (dict(prototypes={}), "statistics of task 'night' are no prototypes"),
])
def test_experts_are_taken_over_all_or_none(learned_once, fresh, toys, change,
                                            message):
    fog, day, night = map(learned_once.export_expert, ('fog', 'day', 'night'))
    fresh.import_experts([fog, day])
    before = toys.predict(fresh, 'fog', 'day')
    parts = {**night.parts, **{k: v for k, v in change.items() if v == {}}}
    fields = {k: v for k, v in change.items() if k not in parts}
    wrong = dataclasses.replace(night, parts=parts, **fields)
    # an older one of its name would go, too
    other = dataclasses.replace(night, name='day')
    with pytest.raises(ValueError, match=message):
        fresh.import_experts([other, wrong])
    for part in (fresh, fresh.gate):
        assert part.expert_names == ('fog', 'day')
    assert fresh.backbone.experts.names == ('fog', 'day')
    for mine, theirs in zip(toys.predict(fresh, 'fog', 'day'), before):
        assert torch.equal(mine.seg_logits.data, theirs.seg_logits.data)
        assert mine.distances == theirs.distances


# -- reuse under another gate ------------------------------------------------


@pytest.fixture
def reuse(toys, library):
    """``reuse(**changes)`` gives a model with all experts of the library."""
    store = ExpertStore(library)

    def build(**changes):
        torch.manual_seed(99)
        model = toys.model(**changes)
        model.backbone.load_base(*store.load_base())
        if not model.gate.needs_embeddings:
            model.embedder = None
        for name in STREAM:
            expert, = store.open([name])
            model.reuse_expert(toys.task(name), toys.loader(name), expert)
        return model.eval()

    return build


def test_reused_experts_predict_what_they_did(reuse, learned_once, toys):
    model = reuse(gate=ORACLE)
    for name in STREAM:
        with model.forced(name), learned_once.forced(name):
            mine, theirs = (
                toys.predict(m, 'day')[0] for m in (model, learned_once))
        assert torch.equal(mine.seg_logits.data, theirs.seg_logits.data)
        assert mine.classes == theirs.classes


@pytest.mark.parametrize('changes', [
    dict(gate=dict(type='PrototypeGate', metric='mahalanobis')),
    dict(
        embedder=dict(type='ThumbnailEmbedder', size=(4, 4)),
        gate=dict(type='AutoencoderGate', hidden=3, num_steps=200))
])
def test_own_gate_is_fitted_to_the_images(reuse, toys, changes):
    model = reuse(**changes)
    assert model.gate.expert_names == STREAM
    assert [s.expert for s in toys.predict(model, *STREAM)] == list(STREAM)


def test_reused_experts_are_kept_with_their_new_prototypes(
        reuse, toys, library, tmp_path):
    model = reuse(gate=dict(type='PrototypeGate', num_prototypes=2))
    for name in STREAM:
        model.save_task(toys.task(name), tmp_path / 'mine', {})
    for name in STREAM:
        new, old = (tmp_path / 'mine' / name), (library / name)
        for path in old.glob('*.safetensors'):
            same = path.read_bytes() == (new / path.name).read_bytes()
            assert same == (path.stem != 'prototypes'), path.name


def test_expert_of_other_settings_is_not_reused(toys, learned_once):
    model = toys.model(
        backbone=dict(toys.config['backbone'], train_norm=False))
    with pytest.raises(ValueError, match='train_norm=False'):
        model.reuse_expert(
            toys.task('day'), toys.loader('day'),
            learned_once.export_expert('day'))
    assert model.expert_names == model.backbone.experts.names == ()


# -- hundreds of experts -----------------------------------------------------


def expert_name(index):
    """Name a copy of one of the three experts."""
    return f'{STREAM[index % 3]} {index // 3}'


@pytest.fixture(scope='module')
def many(learned_once, tmp_path_factory):
    """A hundred copies each of three experts, the prototypes moved apart."""
    folder = tmp_path_factory.mktemp('library')
    store = ExpertStore(folder)
    store.save_base(learned_once.backbone.base_state(),
                    learned_once.backbone.fingerprint())
    experts = {name: learned_once.export_expert(name) for name in STREAM}
    with pytest.MonkeyPatch.context() as patch:
        # waiting for the disk takes most of the time
        patch.setattr('os.fsync', lambda descriptor: None)
        for index in range(NUM_EXPERTS):
            expert = experts[STREAM[index % 3]]
            moved = dict(expert.parts['prototypes'])
            moved['centroids'] = moved['centroids'] + 1e-3 * (index // 3)
            store.save(
                dataclasses.replace(
                    expert,
                    name=expert_name(index),
                    parts=dict(expert.parts, prototypes=moved)))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def many_tasks(tasks):
    """The tasks of all experts."""
    return [
        Task(expert_name(i), task.classes, task.palette, {}, {})
        for i in range(NUM_EXPERTS) for task in [tasks[i % 3]]
    ]


def test_experts_are_read_when_they_are_used(fresh, toys, many_tasks, many,
                                             monkeypatch):
    names, plain, prints = [], Path.read_bytes, []

    def read_bytes(self):
        if self.suffix == '.safetensors':
            names.append(self.name)
        return plain(self)

    monkeypatch.setattr(Path, 'read_bytes', read_bytes)
    fingerprint = fresh.backbone.fingerprint
    monkeypatch.setattr(fresh.backbone, 'fingerprint', lambda:
                        (prints.append(1), fingerprint())[1])
    fresh.load_tasks(many_tasks, many)
    assert len(fresh.expert_names) == NUM_EXPERTS and len(prints) == 1
    assert sorted(names) == ['base.safetensors'
                             ] + NUM_EXPERTS * ['prototypes.safetensors']
    assert fresh.backbone.experts.cache.num_bytes == 0
    del names[:]
    samples = toys.predict(fresh, *STREAM, 'day')
    assert [s.expert.split()[0] for s in samples] == [*STREAM, 'day']
    used = len({s.expert for s in samples})
    assert sorted(names) == sorted(
        used * ['adapter_model.safetensors', 'head.safetensors'] +
        used * ['norm.safetensors'])
    del names[:]
    toys.predict(fresh, *STREAM, 'day')
    assert names == []


def test_budget_is_kept_and_changes_no_prediction(fresh, toys, many_tasks,
                                                  many):
    fresh.load_tasks(many_tasks, many)
    wanted = toys.predict(fresh, *STREAM, *STREAM)
    size = fresh.backbone.experts.cache.num_bytes
    small = toys.model(
        backbone=dict(
            toys.config['backbone'],
            memory_budget_mb=size / 2 / 2**20,
            merge_cache_size=1))
    small.load_tasks(many_tasks, many)
    for _ in range(2):
        got = toys.predict(small, *STREAM, *STREAM)
        assert small.backbone.experts.cache.num_bytes <= size / 2
        for mine, theirs in zip(got, wanted):
            assert mine.expert == theirs.expert
            assert torch.equal(mine.pred_sem_seg.data,
                               theirs.pred_sem_seg.data)


def test_trained_expert_stays_until_it_is_saved(toys, tmp_path):
    model = toys.model(
        backbone=dict(toys.config['backbone'], memory_budget_mb=0))
    toys.learn(model, 'day')
    day = model.backbone.experts['day']
    toys.learn(model, 'night')
    assert model.backbone.experts['day'] is day
    before = toys.predict(model, 'day')[0].pred_sem_seg.data
    for name in ('day', 'night'):
        model.save_task(toys.task(name), tmp_path, {})
    assert model.backbone.experts['night'].lora
    assert model.backbone.experts['day'] is not day
    assert torch.equal(toys.predict(model, 'day')[0].pred_sem_seg.data, before)
