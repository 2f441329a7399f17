# SPDX-License-Identifier: Apache-2.0
"""Label files of 16 bits."""
from __future__ import annotations

import cv2
import numpy as np
import pytest

from mmseg_mile.datasets.checked_pipeline import check_label_depth


def written(folder, values, dtype, suffix='.png'):
    path = folder / f'label{suffix}'
    assert cv2.imwrite(str(path), np.array([values, values], dtype))
    return str(path)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_values_of_8_bits_pass_in_any_depth(tmp_path, dtype):
    check_label_depth(written(tmp_path, [0, 18, 255], dtype))


def test_values_that_mmseg_would_cut_are_named(tmp_path):
    path = written(tmp_path, [0, 256, 300], np.uint16)
    with pytest.raises(ValueError, match=rf"'{path}'.* holds \[256, 300\]"):
        check_label_depth(path)


@pytest.mark.parametrize('path', [None, 'none.png', 's3://labels/1.png'])
def test_what_is_no_local_file_is_left_to_the_loader(path):
    check_label_depth(path)


def test_file_that_is_no_png_is_left_to_the_loader(tmp_path):
    (tmp_path / 'x.png').write_bytes(b'\x89PNG')
    check_label_depth(tmp_path / 'x.png')
