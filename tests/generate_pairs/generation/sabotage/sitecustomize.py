"""Python imports this first where its folder is on the path: SABOTAGE, a JSON object, says what then goes wrong.

`slow`: seconds that every batch takes longer. `kills`: the shard that ends the process which makes it.
`full_after`: once this many shards lie in a folder, nothing more can be written beside them.
"""

from __future__ import annotations

import errno
import importlib.abc
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

ORDERS = json.loads(os.environ.get("SABOTAGE", "{}"))


def spoil_batches(worker: ModuleType) -> None:
    make = worker.PairMaker.make

    def spoiled(maker, spec, indices):
        time.sleep(ORDERS.get("slow", 0))
        if indices.start // spec.pairs_per_shard == ORDERS.get("kills"):
            os._exit(1)
        return make(maker, spec, indices)

    worker.PairMaker.make = spoiled


def spoil_disk(sync: Callable[[int], None]) -> Callable[[int], None]:
    def spoiled(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if ".tar." in path.name and len(list(path.parent.glob("[!.]*.tar"))) >= ORDERS["full_after"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    return spoiled


class Saboteur(importlib.abc.MetaPathFinder):
    """Spoils the worker's module as it is imported."""

    def find_spec(self, name, path, target=None):
        if name != "generate_pairs.generation.worker":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            spoil_batches(module)

        spec.loader.exec_module = exec_module
        return spec


if "full_after" in ORDERS:
    os.fsync = spoil_disk(os.fsync)
sys.meta_path.insert(0, Saboteur())
