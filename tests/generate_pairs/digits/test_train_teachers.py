"""Training of the embedded teachers, with shortened recipes: deterministic and loadable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from generate_pairs.digits import train_teachers as train
from generate_pairs.teachers.checkpoints import load_teacher
from shards.core.errors import Refused


@pytest.mark.parametrize(
    "name",
    ["digits", *(pytest.param(name, marks=pytest.mark.slow) for name in ("digits-64", "digits-text", "digits-var"))],
)
def test_the_seed_determines_the_teacher(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = train.RECIPES[name]
    short = replace(
        recipe,
        copies=0,
        tokenizer_phase=replace(recipe.tokenizer_phase, num_steps=15, batch_size=16),
        transformer_phase=replace(recipe.transformer_phase, num_steps=15, batch_size=16),
    )
    monkeypatch.setattr(train, "RECIPES", {name: short})
    monkeypatch.setattr(train, "REPORT_INTERVAL", 15)
    reports: list[tuple[int, int]] = []
    threads = torch.get_num_threads()
    for seed, file in ((0, "a"), (0, "b"), (1, "c")):
        out = tmp_path / f"{file}.safetensors"
        train.train_teacher(name, out, seed, lambda done, total, _: reports.append((done, total)))
    a, b, c = ((tmp_path / f"{file}.safetensors").read_bytes() for file in "abc")
    assert a == b != c
    assert reports[:2] == [(15, 30), (30, 30)]
    assert torch.get_num_threads() == threads
    loaded = load_teacher(str(tmp_path / "a.safetensors"))
    assert loaded.about["seed"] == 0
    assert loaded.teacher.layout.num_tokens == {"digits-64": 64, "digits-var": 21}.get(name, 16)
    encoders = sorted(tmp_path.glob("*.encoder.safetensors"))
    assert [path.name[0] for path in encoders] == (["a", "b", "c"] if recipe.encoder else [])
    if recipe.encoder:
        assert encoders[0].read_bytes() == encoders[1].read_bytes()


def test_an_unknown_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="digits, digits-64, digits-text, digits-var"):
        train.train_teacher("letters", tmp_path / "x.safetensors", 0, lambda *_: None)
