"""Which copy of tokenleap this is, and whether its four import names are really its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGES = ("shards", "generate_pairs", "distill", "pipeline")


def version() -> str:
    """Version of the installed distribution; `unknown` where the sources run uninstalled."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed_version

    try:
        return installed_version("tokenleap")
    except PackageNotFoundError:
        return "unknown"


def package_folder(name: str) -> Path | None:
    """Folder (or file) that `import name` would take, without importing it; None where there is none."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or ())
    return Path(places[0] if places else str(spec.origin)).resolve()


def foreign_packages() -> dict[str, Path | None]:
    """The import names that lead outside this installation, with where they lead."""
    home = Path(__file__).resolve().parents[2]
    found = {name: package_folder(name) for name in PACKAGES}
    return {name: folder for name, folder in found.items() if folder != home / name}


def refuse_foreign_packages() -> None:
    """Stops before somebody else's package of the same name is imported in place of ours.

    Raises:
        ImportError: one of the four names resolves outside this installation.
    """
    foreign = foreign_packages()
    if not foreign:
        return
    places = "; ".join(f"`import {name}` finds {folder or 'nothing'}" for name, folder in foreign.items())
    home = Path(__file__).resolve().parents[2]
    raise ImportError(
        f"{places}, but this tokenleap lies in {home}. Another package took the name: "
        "uninstall or rename it, leave its folder, or give tokenleap an environment of its own"
    )
