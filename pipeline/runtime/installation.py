"""The installed version, and a check that the four import names resolve to this installation."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGES = ("shards", "generate_pairs", "distill", "pipeline")


def version() -> str:
    """Version of the installed distribution; `unknown` if the sources are not installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed_version

    try:
        return installed_version("tokenleap")
    except PackageNotFoundError:
        return "unknown"


def package_folder(name: str) -> Path | None:
    """Folder (or file) that `import name` would use, found without importing it; None if there is none."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or ())
    return Path(folders[0] if folders else str(spec.origin)).resolve()


def foreign_packages() -> dict[str, Path | None]:
    """The import names that resolve outside this installation, with the folder of each."""
    home = Path(__file__).resolve().parents[2]
    folders = {name: package_folder(name) for name in PACKAGES}
    return {name: folder for name, folder in folders.items() if folder != home / name}


def refuse_foreign_packages() -> None:
    """Stop before a package of the same name from another project is imported.

    Raises:
        ImportError: one of the four names resolves outside this installation.
    """
    foreign = foreign_packages()
    if not foreign:
        return
    places = "; ".join(f"`import {name}` finds {folder or 'nothing'}" for name, folder in foreign.items())
    home = Path(__file__).resolve().parents[2]
    raise ImportError(
        f"{places}, but this tokenleap is installed in {home}. Another package uses the same name: "
        "uninstall or rename it, change to another folder, or install tokenleap in its own environment"
    )
