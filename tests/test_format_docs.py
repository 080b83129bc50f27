"""docs/reference/format.md: an independent program, written from it alone, gives the same bytes; its numbers are current.

The first half of this file does not import the project.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import xxhash

pytestmark = pytest.mark.quick

PAGE = (Path(__file__).parents[1] / "docs" / "reference" / "format.md").read_text("utf-8")
MASK = 2**64 - 1


def philox(counter: int, key: tuple[int, int]) -> list[int]:
    w0, w1, w2, w3 = (counter >> (64 * place) & MASK for place in range(4))
    k0, k1 = key
    for _ in range(10):
        low, high = w0 * 0xD2E7470EE14C6C93, w2 * 0xCA5A826395121157
        w0, w1, w2, w3 = (high >> 64) ^ w1 ^ k0, high & MASK, (low >> 64) ^ w3 ^ k1, low & MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return [w0, w1, w2, w3]


def noise_bytes(seed: int, pair: int, size: int) -> bytes:
    blocks = -(-size // 4)
    words = [word for block in range(blocks) for word in philox(pair * blocks + 1 + block, (seed, 0))]
    numbers: list[float] = []
    for one, other in zip(words[0::2], words[1::2], strict=True):
        u, v = ((word >> 12) / 2**52 + 0.5 / 2**52 for word in (one, other))
        r = math.sqrt(-2 * math.log(u))
        numbers += [r * math.cos(2 * math.pi * v), r * math.sin(2 * math.pi * v)]
    return struct.pack(f"<{size}e", *numbers[:size])


def npy(descr: str, shape: str, length: int, content: bytes) -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (21 - len(str(length)))
    text += b" " * (64 - (10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def tar_file(name: str, content: bytes) -> bytes:
    header = bytearray(512)
    for start, field in (
        (0, name.encode()),
        (100, b"0000444"),
        (108, b"0000000"),
        (116, b"0000000"),
        (124, b"%011o" % len(content)),
        (136, b"00000000000"),
        (148, b" " * 8),
        (156, b"0"),
        (257, b"ustar\x0000"),
        (265, b"onestep"),
        (297, b"onestep"),
    ):
        header[start : start + len(field)] = field
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content + bytes(-len(content) % 512)


def shard(dataset: dict[str, Any], index: int, tokens: list[list[int]], captions: Sequence[str] = ()) -> bytes:
    L, C, P = sum(dataset["tokens_per_step"]), dataset["C"], dataset["pairs_per_shard"]
    descr, code = ("<u2", "H") if dataset["V"] <= 65536 else ("<i4", "i")
    tar = b""
    for pair, pair_tokens in zip(range(index * P, index * P + P), tokens, strict=True):
        noise = noise_bytes(dataset["seed"], pair, L * C)
        tar += tar_file(f"{pair:09d}.cls", str(pair % dataset["num_classes"]).encode())
        if dataset["noise"] == "stored":
            tar += tar_file(f"{pair:09d}.noise.npy", npy("<f2", f"({L}, {C})", L, noise))
        else:
            tar += tar_file(f"{pair:09d}.crc", struct.pack("<I", zlib.crc32(noise)))
        content = struct.pack(f"<{L}{code}", *pair_tokens)
        tar += tar_file(f"{pair:09d}.tokens.npy", npy(descr, f"({L},)", L, content))
        if captions:
            tar += tar_file(f"{pair:09d}.txt", captions[pair % dataset["num_classes"]].encode())
    tar += bytes(1024)
    return tar + bytes(-len(tar) % 10240)


def nameless(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: nameless(inner) for key, inner in value.items() if key != "name"}


def fingerprint(dataset: dict[str, Any]) -> str:
    keys = ("schema_version", "seed", "tokens_per_step", "V", "C", "num_classes")
    content = {key: dataset[key] for key in keys}
    content |= {key: nameless(dataset[key]) for key in ("lineage", "captions") if key in dataset}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def captions_sha256(captions: Sequence[str]) -> str:
    texts = [caption.encode() for caption in captions]
    return hashlib.sha256(b"".join(struct.pack("<Q", len(text)) + text for text in texts)).hexdigest()


def permutation(seed: int, epoch: int, number: int, size: int) -> list[int]:
    high = (number << 64) + (epoch << 128)
    blocks = range(1, -(-size // 4) + 1)
    words = [word for block in blocks for word in philox(high + block, (seed, 0x4F52444552))]
    return sorted(range(size), key=lambda place: words[place])


def order(sizes: list[int], seed: int, window: int, epoch: int) -> list[int]:
    permuted = permutation(seed, epoch, 0, len(sizes))
    samples: list[int] = []
    for number, start in enumerate(range(0, len(sizes), window), start=1):
        listed = [
            sum(sizes[:member]) + place for member in permuted[start : start + window] for place in range(sizes[member])
        ]
        samples += [listed[place] for place in permutation(seed, epoch, number, len(listed))]
    return samples


# From here on, comparisons with the project itself.


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    """The dataset.json of the page."""
    (text,) = re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return json.loads(text)


def example_tokens(pairs: int, length: int, vocab_size: int) -> list[list[int]]:
    return [[(31 * pair + 7 * place) % vocab_size for place in range(length)] for pair in range(pairs)]


def test_the_independent_program_reproduces_the_page(example: dict[str, Any]) -> None:
    assert fingerprint(example) == example["fingerprint"]
    first = np.frombuffer(noise_bytes(7, 1, 18), dtype="<f2")[:3]
    assert f"Noise of pair 1 begins {', '.join(str(float(number)) for number in first)}." in PAGE
    for noise in ("stored", "counter"):
        data = shard(example | {"noise": noise}, 0, example_tokens(8, 6, 64))
        assert f"`{hashlib.sha256(data).hexdigest()}`" in PAGE
        assert f"`{xxhash.xxh3_128_hexdigest(data)}`" in PAGE
    assert f"{len(shard(example, 0, example_tokens(8, 6, 64))):,} bytes" in PAGE
    for epoch in (0, 1):
        assert ", ".join(map(str, order([8, 8, 3], 5, 2, epoch)[:10])) in " ".join(PAGE.split())


@pytest.mark.parametrize("noise", ["stored", "counter"])
@pytest.mark.parametrize(
    ("vocab_size", "codebook_dim", "num_classes", "seed"),
    [(64, 3, 12, 7), (65536, 1, 3, 2**63 - 1), (65537, 40, 2000, 0)],
)
def test_the_independent_program_makes_the_same_shards(
    noise: str, vocab_size: int, codebook_dim: int, num_classes: int, seed: int
) -> None:
    from shards import Pairs, PairSpec, gaussian_noise, label, shard_bytes

    lineage = {
        "teacher": {"name": "ä", "top_p": 0.95, "eps": 1e-5},
        "steps": [{"name": "kept"}],
        "größe": 2.0,
    }
    spec = PairSpec(lineage, (1, 4, 9), vocab_size, codebook_dim, num_classes, 8, 5, seed, noise)
    dataset = json.loads(json.dumps(spec.to_json()))
    assert fingerprint(dataset) == spec.fingerprint
    index_B = np.arange(10, 15, dtype=np.int64)
    tokens = [[(vocab_size - 1 - 911 * place * pair) % vocab_size for place in range(14)] for pair in index_B]
    pairs = Pairs(
        index_B,
        gaussian_noise(seed, 10, 5, spec.noise_shape),
        np.array(tokens).astype(spec.token_dtype),
        label(index_B, num_classes),
    )
    assert shard(dataset, 2, tokens) == shard_bytes(spec, pairs)


@pytest.mark.parametrize("noise", ["stored", "counter"])
def test_the_independent_program_makes_the_same_shards_of_captions(noise: str) -> None:
    from shards import Pairs, PairSpec, gaussian_noise, label, shard_bytes
    from shards.dataset import captions as ours

    captions = ["a cat", "", "an emoji 🦘", "قطة", "x" * 512, "two\nlines " * 100]
    caption_settings = {"name": "captions.txt", "sha256": captions_sha256(captions)}
    assert ours.captions_sha256(captions) == caption_settings["sha256"]
    spec = PairSpec({}, (1, 4, 9), 64, 3, len(captions), 8, 5, 7, noise, caption_settings)
    dataset = json.loads(json.dumps(spec.to_json()))
    assert fingerprint(dataset) == spec.fingerprint
    index_B = np.arange(10, 15, dtype=np.int64)
    tokens = example_tokens(15, 14, 64)[10:]
    pairs = Pairs(
        index_B,
        gaussian_noise(7, 10, 5, spec.noise_shape),
        np.array(tokens).astype(spec.token_dtype),
        label(index_B, len(captions)),
        np.array([captions[pair % len(captions)] for pair in index_B], dtype=object),
    )
    assert shard(dataset, 2, tokens, captions) == shard_bytes(spec, pairs)


def test_a_data_set_written_by_the_independent_program_is_sound(example: dict[str, Any], tmp_path: Path) -> None:
    from shards import Manifest, verify

    (tmp_path / "shards").mkdir()
    (tmp_path / "manifest").mkdir()
    (tmp_path / "dataset.json").write_text(json.dumps(example, indent=2) + "\n")
    for index in range(3):
        data = shard(example, index, example_tokens(8, 6, 64))
        row = {
            "shard": f"pairs-{index:06d}",
            "first_pair": 8 * index,
            "num_pairs": 8,
            "num_bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "fingerprint": example["fingerprint"],
            "seconds": 1.0,
            "host": "theirs",
            "device": "theirs",
            "batch_size": 8,
            "versions": "none",
        }
        (tmp_path / "shards" / f"pairs-{index:06d}.tar").write_bytes(data)
        table = pyarrow.Table.from_pylist([row])
        path = tmp_path / "manifest" / f"pairs-{index:06d}.parquet"
        pyarrow.parquet.write_table(table, path, write_page_checksum=True)
    assert verify(tmp_path) == []
    assert Manifest.open(tmp_path).view().size == 16


def test_the_page_names_the_columns_and_keys_that_are_written(example: dict[str, Any], tmp_path: Path) -> None:
    from shards import ManifestRow, PairSpec, create_dataset
    from shards.dataset.manifest_row import row_path, write_row

    spec = PairSpec.from_json(example)
    create_dataset(tmp_path, spec)
    assert (tmp_path / "dataset.json").read_text() == json.dumps(example, indent=2) + "\n"
    write_row(tmp_path, ManifestRow("pairs-000000", 0, 8, 9, "0", "0", 1.0, "here", "cpu", 4, "none", "0"))
    schema = pyarrow.parquet.read_schema(row_path(tmp_path, "pairs-000000"))
    section = PAGE.split("\n## A row\n")[1].split("\n## ")[0]
    documented = {
        name: kind
        for names, kind in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (\w+) \|", section, re.MULTILINE)
        for name in re.findall(r"\w+", names)
    }
    assert documented == {field.name: str(field.type).replace("double", "float64") for field in schema}


@pytest.mark.parametrize("case", [([8, 8, 3], 5, 2), ([5] * 7, 2**63, 3), ([1], 0, 16), ([4, 2], 9, 1)])
def test_the_independent_program_computes_the_same_order(case: tuple[list[int], int, int]) -> None:
    from shards import Order

    sizes, seed, window = case
    total = sum(sizes)
    expected = Order(tuple(sizes), seed, window)
    for epoch in range(3):
        found = order(sizes, seed, window, epoch)
        assert found == expected.indices(epoch * total, (epoch + 1) * total).tolist()


def test_the_page_lists_the_bytes_of_every_preset(home: Callable[..., object]) -> None:
    from generate_pairs.generation.plan import spec_by_shape
    from generate_pairs.teachers.checkpoints import shape_of_teacher
    from pipeline.config.run_config import compose, presets

    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (\d.*) \|$", PAGE, re.MULTILINE)
    documented = {name: cells.split(" | ") for name, cells in rows}
    assert list(documented) == list(presets())
    for name, cells in documented.items():
        config = compose(name).generate
        spec = spec_by_shape(config, shape_of_teacher(config.teacher.name)[1])
        num_tokens, codebook_dim = spec.noise_shape
        from shards.format.tar_layout import bytes_per_pair

        sizes = [bytes_per_pair(replace(spec, noise=noise)) for noise in ("stored", "counter")]
        assert cells == [
            f"{num_tokens} x {codebook_dim}",
            f"{2 * num_tokens * codebook_dim:,}",
            f"{spec.token_dtype.itemsize * num_tokens:,}",
            *(f"{size:,}" for size in sizes),
            *(f"{size * 1.2e6 / 1e9:.1f} GB" for size in sizes),
        ]
