"""Batches through real worker processes: the same in the same order, resumed anywhere, failing with the same message."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import closing
from itertools import islice

import pytest
import torch
import torch.multiprocessing

from shards import Failed, Manifest, Refused
from shards.dataset.manifest_row import shard_path
from shards.streaming.stream import PairStream


@pytest.fixture
def manifest(make_spec, make_dataset) -> Manifest:
    return make_dataset(make_spec(), 7)


def stream_of(manifest: Manifest, **changes) -> PairStream:
    settings = {"batch_size": 8, "seed": 1, "window": 2} | changes
    return PairStream(manifest.root, manifest.view(43), **settings)


def columns(batch) -> list[torch.Tensor]:
    return [batch.index_B, batch.epoch_B, batch.noise_BLC, batch.tokens_BL, batch.label_B]


def taken(stream: PairStream, count: int) -> list[list[torch.Tensor]]:
    return [[column.clone() for column in columns(batch)] for batch in islice(stream, count)]


def assert_same(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(*both) for both in zip(one, other, strict=True))


@pytest.mark.parametrize("cases", [range(12), pytest.param(range(12, 50), marks=pytest.mark.slow)], ids=str)
def test_resuming_is_exact_for_any_number_of_workers_and_ranks(manifest, cases) -> None:
    """Cases drawn at random: where a run stops, with how many workers and ranks it began and goes on."""
    whole = taken(stream_of(manifest), 26)
    for case in cases:
        draw = random.Random(case)
        stop = draw.randrange(20)
        before, after = draw.randrange(5), draw.randrange(5)
        world, rank = draw.choice([(1, 0), (2, draw.randrange(2)), (4, draw.randrange(4)), (8, 5)])
        with closing(stream_of(manifest, num_workers=before, prefetch=draw.randint(1, 3))) as first:
            assert_same(taken(first, min(stop, 3)), whole[: min(stop, 3)])
            first.load_state_dict(first.state_dict() | {"position": 8 * stop})
            assert_same(taken(first, 1), whole[stop : stop + 1])
            state = first.state_dict()
        assert state["position"] == 8 * (stop + 1)
        with closing(stream_of(manifest, num_workers=after, rank=rank, world_size=world)) as second:
            second.load_state_dict(state)
            share = slice(rank * 8 // world, (rank + 1) * 8 // world)
            expected = [[column[share] for column in batch] for batch in whole[stop + 1 : stop + 4]]
            assert_same(taken(second, 3), expected)
            assert second.state_dict()["position"] == 8 * (stop + 4)


def test_workers_leave_the_generator_of_the_training_alone(manifest) -> None:
    before = torch.get_rng_state()
    with closing(stream_of(manifest, num_workers=1)) as stream:
        next(stream)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_a_broken_shard_gives_the_same_message(manifest, num_workers) -> None:
    path = shard_path(manifest.root, "pairs-000005")
    intact = path.read_bytes()
    path.write_bytes(intact[:-1])
    with closing(stream_of(manifest, num_workers=num_workers)) as stream:
        handed = 0
        with pytest.raises(Failed) as failure:
            for _ in stream:
                handed += 1
        assert str(failure.value) == (
            f"{path}: it has {len(intact) - 1} bytes, but {len(intact)} were committed; "
            f"run `tokenleap shards repair {manifest.root}`"
        )
        assert stream.position == 8 * handed
        path.write_bytes(intact)
        assert_same(taken(stream, 3), taken(stream_of(manifest), handed + 3)[handed:])


def children() -> list[int]:
    return sorted(child.pid for child in torch.multiprocessing.active_children())


def test_signals_to_all_processes_stop_no_worker(manifest) -> None:
    with closing(stream_of(manifest, num_workers=2, prefetch=1)) as stream:
        found = taken(stream, 2)
        workers = children()
        for worker in workers:
            for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
                # From another process than the parent, as a scheduler sends them.
                subprocess.run(["kill", f"-{number.value}", str(worker)], check=True)
        found += taken(stream, 8)
        assert children() == workers
    assert children() == []
    assert_same(found, taken(stream_of(manifest), 10))


def test_a_killed_worker_is_reported(manifest) -> None:
    with closing(stream_of(manifest, num_workers=1)) as stream:
        next(stream)
        os.kill(children()[0], signal.SIGKILL)
        with pytest.raises(Failed, match="a process that reads pairs died"):
            list(islice(stream, 50))
        position = stream.position
        next(stream)
        assert stream.position == position + 8


ABANDONED = """
import sys
from shards import Manifest
from shards.streaming.stream import PairStream
manifest = Manifest.open(sys.argv[1])
stream = PairStream(manifest.root, manifest.view(), 8, seed=0, num_workers=2)
next(stream)
from torch.multiprocessing import active_children
print(*[child.pid for child in active_children()], flush=True)
if sys.argv[2] == "killed":
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
"""


KILLED_EARLY = """
import os, signal, sys, time
import shards.streaming.prefetch
from shards import Manifest
from shards.streaming.stream import PairStream
obey = shards.streaming.prefetch._obey_parent_alone
def late(worker):
    time.sleep(1)
    obey(worker)
shards.streaming.prefetch._obey_parent_alone = late
manifest = Manifest.open(sys.argv[1])
stream = PairStream(manifest.root, manifest.view(), 8, seed=0)
ahead = shards.streaming.prefetch.PrefetchedBatches(stream._batches, 0, 2, 2, False)
from torch.multiprocessing import active_children
print(*[child.pid for child in active_children()], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("script", "end"), [(ABANDONED, "at its end"), (ABANDONED, "killed"), (KILLED_EARLY, "killed")])
def test_workers_end_silently_with_their_process(manifest, script, end) -> None:
    """Also before they began: torch's check reads the parent's id after the worker's start, and sees another parent."""
    finished = subprocess.run(
        [sys.executable, "-c", script, str(manifest.root), end], capture_output=True, text=True, timeout=60
    )
    assert (finished.returncode, finished.stderr) == (-9 if end == "killed" else 0, "")
    workers = [int(pid) for pid in finished.stdout.split()]
    assert len(workers) == 2
    assert end_soon(workers)


def end_soon(pids: list[int]) -> bool:
    """Whether processes end; what they wrote to is closed a little before they are gone."""
    deadline = time.monotonic() + 30
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(map(alive, pids))


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_workers": -1}, "num_workers is -1"), ({"prefetch": 0}, "prefetch 0"), ({"pin_memory": True}, "for a GPU")],
)
def test_impossible_loading_is_refused(manifest, monkeypatch, arguments, message) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Refused, match=message):
        stream_of(manifest, **arguments)
