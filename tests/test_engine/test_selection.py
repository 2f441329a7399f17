# SPDX-License-Identifier: Apache-2.0
"""Selection runs: sequences held out of training, reported images unseen."""
from __future__ import annotations

import copy
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from run_comparison import results_of

from mmseg_mile.engine.task_data import hold_out
from mmseg_mile.evaluation.leaderboard import read_leaderboard

TEMPLATE = dict(batch_size=2, num_workers=0)

# -- the choice ----------------------------------------------------------


def held_of(sizes, share):
    """Indices of the sequences of some sizes that are held out."""
    sequences = np.repeat(np.arange(len(sizes)), sizes).tolist()
    held_out = hold_out(sequences, share, 'train')
    chosen = {s for s, is_held in zip(sequences, held_out) if is_held}
    # whole sequences
    assert held_out == [s in chosen for s in sequences]
    return sorted(chosen)


@pytest.mark.parametrize(
    'sizes, share, held',
    [
        # the smaller one is enough
        ((101, 204), 0.2, [0]),
        ((204, 101), 0.2, [1]),
        # 0.4 of 305 are 122
        ((101, 204), 0.4, [1]),
        # one in three, evenly spread
        ((2, ) * 9, 0.3, [0, 3, 6]),
        ((1, ) * 10, 0.2, [0, 5]),
        # 3 images are wanted, of two neighbouring sizes
        ((9, 2, 9, 1, 9), 0.1, [1, 3]),
        # the giant would leave little to train on
        ((70, 10, 10, 10), 0.1, [1]),
        ((3, 3), 0.5, [0]),
    ])
def test_whole_sequences_are_held_out(sizes, share, held):
    assert held_of(sizes, share) == held


