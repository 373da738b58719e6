"""Which files of the project a stage runs, by the imports in them: at the top and in functions."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

from conftest import ROOT

# Messages, checks of numbers, where tensors live, plug-ins by name: a change there changes no
# result. Nor does one in the records of the work, but for `promote`, whose work they are.
HOUSE = {"params", "progress", "device", "errors", "plugins", "launch", "stages", "lineage"}
STORE = "ngf.store"


def closure(files: Iterable[Path], house: frozenset[str]) -> set[Path]:
    """The files and all that they import, and so on; nothing of the rooms in `house`."""
    found: set[Path] = set()
    todo = list(files)
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            todo += [one for one in _imported(file) if _room(one) not in house]
    return found


def _room(file: Path) -> str:
    return file.relative_to(ROOT / "src/ngf").parts[0].removesuffix(".py")


@functools.cache
def _imported(file: Path) -> frozenset[Path]:
    tree = ast.parse(file.read_text())
    nodes = list(_running(tree))
    if file == _file(STORE):
        within = set(_in_functions(tree))
        nodes = [node for node in nodes if node not in within]
    modules = {module for node in nodes for module in _modules(node)}
    modules |= {module for node in _of_store(nodes) for module in _modules(node)}
    return frozenset(one for module in modules for one in _files(module))


def _of_store(nodes: list[ast.AST]) -> Iterator[ast.AST]:
    """What runs in the functions of `ngf.store` that these nodes name.

    It knows the formats of all artifacts, and imports a room where one of its kind is read.
    """
    called = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "store"
    }
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module == STORE:
            called |= {alias.name for alias in node.names}
    for function in ast.parse(_file(STORE).read_text()).body:
        if isinstance(function, ast.FunctionDef) and function.name in called:
            yield from _running(function)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """The node and what lies in it, without what only a type checker reads."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _running(child)


def _in_functions(tree: ast.Module) -> Iterator[ast.AST]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield from ast.walk(node)


def _modules(node: ast.AST) -> Iterator[str]:
    """The modules that a node imports; an imported name may be one, too."""
    if isinstance(node, ast.ImportFrom):
        yield str(node.module)
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)


def _files(module: str) -> Iterator[Path]:
    """A module's file, and those of the packages around it that hold code.

    Networks are loaded by name, so whoever imports their room may run any of them.
    """
    parts = module.split(".")
    if parts[0] != "ngf":
        return
    if parts[1:2] == ["models"]:
        yield from (ROOT / "src/ngf/models").glob("*.py")
    for end in range(2, len(parts) + 1):
        file = _file(".".join(parts[:end]))
        if file.is_file() and len(ast.parse(file.read_text()).body) > 1:
            yield file


def _file(module: str) -> Path:
    place = ROOT.joinpath("src", *module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
