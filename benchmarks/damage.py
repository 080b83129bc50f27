"""Kinds of damage to a pair data set, each planted by one function.

Such a function damages a copy of the sound data set and returns the names of the damaged files; `verify` must name
one of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow
from planting import NUM_SHARDS, Copy

from shards import Manifest
from shards.dataset.manifest import DATASET_FILE
from shards.dataset.manifest_row import (
    JOINED_FILE,
    ROW_FOLDER,
    SHARD_FOLDER,
    replace_row,
    row_path,
    shard_name,
    shard_path,
)
from shards.format.tar_layout import Member

WRITER_VERSION = f" {pyarrow.__version__}".encode()

Plant = Callable[[Copy], set[str]]

KINDS: dict[str, Plant] = {}
"""Damage that `verify` must find and that training must never receive."""


def kind(name: str) -> Callable[[Plant], Plant]:
    """Register a function under a name."""

    def register(plant: Plant) -> Plant:
        KINDS[name] = plant
        return plant

    return register


def flip(copy: Copy, path: Path, start: int = 0, stop: int | None = None) -> set[str]:
    """Flip one bit of a file's bytes `start` .. `stop - 1`."""
    data = bytearray(path.read_bytes())
    data[copy.choice.randrange(start, len(data) if stop is None else stop)] ^= 1 << copy.choice.randrange(8)
    path.write_bytes(data)
    return {path.name}


def cut(path: Path, size: int) -> set[str]:
    """Truncate a file to `size` bytes."""
    path.write_bytes(path.read_bytes()[:size])
    return {path.name}


def put(source: Path, target: Path) -> set[str]:
    """Replace a file by a copy of another one."""
    target.unlink(missing_ok=True)
    shutil.copyfile(source, target)
    return {target.name}


def swap(one: Path, other: Path) -> set[str]:
    """Swap the contents of two files."""
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    return {one.name, other.name}


TAR_SPANS: dict[str, Callable[[Member], tuple[int, int]]] = {
    "header": lambda member: (member.offset, member.offset + 512),
    "npy header or payload": lambda member: (member.offset + 512, member.data.stop),
    "padding": lambda member: (member.data.stop, member.stop),
}


def _flip_in_tar(span: Callable[[Member], tuple[int, int]]) -> Plant:
    def plant(copy: Copy) -> set[str]:
        start, stop = span(copy.member())
        offset = copy.sample_offset()
        return flip(copy, shard_path(copy.root, copy.shard()), offset + start, offset + stop)

    return plant


for place, span in TAR_SPANS.items():
    kind(f"flip in a tar's {place}")(_flip_in_tar(span))


@kind("flip in a tar's label")
def _(copy: Copy) -> set[str]:
    start = copy.sample_offset() + 512
    return flip(copy, shard_path(copy.root, copy.shard()), start, start + 512)


@kind("flip in a tar's trailer")
def _(copy: Copy) -> set[str]:
    return flip(copy, shard_path(copy.root, copy.shard()), copy.num_sample_bytes)


def _flip_in_table(copy: Copy, path: Path) -> set[str]:
    """Flip a bit outside the library version: another version may encode the same rows differently."""
    writer = path.read_bytes().rindex(WRITER_VERSION)
    return flip(copy, path, *copy.choice.choice(((0, writer), (writer + len(WRITER_VERSION), None))))


@kind("flip in a row")
def _(copy: Copy) -> set[str]:
    return _flip_in_table(copy, row_path(copy.root, copy.shard()))


@kind("flip in the joined table")
def _(copy: Copy) -> set[str]:
    return _flip_in_table(copy, copy.joined())


@kind("flip in dataset.json")
def _(copy: Copy) -> set[str]:
    return flip(copy, copy.root / DATASET_FILE)


