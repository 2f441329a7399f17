# SPDX-License-Identifier: Apache-2.0
"""Calls in processes of their own."""
from __future__ import annotations

import importlib.util
import os
from concurrent.futures.process import BrokenProcessPool

import pytest

from mmseg_mile.engine import parallel as executors
from mmseg_mile.engine.parallel import (ProcessExecutor, RayExecutor,
                                        build_executor)

TIMEOUT_S = 120


@pytest.fixture(scope='module')
def results():
    """What became of calls, two at the same time."""
    executor = ProcessExecutor(2)
    calls = [(os.getpid, ), (os.getpid, ), (os._exit, 3), (int, 'x')]
    return [executor.submit(*call) for call in calls]


def test_each_call_has_a_process_of_its_own(results):
    pids = {future.result(TIMEOUT_S) for future in results[:2]}
    assert len(pids) == 2 and os.getpid() not in pids


def test_a_process_that_dies_fails_its_own_call(results):
    with pytest.raises(BrokenProcessPool):
        results[2].result(TIMEOUT_S)
    assert results[0].exception(TIMEOUT_S) is None


def test_an_error_comes_back(results):
    with pytest.raises(ValueError, match="invalid literal.*'x'"):
        results[3].result(TIMEOUT_S)


def test_without_ray_processes_are_taken(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert isinstance(build_executor('auto', 1), ProcessExecutor)
    with pytest.raises(ValueError, match=r"pip install 'mmseg_mile\[ray\]'"):
        build_executor('ray', 1)


def test_with_ray_it_shares_the_cores(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
    monkeypatch.setattr(executors, 'RayExecutor', dict)
    monkeypatch.setattr(os, 'cpu_count', lambda: 8)
    monkeypatch.setattr(executors, 'RayExecutor', lambda num_cpus: num_cpus)
    assert build_executor('auto', 4) == 2
    assert build_executor('ray', 16) == 1


@pytest.mark.parametrize('engine, workers', [('dask', 1), ('auto', 0)])
def test_unknown_engines_and_no_workers_are_refused(engine, workers):
    with pytest.raises(ValueError, match='engine must be one of .*got'):
        build_executor(engine, workers)


def test_ray_runs_each_call_in_a_process_of_its_own():
    ray = pytest.importorskip('ray')
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        executor = RayExecutor(1)
        futures = [executor.submit(os.getpid) for _ in range(3)]
        pids = {future.result(TIMEOUT_S) for future in futures}
        assert len(pids) == 3 and os.getpid() not in pids
        with pytest.raises(ValueError, match='invalid literal'):
            executor.submit(int, 'x').result(TIMEOUT_S)
    finally:
        ray.shutdown()
