"""A list of captions from a file: text, JSONL or Parquet, on this machine or behind a URL.

Caption i of the file is caption i of the list, whatever it is: nothing is left out, so that numbers mean the same in the
file, in `captions.indices` and in the labels of pairs. What is odd is counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generate_pairs.config import CaptionsConfig
from generate_pairs.text.digits import digits_captions
from shards.errors import Failed, Refused
from shards.locations import Location, location
from shards.storage import read_bytes

EMBEDDED = "digits"
"""The captions that ship, see `generate_pairs.text.digits`."""

REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class CaptionList:
    """Captions in order.

    Attributes:
        name: where they come from, for people.
        captions: each can be written as UTF-8.
        num_mended: captions that held what is no character, each such place now U+FFFD.
    """

    name: str
    captions: tuple[str, ...]
    num_mended: int = 0

    def lines(self) -> list[str]:
        """The list as people read it: how many there are, and what is odd about them."""
        total, empty = len(self.captions), sum(not caption.strip() for caption in self.captions)
        repeated = total - len(set(self.captions))
        odd = [
            f"{empty:,} empty" if empty else "",
            f"{repeated:,} that repeat another, encoded once" if repeated else "",
            f"{self.num_mended:,} with bytes that are no UTF-8, each of them now {REPLACEMENT}"
            if self.num_mended
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
    chosen = tuple(listed.captions[index] for index in indices)
    return CaptionList(
        f"{listed.name}, as {config.indices} lists them", chosen, sum(REPLACEMENT in text for text in chosen)
    )


def _read(file: str, column: str) -> CaptionList:
    if file == EMBEDDED:
        return CaptionList(EMBEDDED, digits_captions())
    suffix = Path(file).suffix.lower()
    readers = {".txt": _of_text, ".jsonl": _of_jsonl, ".ndjson": _of_jsonl, ".parquet": _of_parquet}
    if suffix not in readers:
        raise Refused(
            f"captions.file: {file} should end in .txt (a caption a line), .jsonl or .parquet, or be {EMBEDDED}"
        )
    place = location(file) if "://" in file else Path(file).expanduser()
    found = readers[suffix](file, _bytes_of(place, "captions.file"), column)
    mended = [_mended(text) for text in found]
    return CaptionList(file, tuple(mended), sum(REPLACEMENT in text for text in mended))


def _bytes_of(place: Location, key: str) -> bytes:
    try:
        return read_bytes(place)
    except Failed as error:
        raise Refused(f"{key}: {error}") from error


def _of_text(file: str, data: bytes, column: str) -> Sequence[str]:
    """A caption a line. Of the signs that end a line elsewhere, as U+2028, none does here."""
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _of_jsonl(file: str, data: bytes, column: str) -> Sequence[str]:
    """A JSON object a line, whose `column` is the caption; or a text alone."""
    captions = []
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as error:
            raise Refused(f"captions.file: line {number} of {file} is no JSON: {error}") from error
        caption = found.get(column) if isinstance(found, dict) else found
        if not isinstance(caption, str):
            keys = ", ".join(map(repr, found)) if isinstance(found, dict) else type(found).__name__
            raise Refused(
                f"captions.file: line {number} of {file} holds no text under {column!r} (there: {keys}); "
                "captions.column names the key"
            )
        captions.append(caption)
    return captions


def _of_parquet(file: str, data: bytes, column: str) -> Sequence[str]:
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
        texts: Any = table.read(columns=[column], use_threads=False)[column].cast(pyarrow.large_binary())
    except (pyarrow.ArrowException, OSError) as error:
        raise Refused(
            f"captions.file: {file} is no Parquet file with texts under {column!r}: {error}"
        ) from error
    if texts.null_count:
        row = texts.is_null().to_pylist().index(True)
        raise Refused(f"captions.file: row {row} of {file} has no caption")
    return [text.decode("utf-8", "replace") for text in texts.to_pylist()]


def _mended(text: str) -> str:
    """The text with half pairs of surrogates, which JSON can hold, replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join(REPLACEMENT if "\ud800" <= sign <= "\udfff" else sign for sign in text)
    return text


def _read_indices(file: str, num_captions: int) -> list[int]:
    lines = _bytes_of(
        location(file) if "://" in file else Path(file).expanduser(), "captions.indices"
    ).split()
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
