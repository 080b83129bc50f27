"""Frechet distance, inception score, precision and recall against closed forms and reference implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from prdc import compute_prdc

from distill.evaluation import image_metrics
from distill.evaluation.image_metrics import (
    Manifold,
    Moments,
    PrecisionRecall,
    frechet_distance,
    inception_score,
    precision_recall,
)

pytestmark = pytest.mark.quick


def random_covariance(rng: np.random.Generator, dim: int, rank: int) -> np.ndarray:
    root = rng.normal(size=(dim, rank))
    return root @ root.T


def test_moments_are_the_mean_and_the_unbiased_covariance():
    moments = Moments.of(torch.tensor([[1.0, 2.0], [3.0, 8.0]]))
    assert moments.mean_F.tolist() == [2.0, 5.0]
    assert moments.covariance_FF.tolist() == [[2.0, 6.0], [6.0, 18.0]]
    features = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    expected = np.cov(features.double().numpy(), rowvar=False)
    np.testing.assert_allclose(Moments.of(features).covariance_FF, expected, rtol=1e-12, atol=1e-14)


def test_moments_of_one_image_or_of_nan_are_refused():
    with pytest.raises(ValueError, match=r"at least two images, got shape \(1, 3\)"):
        Moments.of(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="NaN or infinite"):
        Moments.of(torch.tensor([[0.0], [math.nan]]))


def test_distance_of_commuting_gaussians():
    """With diagonal covariances: |m - n|^2 + sum (sqrt a - sqrt b)^2."""
    a = Moments(np.array([0.0, 1.0, 2.0]), np.diag([1.0, 4.0, 0.0]))
    b = Moments(np.array([3.0, 1.0, -2.0]), np.diag([9.0, 4.0, 0.25]))
    assert frechet_distance(a, b) == pytest.approx(9.0 + 16.0 + 4.0 + 0.0 + 0.25, abs=1e-12)


def test_distance_of_one_dimension():
    a, b = Moments.of(torch.tensor([[0.0], [2.0]])), Moments.of(torch.tensor([[5.0], [11.0]]))
    assert frechet_distance(a, b) == pytest.approx(7.0**2 + (math.sqrt(18.0) - math.sqrt(2.0)) ** 2, abs=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 16, 300])
def test_distance_of_gaussians_with_the_same_axes(dim):
    """The distance is the sum over the axes: |m - n|^2 + sum (sqrt a - sqrt b)^2."""
    rng = np.random.default_rng(dim)
    axes = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    spread_a, spread_b = rng.exponential(size=(2, dim))
    mean_a, mean_b = rng.normal(size=(2, dim))
    a, b = (Moments(mean, axes * spread @ axes.T) for mean, spread in ((mean_a, spread_a), (mean_b, spread_b)))
    expected = np.square(mean_a - mean_b).sum() + np.square(np.sqrt(spread_a) - np.sqrt(spread_b)).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_distance_of_two_dimensions_with_different_axes():
    """tr (A B)^(1/2) of 2 x 2 matrices is sqrt(tr AB + 2 sqrt(det A det B))."""
    A, B = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[1.0, -0.5], [-0.5, 4.0]])
    root = math.sqrt(np.trace(A @ B) + 2.0 * math.sqrt(np.linalg.det(A) * np.linalg.det(B)))
    a, b = Moments(np.array([1.0, 2.0]), A), Moments(np.array([0.0, 4.0]), B)
    expected = 1.0 + 4.0 + np.trace(A) + np.trace(B) - 2.0 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_distance_of_samples_approaches_that_of_their_gaussians():
    rng = np.random.default_rng(5)
    roots = [rng.normal(size=(4, 4)) for _ in range(2)]
    means = [rng.normal(size=4) for _ in range(2)]
    exact = frechet_distance(*(Moments(mean, root @ root.T) for mean, root in zip(means, roots, strict=True)))
    drawn = [
        Moments.of(torch.from_numpy(mean + rng.normal(size=(200_000, 4)) @ root.T))
        for mean, root in zip(means, roots, strict=True)
    ]
    assert frechet_distance(*drawn) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("dim", [3, 64])
def test_distance_against_torchmetrics(dim):
    peer = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is not installed")
    generator = torch.Generator().manual_seed(dim)
    a, b = (
        Moments.of(torch.randn(500, dim, generator=generator) @ torch.randn(dim, dim, generator=generator))
        for _ in range(2)
    )
    theirs = peer._compute_fid(
        *(torch.from_numpy(part) for moments in (a, b) for part in (moments.mean_F, moments.covariance_FF))
    )
    assert frechet_distance(a, b) == pytest.approx(theirs.item(), rel=1e-9)


@pytest.mark.parametrize("rank", [24, 24 * 3])
def test_distance_against_the_matrix_square_root(rank):
    rng = np.random.default_rng(rank)
    a, b = (Moments(rng.normal(size=24), random_covariance(rng, 24, rank)) for _ in range(2))
    cross = np.trace(scipy.linalg.sqrtm(a.covariance_FF @ b.covariance_FF).real)
    expected = np.square(a.mean_F - b.mean_F).sum() + np.trace(a.covariance_FF) + np.trace(b.covariance_FF) - 2.0 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_distance_to_itself_is_zero_for_a_singular_covariance():
    rng = np.random.default_rng(0)
    moments = Moments(rng.normal(size=40), random_covariance(rng, 40, 5))
    assert abs(frechet_distance(moments, moments)) < 1e-11 * np.trace(moments.covariance_FF)


def test_distance_does_not_depend_on_the_basis():
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    a, b = (Moments(rng.normal(size=10), random_covariance(rng, 10, 10)) for _ in range(2))
    turned = [Moments(rotation @ m.mean_F, rotation @ m.covariance_FF @ rotation.T) for m in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(a, b), rel=1e-10)


def test_inception_score_of_certain_and_varied_probabilities_is_the_number_of_classes():
    assert inception_score(torch.eye(10).repeat(5, 1)) == pytest.approx(10.0, abs=1e-12)


def test_inception_score_of_equal_probabilities_is_one():
    assert inception_score(torch.tensor([[0.2, 0.3, 0.5]]).repeat(7, 1)) == pytest.approx(1.0, abs=1e-12)
    assert inception_score(torch.eye(4)[:1].repeat(9, 1)) == pytest.approx(1.0, abs=1e-12)


def test_inception_score_by_hand():
    """Rows (1, 0) and (1/2, 1/2): the mean is (3/4, 1/4)."""
    first = math.log(1.0 / 0.75)
    second = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    score = inception_score(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    assert score == pytest.approx(math.exp((first + second) / 2.0), abs=1e-12)


def test_inception_score_of_splits_is_the_mean_of_theirs():
    """Splits are consecutive, and the last may be smaller, as in guided-diffusion's evaluator with 5,000 each."""
    p = torch.rand(23, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p /= p.sum(1, keepdim=True)
    scores = []
    for part in (p[:10], p[10:20], p[20:]):
        divergence = part * (part.log() - part.mean(0, keepdim=True).log())
        scores.append(divergence.sum(1).mean().exp().item())
    assert inception_score(p, 10) == pytest.approx(sum(scores) / 3, rel=1e-12)
    assert inception_score(p, 23) == inception_score(p, 100) == inception_score(p)


@pytest.mark.filterwarnings("ignore:std")
def test_inception_score_against_torchmetrics():
    peer = pytest.importorskip("torchmetrics.image.inception", reason="torchmetrics is not installed")
    logits = 2 * torch.randn(200, 12, generator=torch.Generator().manual_seed(1))
    with pytest.warns(UserWarning, match="will save all extracted features"):
        # The images of 2 x 2 with three channels contain the logits, which Flatten returns as features.
        theirs = peer.InceptionScore(feature=torch.nn.Flatten(), splits=1)
    theirs.update(logits.view(200, 3, 2, 2))
    assert inception_score(logits.softmax(1)) == pytest.approx(theirs.compute()[0].item(), rel=1e-5)


def measured(real, fake, k=3):
    return precision_recall(Manifold.of(real, k), Manifold.of(fake, k))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_against_prdc(k, capsys):
    rng = np.random.default_rng(k)
    real, fake = rng.normal(size=(150, 6)), 0.6 * rng.normal(size=(190, 6)) + 0.3
    expected = compute_prdc(real_features=real, fake_features=fake, nearest_k=k)
    found = measured(torch.from_numpy(real), torch.from_numpy(fake), k)
    assert found == PrecisionRecall(expected["precision"], expected["recall"])
    assert 0.0 < found.recall < found.precision <= 1.0


def test_neighbours_by_matrix_products_equal_those_of_differences():
    rng = np.random.default_rng(9)
    real, fake = rng.normal(size=(300, 256)), 0.95 * rng.normal(size=(280, 256)) + 0.02
    expected = compute_prdc(real_features=real, fake_features=fake, nearest_k=3)
    sets = [Manifold.of(torch.from_numpy(points), by_product=True) for points in (real, fake)]
    assert precision_recall(*sets) == PrecisionRecall(expected["precision"], expected["recall"])
    torch.testing.assert_close(sets[0].radii_N, Manifold.of(torch.from_numpy(real)).radii_N)


def test_precision_and_recall_by_hand():
    """On a line, k = 1: real balls [-1, 1], [0, 2], [8, 12], [10, 14]; fake [1.5, 2.5], [2, 3], ..."""
    real = torch.tensor([[0.0], [1.0], [10.0], [12.0]])
    fake = torch.tensor([[2.0], [2.5], [7.0], [100.0]])
    assert measured(real, fake, k=1) == PrecisionRecall(precision=0.25, recall=0.5)


def test_identical_images_are_neighbours_and_the_border_is_inside():
    real = torch.tensor([[0.0], [0.0], [5.0], [5.0]])
    assert measured(real, torch.tensor([[0.0], [0.0], [5.0], [6.0]]), k=1) == PrecisionRecall(0.75, 1.0)


def test_the_block_size_changes_nothing(monkeypatch):
    rng = torch.Generator().manual_seed(3)
    real, fake = torch.randn(70, 4, generator=rng), torch.randn(55, 4, generator=rng)
    whole = measured(real, fake)
    for distances in (3 * 70, 1):
        monkeypatch.setattr(image_metrics, "BLOCK_DISTANCES", distances)
        assert measured(real, fake) == whole


@pytest.mark.parametrize("k", [0, 4])
def test_a_missing_neighbour_is_refused(k):
    with pytest.raises(ValueError, match="got 4 images"):
        Manifold.of(torch.randn(4, 2), k)
