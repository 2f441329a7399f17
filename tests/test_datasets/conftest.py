# SPDX-License-Identifier: Apache-2.0
"""Write tiny images and masks at the paths that a dataset must have."""
from pathlib import Path

import cv2
import numpy as np
import pytest


def _put(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


@pytest.fixture(autouse=True)
def no_garbage_collection(monkeypatch):
    """mmengine collects garbage per dataset: half of the time of a test."""
    monkeypatch.setattr('mmengine.dataset.base_dataset.gc.collect', lambda: 0)


@pytest.fixture
def put_image(tmp_path):
    """put_image('train/a.png', ...) writes 4 x 6 colour images."""

    def put(*names: str) -> None:
        for name in names:
            _put(tmp_path / name, np.full((4, 6, 3), 90, np.uint8))

    return put


@pytest.fixture
def put_mask(tmp_path):
    """put_mask('trainannot/a.png', values=[0, 255]) writes 4 x 6 masks."""

    def put(*names: str, values=(0, )) -> None:
        for name in names:
            mask = np.resize(np.array(values, np.uint8), (4, 6))
            _put(tmp_path / name, mask)

    return put


@pytest.fixture
def names_of():
    """Image paths of a dataset, relative to its root."""

    def names(dataset) -> list:
        return [
            str(
                Path(dataset.get_data_info(index)['img_path']).relative_to(
                    dataset.data_root)) for index in range(len(dataset))
        ]

    return names


@pytest.fixture
def pairs_of():
    """File names of images and masks of a dataset."""

    def pairs(dataset) -> list:
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        return [(Path(info['img_path']).name, Path(info['seg_map_path']).name)
                for info in infos]

    return pairs


@pytest.fixture
def labels_of():
    """Sorted label values of the first frame, as mmseg loads them."""

    def labels(dataset) -> list:
        from mmseg.datasets.transforms import LoadAnnotations
        loaded = LoadAnnotations()(dataset.get_data_info(0))
        return np.unique(loaded['gt_seg_map']).tolist()

    return labels
