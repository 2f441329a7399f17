# SPDX-License-Identifier: Apache-2.0
"""Studies of gates, on clouds of embeddings and on the tiny stream."""
from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
# yapf: disable
from analysis_tools.gate_studies import (DISTURBANCES, EMBEDDINGS, GATES,
                                         HELD_OUT_GATES, STAGE_SETS, Split,
                                         auroc, compressed, embed,
                                         embedders_of, fitted, fpr95, hold_out,
                                         hold_out_sequences, noisy,
                                         perturbation_study, route, scaled,
                                         softened)
# yapf: enable
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from tiny import TINY_MODEL

from mmseg.registry import MODELS

NAMES = ('day', 'night', 'infrared')


@pytest.fixture(scope='module')
def model():
    """A CNN of four stages."""
    init_default_scope('mmseg')
    return MODELS.build(copy.deepcopy(ConfigDict(TINY_MODEL))).eval()


@pytest.fixture
def study(run_tool, stream_config, stream_run, tmp_path, capsys):
    """``study('--held-out', ...)``: the rows that are printed."""

    def run(*arguments):
        run_tool('compare_gates.py', stream_config, '--library',
                 stream_run.work_dir, '--work-dir', tmp_path, *arguments)
        lines = [
            [cell.strip() for cell in line.strip('|').split('|')]
            for line in capsys.readouterr().out.splitlines()
            if line.startswith('|')
        ]  # yapf: disable
        return [dict(zip(lines[0], line)) for line in lines[2:]]

    return run


def cloud(x, y, num=200):
    """Embeddings to learn from, and others to route."""
    images = torch.tensor([x, y]) + torch.randn(2 * num, 2)
    return Split(images[:num, None], images[num:])


# -- scores --------------------------------------------------------------


@pytest.mark.parametrize('familiar, ood, wanted', [
    ([1, 2], [3, 4], 1.0),
    ([3, 4], [1, 2], 0.0),
    ([1, 2, 3], [2, 4], 4.5 / 6),
    ([5, 5], [5], 0.5),
    ([0, np.inf], [1], 0.5),
])
def test_auroc_is_the_share_of_pairs_in_order(familiar, ood, wanted):
    assert auroc(familiar, ood) == wanted


@pytest.mark.parametrize(
    'familiar, ood, wanted',
    [
        ([1, 2, 3, 4], [3, 5], 0.5),
        ([1, 2], [3, 4], 0.0),
        ([3, 4], [1, 2], 1.0),
        # 19 of 20 are 95 %: the image at 0 may be missed
        ([1, 2, 3], [0] + [2] * 19, 2 / 3),
        # of 19 images, 95 % are 18.05: none may be
        ([1, 2, 3], [0] + [2] * 18, 1.0),
    ])
def test_fpr95_is_where_most_are_detected(familiar, ood, wanted):
    assert fpr95(familiar, ood) == wanted


# -- gates on clouds -----------------------------------------------------


@pytest.mark.parametrize('gate', HELD_OUT_GATES)
def test_domain_far_from_the_others_is_detected(gate):
    domains = dict(a=cloud(0., 0.), b=cloud(30., 0.), c=cloud(0., 30.))
    scores = hold_out(domains, **HELD_OUT_GATES[gate])
    assert list(scores) == ['a', 'b', 'c']
    for found in scores.values():
        assert found.auroc == found.detected == 1
        assert found.fpr95 == 0
        assert found.false_alarms < 0.05


def test_domain_like_another_one_is_not_detected():
    domains = dict(a=cloud(0., 0.), twin=cloud(0., 0.), far=cloud(50., 0.))
    scores = hold_out(domains)
    assert scores['a'].auroc == pytest.approx(0.5, abs=0.1)
    assert scores['a'].detected < 0.05
    assert scores['far'].auroc == 1


def test_false_alarms_follow_the_quantile():
    domains = dict(a=cloud(0., 0., 500), b=cloud(30., 0., 500))
    alarms = [
        hold_out(domains, ood_quantile=quantile)['a'].false_alarms
        for quantile in (0.99, 0.8)
    ]
    assert alarms[0] < 0.04 < 0.12 < alarms[1] < 0.28


def test_figures_are_per_cent_of_test_images():
    left, right = cloud(0., 0.), cloud(30., 0., 6)
    gate = fitted(dict(left=left, right=right))
    near, astray = left.train[:3, 0], right.train[:1, 0]
    domains = dict(
        left=Split(left.train, torch.cat([near, astray])),
        right=Split(right.train, right.train[:4, 0] + 10000))
    assert route(gate, domains) == [75, 100, 87.5, 50]


# -- embeddings and disturbances -----------------------------------------


def test_one_pass_embeds_as_each_embedder_alone(model):
    batches = [dict(inputs=[torch.rand(3, 64, 64) * 255]) for _ in range(3)]
    embedders = embedders_of(model)
    assert list(embedders) == [*EMBEDDINGS, 'as configured']
    found = embed(model, embedders, batches, 2)
    for name, embedder in embedders.items():
        wanted = [model.embed_views(batch, 2, embedder) for batch in batches]
        assert torch.equal(found[name], torch.cat(wanted))
    # mean and deviation of 8, 16, 32 and 64 channels
    assert [found[name].shape[2]
            for name in EMBEDDINGS] == [64, 240, 16, 16, 16, 112]


@pytest.mark.parametrize('change, degree', [(softened, 0.5), (compressed, 50)])
def test_detail_is_lost_and_the_mean_stays(change, degree):
    image = np.random.randint(0, 256, (32, 48, 3)).astype(np.uint8)
    changed = change(image, degree)
    assert changed.shape == image.shape
    assert changed.std() < 0.8 * image.std()
    assert changed.mean() == pytest.approx(image.mean(), abs=4)


