"""Reads a list of captions from a text, JSONL or Parquet file, local or at a URL.

Caption i of the file is caption i of the list. None is left out, so an index means the same in the file, in
`captions.indices` and in the labels of pairs. Unusual captions are counted.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from generate_pairs.config import CaptionsConfig
from generate_pairs.text.digit_captions import digits_captions
from shards.core.errors import Refused
from shards.storage.files import read_each
from shards.storage.paths import expand_home, location

EMBEDDED = "digits"
"""Name of the embedded captions, see `generate_pairs.text.digit_captions`."""

REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class CaptionList:
    """Captions in order, valid UTF-8, and their source, for messages.

    `repaired` are the indices of the captions in which invalid characters were replaced by U+FFFD.
    """

    name: str
    captions: tuple[str, ...]
    repaired: frozenset[int] = frozenset()

    def lines(self) -> list[str]:
        """A summary for the user: the number of captions, and of unusual ones."""
        total = len(self.captions)
        counts = {
            "empty": sum(not caption.strip() for caption in self.captions),
            "repeat another and are encoded once": total - len(set(self.captions)),
            f"with invalid UTF-8, replaced by {REPLACEMENT}": len(self.repaired),
        }
        notes = "; ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        return [f"{total:,} captions from {self.name}" + (f": {notes}" if notes else "")]


def read_captions(config: CaptionsConfig) -> CaptionList:
    """The captions that the settings name; with `captions.indices`, only those.

    Raises:
        Refused: a file is missing, has no captions, or an entry is not a caption; the message names the place.
        Failed: a file cannot be read.
    """
    if config.file is None:
        raise Refused(
            "captions.file: this teacher draws images for captions. Give --captions FILE: .txt with one caption per "
            f"line, .jsonl or .parquet with a column {config.column!r}, or {EMBEDDED}, the embedded captions"
        )
    listed = _read(config.file, config.column)
    if not listed.captions:
        raise Refused(f"captions.file: {config.file} holds no captions")
    if config.indices is None:
        return listed
    indices = _read_indices(config.indices, len(listed.captions))
    return CaptionList(
        f"{listed.name}, selected by {config.indices}",
        tuple(listed.captions[index] for index in indices),
        frozenset(number for number, index in enumerate(indices) if index in listed.repaired),
    )


def _read(file: str, column: str) -> CaptionList:
    if file == EMBEDDED:
        return CaptionList(EMBEDDED, digits_captions())
    suffix = Path(urlsplit(file).path if "://" in file else file).suffix.lower()
    readers = {".txt": _from_text, ".jsonl": _from_jsonl, ".ndjson": _from_jsonl, ".parquet": _from_parquet}
    if suffix not in readers:
        raise Refused(
            f"captions.file: {file} should end in .txt (one caption per line), .jsonl or .parquet, or be {EMBEDDED}"
        )
    texts = list(readers[suffix](file, _read_bytes(file, "captions.file"), column))
    return CaptionList(
        file,
        tuple(text for text, _ in texts),
        frozenset(number for number, (_, was_repaired) in enumerate(texts) if was_repaired),
    )


def _read_bytes(file: str, key: str) -> bytes:
    path = location(file) if "://" in file else expand_home(key, file)
    (data,) = read_each([path])
    if data is None:
        raise Refused(f"{key}: cannot read {file}: it is missing")
    return data.removeprefix(codecs.BOM_UTF8)


def _from_text(file: str, data: bytes, column: str) -> Iterator[tuple[str, bool]]:
    """One caption per line. Only a line feed ends a line, not U+2028 or the like."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise Refused(f"captions.file: {file} is written in UTF-16: save it as UTF-8")
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    return map(_valid_text, (line.removesuffix(b"\r") for line in lines))


def _from_jsonl(file: str, data: bytes, column: str) -> Iterator[tuple[str, bool]]:
    """One JSON value per line: a string, or an object with the caption under `column`."""
    for number, raw in enumerate(data.split(b"\n"), start=1):
        line, was_repaired = _valid_text(raw)
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise Refused(
                f"captions.file: line {number} of {file} is not JSON: {error.msg}, at column {error.colno}"
            ) from error
        except RecursionError as error:
            raise Refused(f"captions.file: line {number} of {file} is nested too deeply") from error
        caption = value.get(column) if isinstance(value, dict) else value
        if not isinstance(caption, str):
            keys = ", ".join(map(repr, value)) if isinstance(value, dict) else type(value).__name__
            raise Refused(
                f"captions.file: line {number} of {file} holds no text under {column!r} (found: {keys}); "
                "captions.column names the key"
            )
        text, had_surrogates = _valid_text(caption)
        yield text, was_repaired or had_surrogates


def _from_parquet(file: str, data: bytes, column: str) -> Iterator[tuple[str, bool]]:
    """One caption per row of a column of strings."""
    import pyarrow
    import pyarrow.parquet
    from pyarrow import types

    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        names = table.schema_arrow.names
        if column not in names:
            raise Refused(
                f"captions.file: {file} has no column {column!r}; captions.column names one of "
                f"{', '.join(map(repr, names))}"
            )
        if names.count(column) > 1:
            raise Refused(f"captions.file: {file} has {names.count(column)} columns named {column!r}")
        kind = table.schema_arrow.field(column).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
            raise Refused(f"captions.file: the column {column!r} of {file} holds {kind}, not strings")
        texts: Any = table.read(columns=[column], use_threads=False)[column].cast(pyarrow.large_binary())
    except (pyarrow.ArrowException, OSError) as error:
        raise Refused(f"captions.file: {file} is not a Parquet file with strings under {column!r}: {error}") from error
    if texts.null_count:
        row = texts.is_null().to_pylist().index(True)
        raise Refused(f"captions.file: row {row + 1} of {file} has no caption")
    return map(_valid_text, texts.to_pylist())


def _valid_text(text: str | bytes) -> tuple[str, bool]:
    """A text that UTF-8 can encode, and whether characters were replaced for that."""
    if isinstance(text, bytes):
        valid = text.decode("utf-8", "replace")
        return valid, valid.encode() != text
    # Unpaired surrogates, which JSON and a command line can contain.
    valid = re.sub(r"[\ud800-\udfff]", REPLACEMENT, text)
    return valid, valid != text


def replace_invalid_characters(texts: Sequence[str]) -> tuple[str, ...]:
    """Captions from a command line, with invalid characters replaced by U+FFFD."""
    return tuple(_valid_text(text)[0] for text in texts)


def _read_indices(file: str, num_captions: int) -> list[int]:
    lines = _read_bytes(file, "captions.indices").split()
    try:
        indices = [int(line) for line in lines]
    except ValueError as error:
        raise Refused(f"captions.indices: {file} should hold whole numbers, one per line: {error}") from error
    if not indices:
        raise Refused(f"captions.indices: {file} holds no numbers")
    outside = next((index for index in indices if not 0 <= index < num_captions), None)
    if outside is not None:
        raise Refused(
            f"captions.indices: {outside} in {file} is out of range: captions have indices 0 .. {num_captions - 1}"
        )
    return indices
