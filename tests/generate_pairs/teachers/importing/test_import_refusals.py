"""Files that are refused as published teachers: each in one message that names what is wrong, and nothing is written."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from generate_pairs.teachers.importing.import_teacher import import_teacher
from shards.core.errors import Refused

SOME = {"var": "blocks.0.attn.proj.weight", "llamagen": "layers.0.attention.wo.weight"}
"""A square matrix of each family."""
WIDE = {"var": "blocks.0.ffn.fc1.weight", "llamagen": "layers.0.feed_forward.w1.weight"}


def is_empty(folder: Path) -> bool:
    return not folder.exists() or not list(folder.rglob("*"))


def renamed(state: dict[str, Tensor], family: str) -> str:
    state["module." + SOME[family]] = state.pop(SOME[family])
    return rf"missing {SOME[family]}; unknown module\.{SOME[family]}"


def missing(state: dict[str, Tensor], family: str) -> str:
    del state[SOME[family]]
    return f"missing {SOME[family]}$"


def extra(state: dict[str, Tensor], family: str) -> str:
    state["blocks.9.new"] = torch.zeros(1)
    return r"unknown blocks\.9\.new$"


def transposed(state: dict[str, Tensor], family: str) -> str:
    shape = list(state[WIDE[family]].shape)
    state[WIDE[family]] = state[WIDE[family]].T
    return rf"{WIDE[family]} is \[{shape[1]}, {shape[0]}\], should be \[{shape[0]}, {shape[1]}\]$"


def not_a_number(state: dict[str, Tensor], family: str) -> str:
    tensor = state[SOME[family]].clone()
    tensor[3, 2] = torch.nan
    state[SOME[family]] = tensor
    return f"{SOME[family]} holds values that are not finite$"


def infinite(state: dict[str, Tensor], family: str) -> str:
    tensor = state[SOME[family]].clone()
    tensor[0, 0] = -torch.inf
    state[SOME[family]] = tensor
    return f"{SOME[family]} holds values that are not finite$"


def whole_numbers(state: dict[str, Tensor], family: str) -> str:
    state[SOME[family]] = state[SOME[family]].to(torch.int8)
    return rf"{SOME[family]} is torch\.int8, should be torch\.float32$"


def sparse(state: dict[str, Tensor], family: str) -> str:
    state[SOME[family]] = state[SOME[family]].to_sparse()
    return rf"{SOME[family]} is torch\.sparse_coo on cpu, should be all its numbers in memory$"


def without_numbers(state: dict[str, Tensor], family: str) -> str:
    state[SOME[family]] = state[SOME[family]].to("meta")
    return rf"{SOME[family]} is torch\.strided on meta, should be all its numbers in memory$"


@pytest.mark.parametrize(
    "change",
    [
        renamed,
        missing,
        extra,
        transposed,
        not_a_number,
        infinite,
        whole_numbers,
        sparse,
        without_numbers,
    ],
)
def test_tensors_that_are_not_the_tables_are_refused(
    published: Any, home: Path, change: Callable[[dict[str, Tensor], str], str]
) -> None:
    state = published.weights.official("transformer")
    message = change(state, published.family)
    file = published.write("transformer", state)
    with pytest.raises(Refused, match=f"^{file} does not fit .*Transformer: {message}"):
        import_teacher([file, published.write("tokenizer")], published.teacher)
    assert is_empty(home)


def test_the_tokenizers_file_is_named_where_it_is_the_wrong_one(published: Any, home: Path) -> None:
    state = published.weights.official("tokenizer")
    del state["quantize.embedding.weight"]
    file = published.write("tokenizer", state)
    with pytest.raises(Refused, match=rf"^{file} does not fit .*Tokenizer: missing quantize\.embedding"):
        import_teacher([published.write("transformer"), file], published.teacher)
    assert is_empty(home)


class Malicious:
    """Runs code when a plain unpickler meets it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class Harmless:
    """A class of its own, which weights do not need."""


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_needs_more_than_weights_is_refused_and_has_not_run(
    published: Any, published_files: ModuleType, legacy: bool, tmp_path: Path, home: Path
) -> None:
    mark = tmp_path / "it-ran"
    weights = published.weights.official("transformer")
    for unwanted, asked in (
        (Malicious(mark), r"(posix|nt)\.mkdir"),
        (Harmless(), r"[\w.]*Harmless"),
    ):
        content = {"model": weights, "trainer": {"var_wo_ddp": weights}, "args": unwanted}
        file = published_files.written(published.folder / "file.pt", content, legacy)
        with pytest.raises(Refused, match=f"^{file} is not read: it asks for {asked}, which may run code"):
            import_teacher([file, published.write("tokenizer")], published.teacher)
    assert not mark.exists()
    assert is_empty(home)
    # What was in the file is as dangerous as it should be.
    pickle.loads(pickle.dumps(Malicious(mark)))
    assert mark.exists()


