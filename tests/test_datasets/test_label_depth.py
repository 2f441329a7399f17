# SPDX-License-Identifier: Apache-2.0
"""Label files of more than 8 bits."""
from __future__ import annotations

import cv2
import numpy as np
import pytest

from mmseg_mile.datasets.checked_pipeline import check_label_depth


def written(folder, values, dtype, suffix='.png'):
    path = folder / f'label{suffix}'
    assert cv2.imwrite(str(path), np.array([values, values], dtype))
    return str(path)


@pytest.mark.parametrize('dtype, suffix', [(np.uint8, '.png'),
                                           (np.uint16, '.png'),
                                           (np.uint16, '.tif'),
                                           (np.float32, '.tif')])
def test_values_of_8_bits_pass_in_any_depth(tmp_path, dtype, suffix):
    check_label_depth(written(tmp_path, [0, 18, 255], dtype, suffix))


@pytest.mark.parametrize('values, dtype, suffix', [
    ([256, 300], np.uint16, '.png'),
    ([256, 300], np.uint16, '.tif'),
    ([256, 300], np.uint16, '.pgm'),
    ([-1, 256], np.int32, '.tif'),
    ([0.5, 256.0], np.float32, '.tif'),
])
def test_values_that_mmseg_would_cut_are_named(tmp_path, values, dtype,
                                               suffix):
    path = written(tmp_path, [0, *values], dtype, suffix)
    with pytest.raises(ValueError) as caught:
        check_label_depth(path)
    assert f'label {path!r}' in str(caught.value)
    assert f' holds {values}' in str(caught.value)


@pytest.mark.parametrize('path', [None, 'none.png', 's3://labels/1.png'])
def test_what_is_no_local_file_is_left_to_the_loader(path):
    check_label_depth(path)


def test_file_that_is_no_png_is_left_to_the_loader(tmp_path):
    (tmp_path / 'x.png').write_bytes(b'\x89PNG')
    check_label_depth(tmp_path / 'x.png')
