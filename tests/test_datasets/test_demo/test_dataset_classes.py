# SPDX-License-Identifier: Apache-2.0
"""The dataset classes find in the demo data what they find in the real."""
import pytest

import mmseg_mile.datasets  # noqa: F401 (registers the classes)
from mmseg.registry import DATASETS

# yapf: disable
CASES = (
    ('CityscapesDomainDataset', 'cityscapes', dict(split='train'), 2),
    ('CityscapesDomainDataset', 'cityscapes', dict(split='val'), 2),
    ('ACDCDataset', 'acdc', dict(split='train', condition='snow'), 2),
    ('ACDCDataset', 'acdc', dict(split='val', condition='all'), 8),
    ('BDD100KDomainDataset', 'bdd100k', dict(split='train'), 2),
    ('IDDDataset', 'idd', dict(split='train'), 2),
    ('IDDDataset', 'idd', dict(split='val', label_space='level3'), 2),
    ('HeatNetDataset', 'heatnet', dict(split='train'), 2),
    ('HeatNetDataset', 'heatnet', dict(split='train', modality='thermal'), 2),
    ('HeatNetDataset', 'heatnet',
     dict(split='test', modality='thermal', time='all'), 4))
# yapf: enable


@pytest.mark.parametrize('name, folder, options, frames', CASES)
def test_class_finds_all_frames(demo_root, name, folder, options, frames):
    dataset = DATASETS.build(
        dict(
            type=name,
            data_root=str(demo_root / folder),
            pipeline=[],
            **options))
    assert len(dataset) == frames
