# SPDX-License-Identifier: Apache-2.0
"""``tools/serve.py`` on the work dir of the tiny stream."""
from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration


@pytest.fixture
def served(monkeypatch):
    """What was answered until Ctrl-C, which comes after one request."""
    gradio = pytest.importorskip('gradio')
    client = pytest.importorskip('gradio_client')
    answers = []

    def block_thread(page):
        found = client.Client(page.local_url, verbose=False)
        uploads = os.environ['GRADIO_TEMP_DIR']
        answers.append((found.view_api(return_format='dict'), uploads))
        page.close()

    monkeypatch.setattr(gradio.Blocks, 'block_thread', block_thread)
    monkeypatch.setenv('GRADIO_TEMP_DIR', 'of this test')
    return answers


def test_page_is_served_until_ctrl_c(run_tool, stream_run, capsys, served):
    run_tool('serve.py', stream_run.work_dir, '--port', 0, '--task', 'day',
             '--device', 'cpu')
    printed = capsys.readouterr().out
    assert '3 experts of' in printed and 'http://127.0.0.1:' in printed
    (endpoints, uploads), = served
    assert list(endpoints['named_endpoints']) == ['/predict']
    assert not Path(uploads).exists()


def test_port_that_is_taken_is_explained(run_tool, stream_run, served):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f'serve.py: .*{port}.*--port'):
            run_tool('serve.py', stream_run.work_dir, '--port', port,
                     '--expert', 'day', '--device', 'cpu')


def test_folder_without_a_library_is_named(run_tool, tmp_path):
    pytest.importorskip('gradio')
    with pytest.raises(SystemExit, match='serve.py: .*is no library'):
        run_tool('serve.py', tmp_path)


def test_missing_gradio_is_named_with_the_remedy(run_tool, tmp_path,
                                                 monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    monkeypatch.delitem(sys.modules, 'mmseg_mile.apis.serving', raising=False)
    with pytest.raises(SystemExit, match=r"install 'mmseg_mile\[serve\]'"):
        run_tool('serve.py', tmp_path)
