"""Which device a worker gets; no GPU is needed, torch is patched to report some."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from generate_pairs.cluster.open_pool import open_pool
from generate_pairs.compute.devices import chosen_device, default_workers, visible_gpus, worker_environment
from generate_pairs.config import ClusterConfig
from shards.core.errors import Refused


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets torch count so many GPUs, under the names that CUDA_VISIBLE_DEVICES gives them."""

    def pretend(count: int, names: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if names is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)

    return pretend


@pytest.mark.parametrize(
    ("count", "requested", "device"),
    [(0, "auto", "cpu"), (2, "auto", "cuda"), (2, "cpu", "cpu"), (2, "cuda", "cuda")],
)
def test_a_gpu_is_used_where_there_is_one(gpus: Callable[..., None], count: int, requested: str, device: str) -> None:
    gpus(count)
    assert chosen_device(requested) == device


def test_a_gpu_that_is_not_there_is_refused(gpus: Callable[..., None]) -> None:
    gpus(0)
    with pytest.raises(Refused, match=r"cluster\.device is cuda, but torch finds no GPU"):
        chosen_device("cuda")
    with pytest.raises(Refused, match=r"set cluster\.device=cpu"):
        default_workers("cuda")


@pytest.mark.parametrize(
    ("count", "names", "visible"),
    [(2, None, ("0", "1")), (2, "3,5", ("3", "5")), (1, "GPU-7a, GPU-9b", ("GPU-7a",)), (0, "", ())],
)
def test_gpus_keep_the_names_that_the_driver_was_given(
    gpus: Callable[..., None], count: int, names: str | None, visible: tuple[str, ...]
) -> None:
    gpus(count, names)
    assert visible_gpus() == visible


def test_one_worker_for_every_gpu_or_else_for_every_core(gpus: Callable[..., None]) -> None:
    gpus(3)
    assert default_workers() == 3
    assert default_workers("cpu") == len(os.sched_getaffinity(0))
    gpus(0)
    assert default_workers() == len(os.sched_getaffinity(0))


def test_more_workers_than_gpus_share_them(gpus: Callable[..., None]) -> None:
    gpus(2, "4,6")
    shown = [worker_environment("auto", worker)["CUDA_VISIBLE_DEVICES"] for worker in range(3)]
    assert shown == ["4", "6", "4"]
    assert worker_environment("cpu", 0) == {}


def test_every_local_worker_sees_its_own_gpu_alone(gpus: Callable[..., None]) -> None:
    gpus(2, "4,6")
    with open_pool(ClusterConfig(), 2, lambda _: None) as workers:
        seen = workers.client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
    assert sorted(seen.values()) == ["4", "6"]
