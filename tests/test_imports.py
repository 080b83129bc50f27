"""Imports between the packages go downwards only: pipeline -> distill -> generate_pairs -> shards."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("shards", "generate_pairs", "distill", "pipeline")
"""From the bottom to the top."""

NOT_FOR_DISTILL = ("generate_pairs.generation", "generate_pairs.cluster")
"""The generation job. Stage two uses only teachers, trajectory and flow map of stage one."""

TRAINING = ("distill.training", "distill.objective")
NOT_FOR_TRAINING = ("distill.evaluation", "distill.sampling", "generate_pairs.digits")
"""Scores and real images, which must not influence training."""


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for name in PACKAGES for path in sorted((REPOSITORY / name).rglob("*.py"))}


def imported_names(path: Path, module: str) -> Iterator[str]:
    """Every dotted name that a file imports, also inside functions; relative names are resolved."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports(module: str) -> set[str]:
    """The project's modules that a module imports; a name from a module counts as that module."""
    names = {name for name in imported_names(MODULES[module], module) if name.split(".")[0] in PACKAGES}
    return {name if name in MODULES else name.rpartition(".")[0] for name in names}


def reached_from(modules: Iterable[str]) -> set[str]:
    """Every module that these modules import, directly or indirectly, and the packages that contain them."""
    reached: set[str] = set()
    pending = set(modules)
    while pending:
        name = pending.pop()
        reached.add(name)
        parents = {name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)}
        pending |= ({*parents, *imports(name)} & MODULES.keys()) - reached
    return reached


def within(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def modules_of(*roots: str) -> list[str]:
    modules = [name for name in MODULES if within(name, roots)]
    assert modules, f"no module is in {roots}"
    return modules


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards_only(module: str) -> None:
    package = module.split(".")[0]
    allowed = PACKAGES[: PACKAGES.index(package) + 1]
    assert {name for name in imports(module) if not within(name, allowed)} == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: imports(name) - {name} for name in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(error.args[1])}")


def test_no_siblings_import_each_other_in_a_circle() -> None:
    """Files and folders of one folder: every arrow between them goes one way, also those of their contents."""
    graphs: dict[tuple[str, ...], dict[str, set[str]]] = {}
    for module in MODULES:
        for imported in imports(module) - {module}:
            one, other = module.split("."), imported.split(".")
            depth = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
            if depth is not None:
                graphs.setdefault(tuple(one[:depth]), {}).setdefault(one[depth], set()).add(other[depth])
    assert {("shards",), ("distill",), ("generate_pairs", "teachers")} <= graphs.keys()
    for folder, graph in graphs.items():
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            pytest.fail(f"circle in {'/'.join(folder)}: {' -> '.join(error.args[1])}")


def test_distill_never_reaches_the_generation_job() -> None:
    reached = reached_from(modules_of("distill"))
    assert "generate_pairs.trajectory" in reached
    assert {name for name in reached if within(name, NOT_FOR_DISTILL)} == set()


def test_training_never_reaches_evaluation() -> None:
    reached = reached_from(modules_of(*TRAINING))
    assert {"distill.objective.losses", "distill.training.trainer"} <= reached
    assert {name for name in reached if within(name, NOT_FOR_TRAINING)} == set()


def test_every_import_of_the_project_is_a_module_of_it() -> None:
    unknown = {(module, name) for module in MODULES for name in imports(module) if name not in MODULES}
    assert unknown == set()
