"""Measure one GPU with published shapes and random weights: pairs, training and samples per second, and memory.

The flow map is timed as one kernel and as torch operations, on random logits. Pairs are made as in a worker of stage
one, with the preset's guidance and filters; sampling with multinomial draws is also timed, for the overhead of the map.
Training runs on such pairs as in `tokenleap distill`. Samples are token sequences; decoding is timed
separately. Embedded presets use their own teachers.

    python benchmarks/on_gpu.py --work gpu --presets var-d16,llamagen-b
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from unittest.mock import patch

import click
import torch
from official_code import randomised
from script import Script, markdown
from torch import Tensor

from distill.config import DistillConfig
from distill.student.sampler import max_batch_size, sample_sequence
from distill.student.student import Student
from distill.training.distributed import World
from distill.training.memory import MemoryNeed
from distill.training.preflight import checked_manifest
from distill.training.state import Training
from generate_pairs.config import TeacherConfig
from generate_pairs.flow_map.exponential_adams import default_num_steps
from generate_pairs.flow_map.flow_map import FlowMap
from generate_pairs.generation.generate import generate
from generate_pairs.generation.plan import pair_spec
from generate_pairs.generation.worker import PairMaker, pair_maker
from generate_pairs.teachers.checkpoints import LoadedTeacher, load_teacher, save_teacher
from generate_pairs.teachers.filtering import SamplingSettings
from generate_pairs.teachers.published import TEACHERS
from generate_pairs.teachers.registry import build_teacher
from generate_pairs.trajectory import Draw, generate_tokens
from pipeline.cli.options import comma_separated
from pipeline.config.run_config import RunConfig, compose
from shards.core.errors import Refused

WARM_UP_STEPS = 4
WAYS_TO_TRAIN = {
    "float32": {},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, checkpointed": {"precision": "bfloat16", "checkpoint_activations": True},
    "bfloat16, compiled": {"precision": "bfloat16", "compile": True},
}
NUM_PAIRS = 128

Table = tuple[Sequence[str], list[list[str]]]


class Clock:
    """A clock that first waits for the device to finish its work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def median(self, work: Callable[[], object], repeats: int) -> float:
        """Median seconds of `repeats` calls, after one warm-up call."""
        work()
        times = []
        for _ in range(repeats):
            began = self()
            work()
            times.append(self() - began)
        return statistics.median(times)

    def reset_peak(self) -> None:
        """Start a new measurement of peak memory."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int:
        """Peak of allocated bytes, 0 on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0


def with_file(teacher: TeacherConfig, work: Path) -> TeacherConfig:
    """The teacher with an existing file: for a published teacher, write one of its shape with random weights."""
    if teacher.name not in TEACHERS:
        return teacher
    path = work / f"{teacher.name}.safetensors"
    if not path.exists():
        published = TEACHERS[teacher.name]
        torch.manual_seed(0)
        parts = (asdict(part.config) for part in (published.transformer, published.tokenizer))
        random_teacher = build_teacher(published.family, *parts)
        randomised(random_teacher.transformer)
        save_teacher(random_teacher, published.family, path, {"weights": "random"}, torch.float32)
    return teacher.model_copy(update={"name": str(path)})


@dataclass(frozen=True)
class Bench:
    """One preset on one device; `config` names a teacher whose file exists."""

    name: str
    config: RunConfig
    work: Path
    clock: Clock
    repeats: int

    @property
    def settings(self) -> SamplingSettings:
        return SamplingSettings.of(self.config.teacher.model_dump())

    def loaded(self, dtype: str = "float32") -> LoadedTeacher:
        return load_teacher(self.config.teacher.name, str(self.clock.device), getattr(torch, dtype))

    def labels(self, count: int) -> Tensor:
        """Classes (B,)."""
        return torch.arange(count, device=self.clock.device) % 10

    def draws(self, count: int, num_tokens: int) -> Draw:
        return Draw(torch.rand(count, num_tokens, dtype=torch.float64, device=self.clock.device))


def report_row(cells: Sequence[str]) -> list[str]:
    """Print a row as soon as it is measured, and return it."""
    click.echo(" ".join(cells), err=True)
    return list(cells)


