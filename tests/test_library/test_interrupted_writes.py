# SPDX-License-Identifier: Apache-2.0
"""A library after its process was killed, or its disk was full, anywhere."""
from __future__ import annotations

import errno
import os
import shutil

import pytest
import torch

from mmseg_mile.library.edits import (add_expert, prune_library, remove_expert,
                                      rename_expert)
from mmseg_mile.library.expert_store import ExpertStore

DISK_CALLS = ('fsync', 'replace', 'mkdir')
DELETIONS = ('unlink', 'rmdir')


def interrupt(monkeypatch, step, act, calls=DISK_CALLS):
    """``act()`` instead of the ``step``-th call that changes the disk."""
    count = iter(range(1_000_000))
    for name in calls:
        plain = getattr(os, name)

        def call(*args, _plain=plain, **kwargs):
            if next(count) == step:
                act()
            return _plain(*args, **kwargs)

        monkeypatch.setattr(os, name, call)
    return count


def is_killed(action, monkeypatch, step, calls=DISK_CALLS):
    """Run an action in a child that ends at its ``step``-th disk call."""
    child = os.fork()
    if not child:
        interrupt(monkeypatch, step, lambda: os._exit(9), calls)
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def head_of(store, name):
    return store.load(name).parts['head']['conv_seg.weight']


@pytest.mark.parametrize('name', ['night', 'fog'])
def test_killed_anywhere_the_library_is_the_old_or_the_new_one(
        store, make, monkeypatch, tmp_path, name):
    old = {known: head_of(store, known) for known in store.names}
    expert, seen, step = make(name), [], 0
    new = expert.parts['head']['conv_seg.weight']
    before = shutil.copytree(store.root, tmp_path / 'before')
    while is_killed(lambda: store.save(expert), monkeypatch, step):
        assert torch.equal(head_of(store, 'day'), old['day'])
        head = head_of(store, name) if name in store.names else None
        seen.append(head is not None and torch.equal(head, new))
        assert seen[-1] or head is old.get(name) or torch.equal(
            head, old[name])
        shutil.rmtree(store.root)
        shutil.copytree(before, store.root)
        step += 1
    # first the old one, then for good the new one
    assert seen == sorted(seen) and {*seen} == {False, True}


@pytest.mark.parametrize('name', ['night', 'fog'])
def test_after_any_kill_the_expert_can_be_saved_again(store, make, monkeypatch,
                                                      name):
    step = 0
    while is_killed(lambda: store.save(make(name)), monkeypatch, step):
        again = make(name)
        store.save(again)
        assert torch.equal(
            head_of(store, name), again.parts['head']['conv_seg.weight'])
        assert not [p for p in store.root.iterdir() if p.name[0] == '.']
        step += 1
    assert step > 10


@pytest.mark.parametrize('name', ['night', 'fog'])
def test_full_at_any_write_the_library_is_whole(store, make, monkeypatch,
                                                name):
    old = {known: head_of(store, known) for known in store.names}

    def fill():
        raise OSError(errno.ENOSPC, 'No space left on device')

    step, refused = 0, 0
    while True:
        with monkeypatch.context() as patch:
            count = interrupt(patch, step, fill)
            try:
                store.save(make(name, parts=dict(head={})))
            except OSError as error:
                refused += 1
                assert 'cannot be written. It needs' in str(error)
                assert str(store.root) in str(error)
            if next(count) <= step:
                break
        if step < 10:
            assert store.names == list(old)
        for known in set(store.names) - {name}:
            assert torch.equal(head_of(store, known), old[known])
        if name in store.names:
            store.load(name)
        step += 1
    assert refused > 10


EDITS = {
    'add': lambda root: add_expert(root, root.parent / 'other', 'rain'),
    'remove': lambda root: remove_expert(root, 'day'),
    'rename': lambda root: rename_expert(root, 'day', 'noon'),
    'rename over': lambda root: rename_expert(root, 'day', 'night', True),
}


@pytest.mark.parametrize('edit', EDITS.values(), ids=EDITS)
def test_edit_killed_anywhere_leaves_the_old_or_the_new_library(
        store, make, monkeypatch, tmp_path, edit):
    other = ExpertStore(tmp_path / 'other')
    other.save_base({}, make('x').base_fingerprint)
    other.save(make('rain'))
    before = shutil.copytree(store.root, tmp_path / 'before')
    old, seen, step = loaded(store), [], 0
    edit(store.root)
    new = loaded(store)
    assert new != old
    finished = {p.name for p in store.root.iterdir()}
    while True:
        shutil.rmtree(store.root)
        shutil.copytree(before, store.root)
        if not is_killed(lambda: edit(store.root), monkeypatch, step,
                         DISK_CALLS + DELETIONS):
            break
        seen.append(loaded(store) == new)
        assert seen[-1] or loaded(store) == old
        prune_library(store.root)
        if seen[-1]:
            assert {p.name for p in store.root.iterdir()} == finished
        step += 1
    # first the old one, then for good the new one
    assert seen == sorted(seen) and {*seen} == {False, True}


def loaded(store):
    """Names in order, and the head of each, every file checked."""
    return [(name, head_of(store, name).tolist()) for name in store.names]