CUTS: dict[str, Callable[[Copy], int]] = {
    "inside a header": lambda copy: copy.sample_offset() + copy.member().offset + copy.choice.randrange(1, 512),
    "inside a payload": lambda copy: copy.sample_offset() + copy.inside(copy.member()),
    "at a member": lambda copy: copy.sample_offset() + copy.member().offset,
    "at a sample": lambda copy: copy.sample_offset(),
    "at the trailer": lambda copy: copy.num_sample_bytes,
    "inside the trailer": lambda copy: copy.num_sample_bytes + copy.choice.choice((512, 1024, 1025)),
    "to nothing": lambda copy: 0,
}


def _cut_tar(size: Callable[[Copy], int]) -> Plant:
    return lambda copy: cut(shard_path(copy.root, copy.shard()), size(copy))


for place, size in CUTS.items():
    kind(f"tar cut {place}")(_cut_tar(size))


def _cut_anywhere(path_of: Callable[[Copy], Path]) -> Plant:
    def plant(copy: Copy) -> set[str]:
        path = path_of(copy)
        return cut(path, copy.choice.choice((0, copy.choice.randrange(path.stat().st_size))))

    return plant


kind("row cut")(_cut_anywhere(lambda copy: row_path(copy.root, copy.shard())))
kind("joined table cut")(_cut_anywhere(Copy.joined))
kind("dataset.json cut")(_cut_anywhere(lambda copy: copy.root / DATASET_FILE))


@kind("bytes after a tar")
def _(copy: Copy) -> set[str]:
    path = shard_path(copy.root, copy.shard())
    path.write_bytes(path.read_bytes() + bytes(copy.choice.choice((1, 512, 10240))))
    return {path.name}


@kind("two tars swapped")
def _(copy: Copy) -> set[str]:
    one, other = copy.two_shards()
    return swap(shard_path(copy.root, one), shard_path(copy.root, other))


@kind("two rows swapped")
def _(copy: Copy) -> set[str]:
    one, other = copy.two_shards()
    return swap(row_path(copy.root, one), row_path(copy.root, other))


@kind("two shards swapped with their rows")
def _(copy: Copy) -> set[str]:
    one, other = copy.two_shards()
    swap(shard_path(copy.root, one), shard_path(copy.root, other))
    return swap(row_path(copy.root, one), row_path(copy.root, other))


@kind("a row under another name")
def _(copy: Copy) -> set[str]:
    one, other = copy.two_shards()
    return put(row_path(copy.root, one), row_path(copy.root, other))


@kind("another shard's tar")
def _(copy: Copy) -> set[str]:
    one, other = copy.two_shards()
    return put(shard_path(copy.root, one), shard_path(copy.root, other))


@kind("another shard's tar, with its hashes in the row")
def _(copy: Copy) -> set[str]:
    """The row of `other` gets the hashes of `one`."""
    one, other = copy.two_shards()
    replace_row(copy.root, replace(copy.row(other), sha256=copy.row(one).sha256, xxh3_128=copy.row(one).xxh3_128))
    return put(shard_path(copy.root, one), shard_path(copy.root, other))


@kind("a row with one hash of another shard")
def _(copy: Copy) -> set[str]:
    """A reader that checks only one of the two hashes may find either one wrong."""
    one, other = copy.two_shards()
    column = copy.choice.choice(("sha256", "xxh3_128"))
    replace_row(copy.root, replace(copy.row(one), **{column: getattr(copy.row(other), column)}))
    return {f"{one}.parquet", f"{one}.tar"}


@kind("an older row")
def _(copy: Copy) -> set[str]:
    name = copy.shard()
    put(row_path(copy.originals.older, name), row_path(copy.root, name))
    return {f"{name}.parquet", f"{name}.tar"}


@kind("an older tar")
def _(copy: Copy) -> set[str]:
    name = copy.shard()
    return put(shard_path(copy.originals.older, name), shard_path(copy.root, name))


@kind("an older joined table")
def _(copy: Copy) -> set[str]:
    return put(copy.originals.older / JOINED_FILE, copy.root / JOINED_FILE)