def pairs_table(bench: Bench) -> Table:
    """Pairs per second of one worker, by batch size and the teacher's dtype."""
    rows, usual = [], bench.config.pairs.batch_size
    for dtype in ("float32", "bfloat16"):
        loaded = bench.loaded(dtype)
        spec = pair_spec(bench.config.generate, loaded)
        flow_map = FlowMap(loaded.teacher.codebook_VC.float(), spec.lineage["flow_map"]["solver_steps"])
        maker = PairMaker(loaded.teacher, flow_map, bench.settings)
        for size in (usual, 2 * usual):
            choose = bench.draws(size, spec.num_tokens)
            walking = partial(generate_tokens, loaded.teacher, bench.labels(size), bench.settings, choose)
            drawn = bench.clock.median(walking, bench.repeats)
            mapped = bench.clock.median(partial(maker.make, spec, range(size)), bench.repeats)
            cells = f"{size / mapped:.1f}", f"{size / drawn:.1f}", f"{100 * (mapped / drawn - 1):+.0f} %"
            rows.append(report_row([bench.name, dtype, str(size), *cells]))
    return ("preset", "teacher", "batch", "pairs/s", "draws/s", "flow map adds"), rows


def map_table(bench: Bench) -> Table:
    """Milliseconds of the flow map for one AR step, as one kernel and as torch operations."""
    rows, loaded, device = [], bench.loaded(), bench.clock.device
    teacher, most = loaded.teacher, max(loaded.teacher.layout.tokens_per_step)
    flow_map = FlowMap(teacher.codebook_VC.float(), default_num_steps(teacher.codebook_dim))
    for temperature in (1.0, 0.25):
        count = bench.config.pairs.batch_size * most
        noise_NC = torch.randn(count, teacher.codebook_dim, device=device)
        logits_NV = torch.randn(count, teacher.vocab_size, device=device) / temperature
        mapping = partial(flow_map, noise_NC, teacher.filter(logits_NV, bench.settings))
        kernel, mapped = bench.clock.median(mapping, bench.repeats), mapping()
        with patch("generate_pairs.flow_map.flow_map.kernel_is_possible", return_value=False):
            apart, expected = bench.clock.median(mapping, bench.repeats), mapping()
        tokens = int((mapped.tokens_N != expected.tokens_N).sum())
        steps = int((mapped.num_evaluations_N != expected.num_evaluations_N).sum())
        cells = f"{temperature:g}", str(count), f"{1000 * kernel:.3g}", f"{1000 * apart:.3g}"
        rows.append(report_row([bench.name, *cells, str(tokens), str(steps)]))
    header = (
        "preset",
        "temperature",
        "rows",
        "kernel ms",
        "operations ms",
        "other tokens",
        "other step counts",
    )
    return header, rows


