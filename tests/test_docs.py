"""The pages' code, commands and links hold; executed pages are run by the build itself."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import baselines
import cflows
from baselines.harness.cli import options

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts),
]
BLOCK = re.compile(r"^( *)```(\{?[\w-]*\}?)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def blocks(page, *languages):
    return [body for _, language, body in BLOCK.findall(page.read_text()) if language in languages]


def commands(page):
    """The ``cflows`` command lines of a page, in shell blocks, indented, or run by its cells."""
    text = "\n".join(blocks(page, "sh"))
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    if page.name == "README.md":
        lines += [line.strip() for line in page.read_text().splitlines() if line[:4] == "    "]
    lines += re.findall(r'command\("(cflows .*?)"\)', page.read_text())
    return [line.strip() for line in lines if re.match(r"\s*cflows ", line)]


def named(page):
    return str(page.relative_to(ROOT))


COMMANDS = [(page, line) for page in PAGES for line in commands(page)]


def test_commands_are_found_on_the_pages_that_have_some():
    assert {"README.md", "start.md", "own-data.md"} <= {page.name for page, _ in COMMANDS}


@pytest.mark.parametrize(
    "line", [pytest.param(line, id=f"{named(page)}: {line}"[:90]) for page, line in COMMANDS]
)
def test_commands_parse(line):
    line = line.split("#")[0]
    # A line of the README stands for several commands.
    ways = [line]
    if match := re.match(r"cflows (\w+(?: \| \w+)+)(.*)", line):
        ways = [f"cflows {name}{match[2]}" for name in match[1].split(" | ")]
    for way in ways:
        options.parser().parse_args(shlex.split(way)[1:])


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=named)
def test_python_blocks_run(page, tmp_path):
    if page.name == "README.md":
        pytest.skip("test_readme.py runs it, and looks at its picture")
    for code in blocks(page, "python"):
        subprocess.run(
            [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True, timeout=300
        )


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_inside_hold(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)", re.sub(BLOCK, "", page.read_text())):
        if not re.match(r"\w+:", target):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_sources_are_in_the_bibliography(page):
    known = re.findall(r"^\((\w+)\)=$", (DOCS / "bibliography.md").read_text(), re.MULTILINE)
    for source in re.findall(r"\{ref\}`.*?<(\w+)>`", page.read_text()):
        assert source in known


def test_every_page_is_in_a_table_of_contents():
    listed = {
        (page.parent / f"{entry}.md").resolve()
        for page in PAGES
        for body in blocks(page, "{toctree}")
        for entry in re.findall(r"^([\w/-]+)$", body, re.MULTILINE)
    }
    pages = {page.resolve() for page in PAGES} - {ROOT / "README.md", DOCS / "index.md"}
    assert pages == listed


def test_every_module_has_its_place_in_the_reference():
    text = "\n".join(page.read_text() for page in sorted((DOCS / "reference").glob("*.md")))
    documented = re.findall(r"^\.\. automodule:: (\S+)$", text, re.MULTILINE)
    listed = re.findall(r"^% modules of (\S+)$", text, re.MULTILINE)
    public = [
        module.name
        for package in (cflows, baselines)
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
        if (module.ispkg or module.name.rpartition(".")[0] not in listed)
        and hasattr(importlib.import_module(module.name), "__all__")
    ]
    assert sorted(documented) == sorted(public)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_fractions_are_braced(page):
    """The pages' converter reads \\frac12 as something else in silence."""
    assert not re.findall(r"\\[dt]?frac(?:\{[^{}]*\})?\s*\w", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_cells_are_python(page):
    for body in blocks(page, "{code-cell}"):
        body = re.sub(r"\A---\n.*?\n---\n", "", body, flags=re.DOTALL)
        ast.parse(re.sub(r"\A(:.*\n)+", "", body))


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
