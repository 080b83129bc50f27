"""What a data set costs, in words: shards and bytes exactly, time by a probe, or by an estimate that says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from generate_pairs.compute.devices import chosen_device
from generate_pairs.config import GenerateConfig
from generate_pairs.cost.device_rates import batch_seconds, device_rates
from generate_pairs.cost.operation_counts import batch_work
from generate_pairs.cost.throughput_probe import Probe, measure, store, stored
from generate_pairs.flow_map.closed_form import default_num_steps
from generate_pairs.generation.plan import GenerationPlan, requested_pairs, spec_by_shape
from generate_pairs.teachers.base import Teacher
from generate_pairs.teachers.checkpoints import is_known_by_table_only, load_teacher, shape_of_teacher
from shards.core.callbacks import Report
from shards.format.spec import NOISE_MODES, PairSpec
from shards.format.tar_layout import archive_size, bytes_per_pair


def plan_lines(config: GenerateConfig, devices: Sequence[str]) -> list[str]:
    """What stage one would make and cost, without anything being there.

    Args:
        config: stage one's settings.
        devices: of `generate_pairs.cost.device_rates.DEVICES`, to estimate for.

    Raises:
        Refused: no such teacher.
    """
    family, teacher = shape_of_teacher(config.teacher.name)
    spec = spec_by_shape(config, teacher)
    num_shards, num_pairs = config.pairs.num_shards, config.pairs.num_shards * spec.pairs_per_shard
    return [
        f"{num_pairs - spec.num_heldout:,} training pairs and {spec.num_heldout:,} held out, "
        f"in {num_shards:,} shards of {spec.pairs_per_shard:,}",
        *_byte_lines(spec, num_shards),
        *_feature_lines(teacher),
        *_probe_lines(config, num_pairs),
        *_estimate_lines(config, family, teacher, devices, num_pairs),
    ]


def probe_lines(config: GenerateConfig, plan: GenerationPlan, report: Report) -> list[str]:
    """Measures and keeps how fast pairs are made here, and tells what is left to make takes at that rate."""
    captions = plan.captions.captions if plan.captions else None
    probe = measure(config, plan.spec, report, chosen_device(config.cluster.device), captions)
    path = store(probe)
    return [*plan.lines(), f"to the end: {_measured(probe, plan.num_missing_pairs)}", f"kept in {path}"]


def _byte_lines(spec: PairSpec, num_shards: int) -> Iterator[str]:
    for noise in NOISE_MODES:
        kept = replace(spec, noise=noise)
        size = num_shards * archive_size(spec.pairs_per_shard * bytes_per_pair(kept))
        asked = " (as the settings have it)" if noise == spec.noise else ""
        yield f'pairs.noise = "{noise}": {bytes_per_pair(kept):,} bytes a pair, {_bytes(size)} in all{asked}'


def _feature_lines(teacher: Teacher) -> Iterator[str]:
    if teacher.is_text_conditional:
        takes = teacher.transformer.config
        token = 2 * takes.caption_dim
        most = takes.num_condition_tokens * token
        yield f"text features: {token:,} bytes a token of each distinct caption, at most {_bytes(most)} a caption"


def _probe_lines(config: GenerateConfig, num_pairs: int) -> Iterator[str]:
    if is_known_by_table_only(config.teacher.name):
        yield "no probe without the teacher, which is not here yet"
        return
    loaded = load_teacher(config.teacher.name)
    if loaded.teacher.is_text_conditional and config.captions.file is None:
        yield "no probe without captions: --set captions.file=FILE"
        return
    spec, _ = requested_pairs(config, loaded, None)
    probes = stored(spec.fingerprint)
    yield from (_measured(probe, num_pairs) for probe in probes)
    if not probes:
        yield "no probe of these settings is stored here: `tokenleap generate ... --probe` measures one"


def _estimate_lines(
    config: GenerateConfig, family: str, teacher: Teacher, devices: Sequence[str], num_pairs: int
) -> Iterator[str]:
    batch_size = min(config.pairs.batch_size, config.pairs.pairs_per_shard)
    solver_steps = config.pairs.solver_steps or default_num_steps(teacher.codebook_dim)
    steps = batch_work(family, teacher, config.teacher, solver_steps, batch_size)
    if steps is None:
        yield f"no estimate for the family {family}, which is another package's: a probe measures it"
        return
    transformer = sum(step.transformer.flops for step in steps) / batch_size
    flow_map = sum(step.flow_map.flops for step in steps) / batch_size
    yield f"a pair takes {transformer / 1e9:,.3f} GFLOP in the teacher and {flow_map / 1e9:,.3f} in the flow map"
    for name in devices:
        rates = device_rates(name)
        rate = batch_size / batch_seconds(steps, rates, config.teacher.dtype)
        yield f"{name}: {_cost(rate, num_pairs, batch_size)}, estimated ({rates.about})"


def _measured(probe: Probe, num_pairs: int) -> str:
    return (
        f"{probe.device}: {_cost(probe.pairs_per_second, num_pairs, probe.batch_size)}, measured by a probe of "
        f"{probe.num_batches} batches ({probe.versions})"
    )


def _cost(pairs_per_second: float, num_pairs: int, batch_size: int) -> str:
    hours = num_pairs / pairs_per_second / 3600
    return f"{_number(pairs_per_second)} pairs/s at batch {batch_size}, {_number(hours)} device-hours"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _bytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
