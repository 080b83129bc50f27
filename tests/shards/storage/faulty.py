"""A file system in memory whose uploads break as a test says: an fsspec plug-in under faulty://."""

from __future__ import annotations

from typing import ClassVar

from fsspec.implementations.memory import MemoryFileSystem


class FaultyFileSystem(MemoryFileSystem):
    """Takes one mishap from `mishaps` for every upload; no mishap is left: it works."""

    protocol = "faulty"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    mishaps: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("faulty://"))

    def pipe_file(self, path, value, mode="overwrite", **kwargs) -> None:
        mishap = self.mishaps.pop(0) if self.mishaps else ""
        part = value[: len(value) // 2] if mishap in ("breaks half-way", "truncates silently") else value
        if mishap != "breaks before":
            super().pipe_file(path, part, mode=mode, **kwargs)
        if mishap in ("breaks before", "breaks half-way", "breaks after"):
            raise OSError("the line broke")
