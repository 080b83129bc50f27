"""Time an ablation of 200 finished cells: planning the grid, checking the cells, and writing the table again.

This program writes the cells' folders as a finished training leaves them, with ten evaluations each and without weights.
Everything is imported before the timing starts.

    tokenleap generate digits --out pairs --num-pairs 2000
    python benchmarks/many_cells.py digits --pairs pairs --cells 200
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import click
from script import Script, markdown

from generate_pairs.teachers.checkpoints import load_teacher
from pipeline.ablation.ablation import Ablation, claim_ablation, refuse_ablation
from pipeline.ablation.grid import Axes, make_cells
from pipeline.ablation.runner import run_ablation
from pipeline.cli.options import FolderPath, preset_argument
from pipeline.config.run_config import compose, to_toml
from shards.core.errors import Failed

ALLOWED_SECONDS = 5.0
EVALUATIONS = 10
SCORES = ("frechet_distance", "inception_score", "precision", "recall", "class_accuracy")


def write_finished(ablation: Ablation) -> None:
    """Write the files of every cell that an ablation reads."""
    numbers = [
        {"method": method, "metric": score, "value": 0.1, "protocol": "none"}
        for method in ("student-1", "student-2")
        for score in SCORES
    ]
    numbers += [
        {"method": None, "metric": f"{where}_{what}", "value": 0.1, "protocol": "none"}
        for where in ("heldout", "train")
        for what in ("token_loss", "token_match")
    ]
    for cell in ablation.cells:
        folder, steps = ablation.cell_dir(cell), cell.config.train.num_steps
        folder.student.mkdir(parents=True)
        folder.config.write_text(to_toml(cell.config))
        (folder.student / "config.json").write_text(json.dumps({"student_sha256": "0"}))
        for evaluation in range(1, EVALUATIONS + 1):
            folder.add(steps * evaluation // EVALUATIONS, numbers)
        folder.finished.write_text(json.dumps({"num_steps": steps, "student_sha256": "0"}))


@click.command(cls=Script)
@preset_argument
@click.option("--pairs", type=FolderPath, required=True, help="The preset's pair data set, at least 2,000 pairs.")
@click.option("--cells", default=200, show_default=True, help="Number of cells; the seeds vary.")
def main(preset: str, pairs: Path, cells: int) -> None:
    """Plan a finished grid and collect it; exit with 1 if this takes more than five seconds."""
    base, loaded = compose(preset), load_teacher(compose(preset).teacher.name)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "ablation"
        axes = Axes((1_000, 2_000), seeds=cells // 2)
        ablation = Ablation(root, pairs, base, tuple(make_cells(base, axes, "steps")), "steps", None)
        claim_ablation(ablation)
        write_finished(ablation)
        times = [time.monotonic()]
        make_cells(base, axes, "steps")
        times.append(time.monotonic())
        refuse_ablation(ablation, loaded)
        times.append(time.monotonic())
        failures = run_ablation(
            ablation,
            workers=0,
            report=lambda *_: None,
            should_stop=lambda: False,
            notify=lambda _: None,
        )
        times.append(time.monotonic())
        rows = len(list(ablation.cells_folder.iterdir())) * EVALUATIONS * (len(SCORES) * 2 + 4)
    names = ("grid", "refusals", "nothing to train, table written")
    table = [[name, f"{end - start:.2f}"] for name, start, end in zip(names, times, times[1:], strict=False)]
    click.echo(markdown(("what", "seconds"), table))
    total = times[-1] - times[0]
    click.echo(f"\n{len(ablation.cells)} cells, {rows:,} numbers: {total:.2f} s")
    if failures or total > ALLOWED_SECONDS:
        raise Failed(f"{total:.2f} s; at most {ALLOWED_SECONDS} s are allowed")


if __name__ == "__main__":
    main()
