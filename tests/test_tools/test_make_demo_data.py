# SPDX-License-Identifier: Apache-2.0
import runpy
from pathlib import Path

import cv2
import pytest

TOOL = Path(__file__).parents[2] / 'tools' / 'make_demo_data.py'
SMALL = [
    '--num-train', '1', '--num-val', '1', '--size', '32', '64', '--nproc', '1'
]


@pytest.fixture(scope='module')
def main():
    return runpy.run_path(str(TOOL))['main']


def test_files_are_made_and_counted(main, tmp_path, capsys):
    main([str(tmp_path), *SMALL])
    # Two images of Cityscapes with two masks each.
    line = next(line for line in capsys.readouterr().out.splitlines()
                if 'cityscapes' in line)
    assert [cell.strip()
            for cell in line.split('|')][1:4] == ['cityscapes', '2', '4']


def test_preview_is_drawn(main, tmp_path):
    preview = tmp_path / 'preview.png'
    main([str(tmp_path / 'data'), *SMALL, '--preview', str(preview)])
    assert cv2.imread(str(preview)).std() > 20


def test_other_seed_needs_overwrite(main, tmp_path):
    main([str(tmp_path), *SMALL])
    with pytest.raises(ValueError, match='--overwrite'):
        main([str(tmp_path), *SMALL, '--seed', '1'])
    main([str(tmp_path), *SMALL, '--seed', '1', '--overwrite'])
