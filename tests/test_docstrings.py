"""What docstrings print is what is printed, and every public name has an example."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import baselines
import cflows

PACKAGES = (cflows, baselines)
MODULES = [
    module.name
    for package in PACKAGES
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(name), verbose=False)
    assert found.failed == 0


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_public_name_has_an_example(package):
    without = [name for name in package.__all__ if _lacks_example(getattr(package, name))]
    assert not without


def _lacks_example(public: object) -> bool:
    if isinstance(public, str) or (inspect.isclass(public) and issubclass(public, Exception)):
        return False
    return ">>>" not in (inspect.getdoc(public) or "")
