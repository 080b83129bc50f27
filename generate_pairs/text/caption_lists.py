"""A list of captions from a file: text, JSONL or Parquet, on this machine or behind a URL.

Caption i of the file is caption i of the list, whatever it is: nothing is left out, so that numbers mean the same in the
file, in `captions.indices` and in the labels of pairs. What is odd is counted.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from generate_pairs.config import CaptionsConfig
from generate_pairs.text.digit_captions import digits_captions
from shards.core.errors import Refused
from shards.storage.files import read_each
from shards.storage.paths import expanded, location

EMBEDDED = "digits"
"""The captions that ship, see `generate_pairs.text.digit_captions`."""

REPLACEMENT = "\ufffd"
UTF8_MARK = codecs.BOM_UTF8


@dataclass(frozen=True)
class CaptionList:
    """Captions in order.

    Attributes:
        name: where they come from, for people.
        captions: each can be written as UTF-8.
        mended: numbers of those that held what is no character, each such place now U+FFFD.
    """

    name: str
    captions: tuple[str, ...]
    mended: frozenset[int] = frozenset()

    def lines(self) -> list[str]:
        """The list as people read it: how many there are, and what is odd about them."""
        total, empty = len(self.captions), sum(not caption.strip() for caption in self.captions)
        repeated = total - len(set(self.captions))
        odd = [
            f"{empty:,} empty" if empty else "",
            f"{repeated:,} that repeat another, encoded once" if repeated else "",
            f"{len(self.mended):,} with bytes that are no UTF-8, each of them now {REPLACEMENT}"
            if self.mended
            else "",
        ]
        odd = [words for words in odd if words]
        return [f"{total:,} captions from {self.name}" + (f": {'; '.join(odd)}" if odd else "")]


def read_captions(config: CaptionsConfig) -> CaptionList:
    """The captions that the settings name, those of `captions.indices` alone if it is given.

    Raises:
        Refused: there is no such file, it holds no captions, or something in it is none; names the place.
        Failed: it cannot be read.
    """
    if config.file is None:
        raise Refused(
            "captions.file: this teacher draws images for captions. Give --captions FILE: text with one caption a "
            f"line, .jsonl or .parquet with a column {config.column!r}, or {EMBEDDED}, the captions that ship"
        )
    listed = _read(config.file, config.column)
    if not listed.captions:
        raise Refused(f"captions.file: {config.file} holds no captions")
    if config.indices is None:
        return listed
    indices = _read_indices(config.indices, len(listed.captions))
    return CaptionList(
        f"{listed.name}, as {config.indices} lists them",
        tuple(listed.captions[index] for index in indices),
        frozenset(place for place, index in enumerate(indices) if index in listed.mended),
    )


def _read(file: str, column: str) -> CaptionList:
    if file == EMBEDDED:
        return CaptionList(EMBEDDED, digits_captions())
    is_url = "://" in file
    suffix = Path(urlsplit(file).path if is_url else file).suffix.lower()
    readers = {".txt": _of_text, ".jsonl": _of_jsonl, ".ndjson": _of_jsonl, ".parquet": _of_parquet}
    if suffix not in readers:
        raise Refused(
            f"captions.file: {file} should end in .txt (a caption a line), .jsonl or .parquet, or be {EMBEDDED}"
        )
    texts = list(readers[suffix](file, _bytes_of(file, "captions.file"), column))
    return CaptionList(
        file,
        tuple(text for text, _ in texts),
        frozenset(number for number, (_, was_mended) in enumerate(texts) if was_mended),
    )


def _bytes_of(file: str, key: str) -> bytes:
    place = location(file) if "://" in file else expanded(key, file)
    (data,) = read_each([place])
    if data is None:
        raise Refused(f"{key}: cannot read {file}: it is missing")
    return data.removeprefix(UTF8_MARK)


def _of_text(file: str, data: bytes, column: str) -> Iterator[tuple[str, bool]]:
    """A caption a line. Of the signs that end a line elsewhere, as U+2028, none does here."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise Refused(f"captions.file: {file} is written in UTF-16: save it as UTF-8")
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    return map(_text, (line.removesuffix(b"\r") for line in lines))


