"""The tree, told at one look: short files, few in a folder, and imports that run down."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES = 400
PACKAGES = ("cflows", "baselines")
FILES = {
    path.relative_to(ROOT): path.read_text(encoding="utf-8")
    for top in (*PACKAGES, "benchmarks", "docs")
    for path in (ROOT / top).rglob("*.py")
    if "_build" not in path.parts
}
MODULES = {
    ".".join(path.with_suffix("").parts).removesuffix(".__init__"): ast.parse(text)
    for path, text in FILES.items()
    if path.parts[0] in PACKAGES
}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_file_is_long(path):
    assert len(FILES[path].splitlines()) <= LINES


@pytest.mark.parametrize(
    ("place", "folders", "files"),
    [("cflows", 7, 3), ("baselines", 6, 4), ("baselines/harness", 10, 3)],
)
def test_no_folder_is_full(place, folders, files):
    inside = [path for path in (ROOT / place).iterdir() if path.name != "__pycache__"]
    assert sum(path.is_dir() for path in inside) <= folders
    assert sum(path.is_file() for path in inside) <= files


def test_no_module_imports_another_in_a_circle():
    """Wherever the import stands: at the top, under TYPE_CHECKING, or within a function."""
    arrows = {name: _imported(tree) - {name} for name, tree in MODULES.items()}
    assert "cflows.core.flow" in arrows["cflows.training.fit"]
    assert "cflows.training.trainer" in arrows["baselines.sklearn"], "under TYPE_CHECKING"
    assert "baselines.harness.data.store" in arrows["baselines.harness.cli.data"], "in a function"
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def _imported(tree: ast.Module) -> set[str]:
    """The modules that a module names in its imports: of ``from a import b`` a.b, or else a."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name their module in full"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= whole & MODULES.keys()
            if not whole <= MODULES.keys():
                found.add(node.module)
    return found & MODULES.keys()
