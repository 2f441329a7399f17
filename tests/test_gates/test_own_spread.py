# SPDX-License-Identifier: Apache-2.0
"""What one task takes for its own, on points whose answer can be seen."""
from __future__ import annotations

import pytest
import torch

from mmseg_mile.gates.prototypes import (OwnSpread, OwnSpreads, Prototypes,
                                         calibrate, oas_shrinkage, ood_score)

CROSS = torch.tensor([[-2., 0], [2, 0], [0, 1], [0, -1]]).double()


def points(*rows):
    """Embeddings in float64."""
    return torch.tensor(rows, dtype=torch.float64)


def stretched(num, size=6):
    """Draw embeddings whose features go together."""
    mixing = torch.linspace(-1, 2, size * size).view(size, size).sin() + 0.5
    return torch.randn(num, size).double() @ mixing.double()


def test_distance_is_in_units_of_the_own_deviation():
    spread = OwnSpread.of(Prototypes.of(CROSS, 1))
    # uncorrelated, variances 8 / 3 and 2 / 3
    wanted = points(4 / (8 / 3)**0.5, 4 / (2 / 3)**0.5, 0)
    torch.testing.assert_close(
        spread.distances(points([4, 0], [0, 4], [0, 0])), wanted)


def test_features_that_go_together_betray_what_breaks_the_rule():
    # y = x, nearly: as far from the mean, but across the line
    x = torch.randn(500, 1).double()
    line = torch.cat([x, x + 0.1 * torch.randn(500, 1)], 1)
    along, across = OwnSpread.of(Prototypes.of(line, 1)).distances(
        points([1, 1], [1, -1]))
    assert across > 5 * along


def test_distance_is_to_the_nearest_centroid():
    ends = torch.cat([CROSS, CROSS + points([100, 0])])
    spread = OwnSpread.of(Prototypes.of(ends, 2))
    one = OwnSpread.of(Prototypes.of(CROSS, 1))
    # twice the scatter over N - K = 6 degrees, against 3 of one cluster
    torch.testing.assert_close(
        spread.distances(points([103, 0], [3, 0])),
        one.distances(points([3, 0], [3, 0])))


def test_distance_is_that_of_the_inverse_covariance():
    x, new = stretched(40), stretched(7)
    mean, covariance = x.mean(0), x.T.cov()
    deviation = covariance.diagonal().sqrt()
    correlation = covariance / deviation.outer(deviation)
    share = oas_shrinkage(correlation, 40)
    shrunk = (1 - share) * correlation + share * torch.eye(6)
    inverse = (deviation.outer(deviation) * shrunk).inverse()
    wanted = torch.stack([(y - mean) @ inverse @ (y - mean) for y in new])
    found = OwnSpread.of(Prototypes.of(x, 1)).distances(new)
    # scatter is kept in float32
    torch.testing.assert_close(found, wanted.sqrt(), rtol=1e-4, atol=0)


def test_unit_of_a_feature_does_not_matter():
    units = torch.tensor([1, 30, 0.1, 1, 7, 20]).double()
    x, new = stretched(30), stretched(7)
    torch.testing.assert_close(
        OwnSpread.of(Prototypes.of(x * units, 1)).distances(new * units),
        OwnSpread.of(Prototypes.of(x, 1)).distances(new),
        rtol=1e-4,
        atol=0)


def test_distance_does_not_depend_on_the_batch():
    x = torch.randn(30, 101).double()
    spread = OwnSpread.of(Prototypes.of(x, 2))
    alone = torch.cat([spread.distances(row[None]) for row in x])
    assert torch.equal(spread.distances(x), alone)


@pytest.mark.parametrize('images',
                         [[[1., 2], [1, 2]], [[1., 2], [3, 2]], [[1., 2]]])
def test_feature_without_spread_divides_by_no_zero(images):
    spread = OwnSpread.of(Prototypes.of(torch.tensor(images), 1))
    assert spread.distances(points([1, 2], [5, 5])).isfinite().all()


