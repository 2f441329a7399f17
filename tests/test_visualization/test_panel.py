# SPDX-License-Identifier: Apache-2.0
import math
from typing import Callable

import numpy as np
import pytest


def test_wrong_label_is_refused(make_panel: Callable) -> None:
    with pytest.raises(ValueError, match=r'prediction holds the values \[3\]'):
        make_panel(prediction=np.full((30, 40), 3))


def test_wrong_size_is_refused(make_panel: Callable) -> None:
    with pytest.raises(ValueError, match='truth must have the size'):
        make_panel(truth=np.zeros((3, 4), int))


def test_label_maps_are_those_that_there_are(make_panel: Callable) -> None:
    own = np.ones((30, 40), int)
    plain = make_panel()
    both = make_panel(
        oracle=own, oracle_classes=('weed', 'sky'), oracle_palette='ab')

    assert [name
            for name, _, _ in plain.label_maps()] == ['truth', 'prediction']
    assert both.label_maps()[2] == ('oracle', own, (('weed', 'sky'), 'ab'))


def test_wrong_label_of_the_own_expert_is_refused(
        make_panel: Callable) -> None:
    with pytest.raises(ValueError, match=r'oracle holds the values \[1\]'):
        make_panel(oracle=np.ones((30, 40), int), oracle_classes=('weed', ))


def test_routing_cost_is_what_the_own_expert_does_better(
        make_panel: Callable) -> None:
    assert make_panel(miou=40.0, oracle_miou=55.0).routing_cost == 15
    assert math.isnan(make_panel(miou=40.0).routing_cost)
    assert math.isnan(make_panel(oracle_miou=40.0).routing_cost)
