"""Import of published teachers: their two files, checked against the table, become one file of this project.

Files are not trusted: pickles load with `weights_only=True`, and every name, shape and kind of number must be that of
the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from generate_pairs.teachers.checkpoints import imported_folder, read_about, save_teacher
from generate_pairs.teachers.importing.checkpoint_file import SAFETENSORS, load_parts, two_files
from generate_pairs.teachers.meta_device import on_meta_device
from generate_pairs.teachers.published import TEACHERS
from generate_pairs.teachers.registry import build_teacher
from shards.core.errors import Refused
from shards.storage.files import sha256_file


def import_teacher(files: Sequence[str], name: str) -> Path:
    """Convert a published teacher's two files to one of this project.

    Args:
        files: of the transformer and of the tokenizer, in any order; empty to download both from the Hub.
        name: the teacher's key in `published.TEACHERS`.

    Returns:
        The file for `teacher.name = NAME`; an existing one made from the same files stays.

    Raises:
        Refused: the name is unknown, the files do not fit, or a teacher of this name was made from other files.
        Failed: a download failed, or the disk is full.
    """
    if name not in TEACHERS:
        raise Refused(f"no published teacher is called {name!r}: there are {', '.join(TEACHERS)}")
    published = TEACHERS[name]
    parts = {"transformer": published.transformer, "tokenizer": published.tokenizer}
    paths = two_files(files, name, (published.transformer.file, published.tokenizer.file))
    sha256 = {path: sha256_file(path) for path in paths}
    out = imported_folder() / f"{name}{SAFETENSORS}"
    if out.is_file():
        made_from = read_about(out).get("files", {})
        if sorted(made_from.values()) != sorted(sha256[path] for path in paths):
            hashes = ", ".join(f"{role} {digest[:12]}" for role, digest in made_from.items()) or "not recorded"
            raise Refused(
                f"{out} exists already, made from files of another sha256 ({hashes}): delete it first, or keep it"
            )
        return out
    # The meta device allocates nothing, so memory contains the weights only once.
    with on_meta_device():
        teacher = build_teacher(
            published.family, asdict(published.transformer.config), asdict(published.tokenizer.config)
        )
    sources = load_parts(paths, [(part, getattr(teacher, role)) for role, part in parts.items()])
    about = {
        # Without the files' names: the bytes written here are part of the pairs' fingerprint.
        "files": {role: sha256[path] for role, path in zip(parts, sources, strict=True)},
        "published": [str(part.file) for part in parts.values()],
        "licence": published.licence,
        # The flow map counts equal rows as one point.
        "codebook_rows_repeated": teacher.vocab_size - len(torch.unique(teacher.codebook_VC, dim=0)),
    }
    save_teacher(teacher, published.family, out, about, dtype=None)
    return out
