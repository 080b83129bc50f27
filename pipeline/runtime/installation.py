"""The installed version, and a check that the four import names resolve to this installation."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGES = ("shards", "generate_pairs", "distill", "pipeline")
HOME = Path(__file__).resolve().parents[2]


def version() -> str:
    """Version of the installed distribution; `unknown` if the sources are not installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed_version

    try:
        return installed_version("tokenleap")
    except PackageNotFoundError:
        return "unknown"


def foreign_packages() -> dict[str, Path | None]:
    """The import names that resolve outside this installation, with the folder (or file) of each; imports none."""
    found: dict[str, Path | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        if spec := importlib.util.find_spec(name):
            found[name] = Path(next(iter(spec.submodule_search_locations or ()), str(spec.origin))).resolve()
    return {name: folder for name, folder in found.items() if folder != HOME / name}


def refuse_foreign_packages() -> None:
    """Stop before a package of the same name from another project is imported.

    Raises:
        ImportError: one of the four names resolves outside this installation.
    """
    if foreign := foreign_packages():
        places = "; ".join(f"`import {name}` finds {folder or 'nothing'}" for name, folder in foreign.items())
        raise ImportError(
            f"{places}, but this tokenleap is installed in {HOME}. Another package uses the same name: "
            "uninstall or rename it, change to another folder, or install tokenleap in its own environment"
        )
