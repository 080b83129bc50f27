"""Files that are refused as published teachers: one message names the problem, and nothing is written."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from generate_pairs.teachers.importing.import_teacher import import_teacher
from shards.core.errors import Refused

SQUARE = {"var": "blocks.0.attn.proj.weight", "llamagen": "layers.0.attention.wo.weight"}
"""A square matrix of each family."""
WIDE = {"var": "blocks.0.ffn.fc1.weight", "llamagen": "layers.0.feed_forward.w1.weight"}


Change = Callable[[dict[str, Tensor], str], str]
"""Changes the state dict of a family's transformer and returns what the message must say about it."""


@pytest.fixture(autouse=True)
def nothing_is_written(home: Path) -> Iterator[None]:
    yield
    assert not home.exists() or not list(home.rglob("*"))


def renamed(state: dict[str, Tensor], family: str) -> str:
    state["module." + SQUARE[family]] = state.pop(SQUARE[family])
    return rf"missing {SQUARE[family]}; unknown module\.{SQUARE[family]}"


def missing(state: dict[str, Tensor], family: str) -> str:
    del state[SQUARE[family]]
    return f"missing {SQUARE[family]}$"


def extra(state: dict[str, Tensor], family: str) -> str:
    state["blocks.9.new"] = torch.zeros(1)
    return r"unknown blocks\.9\.new$"


def transposed(state: dict[str, Tensor], family: str) -> str:
    shape = list(state[WIDE[family]].shape)
    state[WIDE[family]] = state[WIDE[family]].T
    return rf"{WIDE[family]} is \[{shape[1]}, {shape[0]}\], should be \[{shape[0]}, {shape[1]}\]$"


def replaced(row: int, column: int, value: float) -> Callable[[Tensor], Tensor]:
    place = torch.tensor(row), torch.tensor(column)
    return lambda tensor: tensor.index_put(place, torch.tensor(value))


def converted(convert: Callable[[Tensor], Tensor], message: str) -> Change:
    """Convert a square matrix."""

    def change(state: dict[str, Tensor], family: str) -> str:
        state[SQUARE[family]] = convert(state[SQUARE[family]])
        return f"{SQUARE[family]} {message}$"

    return change


@pytest.mark.parametrize(
    "change",
    [
        renamed,
        missing,
        extra,
        transposed,
        converted(replaced(3, 2, torch.nan), "contains values that are not finite"),
        converted(replaced(0, 0, -torch.inf), "contains values that are not finite"),
        converted(lambda tensor: tensor.to(torch.int8), r"is torch\.int8, should be torch\.float32"),
        converted(Tensor.to_sparse, r"is torch\.sparse_coo on cpu, should be dense and in memory"),
        converted(lambda tensor: tensor.to("meta"), r"is torch\.strided on meta, should be dense and in memory"),
    ],
)
def test_tensors_that_differ_from_the_table_are_refused(published: Any, change: Change) -> None:
    state = published.weights.official("transformer")
    message = change(state, published.family)
    file = published.write("transformer", state)
    with pytest.raises(Refused, match=f"^{file} does not fit .*Transformer: {message}"):
        import_teacher([file, published.write("tokenizer")], published.teacher)


def test_the_message_names_the_tokenizers_file_if_it_is_wrong(published: Any) -> None:
    state = published.weights.official("tokenizer")
    del state["quantize.embedding.weight"]
    file = published.write("tokenizer", state)
    with pytest.raises(Refused, match=rf"^{file} does not fit .*Tokenizer: missing quantize\.embedding"):
        import_teacher([published.write("transformer"), file], published.teacher)


class Malicious:
    """Runs code when it is unpickled without `weights_only`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class Harmless:
    """A class that weights do not need."""


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_needs_more_than_weights_is_refused_and_has_not_run(
    published: Any, published_files: ModuleType, legacy: bool, tmp_path: Path
) -> None:
    mark = tmp_path / "it-ran"
    weights = published.weights.official("transformer")
    for unwanted, needed in (
        (Malicious(mark), r"(posix|nt)\.mkdir"),
        (Harmless(), r"[\w.]*Harmless"),
    ):
        content = {"model": weights, "trainer": {"var_wo_ddp": weights}, "args": unwanted}
        file = published_files.written(published.folder / "file.pt", content, legacy)
        with pytest.raises(Refused, match=f"^{file} is not read: its pickle needs {needed}, which may run code"):
            import_teacher([file, published.write("tokenizer")], published.teacher)
    assert not mark.exists()
    # A plain unpickler does run the code.
    pickle.loads(pickle.dumps(Malicious(mark)))
    assert mark.exists()


@pytest.mark.parametrize("ending", ["pth", "legacy.pth", "safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.999])
def test_a_truncated_file_is_refused(published: Any, published_files: ModuleType, ending: str, kept: float) -> None:
    path = published.folder / f"cut.{ending}"
    content: Any = published.weights.official("transformer")
    if not ending.endswith("safetensors"):
        content = published_files.contained(content, published.container("transformer"))
    published_files.written(path, content, legacy="legacy" in ending)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    # The old format may be cut inside the name of a torch class.
    with pytest.raises(
        Refused, match=f"^{path} is not (a complete checkpoint: .|read: its pickle needs torch)"
    ) as refused:
        import_teacher([str(path), published.write("tokenizer")], published.teacher)
    assert "weights_only" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"hello", b"<html>not found</html>", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_a_file_that_is_no_checkpoint_is_refused(published: Any, content: bytes) -> None:
    path = published.folder / "file.pth"
    path.write_bytes(content)
    with pytest.raises(Refused, match=f"^{path} (is not a complete checkpoint: .|contains no named tensors)"):
        import_teacher([str(path), published.write("tokenizer")], published.teacher)


@pytest.mark.parametrize(
    ("content", "summary"),
    [
        ({"weights": {"a": torch.zeros(1)}, "step": 3}, "it contains weights; step$"),
        ({"trainer": 5, "model": 6}, "it contains trainer; model$"),
        ({0: torch.zeros(1)}, "it contains 0$"),
        ({}, "it contains nothing$"),
        (torch.zeros(3), "it contains a Tensor$"),
        ([torch.zeros(3)], "it contains a list$"),
    ],
)
def test_tensors_under_another_key_are_not_searched(
    published: Any, published_files: ModuleType, content: Any, summary: str
) -> None:
    file = published_files.written(published.folder / "file.pth", content)
    with pytest.raises(Refused, match=f"^{file} contains no named tensors at .*; {summary}"):
        import_teacher([file, published.write("tokenizer")], published.teacher)


def test_names_and_number_of_files_are_checked_first(published: Any) -> None:
    one, two = published.write_both()
    with pytest.raises(Refused, match=f"^no published teacher is called 'var-d17': there are {published.teacher}$"):
        import_teacher(["not-there.pth"], "var-d17")
    with pytest.raises(Refused, match=r"consists of two files, \S+ and \S+: 1 given$"):
        import_teacher([one], published.teacher)
    with pytest.raises(Refused, match=r"consists of two files, \S+ and \S+: 3 given$"):
        import_teacher([one, two, two], published.teacher)
    with pytest.raises(Refused, match=f"^there is no file {published.folder / 'gone.pth'}$"):
        import_teacher([one, str(published.folder / "gone.pth")], published.teacher)
    with pytest.raises(Refused, match=f"^there is no file {published.folder}$"):
        import_teacher([one, str(published.folder)], published.teacher)
    with pytest.raises(Refused, match="does not fit"):
        import_teacher([one, one], published.teacher)
