"""Lists of captions from files: indices are kept, and unusual captions are counted."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from generate_pairs.config import CaptionsConfig
from generate_pairs.text.caption_lists import CaptionList, read_captions, replace_invalid_characters
from generate_pairs.text.digit_captions import NAMES, caption_words, digit_of, digits_captions
from shards.core.errors import Refused

pytestmark = pytest.mark.quick

UNUSUAL = (
    'a "quoted" caption, with a comma',
    "an emoji 🦘🇦🇺 and a family 👩‍👩‍👧",
    "قطة على سجادة",
    "חתול \u200f(right to left)",
    "x" * 10_000,
    "",
    "   ",
    "a\ttab, a form feed \x0c, a line separator \u2028 and a NEL \x85",
    "a\x00nul",
)


def read(file: Path | str, **settings: object) -> CaptionList:
    return read_captions(CaptionsConfig(file=str(file), **settings))


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_each_line_of_text_is_a_caption(tmp_path: Path, ending: str, last: bool) -> None:
    path = tmp_path / "captions.txt"
    path.write_bytes((ending.join(UNUSUAL) + (ending if last else "")).encode())
    assert read(path).captions == UNUSUAL


def test_a_byte_order_mark_is_removed(tmp_path: Path) -> None:
    path, jsonl = tmp_path / "captions.txt", tmp_path / "captions.jsonl"
    path.write_bytes("\ufeffa cat\na dog\n".encode())
    jsonl.write_bytes('\ufeff"a cat"\n"a dog"\n'.encode())
    assert read(path).captions == read(jsonl).captions == ("a cat", "a dog")


def test_invalid_characters_of_prompts_are_replaced() -> None:
    assert replace_invalid_characters(["a cat", "half \udcff of one"]) == ("a cat", "half \ufffd of one")


def test_jsonl_and_parquet_can_contain_line_breaks_and_surrogates(tmp_path: Path) -> None:
    captions = (*UNUSUAL, "two\nlines", "half a pair \ud83d of surrogates")
    jsonl, parquet = tmp_path / "captions.jsonl", tmp_path / "captions.parquet"
    jsonl.write_text("".join(json.dumps({"caption": text, "url": "x"}) + "\n" for text in captions))
    valid = [*captions[:-1], "half a pair \ufffd of surrogates"]
    pyarrow.parquet.write_table(pyarrow.table({"n": range(len(captions)), "caption": valid}), parquet)
    for path, repaired in ((jsonl, {len(captions) - 1}), (parquet, set())):
        listed = read(path)
        assert listed.captions == tuple(valid)
        # A U+FFFD in the file does not count as repaired.
        assert listed.repaired == repaired


def test_jsonl_may_contain_strings_and_another_column(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('"a cat"\n\n{"text": "a dog", "caption": "not this"}\n')
    assert read(path, column="text").captions == ("a cat", "a dog")


def test_unusual_captions_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_bytes(b"a cat\n\na cat\n  \nbroken \xff\xfe bytes\na cat\n")
    listed = read(path)
    assert listed.captions == ("a cat", "", "a cat", "  ", "broken \ufffd\ufffd bytes", "a cat")
    assert listed.lines() == [
        f"6 captions from {path}: 2 empty; 2 repeat another and are encoded once; "
        "1 with invalid UTF-8, replaced by \ufffd"
    ]
    assert CaptionList("x", ("a", "b")).lines() == ["2 captions from x"]


def test_indices_select_and_repeat_captions(tmp_path: Path) -> None:
    path, indices = tmp_path / "captions.txt", tmp_path / "indices.txt"
    path.write_text("zero\none\ntwo\nthree\n")
    indices.write_text("3\n0\n3\n")
    assert read(path, indices=str(indices)).captions == ("three", "zero", "three")


def test_a_file_at_a_url(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("a cat\n")
    assert read(f"file://{path}").captions == ("a cat",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.txt", None, r"captions\.file: cannot read .*captions\.txt: it is missing"),
        ("captions.csv", b"a\n", r"should end in \.txt .*\.jsonl or \.parquet"),
        ("captions.txt", b"", "holds no captions"),
        ("captions.jsonl", b'"a"\n{"caption"\n', "line 2 of .* is not JSON"),
        ("captions.jsonl", b'{"text": "a", "url": 1}\n', r"line 1 .*'caption' \(found: 'text', 'url'\)"),
        ("captions.jsonl", b'{"caption": 3}\n', "line 1 of .* holds no text"),
        ("captions.jsonl", b"[" * 100_000 + b"\n", "line 1 of .* is nested too deeply"),
        ("captions.txt", "a cat\n".encode("utf-16"), "is written in UTF-16: save it as UTF-8"),
        ("~no-such-user/captions.txt", None, "refers to a home folder that does not exist"),
        ("captions.jsonl", b"[1]\n", r"holds no text under 'caption' \(found: list\)"),
        ("captions.parquet", b"PAR1 it is not", "is not a Parquet file"),
    ],
)
def test_refuses_invalid_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = Path(name) if name.startswith("~") else tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Refused, match=message):
        read(path)


def test_dictionary_encoded_strings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "captions.parquet"
    column = pyarrow.array(["a cat", "a dog", "a cat"]).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"caption": column}), path)
    assert read(path).captions == ("a cat", "a dog", "a cat")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([("text", ["a"])], "has no column 'caption'; captions.column names one of 'text'"),
        ([("caption", ["a", None])], "row 2 of .* has no caption"),
        ([("caption", [1, 2])], "the column 'caption' of .* holds int64, not strings"),
        ([("caption", [b"PNG", b"PNG"])], "the column 'caption' of .* holds binary, not strings"),
        ([("caption", ["a"]), ("caption", ["a"])], "has 2 columns named 'caption'"),
    ],
)
def test_refuses_tables_without_captions(tmp_path: Path, table: list[tuple[str, list[object]]], message: str) -> None:
    path = tmp_path / "captions.parquet"
    names, columns = zip(*table, strict=True)
    pyarrow.parquet.write_table(pyarrow.table(list(map(pyarrow.array, columns)), list(names)), path)
    with pytest.raises(Refused, match=message):
        read(path)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ("0\n2\n", "2 in .* is out of range: captions have indices 0 .. 1"),
        ("one\n", "whole numbers"),
        ("", "no numbers"),
    ],
)
def test_refuses_invalid_indices(tmp_path: Path, indices: str, message: str) -> None:
    (tmp_path / "captions.txt").write_text("a\nb\n")
    (tmp_path / "indices.txt").write_text(indices)
    with pytest.raises(Refused, match=message):
        read(tmp_path / "captions.txt", indices=str(tmp_path / "indices.txt"))


def test_missing_captions_are_explained() -> None:
    with pytest.raises(Refused, match=r"captions\.file: .* Give --captions FILE"):
        read_captions(CaptionsConfig())


def test_a_million_captions_are_read_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("".join(f"a photograph of thing number {number} on a table\n" for number in range(1_000_000)))
    began = time.monotonic()
    lines = read(path).lines()
    # About two seconds; this only excludes quadratic time.
    assert time.monotonic() - began < 30
    assert lines == [f"1,000,000 captions from {path}"]


def test_each_digit_has_equally_many_captions() -> None:
    captions = digits_captions()
    assert (len(captions), len(set(captions))) == (150, 150)
    assert [digit_of(caption) for caption in captions] == [*range(10)] * 15
    assert digit_of("a platypus") is None
    for caption in captions:
        words = caption.split()
        if words[1] in ("sum", "difference"):
            first, second = NAMES.index(words[3]), NAMES.index(words[5])
            assert digit_of(caption) == (first + second if words[1] == "sum" else first - second)
        else:
            assert digit_of(caption) == NAMES.index(words[-1])
        assert set(words) <= set(caption_words())
    assert read("digits").captions == captions


def test_the_name_of_an_embedded_encoder_is_not_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the same name may exist, as in `runs`."""
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "mine"):
        (tmp_path / name).mkdir()
    assert CaptionsConfig(encoder="digits").with_absolute_paths().encoder == "digits"
    assert CaptionsConfig(encoder="mine").with_absolute_paths().encoder == str(tmp_path / "mine")