def _of_jsonl(file: str, data: bytes, column: str) -> Iterator[tuple[str, bool]]:
    """A JSON object a line, whose `column` is the caption; or a text alone."""
    for number, raw in enumerate(data.split(b"\n"), start=1):
        line, was_mended = _text(raw)
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            raise Refused(
                f"captions.file: line {number} of {file} is no JSON: {error.msg}, at column {error.colno}"
            ) from error
        except RecursionError as error:
            raise Refused(f"captions.file: line {number} of {file} is nested too deeply") from error
        caption = found.get(column) if isinstance(found, dict) else found
        if not isinstance(caption, str):
            keys = ", ".join(map(repr, found)) if isinstance(found, dict) else type(found).__name__
            raise Refused(
                f"captions.file: line {number} of {file} holds no text under {column!r} (there: {keys}); "
                "captions.column names the key"
            )
        text, had_surrogates = _text(caption)
        yield text, was_mended or had_surrogates


def _of_parquet(file: str, data: bytes, column: str) -> Iterator[tuple[str, bool]]:
    """The rows of a column of texts."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        names = table.schema_arrow.names
        if column not in names:
            raise Refused(
                f"captions.file: {file} has no column {column!r}; captions.column names one of "
                f"{', '.join(map(repr, names))}"
            )
        if names.count(column) > 1:
            raise Refused(f"captions.file: {file} has {names.count(column)} columns {column!r}")
        kind = table.schema_arrow.field(column).type
        kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        if not any(is_text(kind) for is_text in _text_types()):
            raise Refused(f"captions.file: the column {column!r} of {file} holds {kind}, not texts")
        texts: Any = table.read(columns=[column], use_threads=False)[column].cast(pyarrow.large_binary())
    except (pyarrow.ArrowException, OSError) as error:
        raise Refused(
            f"captions.file: {file} is no Parquet file with texts under {column!r}: {error}"
        ) from error
    if texts.null_count:
        row = texts.is_null().to_pylist().index(True)
        raise Refused(f"captions.file: row {row + 1} of {file} has no caption")
    return map(_text, texts.to_pylist())


def _text_types() -> Sequence[Callable[[Any], bool]]:
    from pyarrow import types

    return types.is_string, types.is_large_string, types.is_string_view


def _text(found: str | bytes) -> tuple[str, bool]:
    """A text that can be written as UTF-8, and whether something in it had to be replaced for that."""
    if isinstance(found, bytes):
        try:
            return found.decode(), False
        except UnicodeDecodeError:
            return found.decode("utf-8", "replace"), True
    try:
        found.encode()
    except UnicodeEncodeError:
        # Half pairs of surrogates, which JSON and a command line can hold.
        return "".join(REPLACEMENT if "\ud800" <= sign <= "\udfff" else sign for sign in found), True
    return found, False


def prompted(texts: Sequence[str]) -> tuple[str, ...]:
    """Captions from a command line, which need not be UTF-8."""
    return tuple(_text(text)[0] for text in texts)


def _read_indices(file: str, num_captions: int) -> list[int]:
    lines = _bytes_of(file, "captions.indices").split()
    try:
        indices = [int(line) for line in lines]
    except ValueError as error:
        raise Refused(f"captions.indices: {file} should hold whole numbers, one a line: {error}") from error
    if not indices:
        raise Refused(f"captions.indices: {file} holds no numbers")
    outside = next((index for index in indices if not 0 <= index < num_captions), None)
    if outside is not None:
        raise Refused(
            f"captions.indices: {outside} in {file} is no caption: there are 0 .. {num_captions - 1}"
        )
    return indices