def test_light_and_noise_keep_within_the_range():
    grey = np.full((32, 48, 3), 100, np.uint8)
    assert [scaled(grey, gain).max() for gain in (0.8, 3)] == [80, 255]
    assert noisy(grey, 8).std() == pytest.approx(8, rel=0.1)
    assert (noisy(grey, 8) == noisy(grey, 8)).all()


def test_disturbed_images_are_routed_by_what_was_learned(model):
    images = {
        name: [[
            dict(inputs=list((shade + 40 * torch.rand(4, 3, 32, 48)).byte()))
            for _ in range(3)
        ] for _ in range(2)]
        for name, shade in (('dark', 0), ('light', 200))
    }  # yapf: disable
    table = perturbation_study(model, images,
                               embedders_of(model, ['first stage, full']),
                               [0, 0.25])
    assert list(table['perturbation weight']) == ['0', '0.25']
    for row in table[list(DISTURBANCES)].values.tolist():
        right = [float(cell.split(' / ')[0]) for cell in row]
        assert right[0] == 100 and min(right) >= 50


def test_sequence_that_nothing_of_its_domain_resembles_is_lost():
    # of a's three drives, one looks like b
    a = torch.cat([cloud(0, 0, 30).test, cloud(1, 0, 30).test])
    stray, b = cloud(20, 20, 10).test, cloud(20, 19, 40).test
    scores = hold_out_sequences(
        dict(a=torch.cat([a, stray])[:, None], b=b[:, None]),
        dict(
            a=['x/one'] * 30 + ['x/two'] * 30 + ['x/stray'] * 10,
            b=['first'] * 20 + ['second'] * 20),
        metric='euclidean')
    assert scores.drop(columns='flagged').values.tolist() == [
        ['a', 'one', 30, 30], ['a', 'two', 30, 30], ['a', 'stray', 10, 0],
        ['b', 'first', 20, 20], ['b', 'second', 20, 20]
    ]  # yapf: disable


# -- the command ---------------------------------------------------------


@pytest.mark.integration
def test_accuracy_of_every_gate_on_every_embedding(study):
    rows = study('--scales', '0.5')
    assert [(row['embedding'], row['gate']) for row in rows] == [
        (stages, gate) for stages in STAGE_SETS for gate in GATES
    ]  # yapf: disable
    assert [row['values'] for row in rows[::5]] == ['64', '240', '48', '16']
    for row in rows:
        # three validation images a domain
        shares = [float(row[f'{name} %']) for name in NAMES]
        assert set(shares) <= {0, 33.3, 66.7, 100}
        assert float(row['all %']) == pytest.approx(np.mean(shares), abs=0.1)
    assert rows[-3]['all %'] == '100.0'


@pytest.mark.integration
def test_every_domain_is_held_out(study):
    rows = study('--held-out', '--embeddings', 'as configured', '--quantiles',
                 '0.9', '0.5')
    assert [(row['gate'], row['quantile']) for row in rows] == [
        (gate, quantile) for gate in HELD_OUT_GATES
        for quantile in ('0.9', '0.5')
    ]  # yapf: disable
    for row in rows:
        aurocs = [float(row[name].split(' / ')[0]) for name in NAMES]
        assert float(row['mean AUROC']) == pytest.approx(
            np.mean(aurocs), abs=1e-3)


@pytest.mark.integration
def test_every_quality_is_routed(study):
    rows = study('--disturbed', '--perturbation-weights', '0.5',
                 '--embeddings', 'first stage, half', 'as configured')
    assert [row['embedding']
            for row in rows] == ['first stage, half', 'as configured']
    assert list(rows[0])[2:] == ['perturbation weight', *DISTURBANCES]


@pytest.mark.integration
def test_every_sequence_is_held_out(study):
    row, _ = study('--by-sequence', '--perturbation-weights', '0.1', '0.5',
                   '--embeddings', 'as configured')
    # each domain is one folder, so it is cut into halves
    assert row['sequences below 95 %'].endswith(' of 6')
    shares = [float(row[f'{name} %']) for name in NAMES]
    assert float(row['right %']) == pytest.approx(np.mean(shares), abs=0.01)
    assert (row['right %'] == '100.00') == (row['worst'] == '')


@pytest.mark.integration
def test_folders_need_no_labels(study, tiny_data):
    folders = [
        f'{name}={tiny_data}/{name}/img/train/*.png' for name in NAMES[:2]
    ]
    row = study('--folders', *folders, '--scales', '1')[0]
    assert list(row)[4:] == ['day %', 'night %', 'all %', 'flagged %']


@pytest.mark.integration
@pytest.mark.parametrize('arguments, message', [
    (['--folders', 'day=*.nothing'], 'day=.*has 0'),
    (['--held-out', '--embeddings', 'stem'], "--embeddings has no 'stem'"),
    (['--held-out', '--folders', 'a={data}/day/img/train/*.png'
      ], r"takes two at least, got \['a'\]"),
])
def test_wrong_arguments_are_refused(study, tiny_data, arguments, message):
    with pytest.raises(ValueError, match=message):
        study(*(text.format(data=tiny_data) for text in arguments))


@pytest.mark.parametrize('arguments, message', [
    ('--held-out --scales 1', '--scales is of another study'),
    ('--disturbed --quantiles 0.9', '--quantiles is of another study'),
    ('--embeddings any', '--embeddings is of another study'),
    ('--disturbed --shrinkages 1', '--shrinkages is of another study'),
    ('--held-out --disturbed', 'not allowed with'),
])
def test_options_of_another_study_are_refused(run_tool, capsys, arguments,
                                              message):
    with pytest.raises(SystemExit):
        run_tool('compare_gates.py', 'config.py', *arguments.split())
    assert message in capsys.readouterr().err
