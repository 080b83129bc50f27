"""Compare samples per CPU second of `PairStream` with webdataset, mosaicml-streaming and litdata.

A set of 20,000 samples (noise 256 x 8 float16, 256 tokens uint16, a label: about 4.6 kB) is written in each reader's
own format, and read in rounds: every reader in a separate process, one after another. Measured is the CPU time of the
process and its children from opening the data to the last sample, without imports; files are in the page cache.

    python -m venv peers && peers/bin/pip install webdataset mosaicml-streaming==0.13.0 litdata==0.2.76
    python benchmarks/stream_throughput.py --peers-python peers/bin/python
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
from script import Script, markdown

from shards import Pairs, PairSpec, commit_shard, create_dataset, gaussian_noise, label
from shards.core.errors import Failed
from shards.dataset.manifest import join

PROGRAM = Path(__file__).with_name("stream_readers.py")
PEERS = (
    "webdataset-decode",
    "webdataset-raw",
    "mosaicml-iterate",
    "mosaicml-random-access",
    "litdata-iterate",
    "litdata-loader",
)
GOALS = {"webdataset-decode": 20, "mosaicml-random-access": 3, "litdata-iterate": 2, "litdata-loader": 2}
PAIRS_PER_SHARD = 1_000
EXTRAS = {"seconds": 0.0, "host": "", "device": "", "batch_size": PAIRS_PER_SHARD, "versions": ""}


def write_pairs(folder: Path, num_samples: int) -> None:
    """Write the set as a pair data set, and as plain arrays, from which the peers write their own formats."""
    spec = PairSpec(
        lineage={"benchmark": "stream_throughput"},
        tokens_per_step=(1,) * 256,
        vocab_size=16_384,
        codebook_dim=8,
        num_classes=1_000,
        num_heldout=0,
        pairs_per_shard=PAIRS_PER_SHARD,
        seed=0,
        noise="stored",
    )
    create_dataset(folder / "pairs", spec)
    draw = np.random.default_rng(0)
    shards = []
    for shard in range(num_samples // PAIRS_PER_SHARD):
        first = shard * PAIRS_PER_SHARD
        index_B = np.arange(first, first + PAIRS_PER_SHARD)
        tokens_BL = draw.integers(spec.vocab_size, size=(PAIRS_PER_SHARD, spec.num_tokens), dtype=np.uint16)
        noise_BLC = gaussian_noise(spec.seed, first, PAIRS_PER_SHARD, spec.noise_shape)
        pairs = Pairs(index_B, noise_BLC, tokens_BL, label(index_B, spec.num_classes))
        commit_shard(folder / "pairs", spec, shard, pairs, EXTRAS)
        shards.append(pairs)
    join(folder / "pairs")
    everything = Pairs.concatenate(shards)
    np.save(folder / "noise.npy", everything.noise_BLC)
    np.save(folder / "tokens.npy", everything.tokens_BL)
    np.save(folder / "labels.npy", everything.label_B)


def run(python: str, name: str, folder: Path, *, with_tokenleap: bool) -> str:
    """Run a reader or writer in a separate process; return the last line of its output.

    Raises:
        Failed: the process failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if with_tokenleap:
        environment["PYTHONPATH"] = str(PROGRAM.parents[1])
    finished = subprocess.run([python, str(PROGRAM), name, str(folder)], capture_output=True, text=True, env=environment)
    if finished.returncode:
        raise Failed(f"{name} under {python} failed:\n{finished.stderr.strip()}")
    return finished.stdout.strip().rpartition("\n")[2]


def measured(peers_python: str, folder: Path, repeats: int) -> dict[str, list[list[float]]]:
    """CPU seconds of each epoch of every reader, one list for each round."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in ("ours", *PEERS)}
    for number in range(repeats):
        for name, rounds in seconds.items():
            ours = name == "ours"
            python = sys.executable if ours else peers_python
            rounds.append(json.loads(run(python, name, folder, with_tokenleap=ours)))
        click.echo(f"round {number + 1} of {repeats} is done", err=True)
    return seconds


def table(seconds: dict[str, list[list[float]]], num_samples: int) -> str:
    """Medians of the rounds, and the speed-up of ours; the first epoch of ours checks the hash of every shard."""
    rates = {name: [num_samples / epochs[0] for epochs in rounds] for name, rounds in seconds.items()}
    rates["ours, epoch two"] = [num_samples / epochs[1] for epochs in seconds["ours"]]
    rates["ours, both epochs"] = [2 * num_samples / sum(epochs) for epochs in seconds["ours"]]
    rows = []
    for name, found in rates.items():
        cells = [f"{statistics.median(found):,.0f}", f"{min(found):,.0f} .. {max(found):,.0f}"]
        for mine in ("ours", "ours, both epochs"):
            # Ratios within a round: a temporary slowdown of the machine affects both readers.
            ratio = statistics.median(one / other for one, other in zip(rates[mine], found, strict=True))
            cells.append("" if name.startswith("ours") else f"{ratio:.1f}")
        rows.append([name, *cells, str(GOALS.get(name, ""))])
    return markdown(
        ("reader", "samples / CPU-s", "lowest .. highest", "ours, epoch one, is x", "both epochs", "goal"),
        rows,
    )


@click.command(cls=Script)
@click.option("--peers-python", required=True, help="Python of the environment with the peers.")
@click.option("--samples", default=20_000, show_default=True, help="In shards of 1,000.")
@click.option("--repeats", default=5, show_default=True, help="Rounds; the table shows medians.")
def main(peers_python: str, samples: int, repeats: int) -> None:
    """Measure all readers and print a Markdown table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pairs(folder, samples)
        for writer in ("write-mosaicml", "write-litdata"):
            run(peers_python, writer, folder, with_tokenleap=False)
        click.echo(table(measured(peers_python, folder, repeats), samples))


if __name__ == "__main__":
    main()
