"""Checks the counted work against torch's own count during a trajectory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from generate_pairs.config import TeacherConfig
from generate_pairs.cost.device_rates import GPUS, Device, batch_seconds, device_rates
from generate_pairs.cost.operation_counts import StepWork, Work, batch_work, flow_map_work
from generate_pairs.teachers.checkpoints import load_teacher, shape_of_teacher

BATCH = 3
UNGUIDED = {"var": 0.0, "llamagen": 1.0}


def counted_flops(name: str, guidance_scale: float) -> list[int]:
    """The operations of each AR step as the network computes it; the first includes the start of the batch."""
    teacher = load_teacher(name).teacher
    flops = []
    # FlopCounterMode does not count the other attention kernels.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as beginning:
            decoding = teacher.start(torch.arange(BATCH), guidance_scale)
        for num_tokens in teacher.layout.tokens_per_step:
            with FlopCounterMode(display=False) as counter:
                decoding.logits()
            decoding.append(torch.zeros(BATCH, num_tokens, dtype=torch.int64))
            flops.append(counter.get_total_flops())
    flops[0] += beginning.get_total_flops()
    return flops


@pytest.mark.parametrize("name", ["digits", "digits-var", "tiny-random/var-d16", "tiny-random/var-d36-512"])
@pytest.mark.parametrize("guided", [True, False])
def test_the_transformers_products_are_counted_exactly(name: str, guided: bool) -> None:
    family, teacher = shape_of_teacher(name)
    scale = 2.0 if guided else UNGUIDED[family]
    config = TeacherConfig(name=name, guidance_scale=scale)
    steps = batch_work(family, teacher, config, 32, BATCH)
    assert steps is not None
    assert [step.transformer.flops for step in steps] == counted_flops(name, scale)


def test_the_flow_maps_products_are_counted_exactly() -> None:
    """One evaluation: bias + query x features, and weights x features, over the whole codebook."""
    _, teacher = shape_of_teacher("digits")
    rows, steps = 5, 64
    with FlopCounterMode(display=False) as counter:
        features = torch.zeros(5, 64)
        torch.addmm(torch.zeros(rows, 64), torch.zeros(rows, 5), features)
        _ = (features @ torch.zeros(rows, 64).T).T
    assert flow_map_work(teacher, 0, steps, rows).flops == counter.get_total_flops() * steps / 2


def test_top_k_reduces_the_flow_maps_work() -> None:
    _, teacher = shape_of_teacher("llamagen-l-256")
    whole, truncated = (flow_map_work(teacher, top_k, 32, 10) for top_k in (0, 1024))
    assert truncated.flops == whole.flops / 16
    # If more than an eighth of the codebook is possible, all of it is evaluated.
    assert flow_map_work(teacher, 8000, 32, 10) == whole


@pytest.mark.parametrize("name", ["var-d16", "var-d36-512", "llamagen-b-256"])
def test_a_published_teacher_is_counted_without_its_files(name: str, home: Path) -> None:
    family, teacher = shape_of_teacher(name)
    steps = batch_work(family, teacher, TeacherConfig(name=name, guidance_scale=2.0), 32, 1)
    assert steps is not None
    assert len(steps) == teacher.layout.num_steps
    # Nearly every weight is used for every token, conditional and null; the rest is attention.
    per_token = sum(step.transformer.flops for step in steps) / teacher.layout.num_tokens
    num_weights = sum(tensor.numel() for tensor in teacher.transformer.parameters())
    assert 1 < per_token / num_weights < 8


def test_time_adds_arithmetic_memory_and_calls() -> None:
    device = Device(half_flops=100.0, single_flops=10.0, bytes_per_second=4.0, call_seconds=0.5, about="")
    steps = [StepWork(Work(200.0, 8.0, 2.0), Work(20.0, 4.0, 4.0))] * 3
    assert batch_seconds(steps, device, "bfloat16") == 3 * ((2 + 2 + 1) + (2 + 1 + 2))
    assert batch_seconds(steps, device, "float32") == 3 * ((20 + 2 + 1) + (2 + 1 + 2))


def test_the_cpu_is_measured_and_a_gpu_has_fixed_rates() -> None:
    assert device_rates("h100") is GPUS["h100"]
    assert "40% of 989 TFLOP/s in half precision and of 67 in float32" in GPUS["h100"].about
    cpu = device_rates("cpu")
    assert min(cpu.single_flops, cpu.bytes_per_second, cpu.call_seconds) > 0
    assert "measured here with one thread" in cpu.about


def test_another_packages_family_is_not_counted() -> None:
    _, teacher = shape_of_teacher("digits")
    assert batch_work("theirs", teacher, TeacherConfig(name="digits"), 32, 1) is None
