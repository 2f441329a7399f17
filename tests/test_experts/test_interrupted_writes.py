# SPDX-License-Identifier: Apache-2.0
"""A library after its process was killed, or its disk was full, anywhere."""
from __future__ import annotations

import errno
import os
import shutil

import pytest
import torch

DISK_CALLS = ('fsync', 'replace', 'mkdir')


def interrupt(monkeypatch, step, act):
    """``act()`` instead of the ``step``-th call that changes the disk."""
    count = iter(range(1_000_000))
    for name in DISK_CALLS:
        plain = getattr(os, name)

        def call(*args, _plain=plain, **kwargs):
            if next(count) == step:
                act()
            return _plain(*args, **kwargs)

        monkeypatch.setattr(os, name, call)
    return count


def is_killed(action, monkeypatch, step):
    """Run an action in a child that ends at its ``step``-th disk call."""
    child = os.fork()
    if not child:
        interrupt(monkeypatch, step, lambda: os._exit(9))
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def head_of(store, name):
    return store.load(name).head['conv_seg.weight']


@pytest.mark.parametrize('name', ['night', 'fog'])
def test_killed_anywhere_the_library_is_the_old_or_the_new_one(
        store, make, monkeypatch, tmp_path, name):
    old = {known: head_of(store, known) for known in store.names}
    expert, seen, step = make(name), [], 0
    new = expert.head['conv_seg.weight']
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
        assert torch.equal(head_of(store, name), again.head['conv_seg.weight'])
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
                store.save(make(name, head={}))
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
