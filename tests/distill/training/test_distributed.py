"""The processes of a training: what they send each other, and that one of them alone sends nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.training.distributed import BUCKET_BYTES, World, buckets, init_distributed
from shards.core.errors import Refused

QUARTER = BUCKET_BYTES // 4 // 4
"""Numbers of float32 in a quarter of a bucket."""


def empty(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(count, dtype=dtype, device="meta")


def cut(tensors: list[torch.Tensor]) -> list[list[int]]:
    """Places of the tensors in their buckets."""
    places = {id(tensor): place for place, tensor in enumerate(tensors)}
    return [[places[id(tensor)] for tensor in bucket] for bucket in buckets(tensors)]


def test_neighbours_share_a_bucket_up_to_its_limit() -> None:
    assert cut([]) == []
    assert cut([empty(QUARTER)] * 1) == [[0]]
    assert cut([empty(QUARTER) for _ in range(6)]) == [[0, 1, 2, 3], [4, 5]]
    assert cut([empty(2 * QUARTER), empty(2 * QUARTER + 1), empty(1)]) == [[0], [1, 2]]


def test_one_that_is_larger_than_a_bucket_is_sent_alone() -> None:
    assert cut([empty(1), empty(5 * QUARTER), empty(1), empty(1)]) == [[0], [1], [2, 3]]


def test_numbers_of_different_kinds_are_not_mixed_and_the_order_stays() -> None:
    kinds = (torch.float32, torch.float32, torch.float64, torch.float32)
    assert cut([empty(3, kind) for kind in kinds]) == [[0, 1], [2], [3]]


def test_the_cut_does_not_depend_on_the_values() -> None:
    torch.manual_seed(0)
    shapes = [(7, 5), (BUCKET_BYTES // 8,), (3,), (BUCKET_BYTES // 8,), (11,)]
    assert (
        cut([torch.zeros(shape) for shape in shapes])
        == cut([torch.randn(shape) for shape in shapes])
        == [[0, 1, 2], [3, 4]]
    )


def test_one_process_agrees_with_itself() -> None:
    world, tensor = World(), torch.tensor([1.5, -2.0])
    world.add([tensor])
    world.wait()
    assert tensor.tolist() == [1.5, -2.0]
    assert [world.broadcast_from_zero(None), world.broadcast_from_zero(3), world.all_reduce_min(7)] == [
        None,
        3,
        7,
    ]
    assert world.any(True)
    assert not world.any(False)
    assert world.is_main


def test_without_torchrun_nothing_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with init_distributed("cpu") as world:
        assert world == World()
        assert not torch.distributed.is_initialized()


def test_a_gpu_where_there_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with (
        pytest.raises(Refused, match=r"torch finds no GPU here: set train\.device to cpu"),
        init_distributed("cuda"),
    ):
        pass


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with (
        pytest.raises(Refused, match="started 3 processes here for 2 GPUs: start one for each"),
        init_distributed(device),
    ):
        pass


TOGETHER = """
import json, os, sys
from pathlib import Path
import torch
import torch.distributed as dist
import distill.training.distributed as module
from distill.config import TrainConfig
from distill.training.gradients import Gradients
from distill.objective.losses import BatchTargets, MicroBatch
from distill.training.distributed import World, init_distributed
from distill.student.student import Student
from distill.objective.targets import trajectory_states
from generate_pairs.teachers.checkpoints import load_teacher

module.BUCKET_BYTES = 4096
torch.set_num_threads(1)
torch.manual_seed(0)
student = Student.from_teacher(load_teacher(sys.argv[1]), (0, 2), 3, "", 1, initialise=True).double()
length = student.layout.num_tokens
generator = torch.Generator().manual_seed(1)
tokens = torch.randint(24, (6, length), generator=generator)
noise = torch.randn(6, length, 3, generator=generator, dtype=torch.float64)
timesteps = torch.tensor([0, 2, 2, 0, 2, 2])
targets = trajectory_states(noise, tokens, timesteps, student.tokenizer.codebook_VC, student.layout)
whole = Share(targets, tokens, torch.tensor([0, 1, 2, 3, 4, 5]))
config = TrainConfig(embedding_weight=0.5, image_weight=0.25)
asked = Asked.of(timesteps.numpy(), student.layout)

def computed(ranks, share):
    gradients = Gradients(student, config, ranks, 2)
    losses = gradients(share, asked)
    values = [losses.total, *losses.parts.values()]
    return values, [parameter.grad.clone() for parameter in gradients.parameters]

def worst(found, expected):
    pairs = zip(found, expected, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-300)).item() for a, b in pairs)

folder = Path(sys.argv[2])
rank = int(os.fork() == 0)
os.environ.update(RANK=str(rank), WORLD_SIZE="2")
store, real = dist.FileStore(str(folder / "store"), 2), dist.init_process_group
dist.init_process_group = lambda backend, timeout: real(backend, store=store, rank=rank, world_size=2, timeout=timeout)
with joined_ranks("cpu") as ranks:
    found = computed(ranks, whole.split(2)[rank])
    mixed = [torch.full((3,), 1.0 + rank), torch.tensor(10 * (rank + 1)), torch.full((2, 2), 0.5)]
    ranks.add(mixed)
    answers = {
        "ranks": [ranks.rank, ranks.size, ranks.is_first],
        "mixed": [tensor.tolist() for tensor in mixed],
        "first_says": [ranks.first_says(5 + rank), ranks.first_says(None if rank == 0 else 9)],
        "smallest": ranks.smallest(3 - rank),
        "any": [ranks.any(rank == 1), ranks.any(False)],
    }
expected = computed(Ranks(), whole)
answers |= {"losses": worst(found[0], expected[0]), "gradient": worst(found[1], expected[1])}
answers["own share alone"] = worst(computed(Ranks(), whole.split(2)[rank])[1], expected[1])
(folder / f"{rank}.json").write_text(json.dumps(answers))
if rank == 0:
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.parametrize("family", ["llamagen"], indirect=True)
def test_two_processes_add_up_the_gradient_of_the_whole_batch_and_agree(
    teacher_path: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", TOGETHER, str(teacher_path), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    for rank in range(2):
        answers: dict[str, Any] = json.loads((tmp_path / f"{rank}.json").read_text())
        assert answers["losses"] < 1e-12
        assert answers["gradient"] < 1e-12
        assert answers["own share alone"] > 1e-3
        assert answers["ranks"] == [rank, 2, rank == 0]
        assert answers["mixed"] == [[3.0] * 3, 30, [[1.0] * 2] * 2]
        assert answers["broadcast_from_zero"] == [5, None]
        assert answers["smallest"] == 2
        assert answers["any"] == [True, False]