@kind("a joined table with one row changed")
def _(copy: Copy) -> set[str]:
    manifest, place = Manifest.open(copy.root), copy.choice.randrange(NUM_SHARDS)
    changes = (
        {"sha256": "0" * 64},
        {"xxh3_128": "0" * 32},
        {"num_bytes": 1},
        {"host": "elsewhere"},
        {"first_pair": 0, "shard": "pairs-000009"},
        {"fingerprint": "0" * 64},
    )
    row = replace(manifest.rows[place], **copy.choice.choice(changes))
    replace(manifest, rows=(*manifest.rows[:place], row, *manifest.rows[place + 1 :])).write_joined()
    return {JOINED_FILE}


@kind("a joined table of another seed")
def _(copy: Copy) -> set[str]:
    return put(copy.originals.other_seed / JOINED_FILE, copy.root / JOINED_FILE)


def _foreign(original: str, with_row: bool) -> Plant:
    def plant(copy: Copy) -> set[str]:
        name, source = copy.shard(), getattr(copy.originals, original)
        damaged = put(shard_path(source, name), shard_path(copy.root, name))
        return put(row_path(source, name), row_path(copy.root, name)) | damaged if with_row else damaged

    return plant


for original, title in (("other_seed", "another seed"), ("other_teacher", "another teacher")):
    kind(f"a tar of {title}")(_foreign(original, with_row=False))
    kind(f"a shard of {title}, with its row")(_foreign(original, with_row=True))


@kind("dataset.json of another seed")
def _(copy: Copy) -> set[str]:
    put(copy.originals.other_seed / DATASET_FILE, copy.root / DATASET_FILE)
    return {f"{shard_name(index)}.parquet" for index in range(NUM_SHARDS)}


@kind("dataset.json with another number of held-out pairs")
def _(copy: Copy) -> set[str]:
    path = copy.root / DATASET_FILE
    path.write_text(path.read_text().replace('"num_heldout": 8', '"num_heldout": 0'))
    return {path.name}


@kind("a deleted tar")
def _(copy: Copy) -> set[str]:
    path = shard_path(copy.root, copy.shard())
    path.unlink()
    return {path.name}


@kind("a deleted row")
def _(copy: Copy) -> set[str]:
    name = copy.shard()
    row_path(copy.root, name).unlink()
    # For the last shard, only its tar shows that there was a row.
    return {f"{name}.parquet", f"{name}.tar"}


@kind("a deleted tar and row in the middle")
def _(copy: Copy) -> set[str]:
    name = shard_name(copy.choice.randrange(NUM_SHARDS - 1))
    shard_path(copy.root, name).unlink()
    row_path(copy.root, name).unlink()
    return {f"{name}.parquet"}


@kind("deleted dataset.json")
def _(copy: Copy) -> set[str]:
    (copy.root / DATASET_FILE).unlink()
    return {DATASET_FILE}


@kind("the folder of tars deleted")
def _(copy: Copy) -> set[str]:
    shutil.rmtree(copy.root / SHARD_FOLDER)
    return {f"{shard_name(index)}.tar" for index in range(NUM_SHARDS)}


@kind("the folder of rows deleted")
def _(copy: Copy) -> set[str]:
    shutil.rmtree(copy.root / ROW_FOLDER)
    return {f"{shard_name(index)}.tar" for index in range(NUM_SHARDS)}


@kind("a tar twice")
def _(copy: Copy) -> set[str]:
    target = copy.choice.choice((shard_name(NUM_SHARDS), shard_name(NUM_SHARDS + 3), "copy"))
    return put(shard_path(copy.root, copy.shard()), shard_path(copy.root, target))


@kind("a shard twice, with its row")
def _(copy: Copy) -> set[str]:
    name, target = copy.shard(), copy.choice.choice((shard_name(NUM_SHARDS), "copy"))
    put(shard_path(copy.root, name), shard_path(copy.root, target))
    return put(row_path(copy.root, name), row_path(copy.root, target))


@kind("a shard twice, with a row for its new place")
def _(copy: Copy) -> set[str]:
    name, target = copy.shard(), shard_name(NUM_SHARDS)
    first_pair = NUM_SHARDS * copy.spec.pairs_per_shard
    replace_row(copy.root, replace(copy.row(name), shard=target, first_pair=first_pair))
    return put(shard_path(copy.root, name), shard_path(copy.root, target))
