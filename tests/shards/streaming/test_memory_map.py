"""Mapped files: their bytes side by side, and no change of a file goes unnoticed."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import numpy as np
import pytest

import shards.streaming.memory_map
from shards import Failed
from shards.streaming.memory_map import MappedFiles

NUM_BYTES = 2 * 4096 + 5


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Files of other bytes each."""
    draw = np.random.default_rng(0)
    paths = [tmp_path / str(number) for number in range(4)]
    for path in paths:
        path.write_bytes(draw.bytes(NUM_BYTES))
    return paths


def put(mapped: MappedFiles, slot: int, path: Path, num_bytes: int = NUM_BYTES) -> None:
    with open(path, "rb", buffering=0) as file:
        mapped.put(slot, file, num_bytes)


def test_slots_hold_their_files_and_change_them(files) -> None:
    mapped = MappedFiles(3, NUM_BYTES)
    data = mapped.data
    for slot, path in ((0, files[0]), (2, files[1]), (0, files[2])):
        put(mapped, slot, path)
    assert (data.shape, data.dtype) == ((3, NUM_BYTES), np.uint8)
    assert [data[slot].tobytes() for slot in range(3)] == [
        files[2].read_bytes(),
        bytes(NUM_BYTES),
        files[1].read_bytes(),
    ]
    assert not data.flags.writeable


def test_a_file_that_is_replaced_or_removed_stays_as_it_was(files) -> None:
    mapped = MappedFiles(2, NUM_BYTES)
    before = [path.read_bytes() for path in files]
    put(mapped, 0, files[0])
    put(mapped, 1, files[1])
    os.replace(files[2], files[0])
    files[1].unlink()
    assert [mapped.data[slot].tobytes() for slot in (0, 1)] == before[:2]


@pytest.mark.parametrize("size", [0, 4096, NUM_BYTES, NUM_BYTES + 1])
def test_a_file_that_is_written_to_is_told(files, size) -> None:
    mapped = MappedFiles(2, NUM_BYTES)
    put(mapped, 0, files[0])
    put(mapped, 1, files[1])
    assert mapped.is_unchanged(0)
    os.utime(files[0], ns=(0, 0))
    put(mapped, 0, files[0])
    files[0].write_bytes(bytes(size))
    assert (mapped.is_unchanged(0), mapped.is_unchanged(1)) == (False, True)


def test_a_file_of_another_size_is_refused(files) -> None:
    with pytest.raises(Failed, match=f"holds {NUM_BYTES} bytes where 7 were committed"):
        put(MappedFiles(1, NUM_BYTES), 0, files[0], 7)


def test_a_file_system_that_maps_nothing_is_named(files, monkeypatch) -> None:
    def refusing(*_: object) -> int:
        ctypes.set_errno(errno.ENODEV)
        return ctypes.c_void_p(-1).value or 0

    monkeypatch.setattr(shards.streaming.memory_map, "_map", refusing)
    with pytest.raises(Failed, match="cannot be mapped into memory: No such device; copy"):
        put(MappedFiles(1, NUM_BYTES), 0, files[0])


def test_no_descriptor_and_no_address_is_kept(files) -> None:
    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count(
            str(files[0].parent)
        )

    before = held()
    mapped = MappedFiles(2, NUM_BYTES)
    for path in files:
        put(mapped, 0, path)
    assert held() == (before[0] + 1, 1)
    del mapped
    assert held() == before
