# SPDX-License-Identifier: Apache-2.0
"""One writer of a folder at a time."""
from __future__ import annotations

import os

import pytest

from mmseg_mile.library.files import locked


def other_process(action):
    """Run ``action`` in a child; its exit status."""
    child = os.fork()
    if not child:
        action()
        os._exit(0)
    return child


def test_second_writer_waits_for_the_first(tmp_path):
    read, write = os.pipe()

    def second():
        with locked(tmp_path):
            os.write(write, b'second')

    with locked(tmp_path):
        child = other_process(second)
        os.write(write, b'first ')
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(read, 100) == b'first second'


def test_killed_writer_gives_the_lock_back(tmp_path):

    def killed():
        with locked(tmp_path):
            os._exit(9)

    os.waitpid(other_process(killed), 0)
    with locked(tmp_path):
        pass


def test_lock_leaves_no_file_behind(tmp_path):
    with locked(tmp_path):
        assert not list(tmp_path.iterdir())


def test_failure_inside_frees_the_folder(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        pass