@pytest.mark.parametrize('share', [0.05, 0.1, 0.25, 0.5])
def test_share_is_reached_and_hardly_exceeded(share):
    sizes = np.random.default_rng(0).integers(1, 12, 200)
    held = held_of(sizes, share)
    assert 0 <= sizes[held].sum() - share * sizes.sum() < 3
    # every fifth of the list has some
    assert len({index // 40 for index in held}) == 5
    assert held == held_of(sizes, share)


def test_of_a_lone_sequence_the_last_frames_are_held_out():
    assert hold_out('aaaaaaa', 0.3, 'train') == [False] * 4 + [True] * 3
    # 0.07 * 100 is 7, not a little more
    assert sum(hold_out('a' * 100, 0.07, 'train')) == 7


def test_frames_of_a_sequence_need_not_be_neighbours():
    held = hold_out('abab' + 'cc' * 4, 0.1, 'train')
    assert held == [True, False, True, False] + [False] * 8


@pytest.mark.parametrize('sequences, share', [('a', 0.2), ('aa', 0.9),
                                              ('abb', 0.8), ('aab', 0.7)])
def test_too_few_images_are_refused(sequences, share):
    with pytest.raises(ValueError, match='x has . images.* cannot be held'):
        hold_out(sequences, share, 'x')


# -- the data of a task --------------------------------------------------


def names_of(dataset):
    """Files of a dataset, as <folder>/<file>."""
    return [
        '/'.join(Path(dataset.get_data_info(i)['img_path']).parts[-2:])
        for i in range(len(dataset))
    ]


def loaded(loader):
    return [
        '/'.join(Path(sample.img_path).parts[-2:]) for batch in loader
        for sample in batch['data_samples']
    ]


@pytest.fixture
def drives(root, day):
    """The six training images of 'day' in three drives of two."""
    for kind in ('img', 'ann'):
        for index in range(6):
            path = root / 'day' / kind / 'train' / f'{index}.png'
            folder = path.parent / f'drive_{index // 2}'
            folder.mkdir(exist_ok=True)
            path.rename(folder / path.name)
    return day


DRIVES = [f'drive_{index // 2}/{index}.png' for index in range(6)]


def test_training_gate_and_rehearsal_see_the_others(open_tasks, builder,
                                                    drives, root):
    shutil.rmtree(root / 'day' / 'img' / 'val')
    data = open_tasks(
        drives, selection_share=0.3, rehearsal=dict(tasks='all', share=None))
    task, = data.tasks
    held = loaded(data.val_loader(builder, task, TEMPLATE))
    assert held == DRIVES[:2]
    assert loaded(data.prototype_loader(builder, task, TEMPLATE,
                                        100)) == DRIVES[2:]
    own = data.rehearsal.mix('day', dict(type='InfiniteSampler'))['dataset']
    assert len(own) == 4
    files = data.rehearsal.kept_bytes(0)
    assert files == sum((root / 'day' / kind / 'train' / name).stat().st_size
                        for kind in ('img', 'ann') for name in DRIVES[2:])


def test_held_out_images_take_the_validation_pipeline(open_tasks, builder,
                                                      drives):
    data = open_tasks(drives, selection_share=0.3)
    pixels = [
        tuple(x.shape)
        for batch in data.val_loader(builder, data.tasks[0], TEMPLATE)
        for x in batch['inputs']
    ]
    # the training pipeline crops to 32 x 48
    assert pixels == [(3, 48, 64)] * 2
    assert data.tasks[0].max_iters == 5


def test_images_of_one_folder_are_one_sequence(open_tasks, builder, day):
    data = open_tasks(day, selection_share=0.3)
    held = loaded(data.val_loader(builder, data.tasks[0], TEMPLATE))
    assert held == ['train/4.png', 'train/5.png']


def part_of(task, *folders):
    """Configs of a training set per folder."""
    return [
        dict(
            copy.deepcopy(task['train_dataset']),
            data_prefix=dict(
                img_path=f'img/train/{folder}',
                seg_map_path=f'ann/train/{folder}')) for folder in folders
    ]


def test_wrapped_datasets_are_cut_inside(open_tasks, builder, drives):
    # drive_0 comes twice, and one of its datasets will be empty
    parts = part_of(drives, 'drive_0', 'drive_1', 'drive_2')
    drives['train_dataset'] = dict(
        type='RepeatDataset',
        times=2,
        dataset=dict(
            type='ConcatDataset', datasets=[*parts,
                                            copy.deepcopy(parts[0])]))
    data = open_tasks(drives, selection_share=0.3)
    task, = data.tasks
    held = loaded(data.val_loader(builder, task, TEMPLATE))
    seen = loaded(data.prototype_loader(builder, task, TEMPLATE, 100))
    # each once for the scores, as often as ever for training
    assert held == DRIVES[:2]
    assert Counter(seen) == Counter(DRIVES[2:] * 2)


@pytest.mark.parametrize('indices, trained, held', [
    ([5, 0, 4, 1], [0, 1], [5, 4]),
    (4, [2, 3], [0, 1]),
    (-3, [4, 5], [3]),
])
def test_indices_of_the_config_are_kept(open_tasks, builder, drives, indices,
                                        trained, held):
    drives['train_dataset']['indices'] = indices
    data = open_tasks(drives, selection_share=0.3)
    task, = data.tasks
    assert loaded(data.prototype_loader(builder, task, TEMPLATE,
                                        100)) == [DRIVES[i] for i in trained]
    assert loaded(data.val_loader(builder, task,
                                  TEMPLATE)) == [DRIVES[i] for i in held]


@pytest.mark.parametrize('share', [0, 1, 0.0, 1.0, -0.2, 20, '0.2', True])
def test_share_must_be_a_share(open_tasks, day, share):
    with pytest.raises(
            ValueError,
            match='selection_share must lie above 0 '
            f'and below 1.* got {share!r}'):
        open_tasks(day, selection_share=share)


def test_task_with_one_image_is_refused(open_tasks, day):
    day['train_dataset']['indices'] = 1
    with pytest.raises(ValueError, match="train_dataset of task 'day' has 1"):
        open_tasks(day, selection_share=0.2)


def test_task_that_is_evaluated_on_other_classes_is_refused(open_tasks, day):
    day['eval_classes'] = ['sky', 'road', 'car']
    with pytest.raises(ValueError, match="task 'day' has eval_classes.*selec"):
        open_tasks(day, selection_share=0.2)


# -- a run ---------------------------------------------------------------


@pytest.fixture(scope='module')
def run(learn, tiny_config, tiny_data, tmp_path_factory):
    """A selection run over data whose reported images do not exist."""
    folder = tmp_path_factory.mktemp('selection')
    shutil.copytree(tiny_data, folder / 'data')
    for path in (folder / 'data').glob('*/*/val'):
        shutil.rmtree(path)
    return learn(
        tiny_config(
            folder / 'runs' / 'selection', ('day', 'night'),
            train_cfg__data_root=str(folder / 'data'),
            train_cfg__max_iters=1,
            train_cfg__selection_share=0.5))


@pytest.mark.integration
def test_selection_run_scores_the_held_out_images(run):
    results = results_of(run.work_dir)
    assert results['selection_share'] == 0.5
    assert np.sum(results['gate']['confusion'], axis=1).tolist() == [3, 3]
    log = (run.work_dir / 'routing_log').glob('*')
    assert all('/train/' in path.read_text() for path in log)


@pytest.mark.integration
def test_selection_run_is_not_resumed_as_another(run, learn):
    cfg = copy.deepcopy(run.cfg)
    cfg.merge_from_dict({'train_cfg.selection_share': 0.3, 'resume': True})
    with pytest.raises(ValueError, match="selection_share 0.5, the config"):
        learn(cfg)


@pytest.mark.integration
def test_leaderboard_leaves_selection_runs_out(run, stream_run):
    root = run.work_dir.parent
    shutil.copytree(stream_run.work_dir, root / 'reported')
    board = read_leaderboard([root])
    assert [c.tasks
            for c in board.comparisons] == [('day', 'night', 'infrared')]
    (name, reason), = board.left_out
    assert name == 'selection' and 'is a selection run' in reason
