# SPDX-License-Identifier: Apache-2.0
"""Figures from a process of its own."""
from __future__ import annotations

import sys

import pytest

from mmseg_mile.benchmarks.own_process import (figures_of, resident_bytes,
                                               settled_bytes)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """``module(code)`` makes ``measured.py`` importable by the process."""
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))

    def write(code):
        (tmp_path / 'measured.py').write_text(code)
        return 'measured'

    return write


def test_last_line_is_read(module):
    name = module('import json, sys\nprint("log")\n'
                  'print(json.dumps(dict(twice=2 * '
                  'json.loads(sys.argv[1])["x"])))')
    assert figures_of(name, dict(x=3)) == dict(twice=6)


def test_failure_quotes_what_the_process_said(module):
    name = module('raise SystemExit("out of luck")')
    with pytest.raises(RuntimeError, match='out of luck'):
        figures_of(name, {})


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_resident_set_grows_with_what_is_written():
    before = resident_bytes()
    block = bytearray(64 << 20)
    block[::4096] = b'x' * len(block[::4096])
    assert resident_bytes() - before > 60 << 20 and len(block) == 64 << 20


def test_settled_memory_is_no_more_than_resident():
    kept = [bytes(1000) for _ in range(50000)]
    del kept[::2]
    assert settled_bytes() <= resident_bytes() + (1 << 20)
