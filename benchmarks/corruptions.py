"""Check that `verify` finds every planted corruption, and that training never receives a damaged pair.

One corruption at a time is planted in a copy of a small data set (damage.py and resealing.py contain the kinds), in about
half of the cases without the joined table. Then `verify` must name a damaged file. Two epochs of the stream must either
fail before the batch with a damaged pair, or be equal to those of the sound data set.

    python benchmarks/corruptions.py --count 1000 --seed 0
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import click
import torch
from damage import KINDS, Plant
from planting import Copy, Originals, make_originals
from resealing import FOUND_ONLY, RESEALED, UNKNOWABLE
from script import Script, markdown

from shards.core.errors import Failed, Refused
from shards.dataset.manifest import Manifest
from shards.dataset.manifest_row import JOINED_FILE
from shards.dataset.verify import verify
from shards.format.spec import NOISE_MODES
from shards.streaming.stream import PairBatch, PairStream

BATCH_SIZE = 5
EPOCHS = 2
NEVER_FED = KINDS | RESEALED
COLUMNS = ("index_B", "epoch_B", "noise_BLC", "tokens_BL", "label_B")


@dataclass(frozen=True)
class Sound:
    """The original data sets, and two epochs of batches of the sound one."""

    originals: Originals
    batches: tuple[PairBatch, ...]

    @classmethod
    def make(cls, folder: Path, noise: str) -> Sound:
        originals = make_originals(folder, noise)
        size = Manifest.open(originals.sound).view().size
        batches = islice(stream(originals.sound, size), EPOCHS * size // BATCH_SIZE)
        return cls(originals, tuple(batches))

    def plant(self, plant: Plant, root: Path, choice: random.Random) -> set[str]:
        """Damage a new copy at `root`; return the names of the damaged files."""
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self.originals.sound, root)
        if choice.random() < 0.5:
            (root / JOINED_FILE).unlink()
        return plant(Copy(root, self.originals, choice))

    def fed(self, root: Path) -> str | None:
        """A description of the wrong data that training would receive, None if there are none."""
        size = len(self.batches) * BATCH_SIZE // EPOCHS
        number = -1
        try:
            for number, batch in enumerate(islice(stream(root, size), len(self.batches))):
                expected = self.batches[number]
                if not all(torch.equal(getattr(batch, name), getattr(expected, name)) for name in COLUMNS):
                    return f"batch {number} differs from that of the sound data set"
        except (Refused, Failed):
            return None
        except Exception as error:
            return f"after batch {number} there was an unexpected error: {error!r}"
        return None


def stream(root: Path, size: int) -> Iterator[PairBatch]:
    return PairStream(root, Manifest.open(root).view(size), BATCH_SIZE, seed=1, window=2)


def missed_by_verify(root: Path, damaged: set[str]) -> str | None:
    """A description of the damage that `verify` misses, None if it names a damaged file."""
    findings = verify(root)
    if any(Path(finding.where).name in damaged for finding in findings):
        return None
    return f"verify names none of {sorted(damaged)}, but {[finding.where for finding in findings]}"


@click.command(cls=Script)
@click.option("--count", type=click.IntRange(min=1), default=1000, show_default=True, help="Number of corruptions.")
@click.option("--seed", default=0, show_default=True, help="Seed of their places.")
def main(count: int, seed: int) -> None:
    """Plant corruptions of all kinds in turn, half of them for each noise mode; exit with 1 if one is missed."""
    plants = [(name, plant, name not in FOUND_ONLY) for name, plant in (NEVER_FED | FOUND_ONLY).items()]
    planted, missed = Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        sound = {mode: Sound.make(Path(folder) / mode, mode) for mode in NOISE_MODES}
        root = Path(folder) / "damaged"
        for number in range(count):
            mode = NOISE_MODES[number % len(NOISE_MODES)]
            name, plant, is_never_fed = plants[number // len(NOISE_MODES) % len(plants)]
            damaged = sound[mode].plant(plant, root, random.Random(f"{seed}/{number}"))
            planted[name] += 1
            for problem in (missed_by_verify(root, damaged), sound[mode].fed(root) if is_never_fed else None):
                if problem is not None:
                    missed.append(f"{number} of seed {seed}, {name} ({mode} noise): {problem}")
                    click.echo(missed[-1], err=True)
        unknown = [name for name, plant in UNKNOWABLE.items() if _is_unknown(sound, plant, root)]
    click.echo(markdown(("kind", "planted"), [[name, str(times)] for name, times in planted.items()]))
    if missed:
        raise Failed(f"{len(missed)} corruptions were missed; first: {missed[0]}")
    click.echo(
        f"\nall {count} were found, and none reached training; detectable only with the teacher: {', '.join(unknown)}"
    )


def _is_unknown(sound: dict[str, Sound], plant: Plant, root: Path) -> bool:
    """Whether `verify` misses this kind of damage in both noise modes."""
    results = []
    for of_mode in sound.values():
        of_mode.plant(plant, root, random.Random(0))
        results.append(verify(root))
    return not any(results)


if __name__ == "__main__":
    main()
