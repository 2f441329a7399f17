# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from mmseg_mile.datasets.demo.camera import Camera
from mmseg_mile.datasets.demo.labels import (HEATNET_NAME_TO_ID,
                                             cityscapes_annotation,
                                             cityscapes_train_ids, heatnet_ids,
                                             idd_annotation, idd_masks)
from mmseg_mile.datasets.demo.sketch import Paint, Sketch
from mmseg_mile.datasets.demo.snapshot import draw_scene
from mmseg_mile.datasets.demo.street_styles import GERMAN, INDIAN
from mmseg_mile.datasets.label_tables import (CITYSCAPES_CLASSES,
                                              IDD_LEVEL3_CLASSES)


def test_every_class_but_train_occurs():
    counts = np.zeros(256, int)
    for i in range(48):
        sketch, _ = draw_scene(0, f'cityscapes/{i}', (128, 256), GERMAN)
        mask = cityscapes_train_ids(cityscapes_annotation(sketch))
        counts += np.bincount(mask.ravel(), minlength=256)
    missing = {
        name
        for name, count in zip(CITYSCAPES_CLASSES, counts) if count < 50
    }
    assert missing == {'train'}


def test_indian_roads_have_what_only_level_3_knows():
    found = set()
    for i in range(30):
        sketch, _ = draw_scene(0, f'idd/{i}', (128, 228), INDIAN)
        mask = idd_masks(idd_annotation(sketch))['labellevel3Ids']
        found |= {IDD_LEVEL3_CLASSES[i] for i in np.unique(mask) if i < 255}
    assert {
        'autorickshaw', 'billboard', 'curb', 'drivable fallback', 'guard rail',
        'obs-str-bar-fallback', 'vehicle fallback'
    } <= found


@pytest.mark.parametrize('name, group', [('rider', 'person'), ('bus', 'car'),
                                         ('motorcycle', 'bicycle'),
                                         ('traffic light', 'pole'),
                                         ('wall', 'building')])
def test_heatnet_merges_classes(name, group):
    assert HEATNET_NAME_TO_ID[name] == HEATNET_NAME_TO_ID[group]


def test_number_plate_is_void_in_idd_and_car_elsewhere():
    sketch = Sketch(Camera(40, 40, 40., 20., 15., 1.5))
    everything = np.array([[-9, -9], [49, -9], [49, 49], [-9, 49]])
    paint = Paint('metal', (.5, .5, .5))
    sketch.screen('car', everything, 'hood', paint)
    sketch.screen('license plate', everything, 'hood', paint)
    car = CITYSCAPES_CLASSES.index('car')
    assert (cityscapes_train_ids(cityscapes_annotation(sketch)) == car).all()
    assert (heatnet_ids(sketch) == HEATNET_NAME_TO_ID['car']).all()
    for mask in idd_masks(idd_annotation(sketch)).values():
        assert (mask == 255).all()
