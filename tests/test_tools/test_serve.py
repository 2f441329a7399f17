# SPDX-License-Identifier: Apache-2.0
"""``tools/serve.py`` on the work dir of the tiny stream."""
from __future__ import annotations

import socket

import pytest

from mmseg_mile.serving import PageServer

pytestmark = pytest.mark.integration


@pytest.fixture
def stops(monkeypatch):
    """A server that answers one request, and gets Ctrl-C then."""
    pages = []

    def serve_forever(server):
        with socket.create_connection(server.server_address[:2]) as client:
            client.sendall(b'GET / HTTP/1.0\r\nHost: localhost\r\n\r\n')
            server.handle_request()
            content = b''
            while part := client.recv(4096):
                content += part
        pages.append(content.decode())
        raise KeyboardInterrupt

    monkeypatch.setattr(PageServer, 'serve_forever', serve_forever)
    return pages


def test_page_is_served_until_ctrl_c(run_tool, stream_run, capsys, stops):
    run_tool('serve.py', stream_run.work_dir, '--port', 0, '--task', 'day',
             '--device', 'cpu')
    printed = capsys.readouterr().out
    assert '3 experts of' in printed and 'http://127.0.0.1:' in printed
    page, = stops
    assert ' 200 ' in page and '<option>infrared</option>' in page


def test_port_that_is_taken_is_explained(run_tool, stream_run):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f'serve.py: .*{port}.*--port'):
            run_tool('serve.py', stream_run.work_dir, '--port', port,
                     '--expert', 'day', '--device', 'cpu')


def test_folder_without_a_library_is_named(run_tool, tmp_path):
    with pytest.raises(SystemExit, match='serve.py: .*is no library'):
        run_tool('serve.py', tmp_path)
