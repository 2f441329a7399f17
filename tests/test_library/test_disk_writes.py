# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole, or not at all."""
from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from mmseg_mile.library import files as disk_writes
from mmseg_mile.library.files import (finish_swap, fresh_folder, new_folder,
                                      pending, swap_in, write_file)

LIMITED = """
import importlib.util, resource, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location('disk_writes', {file!r})
writes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(writes)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    writes.write_file(Path({path!r}), bytes(5000))
except OSError as error:
    print(error)
"""


@pytest.fixture
def target(tmp_path):
    """A folder with an old file in it."""
    folder = tmp_path / 'target'
    folder.mkdir()
    (folder / 'a').write_text('old')
    return folder


def test_folder_appears_with_everything_in_it(tmp_path):
    with new_folder(tmp_path / 'deep' / 'new') as folder:
        (folder / 'a').write_text('new')
        assert not (tmp_path / 'deep' / 'new').exists()
    assert (tmp_path / 'deep' / 'new' / 'a').read_text() == 'new'


def test_old_folder_is_replaced_as_a_whole(target):
    (target / 'b').write_text('gone')
    with new_folder(target) as folder:
        (folder / 'a').write_text('new')
    assert [p.name for p in target.parent.rglob('*')] == ['target', 'a']
    assert (target / 'a').read_text() == 'new'


def test_failed_block_leaves_the_old_folder(target):
    with pytest.raises(KeyboardInterrupt), new_folder(target) as folder:
        (folder / 'a').write_text('new')
        raise KeyboardInterrupt
    assert [p.name for p in target.parent.rglob('*')] == ['target', 'a']
    assert (target / 'a').read_text() == 'old'


def test_failed_rename_brings_the_old_folder_back(target, monkeypatch):
    replace = os.replace

    def fail(source, goal):
        if source == pending(target):
            raise OSError(errno.EIO, 'broken disk')
        replace(source, goal)

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match=f'broken disk: {target} cannot be'):
        with new_folder(target) as folder:
            (folder / 'a').write_text('new')
    assert [p.name for p in target.parent.rglob('*')] == ['target', 'a']
    assert (target / 'a').read_text() == 'old'


def test_swap_that_was_cut_off_between_its_renames_is_finished(target):
    with fresh_folder(target) as folder:
        (folder / 'a').write_text('new')
    # as far as a killed process came
    target.rename(target.with_name('.target.old'))
    finish_swap(target)
    assert [p.name for p in target.parent.rglob('*')] == ['target', 'a']
    assert (target / 'a').read_text() == 'new'


def test_nothing_is_finished_where_nothing_was_begun(target):
    finish_swap(target)
    finish_swap(target.with_name('other'))
    assert [p.name for p in target.parent.rglob('*')] == ['target', 'a']


def test_what_a_killed_process_left_does_not_get_into_the_next_folder(target):
    pending(target).mkdir()
    (pending(target) / 'left').write_text('over')
    with fresh_folder(target) as folder:
        (folder / 'a').write_text('new')
    swap_in(target)
    assert [p.name for p in target.parent.rglob('*')] == ['target', 'a']


# -- files --------------------------------------------------------------------


def test_file_is_replaced(tmp_path):
    for content in (b'old', b'new'):
        write_file(tmp_path / 'a', content)
        assert (tmp_path / 'a').read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ['a']


def test_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    steps = []
    for name in ('fsync', 'replace'):
        plain = getattr(os, name)
        monkeypatch.setattr(
            os,
            name,
            lambda *a, _name=name, _plain=plain:
            (steps.append(_name), _plain(*a)))
    write_file(tmp_path / 'a', b'new')
    assert steps == ['fsync', 'replace', 'fsync']


@pytest.mark.parametrize('step', ['fsync', 'replace'])
@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_is_told_with_the_room_that_is_needed_and_left(
        tmp_path, monkeypatch, step, code):
    write_file(tmp_path / 'a', b'old')

    def fail(*args):
        raise OSError(code, 'the disk is full')

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError) as caught:
        write_file(tmp_path / 'a', bytes(321))
    assert caught.value.errno == code
    for words in ('the disk is full: ' + str(tmp_path / 'a'),
                  'needs 321 bytes, the disk has ', 'make room', '--resume'):
        assert words in str(caught.value)
    assert (tmp_path / 'a').read_bytes() == b'old'
    assert [p.name for p in tmp_path.iterdir()] == ['a']


def test_other_failures_do_not_blame_the_room(tmp_path):
    with pytest.raises(FileNotFoundError, match='missing/a cannot') as caught:
        write_file(tmp_path / 'missing' / 'a', b'')
    assert 'make room' not in str(caught.value)


def test_limit_of_the_operating_system_leaves_the_old_file(tmp_path):
    write_file(tmp_path / 'a', b'old')
    code = LIMITED.format(file=disk_writes.__file__, path=str(tmp_path / 'a'))
    told = subprocess.run([sys.executable, '-c', code],
                          capture_output=True,
                          text=True,
                          check=True).stdout
    assert 'File too large' in told and 'needs 5000 bytes' in told
    assert (tmp_path / 'a').read_bytes() == b'old'
    assert [p.name for p in tmp_path.iterdir()] == ['a']
