# SPDX-License-Identifier: Apache-2.0
"""The page of a real run."""
from __future__ import annotations

import pytest

pytestmark = pytest.mark.integration


def test_report_of_a_real_run_is_written(run_tool, stream_run, tmp_path,
                                         capsys):
    out = tmp_path / 'page.html'

    run_tool('report.py', stream_run.work_dir, '--out', out)

    html = out.read_text(encoding='utf-8')
    assert str(out) in capsys.readouterr().out
    for task in stream_run.runner.train_loop.tasks:
        assert task.name in html
    assert 'Routing log' in html and '% right' in html


def test_folder_that_holds_no_run_is_refused(run_tool, tmp_path):
    with pytest.raises(ValueError, match='holds no results.json'):
        run_tool('report.py', tmp_path)
