# SPDX-License-Identifier: Apache-2.0
"""Hundreds of experts in one library."""
from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from mmseg_mile.library.expert_store import ExpertStore
from mmseg_mile.structures import Task

NUM_EXPERTS = 300
STREAM = ('day', 'night', 'fog')


def expert_name(index):
    """Name a copy of one of the three experts."""
    return f'{STREAM[index % 3]} {index // 3}'


@pytest.fixture(scope='module')
def library(learned_once, tmp_path_factory):
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
def tasks(toys):
    """The tasks of all experts."""
    return [
        Task(expert_name(i), task.classes, task.palette, {}, {})
        for i in range(NUM_EXPERTS) for task in [toys.task(STREAM[i % 3])]
    ]


@pytest.fixture
def tensors_read(monkeypatch):
    """Files of tensors that are read from here on."""
    names, plain = [], Path.read_bytes

    def read_bytes(self):
        if self.suffix == '.safetensors':
            names.append(self.name)
        return plain(self)

    monkeypatch.setattr(Path, 'read_bytes', read_bytes)
    return names


def test_opening_reads_no_adapter_and_no_head(fresh, tasks, library,
                                              tensors_read):
    fresh.load_tasks(tasks, library)
    assert len(fresh.expert_names) == NUM_EXPERTS
    assert sorted(
        set(tensors_read)) == ['base.safetensors', 'prototypes.safetensors']
    assert len(tensors_read) == 1 + NUM_EXPERTS
    assert fresh.backbone.experts.cache.num_bytes == 0


def test_opening_takes_the_fingerprint_of_the_base_once(
        fresh, tasks, library, monkeypatch):
    calls, plain = [], fresh.backbone.fingerprint
    monkeypatch.setattr(fresh.backbone, 'fingerprint', lambda:
                        (calls.append(1), plain())[1])
    fresh.load_tasks(tasks, library)
    assert len(calls) == 1


def test_prediction_reads_the_experts_it_uses(fresh, toys, tasks, library,
                                              tensors_read):
    fresh.load_tasks(tasks, library)
    del tensors_read[:]
    samples = toys.predict(fresh, *STREAM, 'day')
    assert [s.expert.split()[0] for s in samples] == [*STREAM, 'day']
    used = len({s.expert for s in samples})
    assert sorted(tensors_read) == sorted(
        used * ['adapter_model.safetensors', 'head.safetensors'] +
        used * ['norm.safetensors'])
    del tensors_read[:]
    toys.predict(fresh, *STREAM, 'day')
    assert tensors_read == []


def test_budget_is_kept_and_changes_no_prediction(fresh, toys, tasks, library):
    fresh.load_tasks(tasks, library)
    wanted = toys.predict(fresh, *STREAM, *STREAM)
    size = fresh.backbone.experts.cache.num_bytes
    small = toys.model(
        backbone=dict(
            toys.config['backbone'],
            memory_budget_mb=size / 2 / 2**20,
            merge_cache_size=1))
    small.load_tasks(tasks, library)
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


def test_changed_adapter_is_refused_when_it_is_routed_to(
        fresh, toys, tasks, library, tmp_path):
    broken = tmp_path / 'broken'
    shutil.copytree(library, broken)
    for path in broken.glob('night */adapter_model.safetensors'):
        path.write_bytes(path.read_bytes()[:-1] + b'?')
    fresh.load_tasks(tasks, broken)
    assert toys.predict(fresh, 'day')[0].expert.startswith('day')
    with pytest.raises(
            ValueError, match=r'night \d+/adapter_model.safetensors is'):
        toys.predict(fresh, 'night')
