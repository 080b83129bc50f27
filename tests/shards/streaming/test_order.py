"""The order of training samples: a function, whoever asks for which part of it."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from shards import Order
from shards.streaming.order import rank_slice

pytestmark = pytest.mark.quick

SIZES = (8, 8, 5, 8, 8, 8, 8, 3)


def test_golden_values() -> None:
    """ORDER: another value here means that a resumed training would meet other pairs than it was going to."""
    first = [9, 10, 2, 1, 0, 7, 5, 4, 8, 6, 3, 9, 4, 5, 10, 3, 2, 6, 0, 7, 8, 1]
    assert Order((3, 3, 3, 2), seed=0, window=2).indices(0, 22).tolist() == first
    far = Order((1000,) * 40, seed=2**63, window=16).indices(10**9, 10**9 + 5000)
    assert (
        hashlib.sha256(far.astype("<i8").tobytes()).hexdigest()
        == "a70f076f567f3ba4bdd2d7863db05e15273dceee623baae09ffd0d68d4964d37"
    )


@pytest.mark.parametrize("window", [1, 3, 8, 100])
def test_each_epoch_is_a_permutation_and_no_two_are_alike(window) -> None:
    order = Order(SIZES, seed=4, window=window)
    size = order.epoch_size
    assert size == sum(SIZES)
    epochs = [order.indices(epoch * size, (epoch + 1) * size) for epoch in range(6)]
    for samples in epochs:
        assert samples.dtype == np.int64
        assert sorted(samples.tolist()) == list(range(size))
    assert len({samples.tobytes() for samples in epochs}) == 6


def test_slices_agree_however_they_are_cut() -> None:
    order = Order(SIZES, seed=4, window=3)
    whole = order.indices(0, 400)
    for step in (1, 7, 56, 130):
        pieces = [order.indices(start, min(start + step, 400)) for start in range(0, 400, step)]
        assert np.array_equal(np.concatenate(pieces), whole)
    assert np.array_equal(order.indices(333, 390), whole[333:390])
    assert len(order.indices(9, 9)) == 0


def test_a_window_draws_from_its_shards_alone() -> None:
    order = Order((10,) * 12, seed=1, window=4)
    for epoch in range(3):
        shards = order.indices(epoch * 120, (epoch + 1) * 120) // 10
        windows = [set(shards[start : start + 40].tolist()) for start in (0, 40, 80)]
        assert [len(members) for members in windows] == [4, 4, 4]
        assert len(set.union(*windows)) == 12


def test_samples_are_mixed_within_a_window() -> None:
    shards = Order((100,) * 4, seed=1, window=4).indices(0, 100) // 100
    assert min(np.bincount(shards, minlength=4)) > 10


def test_places_in_an_epoch_are_uniform() -> None:
    """Over many epochs a sample's place has the mean and the spread of a uniform one."""
    order = Order((4,) * 4, seed=0, window=2)
    epochs = order.indices(0, 16 * 2000).reshape(2000, 16)
    places = np.argmax(epochs == 5, axis=1)
    assert abs(places.mean() - 7.5) < 5 * 4.61 / np.sqrt(2000)
    assert (np.bincount(places, minlength=16) > 70).all()


def test_seed_and_window_matter() -> None:
    base = Order(SIZES, seed=4, window=3).indices(0, 56).tolist()
    assert Order(SIZES, seed=5, window=3).indices(0, 56).tolist() != base
    assert Order(SIZES, seed=4, window=2).indices(0, 56).tolist() != base


def test_ranks_share_each_global_batch() -> None:
    for world_size in (1, 2, 3, 6):
        shares = [rank_slice(5, 12, rank, world_size) for rank in range(world_size)]
        assert [place for start, stop in shares for place in range(start, stop)] == list(range(60, 72))
    with pytest.raises(ValueError, match="no equal part"):
        rank_slice(0, 12, 0, 5)
    with pytest.raises(ValueError, match="no equal part"):
        rank_slice(0, 12, 2, 2)


@pytest.mark.parametrize("arguments", [((), 0, 1), ((3, 0), 0, 1), ((3,), 0, 0), ((3,), -1, 1)])
def test_impossible_orders(arguments) -> None:
    with pytest.raises(ValueError, match=r"must|needs"):
        Order(*arguments)


@pytest.mark.parametrize("seed", range(6))
def test_wherever_a_run_stops_and_however_many_ranks_go_on_the_rest_is_the_same(seed) -> None:
    """Every batch of three epochs and every world size, over random sizes: resuming is a matter of position alone."""
    draw = np.random.default_rng(seed)
    sizes = tuple(int(size) for size in draw.integers(1, 9, size=draw.integers(1, 12)))
    window, batch_size = int(draw.integers(1, 6)), 8 * int(draw.integers(1, 4))
    order = Order(sizes, seed=int(draw.integers(2**63)), window=window)
    num_batches = -(-3 * order.epoch_size // batch_size)
    whole = order.indices(0, num_batches * batch_size)
    for batch in range(num_batches):
        # Another object, as in another process: nothing but sizes, seed and window is carried over.
        resumed = Order(sizes, order.seed, window)
        rest = resumed.indices(batch * batch_size, len(whole))
        assert np.array_equal(rest, whole[batch * batch_size :])
        for world_size in (1, 2, 4, 8):
            shares = [resumed.indices(*rank_slice(batch, batch_size, rank, world_size)) for rank in range(world_size)]
            assert len({len(share) for share in shares}) == 1
            assert np.array_equal(np.concatenate(shares), rest[:batch_size])


def test_pieces_end_with_their_window() -> None:
    order = Order((10,) * 12, seed=1, window=4)
    assert [len(piece) for piece in order.pieces(30, 170)] == [10, 40, 40, 40, 10]
    assert np.array_equal(np.concatenate(list(order.pieces(30, 170))), order.indices(30, 170))
