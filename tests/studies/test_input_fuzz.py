"""The fuzzers of files from strangers, for a few seconds each, and what they count as a fault."""

from __future__ import annotations

import ast
import gzip
import importlib.util
import json
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from profiler.errors import InputError

STUDY = Path(__file__).parents[2] / "studies" / "input_fuzz"

MUTANTS = {
    "plans": 150,
    "devices": 200,
    "probes": 200,
    "answers": 100,
    "frozen": 150,
    "cache": 150,
    "studies": 15,
    "images": 150,
    "weights": 60,
    "features": 40,
    "trained": 20,
}

NEVER_REFUSED = {"cache", "features"}
"""Parts whose damaged files are made again."""


@pytest.mark.slow
def test_no_mutant_of_a_file_is_a_fault() -> None:
    """In one process, which imports PyTorch once."""
    parts = [f"{part}:{count}" for part, count in MUTANTS.items()]
    done = subprocess.run(
        [sys.executable, str(STUDY / "run.py"), *parts, "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    found = {row["part"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == MUTANTS.keys(), done.stderr
    for part, row in found.items():
        assert row["faults"] == 0, row["examples"]
        assert sum(row["counts"].values()) == MUTANTS[part]
        assert row["counts"]["accepted"] > 0
        assert part in NEVER_REFUSED or row["counts"]["refused"] > 0
    assert done.returncode == 0


def test_every_part_runs_here_and_every_night() -> None:
    source = (STUDY / "run.py").read_text(encoding="utf-8")
    (targets,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TARGETS"
    )
    nightly = (STUDY.parents[1] / ".ci" / "nightly").read_text(encoding="utf-8")
    assert targets.keys() == MUTANTS.keys() == set(re.findall(r"\b([a-z]+):\d+", nightly))


@pytest.fixture
def outcome() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_outcome", STUDY / "outcome.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def refuse() -> None:
    raise InputError("no plan")


class LongError(InputError):
    """An error that escapes the limit."""

    def __str__(self) -> str:
        return "x" * 301


def refuse_at_length() -> None:
    raise LongError


def fail() -> None:
    raise KeyError("internal")


def compute_for_ever() -> None:
    while True:
        try:
            sum(range(10_000))
        except Exception:  # a handler of the code under test does not swallow the limit
            continue


def wait_for_ever() -> None:
    time.sleep(3600)


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        (lambda: None, "accepted"),
        (refuse, "refused"),
        (refuse_at_length, "long line"),
        (fail, "not ours"),
        (compute_for_ever, "hang"),
        (wait_for_ever, "hang"),
    ],
)
def test_outcomes_are_told_apart(
    outcome: ModuleType, monkeypatch: pytest.MonkeyPatch, action: Callable[[], None], kind: str
) -> None:
    monkeypatch.setattr(outcome, "LONGEST_SECONDS", 0.1)
    monkeypatch.setattr(outcome, "LONGEST_WAIT_SECONDS", 0.1 if action is wait_for_ever else 60.0)
    seen = outcome.Outcomes()
    seen.try_one(7, action)
    assert dict(seen.counts) == {kind: 1}
    assert seen.faults == (kind not in ("accepted", "refused"))
    assert [example["seed"] for example in seen.examples] == [7] * seen.faults


def test_the_canary_shows_that_a_pickle_was_loaded(outcome: ModuleType, tmp_path: Path) -> None:
    data = pickle.dumps(outcome.canary(tmp_path / "sung"))
    assert not (tmp_path / "sung").exists()
    pickle.loads(data)
    assert (tmp_path / "sung").exists()


def test_the_summary_counts_every_row_without_a_fault() -> None:
    summary = json.loads((STUDY / "summary.json").read_text(encoding="utf-8"))
    readme = (STUDY / "README.md").read_text(encoding="utf-8")
    assert summary["parts"].keys() == MUTANTS.keys()
    for name, part in summary["parts"].items():
        rows = [
            json.loads(line)
            for line in gzip.decompress((STUDY / f"{name}.jsonl.gz").read_bytes()).splitlines()
        ]
        assert sum(row["mutants"] for row in rows) == part["mutants"]
        assert sum(part["counts"].values()) == part["mutants"]
        assert part["faults"] == sum(row["faults"] for row in rows) == 0
        assert f"| `{name}` | {part['mutants']:,} |" in readme
