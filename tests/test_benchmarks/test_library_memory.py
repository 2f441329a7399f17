# SPDX-License-Identifier: Apache-2.0
"""Memory of a library, in a process of its own."""
from __future__ import annotations

import dataclasses

import pytest

from mmseg_mile.benchmarks.library_memory import library_memory
from mmseg_mile.benchmarks.written_library import write_library

pytestmark = pytest.mark.integration


def test_memory_is_measured_twice(cnn_config, settings, tmp_path):
    small = dataclasses.replace(settings, threads=1)
    write_library(cnn_config, tmp_path, 2, small)
    found = library_memory(cnn_config, tmp_path, 2, small)
    assert set(found) == {'opened', 'used'}
    assert min(found.values()) > 2**20
