# SPDX-License-Identifier: Apache-2.0
import shutil

import pytest

from mmseg_mile.datasets.demo import draw_contact_sheet


def test_sheet_has_a_row_per_domain_with_pictures_and_labels(demo_root):
    sheet = draw_contact_sheet(demo_root, columns=2)
    # 11 rows of 128 pixels; two pictures and two label maps of 256.
    assert sheet.shape == (11 * 128, 4 * 256, 3)
    for row in range(11):
        tiles = sheet[row * 128:(row + 1) * 128]
        assert all(tiles[:, i * 256:(i + 1) * 256].std() > 5 for i in range(4))


def test_broken_picture_is_named(demo_root, tmp_path):
    shutil.copytree(demo_root, tmp_path / 'demo')
    for path in (tmp_path / 'demo/bdd100k').rglob('*.jpg'):
        path.write_bytes(b'no picture')
    with pytest.raises(ValueError, match=r"bdd100k.*jpg'.*--overwrite"):
        draw_contact_sheet(tmp_path / 'demo', columns=1)
