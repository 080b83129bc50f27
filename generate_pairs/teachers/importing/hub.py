"""Files on the Hugging Face Hub, downloaded or read from its cache: `hf://OWNER/REPOSITORY...`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shards.core.errors import Failed, Refused

HUB = "hf://"


def hub_file(name: str) -> Path:
    """The file `hf://OWNER/REPOSITORY/FILE`.

    Raises:
        Refused: the name has another form, or the extra `hub` is not installed.
        Failed: the download failed.
    """
    owner, repository, file = (*name.removeprefix(HUB).split("/", 2), "", "")[:3]
    if not (owner and repository and file):
        raise Refused(f"{name}: a file on the Hub is named {HUB}OWNER/REPOSITORY/FILE")
    with _client(name) as hub:
        return Path(hub.hf_hub_download(f"{owner}/{repository}", file))


def hub_folder(name: str, files: Sequence[str]) -> Path:
    """A folder with these files of `hf://OWNER/REPOSITORY` or `hf://OWNER/REPOSITORY@REVISION`, all of one revision.

    Files that the repository lacks are missing in the folder, too. The folder may contain other files.

    Raises:
        Refused: the name has another form, or the extra `hub` is not installed.
        Failed: the download failed.
    """
    repository, at, revision = name.removeprefix(HUB).partition("@")
    parts = repository.split("/")
    if len(parts) != 2 or not all(parts) or bool(at) != bool(revision):
        raise Refused(f"{name}: a repository on the Hub is named {HUB}OWNER/REPOSITORY or {HUB}OWNER/REPOSITORY@REVISION")
    with _client(name) as hub:
        return Path(hub.snapshot_download(repository, revision=revision or None, allow_patterns=list(files)))


@contextmanager
def _client(name: str) -> Iterator[Any]:
    """The module huggingface_hub; its errors become Refused (not installed) or Failed."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise Refused(
            f"{name} needs the Hugging Face client: pip install '.[hub]', or download the file yourself"
        ) from error
    try:
        yield huggingface_hub
    except Exception as error:  # its errors have no common base class
        raise Failed(f"cannot get {name}: {error}") from error
