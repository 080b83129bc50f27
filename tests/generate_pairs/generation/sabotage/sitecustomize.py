"""Injects faults: Python imports this module at start-up if its folder is on the path. SABOTAGE is a JSON object:

`slow`: seconds added to every batch. `kills`: index of the shard that ends its process. `full_after`: number of shards
in a folder after which writing a shard fails with a full disk.
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

FAULTS = json.loads(os.environ.get("SABOTAGE", "{}"))


def sabotage_batches(worker: ModuleType) -> None:
    make = worker.PairMaker.make

    def sabotaged(maker, spec, indices):
        time.sleep(FAULTS.get("slow", 0))
        if indices.start // spec.pairs_per_shard == FAULTS.get("kills"):
            os._exit(1)
        return make(maker, spec, indices)

    worker.PairMaker.make = sabotaged


def sabotage_disk(sync: Callable[[int], None]) -> Callable[[int], None]:
    def sabotaged(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if ".tar." in path.name and len(list(path.parent.glob("[!.]*.tar"))) >= FAULTS["full_after"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    return sabotaged


class Saboteur(importlib.abc.MetaPathFinder):
    """Patches the worker module when it is imported."""

    def find_spec(self, name, path, target=None):
        if name != "generate_pairs.generation.worker":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            sabotage_batches(module)

        spec.loader.exec_module = exec_module
        return spec


if "full_after" in FAULTS:
    os.fsync = sabotage_disk(os.fsync)
sys.meta_path.insert(0, Saboteur())