@pytest.mark.parametrize("ending", ["pth", "legacy.pth", "safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.999])
def test_a_file_that_was_cut_short_is_refused(
    published: Any, published_files: ModuleType, ending: str, kept: float, home: Path
) -> None:
    path = published.folder / f"cut.{ending}"
    content: Any = published.weights.official("transformer")
    if not ending.endswith("safetensors"):
        content = published_files.contained(content, published.container("transformer"))
    published_files.written(path, content, legacy="legacy" in ending)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    # The old format may end within the name of something that torch knows.
    with pytest.raises(
        Refused, match=f"^{path} is not (a complete checkpoint: .|read: it asks for torch)"
    ) as refused:
        import_teacher([str(path), published.write("tokenizer")], published.teacher)
    assert "weights_only" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert is_empty(home)


@pytest.mark.parametrize("content", [b"hello", b"<html>not found</html>", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_a_file_that_is_no_checkpoint_is_refused(published: Any, content: bytes, home: Path) -> None:
    path = published.folder / "file.pth"
    path.write_bytes(content)
    with pytest.raises(Refused, match=f"^{path} (is not a complete checkpoint: .|holds no tensors)"):
        import_teacher([str(path), published.write("tokenizer")], published.teacher)
    assert is_empty(home)


@pytest.mark.parametrize(
    ("content", "held"),
    [
        ({"weights": {"a": torch.zeros(1)}, "step": 3}, "it holds weights; step$"),
        ({"trainer": 5, "model": 6}, "it holds trainer; model$"),
        ({0: torch.zeros(1)}, "it holds 0$"),
        ({}, "it holds nothing$"),
        (torch.zeros(3), "it holds a Tensor$"),
        ([torch.zeros(3)], "it holds a list$"),
    ],
)
def test_tensors_under_another_key_are_not_guessed_at(
    published: Any, published_files: ModuleType, content: Any, held: str, home: Path
) -> None:
    file = published_files.written(published.folder / "file.pth", content)
    with pytest.raises(Refused, match=f"^{file} holds no tensors by name at .*; {held}"):
        import_teacher([file, published.write("tokenizer")], published.teacher)
    assert is_empty(home)


def test_names_and_numbers_of_files_are_checked_first(published: Any, home: Path) -> None:
    one, two = published.write_both()
    with pytest.raises(
        Refused, match=f"^no published teacher is called 'var-d17': there are {published.teacher}$"
    ):
        import_teacher(["not-there.pth"], "var-d17")
    with pytest.raises(Refused, match=r"is made of two files, \S+ and \S+: 1 given$"):
        import_teacher([one], published.teacher)
    with pytest.raises(Refused, match=r"is made of two files, \S+ and \S+: 3 given$"):
        import_teacher([one, two, two], published.teacher)
    with pytest.raises(Refused, match=f"^there is no file {published.folder / 'gone.pth'}$"):
        import_teacher([one, str(published.folder / "gone.pth")], published.teacher)
    with pytest.raises(Refused, match=f"^there is no file {published.folder}$"):
        import_teacher([one, str(published.folder)], published.teacher)
    with pytest.raises(Refused, match="does not fit"):
        import_teacher([one, one], published.teacher)
    assert is_empty(home)