def training_table(bench: Bench, batch: int, num_steps: int) -> Table:
    """Images per second of a training, and its peak memory with the estimate from before its start."""
    root, config, clock = bench.work / f"{bench.name}-pairs", bench.config, bench.clock
    sizes = {"num_pairs": NUM_PAIRS, "num_heldout": NUM_PAIRS // 2, "pairs_per_shard": NUM_PAIRS // 2}
    # The accuracy of the map does not change the speed of training.
    pairs = config.pairs.model_copy(update={**sizes, "solver_steps": 8})
    generate_config = config.generate.model_copy(update={"pairs": pairs})
    generate(generate_config, root, workers=0, report=lambda *_: None, should_stop=lambda: False)
    # Otherwise its teacher stays on the device.
    pair_maker.cache_clear()
    rows = []
    for way, changes in WAYS_TO_TRAIN.items():
        train = config.train.model_copy(update={"batch_size": batch, "num_workers": 2, **changes})
        need = MemoryNeed.of(load_teacher(config.teacher.name), train)
        clock.reset_peak()
        distill = DistillConfig(student=config.student, train=train)
        training = Training(
            distill, config.teacher.name, checked_manifest(distill, root), None, World(device=clock.device)
        )
        with closing(training.stream):
            first = training.update()["loss"].item()
            for _ in range(WARM_UP_STEPS):
                training.update()
            began, waited = clock(), training.waited_seconds
            for _ in range(num_steps):
                last = training.update()["loss"]
            seconds, waited = clock() - began, training.waited_seconds - waited
        pace = f"{batch * num_steps / seconds:.1f}", f"{100 * waited / seconds:.1f} %"
        estimate = need.total(training.gradients.device_batch_size)
        memory = f"{clock.peak() / 1e9:.1f} GB", f"{estimate / 1e9:.1f} GB"
        rows.append(report_row([bench.name, way, str(batch), *pace, *memory, f"{first:.4f}", f"{last.item():.4f}"]))
        del training
    header = "preset", "training", "batch", "images/s", "waits", "peak", "estimate", "first loss", "last loss"
    return header, rows


def sampling_table(bench: Bench, sizes: Sequence[int]) -> Table:
    """Milliseconds for each image of the teacher with draws and of the student's passes, and the speed-up."""
    loaded, config, clock, rows = bench.loaded(), bench.config, bench.clock, []
    settings = config.student
    student = Student.from_teacher(
        loaded,
        settings.timesteps,
        settings.split,
        "",
        0,
        initialise=False,
        noise_weight=settings.noise_weight,
    )
    student.to(clock.device).eval().requires_grad_(False)
    L, C = loaded.teacher.layout.num_tokens, loaded.teacher.codebook_dim
    for size in sizes:
        labels_B, noise_BLC = bench.labels(size), torch.randn(size, L, C, device=clock.device)
        at_once = min(size, max_batch_size(student.tokenizer.image_shape))
        walking = partial(generate_tokens, loaded.teacher, labels_B, bench.settings, bench.draws(size, L))
        teacher = clock.median(walking, bench.repeats) / size
        one, two = (
            clock.median(partial(sample_sequence, student, noise_BLC, labels_B, passes), 10 * bench.repeats) / size
            for passes in (settings.timesteps[:1], settings.timesteps[:2])
        )
        with torch.inference_mode():
            decoding = clock.median(partial(loaded.teacher.tokenizer.decode, noise_BLC[:at_once]), bench.repeats)
        decoding /= at_once
        cells = [f"{1000 * seconds:.3g}" for seconds in (teacher, one, two, decoding)]
        steps = loaded.teacher.layout.num_steps
        ratios = f"{teacher / one:.1f} of {steps}", f"{(teacher + decoding) / (one + decoding):.1f}"
        rows.append(report_row([bench.name, str(size), *cells, *ratios]))
    header = "preset", "batch", "teacher ms", "1 step ms", "2 steps ms", "decoding ms", "faster", "decoded"
    return header, rows


@click.command(cls=Script)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder of teachers and pairs.")
@click.option("--presets", default="var-d16,llamagen-b", show_default=True, metavar="A,B", help="Presets.")
@click.option("--parts", default="map,pairs,training,sampling", show_default=True, metavar="A,B", help="Measurements.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Training batch size.")
@click.option("--steps", type=click.IntRange(min=1), default=10, show_default=True, help="Training steps.")
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Repetitions; the table shows the median.",
)
@click.option(
    "--sizes",
    callback=comma_separated,
    default="1,64",
    show_default=True,
    metavar="1,64",
    help="Batch sizes of sampling.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting of the presets.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True, help="Device.")
def main(
    work: Path,
    presets: str,
    parts: str,
    batch: int,
    steps: int,
    repeats: int,
    sizes: tuple[int, ...],
    overrides: tuple[str, ...],
    device: str,
) -> None:
    """Time presets of full size on a GPU; print tables."""
    if device == "cuda" and not torch.cuda.is_available():
        raise Refused(
            "--device cuda: torch finds no GPU. To try the program, use --device cpu and small settings (--set)"
        )
    work.mkdir(parents=True, exist_ok=True)
    clock, tables = Clock(torch.device(device)), dict[str, list[Table]]()
    for name in presets.split(","):
        config = compose(name, (*overrides, f"cluster.device={device}"))
        config = config.model_copy(update={"teacher": with_file(config.teacher, work)})
        bench = Bench(name, config, work, clock, repeats)
        made: dict[str, Callable[[], Table]] = {
            "map": partial(map_table, bench),
            "pairs": partial(pairs_table, bench),
            "training": partial(training_table, bench, batch, steps),
            "sampling": partial(sampling_table, bench, sizes),
        }
        if unknown := set(parts.split(",")) - made.keys():
            raise Refused(f"--parts {parts}: unknown: {', '.join(sorted(unknown))}; known parts: {', '.join(made)}")
        for part in parts.split(","):
            tables.setdefault(part, []).append(made[part]())
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    click.echo(f"torch {torch.__version__}, {where}, random weights, {date.today()}\n")
    for of_presets in tables.values():
        click.echo(markdown(of_presets[0][0], [row for _, rows in of_presets for row in rows]) + "\n")


if __name__ == "__main__":
    main()
