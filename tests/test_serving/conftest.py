# SPDX-License-Identifier: Apache-2.0
"""A page over a tiny library."""
from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from tiny import PredictingLibrary, make_predicting_library

from mmseg_mile.apis.inferencer import MILEInferencer
from mmseg_mile.serving import PageServer


@pytest.fixture(scope='session')
def made(tiny_data, tmp_path_factory) -> PredictingLibrary:
    """Look, do not touch."""
    return make_predicting_library(
        tiny_data,
        tmp_path_factory.mktemp('served') / 'library')


@pytest.fixture
def inferencer(made) -> MILEInferencer:
    """Predicts with the library."""
    return MILEInferencer(made.root, show_progress=False, device='cpu')


@pytest.fixture
def serve(inferencer) -> Iterator[Callable[..., PageServer]]:
    """``serve(handler, ...)``: a server that runs until the test ends."""
    running = []

    def start(handler=None, **options) -> PageServer:
        server = PageServer(inferencer, port=0, **options)
        server.RequestHandlerClass = handler or server.RequestHandlerClass
        thread = threading.Thread(
            target=server.serve_forever,
            kwargs=dict(poll_interval=0.02),
            daemon=True)
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()
