"""Checkpoint files are recognised by names and shapes of their tensors."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from generate_pairs.teachers.importing.inspect import describe, inspect, teacher_networks
from generate_pairs.teachers.published import TEACHERS
from shards.core.errors import Refused


def test_a_file_is_recognised_by_its_tensors(published: Any) -> None:
    tables = teacher_networks()
    for role, line in (
        ("transformer", f"the transformer of {published.teacher}"),
        ("tokenizer", f"the tokenizer {TEACHERS[published.teacher].tokenizer.file.name}"),
    ):
        place = published.container(role)
        where = f", at {'.'.join(place)}," if place else ""
        assert describe(inspect(Path(published.write(role)), tables)) == [f"fits{where} {line}"]


def test_networks_of_one_shape_are_both_named(published: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TEACHERS, "small-twin", TEACHERS[published.teacher])
    lines = describe(inspect(Path(published.write("transformer")), teacher_networks()))
    assert [line.rpartition(" ")[2] for line in lines[:-1]] == [published.teacher, "small-twin"]
    assert lines[-1] == "these have the same names and shapes, so the file alone cannot distinguish them"


@pytest.mark.parametrize("family", ["var"])
def test_a_checkpoint_with_two_networks_names_both_and_where(published: Any, published_files: ModuleType) -> None:
    weights = published.weights
    content = published_files.training_checkpoint("var", weights.official("transformer"), weights.official("tokenizer"))
    file = published_files.written(published.folder / "ar-ckpt-best.pth", content)
    assert describe(inspect(Path(file), teacher_networks())) == [
        "fits, at trainer.var_wo_ddp, the transformer of small-var",
        "fits, at trainer.vae_local, the tokenizer vae_ch160v4096z32.pth",
    ]


def test_a_file_that_fits_nothing_is_compared_with_the_nearest_network(published: Any) -> None:
    state = published.weights.official("transformer")
    name = next(iter(published.weights.transformer))
    del state[name]
    (line,) = describe(inspect(Path(published.write("transformer", state)), teacher_networks()))
    nearest = f"the transformer of {published.teacher}: missing {name}"
    assert line == f"fits no published network; the nearest is {nearest}"


def test_a_file_without_tensors_fits_nothing_at_all(published: Any, published_files: ModuleType) -> None:
    file = published_files.written(published.folder / "file.pth", {"step": 3, "lr": 0.1})
    with pytest.raises(Refused, match=f"^{file} contains no named tensors .*; it contains step; lr$"):
        inspect(Path(file), teacher_networks())
