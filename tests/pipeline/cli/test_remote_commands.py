"""The command line with the URL of a pair data set instead of a folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from shards.storage.files import remove
from shards.storage.paths import location

Command = Callable[..., Result]


@pytest.fixture
def preset(teacher_path: Path, tmp_path: Path) -> Path:
    """A preset that trains in seconds: 32 held-out and 64 training pairs, 3 steps."""
    path = tmp_path / "preset.toml"
    path.write_text(
        f'[teacher]\nname = "{teacher_path}"\nguidance_scale = 1.5\n'
        "[pairs]\nnum_pairs = 64\npairs_per_shard = 32\nbatch_size = 16\nseed = 3\nsolver_steps = 16\n"
        "[student]\ntimesteps = [0, 8]\nsplit = 16\n[train]\nnum_steps = 3\nbatch_size = 8\n"
    )
    return path


@pytest.mark.parametrize("family", ["llamagen"], indirect=True)
def test_both_stages_through_a_url(
    tokenleap: Command, preset: Path, teacher_path: Path, bucket: str, tmp_path: Path
) -> None:
    def ran(*arguments: object) -> str:
        result = tokenleap(*arguments)
        return result.stdout

    exports = []
    for pairs, student in ((f"{bucket}/pairs", "far"), (str(tmp_path / "pairs"), "near")):
        ran("generate", preset, "--out", pairs, "--workers", 0)
        assert "64 for training, 32 held out, 3 shards" in ran("shards", "info", pairs)
        assert ran("shards", "verify", pairs) == f"{pairs}: every shard is intact\n"
        ran("distill", preset, "--pairs", pairs, "--out", tmp_path / student)
        exports.append((tmp_path / student / "student.safetensors").read_bytes())
    assert exports[0] == exports[1]

    url = f"{bucket}/pairs"
    remove(location(url) / "shards" / "pairs-000002.tar")
    tokenleap("shards", "verify", url, code=1)
    repaired = ran("shards", "repair", url, "--teacher", teacher_path, "--workers", 0)
    assert repaired == f"pairs-000002: equal to what was committed\n{url}: 1 shards repaired\n"
    assert ran("shards", "join", url) == f"{url}/manifest.parquet: 3 shards\n"
    assert ran("shards", "verify", url) == f"{url}: every shard is intact\n"


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]], ids=["generate", "plan"])
def test_a_missing_bucket_is_refused_before_any_work(tokenleap: Command, s3_server: str, dry_run: list[str]) -> None:
    result = tokenleap("generate", "digits", "--out", "s3://no-such-bucket/pairs", "--workers", 0, *dry_run, code=2)
    assert "there is no such bucket" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["distill", "digits", "--pairs", "pairs", "--out", "s3://bucket/student"],
        ["run", "digits", "--out", "s3://bucket/run"],
        ["evaluate", "s3://bucket/run"],
        ["export", "s3://bucket/student", "--format", "official", "--out", "file"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_other_folders_must_be_local(tokenleap: Command, arguments: list[str]) -> None:
    assert "is a URL; only pairs can be at a URL, this must be a local folder" in tokenleap(*arguments, code=2).stderr


@pytest.mark.parametrize("arguments", [["shards", "info"], ["generate", "digits", "--out"]])
def test_a_url_without_its_library_is_refused_with_the_install_command(
    tokenleap: Command, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "upath", None)
    assert "pip install '.[remote]'" in tokenleap(*arguments, "s3://bucket/pairs", code=2).stderr


def test_pairs_are_not_written_over_https(tokenleap: Command) -> None:
    assert "pairs can only be read over https" in tokenleap("shards", "join", "https://127.0.0.1:1/pairs", code=2).stderr
