"""An in-memory file system whose uploads fail as a test requests: an fsspec plug-in for faulty://."""

from __future__ import annotations

from typing import ClassVar

from fsspec.implementations.memory import MemoryFileSystem


class FaultyFileSystem(MemoryFileSystem):
    """Takes one fault from `faults` for each upload; without faults, uploads succeed."""

    protocol = "faulty"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    faults: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("faulty://"))

    def pipe_file(self, path, value, mode="overwrite", **kwargs) -> None:
        fault = self.faults.pop(0) if self.faults else ""
        part = value[: len(value) // 2] if fault in ("breaks half-way", "truncates silently") else value
        if fault != "breaks before":
            super().pipe_file(path, part, mode=mode, **kwargs)
        if fault in ("breaks before", "breaks half-way", "breaks after"):
            raise OSError("the line broke")
