"""Checkpoints from outside: found in a file of any container, held against a table, kept in this project's form.

Nothing in a file is trusted: pickles load with `weights_only=True`, and every name, shape and kind of number must be
the table's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from generate_pairs.teachers.checkpoints import (
    imported_folder,
    read_about,
    save_teacher,
)
from generate_pairs.teachers.importing.checkpoint_file import SAFETENSORS, load_parts, two_files
from generate_pairs.teachers.meta_device import on_meta_device
from generate_pairs.teachers.published import TEACHERS
from generate_pairs.teachers.registry import build_teacher
from shards.core.errors import Refused
from shards.storage.files import sha256_file


def import_teacher(files: Sequence[str], name: str) -> Path:
    """Keep a published teacher's two files as one of this project's, checked against the table.

    Args:
        files: the transformer's and the tokenizer's, in any order; none to take both from the Hub.
        name: the teacher's, as in `official.TEACHERS`.

    Returns:
        The file that `teacher.name = NAME` finds from now on; one that is there already from the same files stays.

    Raises:
        Refused: an unknown name, files that do not fit, or another import under this name.
        Failed: a download failed, or the disk is full.
    """
    if name not in TEACHERS:
        raise Refused(f"no published teacher is called {name!r}: there are {', '.join(TEACHERS)}")
    published = TEACHERS[name]
    parts = {"transformer": published.transformer, "tokenizer": published.tokenizer}
    given = two_files(files, name, (published.transformer.file, published.tokenizer.file))
    sha256 = {path: sha256_file(path) for path in given}
    out = imported_folder() / f"{name}{SAFETENSORS}"
    if out.is_file():
        refuse_other_import(out, [sha256[path] for path in given])
        return out
    # On the meta device nothing is allocated, so the weights are in memory once.
    with on_meta_device():
        teacher = build_teacher(
            published.family, asdict(published.transformer.config), asdict(published.tokenizer.config)
        )
    sources = load_parts(given, [(part, getattr(teacher, role)) for role, part in parts.items()])
    about = {
        # Not what the files were called: the bytes written here go into the pairs' fingerprint.
        "files": {role: sha256[path] for role, path in zip(parts, sources, strict=True)},
        "published": [str(part.file) for part in parts.values()],
        "licence": published.licence,
        "codebook_rows_repeated": repeated_rows(teacher.codebook_VC),
    }
    save_teacher(teacher, published.family, out, about, dtype=None)
    return out


def refuse_other_import(path: Path, sha256: Sequence[str]) -> None:
    """Confirm that an imported teacher was made from files of these hashes.

    Raises:
        Refused: it was made from others.
    """
    made_from = read_about(path).get("files", {})
    if sorted(made_from.values()) != sorted(sha256):
        those = (
            ", ".join(f"{role} {digest[:12]}" for role, digest in made_from.items())
            or "nothing that it names"
        )
        raise Refused(
            f"{path} is there already, made from files of another sha256 ({those}): take it away first, or keep it"
        )


def repeated_rows(codebook_VC: Tensor) -> int:
    """How many codebook rows equal an earlier one: the flow map takes such rows for one point."""
    return len(codebook_VC) - len(torch.unique(codebook_VC, dim=0))
