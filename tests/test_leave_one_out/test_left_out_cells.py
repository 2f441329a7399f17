# SPDX-License-Identifier: Apache-2.0
"""Which cells there are, and which are kept."""
from __future__ import annotations

import pytest

from mmseg_mile.apis.left_out_cells import KeptCells, wanted_cells
from mmseg_mile.engine.left_out_evaluator import LeftOutResult
from mmseg_mile.engine.left_out_gates import (gate_options, left_out_methods,
                                              oracle_method)
from mmseg_mile.evaluation import RoutedImage
from mmseg_mile.evaluation.left_out_score import LeftOutImage, LeftOutScore
from mmseg_mile.methods.semla.semla_gate import SemLAGate

NAMES = ('fog', 'rain', 'city')


def cells(family=('fog', 'rain'), names=NAMES, taus=(), **options):
    chosen = gate_options(SemLAGate(), options)
    methods = dict(left_out_methods(chosen, taus), oracle=oracle_method('fog'))
    return wanted_cells('fog', family, names, methods, taus)


def result(cell):
    line = RoutedImage('city', 'fog', 'ACDCDataset', '1.png', miou=40.0)
    return LeftOutResult(
        LeftOutScore('fog', cell.removed, cell.method.name, 1, 1, 0, 40.0,
                     dict(road=40.0)),
        [LeftOutImage(0, cell.method.name, cell.removed, False, line)])


@pytest.fixture
def kept(tmp_path):
    """``kept(settings)``: opened anew, over one file."""
    return lambda settings='a': KeptCells(tmp_path / 'x' / 'fog.json',
                                          dict(settings=settings))


def test_each_removal_has_its_methods():
    by_removal = {}
    for cell in cells():
        by_removal.setdefault(cell.removed, []).append(cell.method.name)
    assert list(by_removal) == [(), ('fog', ), ('fog', 'rain')]
    assert by_removal[()][0] == 'oracle'
    assert by_removal[('fog', )] == by_removal[('fog', 'rain')]


def test_task_without_family_is_left_out_once():
    names = [cell.name for cell in cells(('fog', ))]
    assert len(names) == len(set(names))
    assert {removed for removed, _ in names} == {(), ('fog', )}


def test_family_of_all_leaves_nobody_to_predict():
    found = cells(NAMES)
    assert {cell.removed for cell in found} == {(), ('fog', )}


def test_finished_cells_are_kept(kept):
    wanted = cells()
    assert kept().missing(wanted) == wanted
    kept().keep(wanted[:3], map(result, wanted[:3]))
    again = kept()
    assert again.missing(wanted) == wanted[3:]
    assert again.read(wanted[:3]) == [result(c) for c in wanted[:3]]
    again.keep(wanted[3:], map(result, wanted[3:]))
    assert kept().missing(wanted) == []


def test_new_temperature_leaves_other_cells_alone(kept):
    kept().keep(cells(), map(result, cells()))
    wanted = cells(taus=[0.1])
    missing = {cell.name for cell in kept().missing(wanted)}
    assert missing == {(removed, 'fused_adapters_tau_0.1')
                       for removed in (('fog', ), ('fog', 'rain'))}


def test_change_of_weights_concerns_only_who_weighs(kept):
    kept().keep(cells(), map(result, cells()))
    missing = {c.method.name for c in kept().missing(cells(top_k=2))}
    assert missing == {'fused', 'fused_adapters', 'fused_outputs'}


def test_other_settings_make_all_cells_missing(kept):
    kept().keep(cells(), map(result, cells()))
    assert kept('b').missing(cells()) == cells()
    assert kept('b').outdated(cells()) == len(cells())
    assert kept().outdated(cells()) == 0


def test_edited_file_is_named(kept, tmp_path):
    kept().keep(cells(), map(result, cells()))
    path = tmp_path / 'x' / 'fog.json'
    path.write_text(path.read_text().replace('"images": 1', '"images": "1"'))
    with pytest.raises(ValueError, match='fog.json was changed .*remove it'):
        kept().read(cells())
    path.write_text('{')
    with pytest.raises(ValueError, match='fog.json is not valid JSON'):
        kept()
