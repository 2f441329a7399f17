# SPDX-License-Identifier: Apache-2.0
"""Bytes on disk."""
from __future__ import annotations

import pytest

from mmseg_mile.benchmarks import benchmark_disk
from mmseg_mile.benchmarks.disk_size import PARTS, _part_sizes


def test_parts_add_up(cnn_config, mit_config, settings):
    report = benchmark_disk([cnn_config, mit_config], settings)
    for row in report.rows:
        parts = [row[f'{part}_bytes'] for part in PARTS]
        assert sum(parts) == row['expert_bytes']
        assert row['ratio'] == row['expert_bytes'] / row['stock_bytes']
    cnn, mit = report.rows
    assert cnn['norm_bytes'] > 0
    assert mit['norm_bytes'] == 0


def test_file_of_no_part_is_refused(tmp_path):
    (tmp_path / 'optimizer.pth').touch()
    with pytest.raises(ValueError, match="no known part.*optimizer.pth"):
        _part_sizes(tmp_path)
