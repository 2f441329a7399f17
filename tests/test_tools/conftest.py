# SPDX-License-Identifier: Apache-2.0
"""Command-line tools in this process, which spares their imports."""
from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


@pytest.fixture
def run_tool(monkeypatch, quick, forget_runner):
    """``run_tool('test.py', 'config.py', ...)`` as from a shell."""

    def run(name, *arguments):
        forget_runner()
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        # as Python does for a script
        monkeypatch.syspath_prepend(str(TOOLS))
        with quick():
            runpy.run_path(str(TOOLS / name), run_name='__main__')

    return run


@pytest.fixture(scope='session')
def stream_config(stream_run, quick, tmp_path_factory):
    """The config of the shared stream in a file."""
    path = tmp_path_factory.mktemp('stream_config') / 'tiny.py'
    with quick():
        stream_run.cfg.dump(path)
    return path
