"""How far two sets of images are apart, as features: Frechet distance, inception score, precision and recall.

Everything is computed in float64; features may be anything, from a network's penultimate layer to raw pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK_DISTANCES = 2**22
"""Most pairwise distances held at once: 32 MiB of float64."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean (F,) and unbiased covariance (F, F) of a set of features, float64."""

    mean_F: np.ndarray
    covariance_FF: np.ndarray

    @classmethod
    def of(cls, features_NF: Tensor) -> Moments:
        """The moments of N >= 2 rows of features.

        Raises:
            ValueError: fewer than two rows, or a number that is not finite.
        """
        features = features_NF.detach().cpu().to(torch.float64).numpy()
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(
                f"moments need features (N, F) of at least two images, got shape {features.shape}"
            )
        if not np.isfinite(features).all():
            raise ValueError("features hold NaN or infinite numbers")
        mean = features.mean(axis=0)
        centred = features - mean
        return cls(mean, centred.T @ centred / (len(features) - 1))

    def factor(self) -> np.ndarray:
        """A matrix R (F, F) with R R^T the covariance: eigenvectors times the roots of their eigenvalues."""
        values, vectors = np.linalg.eigh(self.covariance_FF)
        # A covariance has no negative eigenvalues, but rounding leaves some where the rank is low.
        return vectors * np.sqrt(np.maximum(values, 0.0))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Frechet distance of the two Gaussians with these moments (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

        |m_a - m_b|^2 + tr(A) + tr(B) - 2 tr (A B)^(1/2)

    With A = R R^T and B = S S^T the last trace is the sum of the singular values of R^T S: no root of a
    matrix that is not symmetric, and no loss of digits where covariances are singular.
    """
    offset = a.mean_F - b.mean_F
    overlap = np.linalg.svd(a.factor().T @ b.factor(), compute_uv=False).sum()
    return float(offset @ offset + np.trace(a.covariance_FF) + np.trace(b.covariance_FF) - 2.0 * overlap)


def inception_score(probabilities_NK: Tensor) -> float:
    """exp of the images' mean KL(p(class | image) || p(class)) (Salimans et al. 2016, arXiv 1606.03498).

    Over all images at once, without the customary ten splits. Between 1 and the number of classes.

    Args:
        probabilities_NK: a classifier's probabilities, every row summing to one.
    """
    p_NK = probabilities_NK.detach().to(torch.float64)
    divergence_N = (torch.xlogy(p_NK, p_NK) - torch.xlogy(p_NK, p_NK.mean(dim=0))).sum(dim=1)
    return divergence_N.mean().exp().item()


@dataclass(frozen=True)
class PrecisionRecall:
    """Share of generated images near real ones, and of real images near generated ones."""

    precision: float
    recall: float


@dataclass(frozen=True, eq=False)
class Manifold:
    """A set of images as the union of balls around them: (N, F) and (N,), float64.

    A ball's radius is the distance to the k-th nearest neighbour in the set: not the image itself, but an identical
    one is a neighbour. The border belongs to the ball.
    """

    centres_NF: Tensor
    radii_N: Tensor

    @classmethod
    def of(cls, features_NF: Tensor, k: int = 3) -> Manifold:
        """The balls around N rows of features.

        Raises:
            ValueError: the set has no k-th neighbour.
        """
        centres = features_NF.detach().to(torch.float64)
        return cls(centres, neighbour_distances(centres, k))

    def share_of(self, other: Manifold) -> float:
        """The share of the other set's images that lie in at least one ball of this one."""
        blocks = _distance_blocks(other.centres_NF, self.centres_NF)
        inside = sum(int((block <= self.radii_N).any(dim=1).sum()) for _, block in blocks)
        return inside / len(other.centres_NF)


def precision_recall(real: Manifold, fake: Manifold) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2)."""
    return PrecisionRecall(precision=real.share_of(fake), recall=fake.share_of(real))


def neighbour_distances(features_NF: Tensor, k: int) -> Tensor:
    """Distance (N,) of every row to its k-th nearest other row.

    Raises:
        ValueError: there are not more than k rows, or k is not positive.
    """
    count = len(features_NF)
    if not 1 <= k < count:
        raise ValueError(f"the {k}-th neighbour needs 1 <= k < number of images, got {count} images")
    radii = []
    for start, distances in _distance_blocks(features_NF, features_NF):
        rows = torch.arange(len(distances), device=distances.device)
        distances[rows, start + rows] = torch.inf
        radii.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def _distance_blocks(rows_NF: Tensor, columns_MF: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Blocks of the N x M distances, each with its first row's number."""
    size = max(1, BLOCK_DISTANCES // len(columns_MF))
    for start in range(0, len(rows_NF), size):
        # Direct differences: the faster matrix product loses the exact zeros between identical images.
        yield (
            start,
            torch.cdist(
                rows_NF[start : start + size], columns_MF, compute_mode="donot_use_mm_for_euclid_dist"
            ),
        )
