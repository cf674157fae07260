"""The layers of the code base: who may import whom, and which package may import what."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "profiler").rglob("*.py"), *(ROOT / "planner").rglob("*.py")])

LAYERS = (
    ("profiler.units", "profiler.arrays", "profiler.operations", "profiler.store"),
    ("profiler.errors",),
    ("profiler.json_records",),
    ("profiler.placement",),
    ("profiler.workload", "profiler.unit_options"),
    ("profiler.records",),
    ("profiler.devices",),
    ("profiler.device_rules",),
    ("profiler.models",),
    ("profiler.checkpointing",),
    ("profiler.training_step", "profiler.environment"),
    ("profiler.replay",),
    ("profiler.running",),
    ("profiler.timing",),
    ("profiler.prediction",),
    ("planner.disk",),
    ("planner.parallel", "planner.target_device"),
    ("planner.placement",),
    ("planner.scoring", "planner.methods"),
    ("planner.recipe",),
    ("planner.plan",),
    ("planner.cost",),
    ("planner.search",),
    ("planner.training",),
    ("planner.training_free",),
    ("planner.workers", "planner.json_schemas"),
    ("planner.recommendation", "planner.export", "planner.doctor"),
    ("planner.api",),
    ("planner.service",),
    ("planner.cli",),
)
"""The lowest layer first. A module imports from its own package and from rows above its own."""

ONLY_IMPORTERS = {
    "pynvml": ("profiler.devices",),
    "zeus": ("profiler.devices.zeus_counters",),
    "timm": ("profiler.models", "planner.training.parameter_groups"),
    "peft": ("profiler.models",),
    "bitsandbytes": ("profiler.models",),
    "optuna": ("planner.search",),
    "optuna_dashboard": ("planner.search",),
    "click": ("planner.cli",),
    "rich": ("planner.cli",),
    "jinja2": ("planner.cli",),
    "matplotlib": ("profiler.prediction",),
    "torchvision": ("planner.training",),
    "transformers": ("planner.export", "profiler.models.frozen"),
    "open_clip": ("profiler.models.frozen",),
    "fastapi": ("planner.service",),
    "uvicorn": ("planner.cli.serve_command",),
    "lightning": ("planner.export",),
    "mcp": ("planner.service.mcp_tools",),
    "submitit": ("planner.workers.slurm",),
    "mlflow": ("planner.training.loggers",),
    "wandb": ("planner.training.loggers",),
    "trackio": ("planner.training.loggers",),
}
"""Heavy package to the packages of ours that may import it."""

WITHOUT_TORCH = (
    "profiler.units", "profiler.errors", "profiler.json_records", "profiler.placement",
    "profiler.workload", "profiler.unit_options", "profiler.records", "profiler.store",
    "profiler.devices.table", "profiler.device_rules.caching_allocator",
    "profiler.replay.event_log", "profiler.timing.roofline", "profiler.prediction.parametric",
    "profiler.running.sandbox", "profiler.running.measurement", "profiler.models.methods",
    "profiler.prediction.report", "planner", "planner.api", "planner.placement",
    "planner.scoring.netscore", "planner.scoring.accuracy_prior", "planner.search.pareto",
    "planner.recipe", "planner.plan", "planner.cost.model",
)  # fmt: skip
"""Modules that a command may import before it is known that torch is needed."""
HEAVY = ("torch", "timm", "peft", "optuna", "click", "rich", "bitsandbytes", "pynvml")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in SOURCES}


@cache
def imported(path: Path) -> list[str]:
    """Return every module that a file imports, those inside functions included."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
            found += [name if name in MODULES else module for name in names]
    return found


def row_of(module: str) -> int | None:
    """Return the number of a module's row, None for the two top-level packages themselves."""
    for number, row in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in row):
            return number
    return None


def package_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_every_module_has_a_row() -> None:
    assert [m for m in MODULES if row_of(m) is None] == ["planner", "profiler"]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_to_lower_layers(module: str) -> None:
    own = row_of(module)
    for other in imported(MODULES[module]):
        top = other.partition(".")[0]
        assert top not in {"studies", "tests"}
        if top not in {"planner", "profiler"} or package_of(other) == package_of(module):
            continue
        row = row_of(other)
        assert own is None or row is None or row < own, f"{module} imports {other}"


def test_there_is_no_import_cycle() -> None:
    edges = {
        module: {other for other in imported(path) if other in MODULES and other != module}
        for module, path in MODULES.items()
    }
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("heavy", ONLY_IMPORTERS)
def test_a_heavy_package_is_imported_in_its_layers_only(heavy: str) -> None:
    users = {
        module
        for module, path in MODULES.items()
        if any(name.partition(".")[0] == heavy for name in imported(path))
    }
    allowed = ONLY_IMPORTERS[heavy]
    assert users, f"nothing imports {heavy}: is it still a dependency?"
    assert {m for m in users if not m.startswith(allowed)} == set()


def test_warnings_are_raised_in_one_place() -> None:
    """There the line that they point at is found."""
    users = {m for m, path in MODULES.items() if "warnings.warn" in path.read_text()}
    assert users == {"profiler.errors"}


def test_no_module_is_called_utils_or_shadows_the_standard_library() -> None:
    for path in SOURCES:
        assert path.stem not in {"utils", "util", "helpers", "common"}
        if path.stem not in {"__init__", "__main__"}:
            assert path.stem not in sys.stdlib_module_names, f"{path} shadows a standard module"


def test_a_folder_has_at_most_twenty_entries_at_the_top() -> None:
    for top in ("profiler", "planner"):
        entries = {
            path.name
            for path in (ROOT / top).iterdir()
            if path.suffix == ".py" or any(path.glob("*.py"))  # data files do not count
        }
        assert len(entries - {"__init__.py"}) <= 20


@pytest.mark.parametrize(
    "package",
    [
        "planner.recommendation", "planner.search", "planner.training", "profiler.checkpointing",
        "profiler.replay", "profiler.timing",
    ],
)  # fmt: skip
def test_the_map_of_a_large_package_names_each_of_its_modules(package: str) -> None:
    folder = MODULES[package].parent
    text = ast.get_docstring(ast.parse(MODULES[package].read_text(encoding="utf-8")))
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert modules - set(re.findall(r"\w+", text or "")) == set()


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


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_every_module_has_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


SAME_MEANING = {
    "BudgetCallback",
    "apply_plan",
    "calibrate",
    "check",
    "classify",
    "evaluate",
    "explain",
    "export_plan",
    "load_backbone",
    "load_images",
    "features",
    "grid",
    "load_trained",
    "measure",
    "plan_kind",
    "optimizer_and_schedule",
    "predict",
    "recommend",
    "rehearse",
    "train",
    "train_probe",
    "training_free",
    "validate",
    "zero_shot",
}
"""Functions of the Python interface, the commands that call them, and the functions they call; the
callbacks of two libraries."""

PROGRAMS = "planner.export.scripts."
"""Modules that are copied out as programs, each with names of its own."""


def test_a_top_level_name_has_one_meaning() -> None:
    """Private names included: a reader who searches for a name finds one definition."""
    places: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        if module.startswith(PROGRAMS):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = [node.target.id]
            else:
                names = []
            for name in names:
                places.setdefault(name, set()).add(module)
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert {n: f for n, f in twice.items() if n not in SAME_MEANING and n != "__all__"} == {}
