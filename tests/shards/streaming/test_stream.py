"""Training batches: every pair of the view, in one order, under any world size, from any point."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

import shards.streaming.shard_window
from shards import Order, Refused
from shards.streaming.shard_source import ShardSource
from shards.streaming.stream import PairStream

pytestmark = pytest.mark.quick


def batches_equal(one, other) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("index_B", "epoch_B", "noise_BLC", "tokens_BL", "label_B")
    )


@pytest.mark.parametrize("noise", ["stored", "counter"])
def test_batches_hold_the_pairs_in_the_order(make_spec, make_dataset, make_pairs, noise) -> None:
    manifest = make_dataset(make_spec(noise=noise, num_heldout=3), 5)
    view = manifest.view(30)
    stream = PairStream(manifest.root, view, batch_size=7, seed=9, window=2)
    batches = list(islice(stream, 10))
    expected = 3 + Order((5, 8, 8, 8, 1), seed=9, window=2).indices(0, 70)
    assert torch.cat([batch.index_B for batch in batches]).tolist() == expected.tolist()
    assert torch.cat([batch.epoch_B for batch in batches]).tolist() == [place // 30 for place in range(70)]
    for batch in batches:
        assert (batch.noise_BLC.dtype, batch.tokens_BL.dtype) == (torch.float16, torch.int64)
        for place, index in enumerate(batch.index_B.tolist()):
            pairs = make_pairs(manifest.spec, index // 8).take(np.array([index % 8]))
            assert np.array_equal(batch.noise_BLC[place].numpy(), pairs.noise_BLC[0])
            assert batch.tokens_BL[place].tolist() == pairs.tokens_BL[0].tolist()
            assert batch.label_B[place].item() == index % 12


def test_an_epoch_meets_each_pair_of_the_view_once(make_spec, make_dataset) -> None:
    manifest = make_dataset(make_spec(), 5)
    stream = PairStream(manifest.root, manifest.view(20), batch_size=4, seed=0)
    for _ in range(3):
        epoch = torch.cat([batch.index_B for batch in islice(stream, 5)])
        assert sorted(epoch.tolist()) == list(range(8, 28))


def test_a_batch_may_be_larger_than_the_view(make_spec, make_dataset) -> None:
    manifest = make_dataset(make_spec(), 2)
    batch = next(PairStream(manifest.root, manifest.view(3), batch_size=10, seed=0))
    assert batch.epoch_B.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize("consumed", [0, 1, 4, 13])
def test_resuming_is_exact(make_spec, make_dataset, consumed) -> None:
    manifest = make_dataset(make_spec(), 4)
    whole = list(islice(PairStream(manifest.root, manifest.view(), 6, seed=1, window=2), 20))
    first = PairStream(manifest.root, manifest.view(), 6, seed=1, window=2)
    list(islice(first, consumed))
    state = first.state_dict()
    assert state["position"] == 6 * consumed
    second = PairStream(manifest.root, manifest.view(), 6, seed=1, window=2)
    second.load_state_dict(state)
    for resumed, expected in zip(islice(second, 20 - consumed), whole[consumed:], strict=True):
        assert batches_equal(resumed, expected)


def test_ranks_share_the_batches_and_the_world_may_change(make_spec, make_dataset) -> None:
    manifest = make_dataset(make_spec(), 4)
    view = manifest.view()
    whole = [batch.index_B.tolist() for batch in islice(PairStream(manifest.root, view, 6, seed=1), 9)]
    state = PairStream(manifest.root, view, 6, seed=1).state_dict()
    for number, world_size in enumerate((2, 3, 6)):
        ranks = [PairStream(manifest.root, view, 6, 1, rank, world_size) for rank in range(world_size)]
        for stream in ranks:
            stream.load_state_dict(state)
        for expected in whole[3 * number : 3 * number + 3]:
            assert [index for stream in ranks for index in next(stream).index_B.tolist()] == expected
        states = [stream.state_dict() for stream in ranks]
        assert all(other == states[0] for other in states)
        state = states[0]


def test_a_view_keeps_its_order_when_the_data_set_grows(make_spec, make_dataset) -> None:
    small = make_dataset(make_spec(), 3)
    before = list(islice(PairStream(small.root, small.view(12), 4, seed=1), 6))
    grown = make_dataset(make_spec(), 6)
    resumed = PairStream(grown.root, grown.view(12), 4, seed=1)
    resumed.load_state_dict(PairStream(small.root, small.view(12), 4, seed=1).state_dict())
    after = list(islice(resumed, 6))
    assert all(batches_equal(one, other) for one, other in zip(before, after, strict=True))


def test_shards_are_read_once_a_window_and_hashed_once(make_spec, make_dataset, monkeypatch) -> None:
    manifest = make_dataset(make_spec(), 13)
    reads, hashed = [], []
    read, check = ShardSource.load, shards.streaming.shard_window.check_digest

    def counted(self, row, *rest) -> bool:
        reads.append(row.shard)
        return read(self, row, *rest)

    monkeypatch.setattr(ShardSource, "load", counted)
    monkeypatch.setattr(
        shards.streaming.shard_window, "check_digest", lambda row, digest: (hashed.append(row.shard), check(row, digest))
    )
    stream = PairStream(manifest.root, manifest.view(), batch_size=5, seed=0, window=3)
    list(islice(stream, 12 * 8 * 4 // 5))
    assert sorted(hashed) == [row.shard for row in manifest.rows[1:]]
    assert len(reads) <= 12 * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2"),
        ({"seed": 5}, "seed: found 5, requested 0"),
        ({"size": 9}, "size: found 9, requested 8"),
        ({"first": 16}, "first: found 16, requested 8"),
        ({"version": None}, "version None"),
        ({"batch_size": 8}, "batch_size: found 8, requested 4"),
        ({"fingerprint": "f"}, "fingerprint: found f, requested "),
        ({"window": 2}, "window: found 2, requested 16"),
        ({"pairs_per_shard": 4}, "pairs_per_shard: found 4, requested 8"),
        ({"position": 3}, "position is 3"),
        ({"position": -4}, "position is -4"),
        ({"position": None}, "position is None"),
    ],
)
def test_a_state_that_cannot_be_honoured_is_refused(make_spec, make_dataset, change, message) -> None:
    manifest = make_dataset(make_spec(), 2)
    stream = PairStream(manifest.root, manifest.view(), 4, seed=0)
    with pytest.raises(Refused, match=message):
        stream.load_state_dict(stream.state_dict() | change)
    assert stream.position == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"world_size": 3}, "a batch of 4 cannot be cut into 3 .*: start 2, or take batches of 6 pairs"),
        ({"world_size": 2, "rank": 2}, "rank is 2"),
        ({"batch_size": 0}, "a batch of 0"),
        ({"window": 0}, "window is 0"),
    ],
)
def test_impossible_streams_are_refused(make_spec, make_dataset, arguments, message) -> None:
    manifest = make_dataset(make_spec(), 2)
    with pytest.raises(Refused, match=message):
        PairStream(manifest.root, manifest.view(), **({"batch_size": 4, "seed": 0} | arguments))


def test_an_empty_view_cannot_be_streamed(make_spec, make_dataset) -> None:
    manifest = make_dataset(make_spec(num_heldout=0), 1)
    with pytest.raises(Refused, match="cannot stream 0 pairs"):
        PairStream(manifest.root, manifest.heldout(), 4, seed=0)
