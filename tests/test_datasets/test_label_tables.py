# SPDX-License-Identifier: Apache-2.0
import pytest

from mmseg_mile.datasets import label_tables as tables

SPACES = dict(CITYSCAPES=19, IDD_LEVEL3=26, HEATNET=12, CAMVID=11, IDD_LITE=7)


@pytest.mark.parametrize('space, count', SPACES.items())
def test_every_class_has_a_name_and_a_colour_of_its_own(space, count):
    classes = getattr(tables, f'{space}_CLASSES')
    palette = getattr(tables, f'{space}_PALETTE')
    assert len(classes) == len(set(classes)) == count
    assert len(palette) == len(set(palette)) == count


@pytest.mark.parametrize(
    'table, classes', [('CITYSCAPES_RAW_TO_TRAIN_ID', 'CITYSCAPES_CLASSES'),
                       ('CITYSCAPES_NAME_TO_TRAIN_ID', 'CITYSCAPES_CLASSES'),
                       ('IDD_NAME_TO_CS_TRAIN_ID', 'CITYSCAPES_CLASSES'),
                       ('IDD_NAME_TO_LEVEL3_ID', 'IDD_LEVEL3_CLASSES'),
                       ('CAMVID_TO_IDD_LITE', 'IDD_LITE_CLASSES')])
def test_table_reaches_every_class(table, classes):
    reached = set(getattr(tables, table).values()) - {255}
    assert reached == set(range(len(getattr(tables, classes))))


def test_idd_tables_name_the_same_40_labels():
    names = list(tables.IDD_NAME_TO_CS_TRAIN_ID)
    assert names == list(tables.IDD_NAME_TO_LEVEL3_ID)
    assert len(names) == 40


def test_level3_classes_are_named_after_one_of_their_labels():
    for index, name in enumerate(tables.IDD_LEVEL3_CLASSES):
        assert tables.IDD_NAME_TO_LEVEL3_ID[name] == index


def test_idd_labels_keep_their_cityscapes_names():
    own = {'non-drivable fallback': 'terrain'}
    for name, index in tables.IDD_NAME_TO_CS_TRAIN_ID.items():
        if index != 255:
            assert tables.CITYSCAPES_CLASSES[index] == own.get(name, name)
