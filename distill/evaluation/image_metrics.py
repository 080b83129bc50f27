"""Metrics of sets of images, given as features: Frechet distance, inception score, precision and recall.

Everything is computed in float64; features may be a network's penultimate layer, raw pixels, or anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK_DISTANCES = 2**22
"""Maximum number of pairwise distances in memory: 32 MiB of float64."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean (F,) and unbiased covariance (F, F) of a set of features, float64."""

    mean_F: np.ndarray
    covariance_FF: np.ndarray

    @classmethod
    def of(cls, features_NF: Tensor) -> Moments:
        """The moments of N >= 2 rows of features.

        Raises:
            ValueError: there are fewer than two rows, or a number is not finite.
        """
        features = features_NF.detach().cpu().to(torch.float64).numpy()
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"moments need features (N, F) of at least two images, got shape {features.shape}")
        if not np.isfinite(features).all():
            raise ValueError("features contain NaN or infinite numbers")
        mean = features.mean(axis=0)
        centred = features - mean
        return cls(mean, centred.T @ centred / (len(features) - 1))

    def factor(self) -> np.ndarray:
        """A matrix R (F, F) such that R R^T is the covariance: eigenvectors times the roots of their eigenvalues."""
        values, vectors = np.linalg.eigh(self.covariance_FF)
        # A covariance has no negative eigenvalues, but rounding causes some if the rank is low.
        return vectors * np.sqrt(np.maximum(values, 0.0))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Frechet distance of the two Gaussians with these moments (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

        |m_a - m_b|^2 + tr(A) + tr(B) - 2 tr (A B)^(1/2)

    With A = R R^T and B = S S^T the last trace is the sum of the singular values of R^T S. This avoids the root of an
    asymmetric matrix, and loses no digits if a covariance is singular.
    """
    offset = a.mean_F - b.mean_F
    overlap = np.linalg.svd(a.factor().T @ b.factor(), compute_uv=False).sum()
    return float(offset @ offset + np.trace(a.covariance_FF) + np.trace(b.covariance_FF) - 2.0 * overlap)


def inception_score(probabilities_NK: Tensor, split_size: int | None = None) -> float:
    """exp of the images' mean KL(p(class | image) || p(class)) (Salimans et al. 2016, arXiv 1606.03498).

    Between 1 and the number of classes. Few images score lower than many, so only scores of the same splits can be
    compared.

    Every row of probabilities sums to one. A split is `split_size` consecutive images, all by default; the result is the
    mean of the splits' scores, and the last split may be smaller.
    """
    scores = []
    for part_NK in probabilities_NK.detach().split(split_size or len(probabilities_NK)):
        p_NK = part_NK.to(torch.float64)
        divergence_N = (torch.xlogy(p_NK, p_NK) - torch.xlogy(p_NK, p_NK.mean(dim=0))).sum(dim=1)
        scores.append(divergence_N.mean().exp().item())
    return sum(scores) / len(scores)


class PrecisionRecall(NamedTuple):
    """Share of generated images near real ones, and of real images near generated ones."""

    precision: float
    recall: float


@dataclass(frozen=True, eq=False)
class Manifold:
    """A set of images as the union of balls around them: (N, F) and (N,), float64.

    A ball's radius is the distance to the k-th nearest neighbour in the set. An image is not its own neighbour, but an
    identical image is. The border belongs to the ball.

    Distances are computed from differences or, with `by_product`, from matrix products. The latter is several times as
    fast for long features, but identical images then have a distance of about 1e-7 of their length instead of zero.
    """

    centres_NF: Tensor
    radii_N: Tensor
    by_product: bool = False

    @classmethod
    def of(cls, features_NF: Tensor, k: int = 3, *, by_product: bool = False) -> Manifold:
        """Compute the balls around N rows of features.

        Raises:
            ValueError: there are at most k rows, or k is not positive.
        """
        centres, count = features_NF.detach().to(torch.float64), len(features_NF)
        if not 1 <= k < count:
            raise ValueError(f"the {k}-th neighbour needs 1 <= k < number of images, got {count} images")
        radii = []
        for start, distances in _distance_blocks(centres, centres, by_product):
            rows = torch.arange(len(distances), device=distances.device)
            distances[rows, start + rows] = torch.inf
            radii.append(distances.kthvalue(k, dim=1).values)
        return cls(centres, torch.cat(radii), by_product)

    def share_of(self, other: Manifold) -> float:
        """The share of the other set's images that are in at least one ball of this one."""
        blocks = _distance_blocks(other.centres_NF, self.centres_NF, self.by_product)
        inside = sum(int((block <= self.radii_N).any(dim=1).sum()) for _, block in blocks)
        return inside / len(other.centres_NF)


def precision_recall(real: Manifold, fake: Manifold) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2)."""
    return PrecisionRecall(precision=real.share_of(fake), recall=fake.share_of(real))


def _distance_blocks(rows_NF: Tensor, columns_MF: Tensor, by_product: bool) -> Iterator[tuple[int, Tensor]]:
    """Blocks of the N x M distances, each with the index of its first row."""
    size = max(1, BLOCK_DISTANCES // len(columns_MF))
    # The faster matrix product loses the exact zeros of identical images.
    mode = "use_mm_for_euclid_dist" if by_product else "donot_use_mm_for_euclid_dist"
    for start in range(0, len(rows_NF), size):
        yield start, torch.cdist(rows_NF[start : start + size], columns_MF, compute_mode=mode)
