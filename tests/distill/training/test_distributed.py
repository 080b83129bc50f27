"""Collective operations of the processes of a training, and of a single process."""

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
"""Number of float32 values in a quarter of a bucket."""


def empty(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(count, dtype=dtype, device="meta")


def bucket_indices(tensors: list[torch.Tensor]) -> list[list[int]]:
    """Indices of the tensors in each bucket."""
    indices = {id(tensor): index for index, tensor in enumerate(tensors)}
    return [[indices[id(tensor)] for tensor in bucket] for bucket in buckets(tensors)]


def test_adjacent_tensors_share_a_bucket_up_to_its_limit() -> None:
    assert bucket_indices([]) == []
    assert bucket_indices([empty(QUARTER)] * 1) == [[0]]
    assert bucket_indices([empty(QUARTER) for _ in range(6)]) == [[0, 1, 2, 3], [4, 5]]
    assert bucket_indices([empty(2 * QUARTER), empty(2 * QUARTER + 1), empty(1)]) == [[0], [1, 2]]


def test_a_tensor_larger_than_a_bucket_has_its_own() -> None:
    assert bucket_indices([empty(1), empty(5 * QUARTER), empty(1), empty(1)]) == [[0], [1], [2, 3]]


def test_dtypes_are_not_mixed_and_the_order_is_kept() -> None:
    dtypes = (torch.float32, torch.float32, torch.float64, torch.float32)
    assert bucket_indices([empty(3, dtype) for dtype in dtypes]) == [[0, 1], [2], [3]]


def test_buckets_do_not_depend_on_values() -> None:
    torch.manual_seed(0)
    shapes = [(7, 5), (BUCKET_BYTES // 8,), (3,), (BUCKET_BYTES // 8,), (11,)]
    assert (
        bucket_indices([torch.zeros(shape) for shape in shapes])
        == bucket_indices([torch.randn(shape) for shape in shapes])
        == [[0, 1, 2], [3, 4]]
    )


def test_collectives_of_a_single_process_return_its_values() -> None:
    world, tensor = World(), torch.tensor([1.5, -2.0])
    world.all_reduce_sum([tensor])
    world.barrier()
    assert tensor.tolist() == [1.5, -2.0]
    assert world.broadcast_from_zero(None) is None
    assert world.broadcast_from_zero(3) == 3
    assert world.all_reduce_min(7) == 7
    assert world.any_rank(True)
    assert not world.any_rank(False)
    assert world.is_main


def test_without_torchrun_there_is_no_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with init_distributed("cpu") as world:
        assert world == World()
        assert not torch.distributed.is_initialized()


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
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


TWO_PROCESSES = """
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
whole = MicroBatch(targets, tokens, torch.tensor([0, 1, 2, 3, 4, 5]))
config = TrainConfig(embedding_weight=0.5, image_weight=0.25)
batch_targets = BatchTargets.of(timesteps.numpy(), student.layout)

def computed(world, micro_batch):
    gradients = Gradients(student, config, world, 2)
    losses = gradients(micro_batch, batch_targets)
    values = [losses.total, *losses.parts.values()]
    return values, [parameter.grad.clone() for parameter in gradients.parameters]

def max_relative_error(found, expected):
    pairs = zip(found, expected, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-300)).item() for a, b in pairs)

folder = Path(sys.argv[2])
rank = int(os.fork() == 0)
os.environ.update(RANK=str(rank), WORLD_SIZE="2")
store, real = dist.FileStore(str(folder / "store"), 2), dist.init_process_group
dist.init_process_group = lambda backend, timeout: real(backend, store=store, rank=rank, world_size=2, timeout=timeout)
with init_distributed("cpu") as world:
    found = computed(world, whole.split(2)[rank])
    mixed = [torch.full((3,), 1.0 + rank), torch.tensor(10 * (rank + 1)), torch.full((2, 2), 0.5)]
    world.all_reduce_sum(mixed)
    answers = {
        "world": [world.rank, world.size, world.is_main],
        "mixed": [tensor.tolist() for tensor in mixed],
        "broadcast": [world.broadcast_from_zero(5 + rank), world.broadcast_from_zero(None if rank == 0 else 9)],
        "minimum": world.all_reduce_min(3 - rank),
        "any": [world.any_rank(rank == 1), world.any_rank(False)],
    }
expected = computed(World(), whole)
answers |= {"losses": max_relative_error(found[0], expected[0]), "gradient": max_relative_error(found[1], expected[1])}
answers["own micro-batch only"] = max_relative_error(computed(World(), whole.split(2)[rank])[1], expected[1])
(folder / f"{rank}.json").write_text(json.dumps(answers))
if rank == 0:
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.parametrize("family", ["llamagen"], indirect=True)
def test_two_processes_sum_the_gradient_of_the_whole_batch(
    teacher_path: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", TWO_PROCESSES, str(teacher_path), str(tmp_path)],
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
        assert answers["own micro-batch only"] > 1e-3
        assert answers["world"] == [rank, 2, rank == 0]
        assert answers["mixed"] == [[3.0] * 3, 30, [[1.0] * 2] * 2]
        assert answers["broadcast"] == [5, None]
        assert answers["minimum"] == 2
        assert answers["any"] == [True, False]
