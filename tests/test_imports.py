"""The arrows between the packages, read from the source: pipeline -> distill -> generate_pairs -> shards."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("shards", "generate_pairs", "distill", "pipeline")
"""From the bottom to the top."""

FOR_DISTILL = (
    "generate_pairs.teachers",
    "generate_pairs.text",
    "generate_pairs.trajectory",
    "generate_pairs.flow_map",
    "generate_pairs.compute",
    "generate_pairs.digits",
)
"""What stage two takes from stage one: the teachers and the walk over them, never the job."""

NOT_FOR_TRAINING = (
    *(
        "distill.clip_score",
        "distill.features",
        "distill.inception",
        "distill.protocols",
        "distill.references",
        "distill.evaluation",
    ),
    "generate_pairs.digits.dataset",
)
"""What judges a student, and the real images: nothing of it may enter a loss."""


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for name in PACKAGES for path in sorted((REPOSITORY / name).rglob("*.py"))}


def imported_names(path: Path, module: str) -> Iterator[str]:
    """Every dotted name that a file imports anywhere in it, relative ones resolved."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports(module: str) -> set[str]:
    """The project's modules that a module imports; a name out of a module counts as that module."""
    names = {name for name in imported_names(MODULES[module], module) if name.split(".")[0] in PACKAGES}
    return {name if name in MODULES else name.rpartition(".")[0] for name in names}


def reached_from(module: str) -> set[str]:
    """Everything that a module ever brings in: its packages, and what they and it import, to the end."""
    reached: set[str] = set()
    waiting = {module}
    while waiting:
        name = waiting.pop()
        reached.add(name)
        parents = {name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)}
        waiting |= ({*parents, *imports(name)} & MODULES.keys()) - reached
    return reached


def within(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    package = module.split(".")[0]
    allowed = PACKAGES[: PACKAGES.index(package) + 1]
    assert {name for name in imports(module) if not within(name, allowed)} == set()


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, ("distill",))])
def test_distill_takes_the_teachers_and_the_walk_only(module: str) -> None:
    taken = {name for name in imports(module) if within(name, ("generate_pairs",))}
    assert {name for name in taken if not within(name, FOR_DISTILL)} == set()


def test_training_never_meets_what_judges_it() -> None:
    reached = reached_from("distill.trainer")
    assert "distill.losses" in reached
    assert {name for name in reached if within(name, NOT_FOR_TRAINING)} == set()


def test_every_import_of_the_project_is_a_module_of_it() -> None:
    unknown = {(module, name) for module in MODULES for name in imports(module) if name not in MODULES}
    assert unknown == set()
