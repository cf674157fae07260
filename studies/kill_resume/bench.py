"""A working folder with its study, its plans and its cache, and commands that run in it."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sqlite3
from pathlib import Path
from typing import Any

from warm_commands import Command, Stage

SIGNALS = (signal.SIGKILL, signal.SIGTERM)

DATA = ("--data", "digits", "--no-pretrained")

SMALL_MODEL = ("--model", "test_vit", "--image-size", "32")

_COMMON = (
    "recommend", *SMALL_MODEL, "--methods", "head,bitfit", "--precisions", "fp32",
    "--effective-batch", "16", "--study", "s", *DATA,
)  # fmt: skip

CPU_SPACE = (*_COMMON, "--vram", "200MB", "--device", "cpu")
"""A search whose plans can be trained here. The rates of the processor are timed."""

GPU_SPACE = (*_COMMON, "--vram", "2GB", "--device", "rtx-2060-super")
"""A search that times nothing: equal runs give equal trials and equal plan files."""


class Bench:
    """A working folder, and commands that run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder.parent / "cache"
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, *arguments: str, name: str = "log", **variables: str) -> Command:
        """Start a command, with more environment variables."""
        log = self.folder.parent / name
        log.unlink(missing_ok=True)
        return Command(
            *arguments,
            folder=self.folder,
            log=log,
            variables={"BUDGETPLAN_CACHE": str(self.cache), **variables},
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run a command; return its exit code and its output."""
        command = self.start(*arguments)
        return command.wait(), command.text()

    def straight(self, *arguments: str) -> list[Stage]:
        """Run a command without a kill; return its stages."""
        command = self.start(*arguments, "--progress", "events")
        stages = command.stages()
        assert command.code == 0, command.text()
        return stages

    def kill(self, stages: list[Stage], rng: random.Random, *arguments: str) -> dict[str, Any]:
        """Kill a command at a random moment of a random stage; return what was seen."""
        stage, number = rng.choice(stages), rng.choice(SIGNALS)
        command = self.start(*arguments, "--progress", "events")
        after = rng.uniform(0, stage.seconds)
        code = command.kill_in(stage.name, after, number)
        return {
            "signal": int(number),
            "stage": stage.name,
            "code": code,
            "alive": command.alive_after_two_seconds(),
        }

    def temporary_files(self) -> list[str]:
        """Return drafts and locks in the folder, and temporary files of the cache."""
        found = []
        for root in (self.folder, self.cache):
            names = [p for p in root.rglob("*") if "budgetplan-draft" in p.name]
            names += [*root.rglob("*.lock"), *root.rglob("*.tmp")]
            found += [str(p.relative_to(root.parent)) for p in names]
        return sorted(found)

    def query(self, text: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query of the study; empty if it was killed before its tables."""
        path = self.folder / "studies" / "s.db"
        if not path.exists():
            return []
        with contextlib.closing(sqlite3.connect(path)) as database:
            try:
                return database.execute(text).fetchall()
            except sqlite3.OperationalError:
                return []

    def trials(self, *, is_timed: bool) -> list[str]:
        """Return state, point and values of each trial of the search, oldest first.

        Real runs are trials of a second study in the same file; `real_runs` returns them.

        Args:
            is_timed: whether the rates of the device are timed, which differ from run to run on a
                busy processor: the second objective, time, is then left out.
        """
        points = self.query(
            "SELECT t.number, t.state, group_concat(p.param_name || '=' || p.param_value) FROM"
            " (SELECT * FROM trial_params ORDER BY param_name) p JOIN trials t USING (trial_id)"
            " JOIN studies USING (study_id) WHERE study_name = 's'"
            " GROUP BY t.number ORDER BY t.number"
        )
        values = dict(
            self.query(
                "SELECT t.number, group_concat(v.objective || '=' || v.value) FROM"
                f" (SELECT * FROM trial_values WHERE objective != {1 if is_timed else -1}"
                " ORDER BY objective) v JOIN trials t USING (trial_id)"
                " JOIN studies USING (study_id) WHERE study_name = 's' GROUP BY t.number"
            )
        )
        return [f"{state} {point} {values.get(number)}" for number, state, point in points]

    def plans(self, name: str) -> dict[str, Any]:
        """Return what does not change from run to run in the plan files of a folder, by name."""
        parts = ("candidate", "prediction", "accuracy", "recipe")
        found = {}
        for path in sorted((self.folder / name).rglob("*.json")):
            data = json.loads(path.read_bytes())
            found[path.name] = {part: data[part] for part in parts}
        return found

    def probe_runs(self) -> dict[str, str]:
        """Return the stored trainings of probes and learning-rate tests by their key."""
        return dict(
            self.query(
                "SELECT key, value_json FROM study_user_attributes"
                " WHERE key LIKE 'budgetplan.probe.%'"
            )
        )

    def real_runs(self) -> list[tuple[Any, ...]]:
        """Return (key, outcome) of each real run that has ended, oldest first."""
        return self.query(
            "SELECT k.value_json, o.value_json FROM trials t JOIN studies USING (study_id)"
            " JOIN trial_user_attributes k ON k.trial_id = t.trial_id AND k.key = 'key'"
            " JOIN trial_user_attributes o ON o.trial_id = t.trial_id AND o.key = 'outcome'"
            " WHERE study_name = 's runs' AND t.state = 'COMPLETE' ORDER BY t.number"
        )

    def any_plan(self) -> str:
        """Return a plan file of an earlier search."""
        return str(min((self.folder / "plans").rglob("*.json")))
