"""Who may import whom: the layers of the design, read off the source and off fresh interpreters."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "profiler").rglob("*.py"), *(ROOT / "planner").rglob("*.py")])

WITHOUT_TORCH = [
    *(f"profiler.{name}" for name in ("units", "errors", "workload", "placement", "records")),
    *(f"profiler.{name}" for name in ("hardware", "allocator", "event_log", "roofline", "store")),
    *("profiler.composition", "profiler.sandbox", "profiler.methods", "profiler.measure"),
    "profiler.predict",
    *(f"planner.{name}" for name in ("placement", "netscore", "accuracy", "front", "plan", "cost")),
]
HEAVY = ("torch", "timm", "peft", "optuna", "click", "rich", "bitsandbytes", "pynvml")
DOORS = {
    "pynvml": {"profiler/device.py"},
    "optuna": {"planner/search.py"},
    "click": {"planner/cli.py", "planner/options.py"},
}
"""The files of ours that may name a package that has one door."""


def imports(path: Path) -> list[tuple[str, bool]]:
    """Return every imported module of a file, and whether it is imported at the top."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.append((node.module or "", id(node) in top))
    return found


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_downward(path: Path) -> None:
    packages = {module.partition(".")[0] for module, _ in imports(path)}
    assert not packages & {"studies", "tests"}
    if name_of(path).startswith("profiler/"):
        assert "planner" not in packages


@pytest.mark.parametrize("package", DOORS)
def test_a_heavy_package_has_one_door(package: str) -> None:
    users = {
        name_of(path)
        for path in SOURCES
        if any(module.partition(".")[0] == package for module, _ in imports(path))
    }
    assert users <= DOORS[package]


def test_no_module_is_called_utils_or_shadows_the_standard_library() -> None:
    for path in SOURCES:
        assert path.stem not in {"utils", "util", "helpers", "common"}
        if path.stem not in {"__init__", "__main__"}:
            assert path.stem not in sys.stdlib_module_names, f"{path} shadows a standard module"


def test_the_core_is_imported_without_heavy_packages() -> None:
    code = (
        "import importlib, sys\n"
        f"for name in {WITHOUT_TORCH!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "    if loaded:\n"
        "        sys.exit(f'{name} imports {loaded}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
