"""The cost of a data set: exact shards and bytes, and time from a probe or from an estimate marked as such."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from generate_pairs.compute.devices import chosen_device
from generate_pairs.config import GenerateConfig
from generate_pairs.cost.device_rates import batch_seconds, device_rates
from generate_pairs.cost.operation_counts import batch_work
from generate_pairs.cost.throughput_probe import Probe, load_probes, measure_throughput, save_probe
from generate_pairs.flow_map.exponential_adams import default_num_steps
from generate_pairs.generation.plan import GenerationPlan, requested_pairs, spec_by_shape
from generate_pairs.teachers.base import Teacher
from generate_pairs.teachers.checkpoints import load_teacher, needs_import, shape_of_teacher
from shards.core.callbacks import Report
from shards.core.units import format_bytes
from shards.format.spec import NOISE_MODES, PairSpec
from shards.format.tar_layout import archive_size, bytes_per_pair


def plan_lines(config: GenerateConfig, devices: Sequence[str]) -> list[str]:
    """Describe what stage one would generate and cost; needs neither pairs nor a teacher file.

    `devices` are from `generate_pairs.cost.device_rates.DEVICES`. An unknown teacher raises `Refused`.
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
    """Measure and store the rate of this machine, and describe how long the missing pairs take at that rate."""
    captions = plan.captions.captions if plan.captions else None
    probe = measure_throughput(config, plan.spec, report, chosen_device(config.cluster.device), captions)
    path = save_probe(probe)
    return [*plan.lines(), f"missing pairs: {_measured(probe, plan.num_missing_pairs)}", f"stored in {path}"]


def _byte_lines(spec: PairSpec, num_shards: int) -> Iterator[str]:
    for noise in NOISE_MODES:
        variant = replace(spec, noise=noise)
        size = num_shards * archive_size(spec.pairs_per_shard * bytes_per_pair(variant))
        marker = " (the current setting)" if noise == spec.noise else ""
        yield f'pairs.noise = "{noise}": {bytes_per_pair(variant):,} bytes a pair, {format_bytes(size)} in all{marker}'


def _feature_lines(teacher: Teacher) -> Iterator[str]:
    if teacher.is_text_conditional:
        network = teacher.transformer.config
        token_bytes = 2 * network.caption_dim
        most = format_bytes(network.num_condition_tokens * token_bytes)
        yield f"text features: {token_bytes:,} bytes a token of each distinct caption, at most {most} a caption"


def _probe_lines(config: GenerateConfig, num_pairs: int) -> Iterator[str]:
    if needs_import(config.teacher.name):
        yield "no probe: the teacher is not imported yet"
        return
    loaded = load_teacher(config.teacher.name)
    if loaded.teacher.is_text_conditional and config.captions.file is None:
        yield "no probe: it needs captions, --set captions.file=FILE"
        return
    spec, _ = requested_pairs(config, loaded, None)
    probes = load_probes(spec.fingerprint)
    yield from (_measured(probe, num_pairs) for probe in probes)
    if not probes:
        yield "no probe of these settings is stored: `tokenleap generate ... --probe` measures one"


def _estimate_lines(
    config: GenerateConfig, family: str, teacher: Teacher, devices: Sequence[str], num_pairs: int
) -> Iterator[str]:
    batch_size = min(config.pairs.batch_size, config.pairs.pairs_per_shard)
    solver_steps = config.pairs.solver_steps or default_num_steps(teacher.codebook_dim)
    steps = batch_work(family, teacher, config.teacher, solver_steps, batch_size)
    if steps is None:
        yield f"no estimate: the family {family} is from another package; a probe measures it"
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
