"""Imports go down only, without circles, and never by a bare name."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

HEIGHT = {"kernels": 0, "engine": 1, "server": 2}


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Every name that `tree` imports, absolute, at any depth; blocks under TYPE_CHECKING are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if is_package else module.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (name for child in node.orelse for name in imports(child, module, is_package))
        else:
            yield from imports(node, module, is_package)


def import_graph(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Module → everything it imports; names inside a module of ours are cut back to that module."""
    graph = {}
    for module, file in modules.items():
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
        names = imports(tree, module, file.name == "__init__.py")
        graph[module] = {name if name in modules else _owner(name, modules) for name in names} - {module}
    return graph


def _owner(name: str, modules: dict[str, Path]) -> str:
    parent = name.rpartition(".")[0]
    return parent if parent in modules else name


@pytest.fixture(scope="module")
def graph(floor_modules: dict[str, Path]) -> dict[str, set[str]]:
    """The import graph of the three floors."""
    return import_graph(floor_modules)


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports that go up, as "module -> imported"."""
    return [
        f"{module} -> {name}"
        for module, names in graph.items()
        for name in sorted(names)
        if name.startswith("headway.") and HEIGHT.get(name.split(".")[1], 0) > HEIGHT[module.split(".")[1]]
    ]


def test_imports_go_down_only(graph: dict[str, set[str]]) -> None:
    assert upward(graph) == []


def test_no_circles(graph: dict[str, set[str]]) -> None:
    ours = {module: {name for name in names if name in graph} for module, names in graph.items()}
    assert list(graphlib.TopologicalSorter(ours).static_order())


def test_no_floor_is_imported_by_its_bare_name(graph: dict[str, set[str]]) -> None:
    bare = [
        f"{module} -> {name}" for module in graph for name in graph[module] if name.split(".")[0] in HEIGHT
    ]
    assert bare == []


def test_every_import_of_ours_exists(graph: dict[str, set[str]]) -> None:
    missing = [
        f"{module} -> {name}"
        for module in graph
        for name in graph[module]
        if name.split(".")[:2] in (["headway", floor] for floor in HEIGHT) and name not in graph
    ]
    assert missing == []


@pytest.fixture
def guilty(tmp_path: Path) -> dict[str, set[str]]:
    """The graph of a little tree that breaks the rules in the ways that are easy to overlook."""
    sources = {
        "headway.kernels.low": "def f():\n    from headway.engine import high\n",
        "headway.engine.high": "try:\n    from ..kernels import low\nexcept E:\n    import kernels\n",
        "headway.engine.typed": "if TYPE_CHECKING:\n    from headway.server import app\n",
    }
    modules = {}
    for module, source in sources.items():
        modules[module] = tmp_path / f"{module}.py"
        modules[module].write_text(source)
    return import_graph(modules)


def test_these_checks_see_hidden_imports(guilty: dict[str, set[str]]) -> None:
    assert upward(guilty) == ["headway.kernels.low -> headway.engine.high"]
    with pytest.raises(graphlib.CycleError):
        test_no_circles(guilty)
    with pytest.raises(AssertionError, match=r"headway\.engine\.high -> kernels"):
        test_no_floor_is_imported_by_its_bare_name(guilty)
