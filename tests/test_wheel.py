"""The wheel contains the four packages with their data and nothing else, and works outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("shards", "generate_pairs", "distill", "pipeline")
DATA = {
    "generate_pairs/teachers/weights/digits.safetensors",
    "generate_pairs/teachers/weights/digits-64.safetensors",
    "generate_pairs/teachers/weights/digits-text.safetensors",
    "generate_pairs/teachers/weights/digits-var.safetensors",
    "generate_pairs/text/weights/digits.safetensors",
    "distill/evaluation/feature_extractors/weights/digits-classifier.safetensors",
    *(
        f"pipeline/config/presets/{name}.toml"
        for name in (
            *("digits", "digits-64", "digits-text", "digits-var"),
            *("var-d16", "var-d20", "var-d24"),
            *("llamagen-b", "llamagen-l", "llamagen-t2i", "llamagen-t2i-512"),
        )
    ),
    "pipeline/report/published_figures.toml",
    *(f"pipeline/report/templates/{name}.jinja" for name in ("ablation.html", "report.html", "style.css", "table.html")),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Built from a copy: a build leaves a folder in the tree, and the next build would pack files that have been moved.
    folder = tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / "tree" / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "tree")
    options = ["--no-deps", "--no-build-isolation", "-q", "-w", str(folder)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(folder / "tree")]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


def test_wheel_contains_every_module_and_data_file(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert names == modules | DATA


def test_each_family_of_weights_is_under_two_megabytes(wheel: Path) -> None:
    for info in zipfile.ZipFile(wheel).infolist():
        assert info.file_size < 2_000_000, info.filename


def test_installed_wheel_makes_pairs_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "empty"
    folder.mkdir()
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    options = ["--out", "pairs", "--workers", "0", "--num-pairs", "20", "--set", "pairs.pairs_per_shard=20"]
    command = [sys.executable, str(site / "bin" / "tokenleap"), "generate", "digits", *options]
    generated = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert generated.returncode == 0, generated.stderr
    assert sorted(path.name for path in (folder / "pairs" / "shards").iterdir()) == [
        "pairs-000000.tar",
        "pairs-000001.tar",
    ]
