"""The preview of a data set: the first pairs of each class, decoded by the teacher's tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

from generate_pairs.teachers.base import to_unit_range
from generate_pairs.teachers.checkpoints import load_teacher
from pipeline.pair_preview import first_tokens
from shards.dataset.manifest import Manifest
from shards.dataset.reader import read_shard


def test_the_first_pairs_of_each_class_are_shown(
    tokenleap: Callable[..., Result], pairs_root: Path, teacher_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "grid.png"
    arguments: tuple[Any, ...] = ("shards", "preview", pairs_root, "--out", out, "--teacher", teacher_path)
    result = tokenleap(*arguments, "--labels", "3,7", "--columns", 5)
    assert result.stdout == f"{out}: 5 pairs of each of 2 classes\n"
    manifest = Manifest.open(pairs_root)
    tokens = first_tokens(manifest, (3, 7), 5)
    tokens_BL = np.concatenate([read_shard(pairs_root, manifest.spec, row).tokens_BL for row in manifest.rows])
    assert np.array_equal(tokens[3], tokens_BL[[3, 13, 23, 33, 43]])
    assert np.array_equal(tokens[7], tokens_BL[[7, 17, 27, 37, 47]])
    tokenizer = load_teacher(str(teacher_path)).teacher.tokenizer
    with torch.no_grad():
        image = to_unit_range(tokenizer.decode(tokenizer.embed(torch.from_numpy(tokens_BL[[47]].astype(int)))))
    # The last image of the last row; each pixel is enlarged four times.
    shown = np.asarray(Image.open(out))[-32:, -32:]
    assert np.array_equal(shown[::4, ::4], (image[0, 0] * 255).round().numpy())
    tokenleap(*arguments)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--labels", "10"], "there is no label 10: labels are 0 .. 9"),
        (["--out", "grid.jpg"], "grid.jpg must end in .png"),
        (["--teacher", "digits"], "digits is not the teacher that made"),
    ],
)
def test_invalid_options_are_refused(
    tokenleap: Callable[..., Result], pairs_root: Path, teacher_path: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    arguments = ["shards", "preview", pairs_root, "--out", tmp_path / "x.png", "--teacher", teacher_path]
    assert message in tokenleap(*arguments, *more, code=2).stderr
    assert list(tmp_path.iterdir()) == []
