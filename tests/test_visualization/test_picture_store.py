# SPDX-License-Identifier: Apache-2.0
import json
import logging
from pathlib import Path
from typing import Any, Callable, List

import cv2
import numpy as np
import pytest

from mmseg_mile.visualization.class_colours import UNLABELLED
from mmseg_mile.visualization.picture_store import PictureStore

LOGGER = logging.getLogger('store')
SPACE = (('road', 'sky', 'car'), ((90, 0, 0), (0, 90, 0), (0, 0, 90)))


def files(folder: Path) -> List[str]:
    return sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob('*')
        if p.is_file())


@pytest.fixture
def store(tmp_path: Path) -> PictureStore:
    store = PictureStore(tmp_path / 'store')
    store.begin_row('dusk', [SPACE])
    return store


def rgb(path: Path) -> np.ndarray:
    return cv2.imread(str(path))[:, :, ::-1]


def test_panel_is_found_again(store: PictureStore, make_panel: Callable,
                              tmp_path: Path) -> None:
    own = np.full((30, 40), 1)
    store.add(
        make_panel(
            task='late at night',
            expert='day',
            ood=True,
            miou=12.34567,
            oracle=own,
            oracle_classes=('weed', 'sky'),
            oracle_palette=((1, 2, 3), (4, 5, 6)),
            oracle_miou=50,
            file='night/a.png'), 7)
    panel, = PictureStore(tmp_path / 'store').panels(LOGGER)
    expected = make_panel()

    assert (panel.image == 128).all()
    assert np.array_equal(panel.truth, expected.truth)
    assert np.array_equal(panel.prediction, expected.prediction)
    # only the classes that occur are kept
    assert panel.oracle_classes == ['sky']
    assert (panel.oracle == 0).all()
    assert (panel.task, panel.expert, panel.ood, panel.miou, panel.oracle_miou,
            panel.file) == ('late at night', 'day', True, 12.3457, 50,
                            'night/a.png')


def test_index_lists_what_a_page_needs(store: PictureStore,
                                       make_panel: Callable) -> None:
    store.add(make_panel(miou=float('nan')), 0)
    with open(store.folder / 'index.json', encoding='utf-8') as file:
        index = json.load(file)

    assert index == dict(
        after='dusk',
        colours=dict(road='#5a0000', sky='#005a00'),
        pictures=[
            dict(
                task='day',
                number=0,
                file='',
                expert='day',
                ood=None,
                miou=None,
                oracle_miou=None,
                image='day/0_image.jpg',
                truth='day/0_truth.png',
                prediction='day/0_prediction.png',
                oracle=None,
                classes=dict(truth=['road', 'sky'], prediction=['road']))
        ])
    assert files(store.folder) == [
        'day/0_image.jpg', 'day/0_prediction.png', 'day/0_truth.png',
        'index.json'
    ]


def test_label_files_are_pictures(store: PictureStore,
                                  make_panel: Callable) -> None:
    entry = store.add(make_panel(), 0)
    picture = rgb(store.folder / entry['truth'])

    assert picture[0, 0].tolist() == list(UNLABELLED)
    assert picture[1, 0].tolist() == [0, 90, 0]
    assert picture[-1, 0].tolist() == [90, 0, 0]


def test_colours_agree_over_tasks(store: PictureStore,
                                  make_panel: Callable) -> None:
    weeds = dict(
        prediction_classes=('weed', 'road'),
        prediction_palette=((90, 0, 0), (7, 7, 7)),
        prediction=np.tile([0, 1], (30, 20)))
    entry = store.add(make_panel(**weeds), 0)
    weed, road = rgb(store.folder / entry['prediction'])[0, :2].tolist()

    assert road == [90, 0, 0]
    assert weed not in ([90, 0, 0], [7, 7, 7])


def test_colours_are_the_same_after_a_resume(store: PictureStore,
                                             make_panel: Callable) -> None:
    new = dict(
        prediction_classes=('weed', ), prediction_palette=((90, 0, 0), ))
    first = store.add(make_panel(**new), 0)
    again = PictureStore(store.folder)
    again.begin_row('dusk', [SPACE])
    second = again.add(make_panel(**new), 1)

    assert np.array_equal(
        rgb(store.folder / first['prediction']),
        rgb(store.folder / second['prediction']))


def test_same_row_goes_on_and_another_starts_afresh(
        store: PictureStore, make_panel: Callable) -> None:
    store.add(make_panel(), 0)
    again = PictureStore(store.folder)
    again.begin_row('dusk', [SPACE])
    assert len(again.entries) == 1

    again.begin_row('night', [SPACE])
    assert not again.entries
    assert not store.folder.exists()


def test_dropped_tasks_leave_no_file(store: PictureStore,
                                     make_panel: Callable) -> None:
    for task in ('day', 'dusk', 'day'):
        store.add(make_panel(task=task), len(store.entries))
    store.drop(['day', 'unknown'])

    assert [entry['task']
            for entry in PictureStore(store.folder).entries] == ['dusk']
    assert files(store.folder) == [
        'dusk/1_image.jpg', 'dusk/1_prediction.png', 'dusk/1_truth.png',
        'index.json'
    ]


def test_killed_write_is_not_listed(store: PictureStore, make_panel: Callable,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(make_panel(), 0)

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PictureStore, '_write_labels', killed)
    with pytest.raises(KeyboardInterrupt):
        store.add(make_panel(), 1)

    assert len(PictureStore(store.folder).panels(LOGGER)) == 1


@pytest.mark.parametrize('spoil', [
    lambda path: path.unlink(),
    lambda path: path.write_bytes(b'no picture'),
    lambda path: path.write_bytes(path.read_bytes()[:60]),
])
def test_spoiled_file_costs_its_panel_only(store: PictureStore,
                                           make_panel: Callable,
                                           spoil: Callable,
                                           caplog: Any) -> None:
    entry = store.add(make_panel(), 0)
    store.add(make_panel(task='dusk'), 0)
    spoil(store.folder / entry['truth'])

    assert [panel.task for panel in store.panels(LOGGER)] == ['dusk']
    assert 'is left out' in caplog.text


def test_many_classes_are_kept(store: PictureStore,
                               make_panel: Callable) -> None:
    # More classes than a palette holds, few of which occur.
    names = [f'class {i}' for i in range(1000)]
    prediction = np.full((30, 40), 999)
    prediction[0] = 300
    store.add(
        make_panel(
            prediction=prediction,
            prediction_classes=names,
            prediction_palette=[(1, 2, 3)] * 1000), 0)
    panel, = store.panels(LOGGER)

    assert panel.prediction_classes == ['class 300', 'class 999']
    assert panel.prediction[:2, 0].tolist() == [0, 1]