def test_fewer_images_shrink_more():
    correlation = points([1, 0.8], [0.8, 1])
    # p = 2: tr(S^2) = 3.28, tr(S)^2 = 4: 4 / ((n + 0) (3.28 - 2))
    assert oas_shrinkage(correlation, 10) == pytest.approx(4 / 12.8)
    assert oas_shrinkage(correlation, 100) == pytest.approx(4 / 128)
    assert oas_shrinkage(correlation, 3) == 1
    assert oas_shrinkage(correlation, 1e9) == 1e-3


def test_nothing_is_made_of_features_that_do_not_go_together():
    assert oas_shrinkage(torch.eye(5).double(), 1000) == 1


def test_limit_keeps_the_share_of_new_images_that_was_asked_for():
    wanted, shares = 0.9, []
    for _ in range(40):
        _, limit = calibrate(torch.randn(60, 8).double(), 1, wanted)
        # a fold is measured against 48 images, as these are
        spread = OwnSpread.of(Prototypes.of(torch.randn(48, 8), 1))
        new = spread.distances(torch.randn(500, 8).double())
        shares.append((new <= limit).double().mean())
    assert abs(torch.stack(shares).mean() - wanted) < 0.02


def test_limit_counts_the_new_image_among_the_others():
    x = points(*([value] for value in range(19)))
    limits = [float(calibrate(x, 1, q)[1]) for q in (0.5, 0.9, 0.95, 1.0)]
    assert limits == sorted(limits)
    # of 19, the ceil(20 * 0.95) = 19th is the largest; 0.9 is the 18th
    assert limits[1] < limits[2] == limits[3]


def test_drives_that_were_not_seen_set_the_limit():
    # five drives of frames that hardly differ: with twins in other folds
    # a limit would refuse every further drive
    drives = 10 * torch.randn(5, 1, 4) + 0.1 * torch.randn(5, 8, 4)
    x = drives.double().flatten(0, 1)
    dealt_out = x.view(5, 8, 4).transpose(0, 1).flatten(0, 1)
    _, limit = calibrate(x, 1, 0.99)
    _, too_near = calibrate(dealt_out, 1, 0.99)
    assert limit > 1.5 * too_near


def test_one_image_calibrates_nothing():
    usual, limit = calibrate(points([1, 2]), 1, 0.99)
    assert (usual, limit) == (0, torch.inf)
    assert ood_score(points(0, 1e9), usual, limit).tolist() == [0, 0]


def test_scale_runs_from_the_usual_distance_to_the_limit():
    usual, limit = points(2, 8)
    found = ood_score(points(2, 4, 8, 16, 1), usual, limit)
    torch.testing.assert_close(found, points(0, 0.5, 1, 1.5, -0.5))


@pytest.mark.parametrize('value', [0.0, 3.0])
def test_limit_of_equal_distances_is_kept(value):
    at_limit = torch.tensor(value).double()
    found = ood_score(points(value, value + 0.01), at_limit, at_limit)
    assert (found > 1).tolist() == [False, True]


def test_spread_is_made_once_until_it_is_forgotten():
    spreads = OwnSpreads()
    one, other = (Prototypes.of(CROSS + shift, 1) for shift in (0, 5))
    first = spreads.of('a', one)
    assert spreads.of('a', other) is first
    spreads.forget('a')
    spreads.forget('a')
    assert torch.equal(spreads.of('a', other).centroids, other.centroids)


def test_spreads_used_last_are_kept(monkeypatch):
    made, plain = [], OwnSpread.of
    monkeypatch.setattr(OwnSpread, 'of', lambda task:
                        (made.append(1), plain(task))[1])
    spreads, task = OwnSpreads(), Prototypes.of(CROSS, 1)
    for index in range(64):
        spreads.of(str(index), task)
    spreads.of('0', task)
    assert len(made) == 64
    spreads.of('new', task)
    # the one that was not asked for longest is gone, not the one asked again
    spreads.of('0', task)
    assert len(made) == 65
    spreads.of('1', task)
    assert len(made) == 66
