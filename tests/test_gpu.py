"""Pairs, trainings, samples and scores of a GPU, compared with those of a CPU. Run with `pytest -m gpu`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from distill.config import DistillConfig
from distill.student.sampler import sample_images
from distill.student.student import Student
from distill.training.distributed import BUCKET_BYTES, World, init_distributed
from distill.training.memory import MemoryNeed
from distill.training.metrics import CLOCK_COLUMNS, read_metrics
from distill.training.preflight import checked_manifest
from distill.training.state import Training
from distill.training.trainer import train
from generate_pairs.config import GenerateConfig
from generate_pairs.flow_map.flow_map import FlowMap, kernel_is_possible
from generate_pairs.generation.generate import generate
from generate_pairs.teachers.checkpoints import load_teacher
from generate_pairs.teachers.filtering import SamplingSettings, filter_var
from generate_pairs.trajectory import MapNoise, generate_tokens
from pipeline.config.run_config import compose
from shards.core.errors import Refused, Stopped
from shards.dataset.manifest import Manifest
from shards.dataset.reader import read_shard
from shards.format.pairs import Pairs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]

HERE = Path(__file__).resolve().parent
LABELS = torch.arange(8) % 10
BATCH = 16_384
"""So large that the memory of GPU libraries is negligible."""
TRAIN = {
    "num_steps": 12,
    "batch_size": 24,
    "warmup_steps": 2,
    "checkpoint_interval": 4,
    "log_interval": 1,
    "embedding_weight": 0.1,
}


@pytest.fixture(scope="session")
def pairs_of(
    teacher_path: Path,
    generate_config: Callable[..., GenerateConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], tuple[Path, Pairs]]:
    """Function that generates pairs on a device and returns their folder and the first shard."""

    def generate_on(device: str) -> tuple[Path, Pairs]:
        root = tmp_path_factory.mktemp(device) / "pairs"
        config = generate_config(teacher_path)
        config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"device": device})})
        generate(config, root, workers=0, report=lambda *_: None, should_stop=lambda: False)
        manifest = Manifest.open(root)
        return root, read_shard(root, manifest.spec, manifest.heldout().rows[0])

    return generate_on


def distill_config(**train_settings: object) -> DistillConfig:
    return DistillConfig.model_validate(
        {"student": {"timesteps": [0, 2], "split": 3}, "train": {**TRAIN, **train_settings}}
    )


def run(out: Path, pairs: Path, teacher: Path, *, stop_after: int = 0, **train_settings: object) -> np.ndarray:
    """Train, on the GPU by default; returns the loss of every step."""
    config, calls = distill_config(**{"device": "cuda", **train_settings}), iter(range(1, 1_000))
    train(
        config,
        str(teacher),
        pairs,
        out,
        size=96,
        report=lambda *_: None,
        should_stop=lambda: next(calls) == stop_after,
    )
    return read_metrics(out / "metrics")["loss"].drop_null().to_numpy()


def left_in(out: Path) -> dict[str, object]:
    """All bytes that a training writes, and its metrics without machine-dependent columns."""
    files = [
        out / "student.safetensors",
        out / "config.json",
        out / "checkpoints" / "step-000012.safetensors",
    ]
    log = read_metrics(out / "metrics").drop_columns(list(CLOCK_COLUMNS))
    return {path.name: path.read_bytes() for path in files} | {"log": log.to_pydict()}


def test_pairs_equal_those_of_a_cpu_and_are_reproducible(
    pairs_of: Callable[[str], tuple[Path, Pairs]],
) -> None:
    _, here = pairs_of("cpu")
    (root, there), (_, again) = pairs_of("cuda"), pairs_of("cuda")
    assert torch.cuda.get_device_name() in str(Manifest.open(root).heldout().rows[0])
    np.testing.assert_array_equal(there.noise_BLC, here.noise_BLC)
    np.testing.assert_array_equal(again.tokens_BL, there.tokens_BL)
    # Rounding can change a token that is nearly tied, and thereby the tokens after it.
    assert (there.tokens_BL == here.tokens_BL).all(axis=1).mean() > 0.9


@pytest.mark.parametrize("name", ["digits", "digits-64", "digits-var"])
def test_a_teacher_has_the_same_logits(name: str) -> None:
    """Logits of all steps for given tokens, in full float32, including convolutions."""
    logits: dict[str, list[torch.Tensor]] = {"cpu": [], "cuda": []}
    for device, found in logits.items():
        teacher = load_teacher(name, device).teacher
        generator = torch.Generator().manual_seed(0)
        tokens_BL = torch.randint(teacher.vocab_size, (8, teacher.layout.num_tokens), generator=generator)
        forced_BL = tokens_BL.to(device)

        def choose(log_probs_BsV: torch.Tensor, span: slice, *, found=found, forced_BL=forced_BL) -> torch.Tensor:
            found.append(log_probs_BsV.cpu())
            return forced_BL[:, span]

        generate_tokens(teacher, LABELS.to(device), SamplingSettings(guidance_scale=1.5), choose)
    for here, there in zip(*logits.values(), strict=True):
        assert (here - there).abs().max() < 2e-5 * here.abs().max()


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize(("vocab_size", "top_k"), [(300, 0), (4096, 0), (4096, 900), (4096, 100)])
def test_the_kernel_gives_the_tokens_and_the_number_of_steps_of_single_steps(
    vocab_size: int, top_k: int, stop: bool
) -> None:
    assert kernel_is_possible()
    generator = torch.Generator("cuda").manual_seed(0)
    codebook_VC, noise_NC, logits_NV = (
        torch.randn(shape, generator=generator, device="cuda")
        for shape in ((vocab_size, 8), (1_000, 8), (1_000, vocab_size))
    )
    flow_map, log_p_NV = FlowMap(codebook_VC, 32), filter_var(3 * logits_NV, top_k, 0.0)
    rows = noise_NC, log_p_NV, log_p_NV.amax(dim=1, keepdim=True)
    fused, single = flow_map._by_kernel(*rows, stop), flow_map._by_steps(*rows, stop)
    assert (fused.tokens_N != single.tokens_N).sum() <= 1
    assert (fused.num_evaluations_N != single.num_evaluations_N).sum() <= 10
    assert stop or (single.num_evaluations_N == 32).all()


@pytest.mark.parametrize("name", ["digits", "digits-64", "digits-var"])
def test_the_flow_map_gives_the_same_tokens(name: str) -> None:
    tokens = {}
    for device in ("cpu", "cuda"):
        teacher = load_teacher(name, device).teacher
        shape = (64, teacher.layout.num_tokens, teacher.codebook_dim)
        noise_BLC = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)
        choose = MapNoise(FlowMap(teacher.codebook_VC.float(), 64), noise_BLC)
        labels_B = (torch.arange(64) % 10).to(device)
        tokens[device] = generate_tokens(teacher, labels_B, SamplingSettings(guidance_scale=1.5), choose).cpu()
    assert (tokens["cpu"] == tokens["cuda"]).all(dim=1).float().mean() > 0.9


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_training_has_the_losses_of_a_cpu(teacher_path: Path, pairs_root: Path, tmp_path: Path, optimizer: str) -> None:
    losses = [
        run(tmp_path / device, pairs_root, teacher_path, device=device, optimizer=optimizer, image_weight=0.1)
        for device in ("cpu", "cuda")
    ]
    assert len(losses[0]) == 12
    # On a GPU, Muon computes updates in bfloat16; the first loss precedes any update.
    np.testing.assert_allclose(losses[1][0], losses[0][0], rtol=1e-5)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4 if optimizer == "adamw" else 1e-2)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "muon"},
        {"precision": "bfloat16"},
        {"checkpoint_activations": True, "device_batch_size": 8},
    ],
    ids=["adamw", "muon", "bfloat16", "in parts"],
)
def test_with_deterministic_kernels_a_resumed_training_ends_in_the_same_bytes(
    teacher_path: Path, pairs_root: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    settings = {"deterministic": True, **settings}
    run(tmp_path / "whole", pairs_root, teacher_path, **settings)
    for steps in (1, 6):
        with pytest.raises(Stopped):
            run(tmp_path / "stopped", pairs_root, teacher_path, stop_after=steps, **settings)
    run(tmp_path / "stopped", pairs_root, teacher_path, **settings)
    assert left_in(tmp_path / "stopped") == left_in(tmp_path / "whole")


def test_bfloat16_learns_and_stores_float32(teacher_path: Path, pairs_root: Path, tmp_path: Path) -> None:
    settings = {"num_steps": 60, "learning_rate": 5e-3, "checkpoint_interval": 60}
    single, half = (
        run(tmp_path / precision, pairs_root, teacher_path, precision=precision, **settings)
        for precision in ("float32", "bfloat16")
    )
    assert half[0] == pytest.approx(single[0], rel=3e-2)
    assert half[0] != single[0]
    assert half[-10:].mean() < 0.75 * half[:10].mean()
    state = load_file(tmp_path / "bfloat16" / "checkpoints" / "step-000060.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


@pytest.mark.parametrize("settings", [{}, {"checkpoint_activations": True}], ids=["whole", "checkpointed"])
def test_a_compiled_network_has_the_same_losses(
    teacher_path: Path, pairs_root: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    plain, compiled = (
        run(
            tmp_path / str(value),
            pairs_root,
            teacher_path,
            num_steps=5,
            compile=value,
            **settings,
        )
        for value in (False, True)
    )
    np.testing.assert_allclose(compiled, plain, rtol=1e-4)


def test_an_operation_that_is_not_deterministic_is_refused_by_its_name(
    teacher_path: Path, pairs_root: Path, tmp_path: Path, family: str
) -> None:
    settings = {"deterministic": True, "image_weight": 0.1}
    if family == "llamagen":
        run(tmp_path, pairs_root, teacher_path, **settings)
        return
    with pytest.raises(Refused, match=r"^train\.deterministic: upsample_bicubic2d_backward_out_cuda has no"):
        run(tmp_path, pairs_root, teacher_path, **settings)


@pytest.fixture
def single_process_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A single process as torchrun starts it: gloo for CPU tensors, NCCL for GPU tensors."""
    variables = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": 29_611}
    for name, value in {**variables, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    with init_distributed("cuda") as world:
        yield world


def test_nccl_sums_gpu_tensors(single_process_world: World) -> None:
    assert "cuda:nccl" in str(dist.get_backend_config())
    # With size 1 nothing would be sent; with size 2 the only process receives its own values.
    world = World(0, 2, single_process_world.device)
    tensors = [torch.full((size,), float(size), device="cuda") for size in (3, BUCKET_BYTES // 4, 5, BUCKET_BYTES)]
    expected = [tensor.clone() for tensor in tensors]
    world.all_reduce_sum(tensors)
    for tensor, same in zip(tensors, expected, strict=True):
        assert torch.equal(tensor, same)
    assert world.all_reduce_min(7) == 7
    assert world.broadcast_from_zero(None) is None
    world.barrier()


def run_command(command: list[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that can import this project's packages."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *map(str, arguments)], env=environment, capture_output=True, text=True)


def torchrun(processes: int) -> list[str]:
    """Command that runs `tokenleap` in several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*command, "-m", "pipeline.cli"]


def test_torchrun_trains_on_the_gpu_and_refuses_two_processes_on_one(
    teacher_path: Path, pairs_root: Path, tmp_path: Path
) -> None:
    preset = tmp_path / "preset.toml"
    train_table = "\n".join(f"{key} = {json.dumps(value)}" for key, value in TRAIN.items())
    pairs = "guidance_scale = 1.5\n[pairs]\nnum_pairs = 96\npairs_per_shard = 32\nseed = 3\nsolver_steps = 16\n"
    preset.write_text(
        f'[teacher]\nname = "{teacher_path}"\n{pairs}[student]\ntimesteps = [0, 2]\nsplit = 3\n[train]\n{train_table}\n'
    )
    arguments = ["distill", preset, "--pairs", pairs_root, "--out", tmp_path / "out"]
    count = torch.cuda.device_count() + 1
    refused = run_command(torchrun(count), *arguments)
    assert f"torchrun started {count} processes here for {count - 1} GPUs: start one for each" in refused.stderr
    trained = run_command(torchrun(1), *arguments)
    assert trained.returncode == 0, trained.stderr
    memory = read_metrics(tmp_path / "out" / "metrics")["peak_memory_bytes"].drop_null().to_numpy()
    assert 0 < memory[-1] < 2**30, "of the GPU, not of the host"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("settings", [{}, {"checkpoint_activations": True}], ids=["whole", "checkpointed"])
def test_a_training_needs_no_more_memory_than_estimated(
    pairs_of_digits: Path, settings: dict[str, object], precision: str
) -> None:
    train_settings = {"batch_size": BATCH, "device": "cuda", "precision": precision, **settings}
    config = DistillConfig.model_validate({"student": {"timesteps": [0, 8], "split": 16}, "train": train_settings})
    need = MemoryNeed.of(load_teacher("digits"), config.train)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with init_distributed("cuda") as world:
        training = Training(config, "digits", checked_manifest(config, pairs_of_digits), None, world)
        for _ in range(3):
            training.update()
    assert training.gradients.device_batch_size == BATCH
    assert 0.4 < torch.cuda.max_memory_allocated() / need.total(BATCH) < 1.05


@pytest.fixture(scope="session")
def pairs_of_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("digits") / "pairs"
    config = compose("digits", ["pairs.num_pairs=1000"]).generate
    generate(config, root, workers=0, report=lambda *_: None, should_stop=lambda: False)
    return root


@pytest.mark.parametrize("steps", [1, 2])
def test_a_student_generates_the_same_images(teacher_path: Path, pairs_root: Path, tmp_path: Path, steps: int) -> None:
    run(tmp_path, pairs_root, teacher_path, device="cpu")
    batches = {
        device: next(sample_images(Student.from_pretrained(tmp_path, device), np.arange(64) % 10, 0, (0, 2)[:steps]))
        for device in ("cpu", "cuda")
    }
    assert batches["cuda"].images_BIHW.is_cuda
    same_B = (batches["cpu"].tokens_BL == batches["cuda"].tokens_BL.cpu()).all(dim=1)
    assert same_B.float().mean() > 0.9
    difference = (batches["cpu"].images_BIHW - batches["cuda"].images_BIHW.cpu())[same_B].abs()
    assert difference.max() < 2e-3


@pytest.mark.parametrize("preset", ["digits", "digits-var", "digits-text"])
def test_a_run_on_the_gpu_has_scores_near_those_of_a_cpu(preset: str, brief_tokenleap: list[str], tmp_path: Path) -> None:
    sizes = {
        "pairs.num_pairs": 750,
        "pairs.pairs_per_shard": 250,
        "train.num_steps": 30,
        "train.warmup_steps": 5,
        "train.threads": 1,
        "evaluation.num_images": 300,
        "evaluation.repeats": 1,
    }
    scores = {}
    for device in ("cpu", "cuda"):
        devices = {f"{section}.device": device for section in ("cluster", "train", "evaluation")}
        flags = [f"--set={key}={value}" for key, value in (sizes | devices).items()]
        ended = run_command(brief_tokenleap, "run", preset, "--out", tmp_path / device, "--workers", 0, *flags)
        assert ended.returncode == 0, ended.stderr
        evaluation = json.loads((tmp_path / device / "evaluation.json").read_text())
        scores[device] = {row["method"]: row["frechet_distance"] for row in evaluation["rows"]}
    for name, score in scores["cpu"].items():
        # Different rounding gives a different student; on a GPU, Muon also uses bfloat16.
        is_learned = name.startswith(("student", "pre-trained"))
        assert scores["cuda"][name] == pytest.approx(score, rel=0.25 if is_learned else 0.05), name
