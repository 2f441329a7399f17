# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

pytestmark = pytest.mark.integration


def test_options_reach_the_tables(run_tool, stream_config, stream_run,
                                  tmp_path, capsys):
    run_tool('leave_one_out.py', stream_run.work_dir, '--out', tmp_path,
             '--config', stream_config, '--gate', 'top_k=1', 'metric=cosine',
             '--sweep-tau', '0.1')
    printed = capsys.readouterr().out
    assert 'top_k=1, tau=0.4, relative=True, metric=cosine' in printed
    assert "Temperature of SemLA's weights" in printed
    assert printed.strip().endswith(
        (tmp_path / 'leave_one_out.md').read_text().strip())
    assert 'seed 3, infrared: 3 of 3 images' in printed
