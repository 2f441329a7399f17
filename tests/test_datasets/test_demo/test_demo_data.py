# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from mmseg_mile.datasets.demo import DATA_SETS, MANIFEST, demo_data
from mmseg_mile.datasets.demo.demo_data import UNFINISHED


def contents(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob('*') if path.is_file()
    }


def times(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob('*.*')}


@pytest.fixture
def small_root(tmp_path, make):
    make(tmp_path, num_train=1, num_val=1)
    return tmp_path


def test_equal_seed_gives_equal_bytes_in_any_number_of_processes(
        demo_root, make, tmp_path):
    make(tmp_path, num_processes=2)
    assert contents(tmp_path) == contents(demo_root)


def test_another_seed_gives_other_images(demo_root, make, tmp_path):
    make(tmp_path, seed=4)
    for path in demo_root.glob('cityscapes/leftImg8bit/*/*/*.png'):
        other = tmp_path / path.relative_to(demo_root)
        assert path.read_bytes() != other.read_bytes()


def test_all_data_sets_are_made(demo_root):
    assert {path.name
            for path in demo_root.iterdir()} == {*DATA_SETS, MANIFEST}


def test_second_call_touches_nothing(demo_root, make):
    before = times(demo_root)
    make(demo_root)
    assert times(demo_root) == before


def test_interrupted_run_is_repaired(small_root, make, monkeypatch):
    whole = contents(small_root)

    def stop(jobs, num_processes):
        jobs[0]()
        (small_root / 'cityscapes/stale.png').write_bytes(b'')
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo_data, '_run', stop)
        with pytest.raises(KeyboardInterrupt):
            make(small_root, num_train=1, num_val=1, seed=9, overwrite=True)
    assert not (small_root / MANIFEST).exists()
    assert (small_root / UNFINISHED).exists()
    make(small_root, num_train=1, num_val=1)
    assert contents(small_root) == whole


def test_missing_data_set_is_made_again(small_root, make, tmp_path_factory):
    whole = contents(small_root)
    (small_root / 'acdc').rename(small_root / 'elsewhere')
    make(small_root, num_train=1, num_val=1)
    (small_root / 'elsewhere').rename(tmp_path_factory.mktemp('old') / 'acdc')
    assert contents(small_root) == whole


def test_other_parameters_are_refused(small_root, make):
    with pytest.raises(ValueError, match='--overwrite'):
        make(small_root, num_train=1, num_val=1, seed=8)


def test_overwrite_replaces_demo_data(small_root, make):
    make(small_root, num_train=1, num_val=1, seed=8, overwrite=True)
    assert json.loads((small_root / MANIFEST).read_text())['seed'] == 8


@pytest.mark.parametrize('overwrite', [False, True])
def test_data_of_another_origin_are_never_touched(tmp_path, make, overwrite):
    real = tmp_path / 'cityscapes/leftImg8bit/real.png'
    real.parent.mkdir(parents=True)
    real.write_bytes(b'real')
    with pytest.raises(ValueError, match='not demo data'):
        make(tmp_path, overwrite=overwrite)
    assert real.read_bytes() == b'real'


@pytest.mark.parametrize(
    'changes, message',
    [(dict(num_train=0), 'num_train must be at least 1, got 0'),
     (dict(num_val=-1), 'num_val must be at least 1, got -1'),
     (dict(seed=-1), 'seed must not be negative, got -1'),
     (dict(size=(8, 16)), 'size must be')])
def test_bad_argument_is_named(tmp_path, make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **changes)
    assert not list(tmp_path.iterdir())
