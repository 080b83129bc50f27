"""Read a set of samples with one reader in a separate process, and print the CPU seconds of each epoch.

This program also runs in the peers' environment, so only the reader `ours` imports this project. Every reader yields
noise, tokens and label of each sample as numbers (`webdataset-raw` as bytes): `ours` as batches in the dtypes of
training, `litdata-loader` as batches, and the others as single samples.

    python benchmarks/stream_readers.py READER FOLDER
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

BATCH_SIZE = 256


def ours(folder: Path) -> Iterator[int]:
    """Two epochs in their exact order; the first one checks the hash of every shard."""
    from shards.dataset.manifest import Manifest
    from shards.streaming.stream import PairStream

    manifest = Manifest.open(folder / "pairs")
    view = manifest.view()
    stream = PairStream(manifest.root, view, BATCH_SIZE, seed=0)
    for batch in stream:
        yield len(batch.index_B)


def webdataset_decoded(folder: Path) -> Iterator[int]:
    """The same tars through webdataset, arrays decoded."""
    import webdataset

    for _ in webdataset.WebDataset(_tars(folder), shardshuffle=False).decode():
        yield 1


def webdataset_raw(folder: Path) -> Iterator[int]:
    """The same tars through webdataset, as bytes."""
    import webdataset

    for _ in webdataset.WebDataset(_tars(folder), shardshuffle=False):
        yield 1


def mosaicml_iterated(folder: Path) -> Iterator[int]:
    """mosaicml-streaming's own shuffled order."""
    for _ in _mosaicml(folder, shuffle=True):
        yield 1


def mosaicml_random_access(folder: Path) -> Iterator[int]:
    """mosaicml-streaming, any sample by its index."""
    data = _mosaicml(folder, shuffle=False)
    for index in np.random.default_rng(0).permutation(len(data)).tolist():
        data[index]
        yield 1


def litdata_iterated(folder: Path) -> Iterator[int]:
    """litdata's own shuffled order."""
    import litdata

    for _ in litdata.StreamingDataset(str(folder / "litdata"), shuffle=True):
        yield 1


def litdata_loaded(folder: Path) -> Iterator[int]:
    """litdata's loader, batches stacked."""
    import litdata

    data = litdata.StreamingDataset(str(folder / "litdata"), shuffle=True)
    for noise, _, _ in litdata.StreamingDataLoader(data, batch_size=BATCH_SIZE, num_workers=0):
        yield len(noise)


def write_mosaicml(folder: Path) -> None:
    """The samples in mosaicml-streaming's format, without compression and without hashes."""
    from streaming import MDSWriter

    columns = {"noise": "ndarray:float16:256,8", "tokens": "ndarray:uint16:256", "label": "int"}
    with MDSWriter(out=str(folder / "mosaicml"), columns=columns) as writer:
        for noise, tokens, label in _samples(folder):
            writer.write({"noise": noise, "tokens": tokens, "label": label})


def write_litdata(folder: Path) -> None:
    """The samples in litdata's format."""
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder / "litdata"), chunk_bytes="64MB")
    for index, sample in enumerate(_samples(folder)):
        writer.add_item(index, sample)
    writer.done()
    writer.merge()


READERS: dict[str, Callable[[Path], Iterator[int]]] = {
    "ours": ours,
    "webdataset-decode": webdataset_decoded,
    "webdataset-raw": webdataset_raw,
    "mosaicml-iterate": mosaicml_iterated,
    "mosaicml-random-access": mosaicml_random_access,
    "litdata-iterate": litdata_iterated,
    "litdata-loader": litdata_loaded,
}
WRITERS = {"write-mosaicml": write_mosaicml, "write-litdata": write_litdata}
MODULES = {
    "ours": ("numpy.random", "pyarrow.parquet", "shards.streaming.stream"),
    "webdataset": ("webdataset",),
    "mosaicml": ("streaming",),
    "litdata": ("litdata",),
}


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def epochs(reader: Iterator[int], num_samples: int, count: int) -> list[float]:
    """CPU seconds of each of the first `count` epochs; the first one includes opening the data."""
    seconds = []
    for _ in range(count):
        began, seen = cpu_seconds(), 0
        while seen < num_samples:
            seen += next(reader)
        seconds.append(cpu_seconds() - began)
    return seconds


def _mosaicml(folder: Path, shuffle: bool) -> Any:
    from streaming import StreamingDataset

    return StreamingDataset(local=str(folder / "mosaicml"), shuffle=shuffle, batch_size=BATCH_SIZE)


def _tars(folder: Path) -> list[str]:
    return sorted(str(path) for path in (folder / "pairs" / "shards").glob("*.tar"))


def _samples(folder: Path) -> Iterator[tuple[Any, Any, int]]:
    columns = [np.load(folder / f"{name}.npy") for name in ("noise", "tokens", "labels")]
    for noise, tokens, label in zip(*columns, strict=True):
        yield noise, tokens, int(label)


if __name__ == "__main__":
    name, place = sys.argv[1], Path(sys.argv[2])
    if name in WRITERS:
        WRITERS[name](place)
    else:
        for module in MODULES[name.split("-")[0]]:
            importlib.import_module(module)
        total = len(np.load(place / "labels.npy"))
        print(json.dumps(epochs(READERS[name](place), total, 2 if name == "ours" else 1)))
