"""The Dockerfiles name files and extras that exist, and do not run as root."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docs" / "containers").glob("*.Dockerfile"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_dockerfile_fits_the_repository(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in line.split()), line
    (extras,) = re.findall(r'"\.\[([\w,-]+)\]"', text)
    assert set(extras.split(",")) <= EXTRAS.keys()
    assert re.findall(r"^USER (\w+)$", text, re.MULTILINE)[-1] == "1000"
    assert "useradd --create-home --uid 1000" in text
    assert "://" not in text, "no address of a registry stands in the repository"


def test_both_are_there() -> None:
    assert [file.stem for file in FILES] == ["cuda", "planning"]
