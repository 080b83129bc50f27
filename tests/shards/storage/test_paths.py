"""Parsing of locations: paths stay paths, fsspec opens URLs, and other text is refused with a message."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
from upath import UPath

from shards.core.errors import Refused
from shards.storage.paths import is_web, location

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("text", "path"), [("pairs", "pairs"), ("/a/pairs", "/a/pairs"), ("file:///a/pairs", "/a/pairs"), ("a:/b", "a:/b")]
)
def test_a_path_is_a_path(text: str, path: str) -> None:
    assert location(text) == Path(path)
    assert type(location(text)) is type(Path(path))


@pytest.mark.parametrize("text", ["s3://bucket/pairs", "memory://pairs", "http://host/pairs"])
def test_a_url_keeps_its_text_and_can_be_pickled(text: str) -> None:
    place = location(text)
    assert isinstance(place, UPath)
    assert not isinstance(place, Path)
    assert (str(place), str(place / "shards" / "a.tar")) == (text, f"{text}/shards/a.tar")
    assert pickle.loads(pickle.dumps(place)) == place
    assert is_web(place) == text.startswith("http")


def test_a_location_is_returned_unchanged() -> None:
    for place in (Path("pairs"), location("memory://pairs")):
        assert location(place) is place


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope://bucket/pairs", "fsspec does not support nope://"),
        ("s3:///pairs", "has no bucket: write it after s3://"),
        ("http://", "has no host"),
        ("simplecache::s3://bucket/pairs", "chains several URLs"),
    ],
)
def test_an_unsupported_url_is_refused(text: str, message: str) -> None:
    with pytest.raises(Refused, match=message) as caught:
        location(text)
    assert text in str(caught.value)


@pytest.mark.parametrize(("module", "text", "extra"), [("upath", "s3", "remote"), ("gcsfs", "gs", "gs")])
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, module: str, text: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Refused, match=rf"`pip install '\.\[{extra}\]'`"):
        location(f"{text}://bucket/pairs")
