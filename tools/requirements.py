"""Requirements of pyproject.toml, by what they are for."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# The committed stubs are spelt by pybind11: one series of it.
STUB_SERIES = "pybind11==3.1.*"


def pyproject() -> dict[str, Any]:
    """The whole file."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def for_build() -> list[str]:
    """What the build backend and CMake need, but for what the backend adds where it is absent."""
    return [*pyproject()["build-system"]["requires"], STUB_SERIES]


def for_extra(name: str) -> list[str]:
    """Dependencies of the package and of one of its extras; extras within extras are resolved."""
    project = pyproject()["project"]
    extras = project["optional-dependencies"]
    own = re.compile(rf"{re.escape(project['name'])}\[([\w, -]+)\]$")
    found = list(project["dependencies"])
    names = [name]
    for extra in names:  # grows while it is read
        for requirement in extras[extra]:
            nested = own.match(requirement)
            if nested:
                names += [word.strip() for word in nested[1].split(",")]
            else:
                found.append(requirement)
    return list(dict.fromkeys(found))


def for_group(name: str) -> list[str]:
    """A group of tools for work on the project, with those that it includes."""
    found: list[str] = []
    for item in pyproject()["dependency-groups"][name]:
        found += for_group(item["include-group"]) if isinstance(item, dict) else [item]
    return list(dict.fromkeys(found))


def names(requirements: Iterable[str]) -> str:
    """The packages without their versions, for a line that says what is installed."""
    found = (re.split(r"[<>=!~;\[ ]", text, maxsplit=1)[0] for text in requirements)
    return ", ".join(dict.fromkeys(found))
