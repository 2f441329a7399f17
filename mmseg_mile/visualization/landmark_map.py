# SPDX-License-Identifier: Apache-2.0
"""Points from distances: prototypes as landmarks, images between them."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Shape legend: K prototypes, N images, R dimensions that K points span
# Directions that hold less of the prototypes' variance than this are noise:
# distances are stored with few digits, and need not be quite Euclidean.
_NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class LandmarkMap:
    """Prototypes and images on a plane, or along one line.

    Args:
        prototypes (np.ndarray): (K, 2) coordinates, in the unit of the
            distances.
        images (np.ndarray): (N, 2) coordinates.
        is_line (bool): Whether all prototypes lie on one line. Then the
            first coordinate runs along it and the second is the distance
            from it, which is never negative.
        prototype_share (float): Share of the prototypes' variance that the
            map shows, 0 to 1.
        image_share (float): Share of the images' variance; NaN without
            images.
    """
    prototypes: np.ndarray
    images: np.ndarray
    is_line: bool
    prototype_share: float
    image_share: float


def classical_mds(distances: np.ndarray) -> np.ndarray:
    """Coordinates of points with the given distances.

    ``B = -1/2 H D2 H`` with the squared distances D2 and the centring
    matrix H has the eigenvectors v_i; column i of the result is
    ``sqrt(lambda_i) v_i`` (Torgerson 1952). What no points could have, a
    negative eigenvalue, is left out, and so are directions of nearly none.

    Args:
        distances (np.ndarray): (K, K), symmetric.

    Returns:
        np.ndarray: (K, R), centred; the direction of largest variance
        first. R is 0 where all points coincide.
    """
    squared = distances**2
    centring = np.eye(len(squared)) - 1 / len(squared)
    values, vectors = np.linalg.eigh(-centring @ squared @ centring / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = values > max(values[0], 0) * _NEGLIGIBLE
    return vectors[:, kept] * np.sqrt(values[kept])


def place_by_landmarks(landmarks: np.ndarray, landmark_distances: np.ndarray,
                       distances: np.ndarray) -> np.ndarray:
    """Coordinates of more points by their distances to the landmarks.

    ``x = -1/2 L# (d2 - mean d2)`` with the pseudo-inverse L# of the
    landmarks' coordinates, the squared distances d2 of the point, and the
    mean over the rows of the landmarks' squared distances (Landmark MDS:
    de Silva and Tenenbaum, "Sparse multidimensional scaling using landmark
    points", 2004, section 2.2). A point outside the landmarks' span lands
    at the foot of its perpendicular.

    Args:
        landmarks (np.ndarray): (K, R), of :func:`classical_mds`.
        landmark_distances (np.ndarray): (K, K) that they were made of.
        distances (np.ndarray): (N, K) from each point to each landmark.

    Returns:
        np.ndarray: (N, R).
    """
    mean_K = (landmark_distances**2).mean(axis=0)
    # the columns of the coordinates are orthogonal
    inverse_KR = landmarks / (landmarks**2).sum(axis=0)
    return -(distances**2 - mean_K) @ inverse_KR / 2


def landmark_map(prototype_distances: np.ndarray,
                 image_distances: np.ndarray) -> LandmarkMap:
    """Draw prototypes and images onto the two axes of most variance.

    The prototypes are placed by :func:`classical_mds`, the images by
    :func:`place_by_landmarks`, and a PCA of both together turns the result,
    as section 2.3 of the paper does. With more than two dimensions the
    plane is the best that a fixed projection can show; the two shares say
    how good that is. The variance of the images includes what lies outside
    the prototypes' span, whose size follows from the distances too.

    Departs from the paper in one thing: where the prototypes lie on a line,
    as any two do, the second axis is the distance from that line rather
    than left out.

    Args:
        prototype_distances (np.ndarray): (K, K); asymmetric ones, as
            between sets of prototypes, are averaged with their transpose.
        image_distances (np.ndarray): (N, K).

    Raises:
        ValueError: If fewer than two prototypes differ, a distance is
            missing, or the shapes do not fit.
    """
    between = np.asarray(prototype_distances, dtype=float)
    to_images = np.asarray(image_distances, dtype=float)
    size = len(between)
    if between.shape != (size, size) or to_images.shape[1:] != (size, ):
        raise ValueError(
            'prototype_distances must be (K, K) and image_distances (N, K), '
            f'got {between.shape} and {to_images.shape}')
    if not (np.isfinite(between).all() and np.isfinite(to_images).all()):
        raise ValueError('distances of a map must all be known: leave out '
                         'the experts and images that were not measured')
    between = (between + between.T) / 2
    prototypes = classical_mds(between) if size else np.empty((0, 0))
    rank = prototypes.shape[1]
    if not rank:
        raise ValueError('a map needs two or more prototypes that differ, '
                         f'got {size}')
    images = place_by_landmarks(prototypes, between, to_images)
    outside_N = _squares_outside(between, to_images, images)
    axes = _principal_axes(np.concatenate([prototypes, images]))
    # the first prototype lies left and below, so that no sign is left open
    axes = axes * np.where(prototypes[0] @ axes > 0, -1, 1)
    shown = axes[:, :2]
    prototypes_shown, images_shown = prototypes @ shown, images @ shown
    image_share = _share(images_shown,
                         _variance(images) +
                         outside_N.mean()) if len(images) else float('nan')
    if rank == 1:
        prototypes_shown = np.pad(prototypes_shown, ((0, 0), (0, 1)))
        images_shown = np.column_stack([images_shown, np.sqrt(outside_N)])
    return LandmarkMap(prototypes_shown, images_shown, rank == 1,
                       _share(prototypes @ shown, _variance(prototypes)),
                       image_share)


def _squares_outside(between: np.ndarray, to_images: np.ndarray,
                     images: np.ndarray) -> np.ndarray:
    """(N,) squared distance of each image from the prototypes' span."""
    # of a point to the centre: mean square to all, less theirs to the centre
    to_centre = (to_images**2).mean(axis=1) - (between**2).mean() / 2
    return (to_centre - (images**2).sum(axis=1)).clip(min=0)


def _principal_axes(points: np.ndarray) -> np.ndarray:
    """(R, R) orthonormal columns, the axis of largest variance first."""
    centred = points - points.mean(axis=0)
    return np.linalg.eigh(centred.T @ centred)[1][:, ::-1]


def _variance(points: np.ndarray) -> float:
    return float(points.var(axis=0).sum())


def _share(shown: np.ndarray, total: float) -> float:
    return _variance(shown) / total if total > 0 else 1.0
