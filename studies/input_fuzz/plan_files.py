"""Mutants of a plan file: each is read to an equal plan and can be shown, or refused in one line."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

from json_mutants import JsonMutator, mutate
from outcome import FaultError
from rich.console import Console

from planner.cli.plan_tables import show_plan
from planner.disk.json_files import parse_json
from planner.plan import Plan, plan_file_name

EXAMPLE = Path(__file__).with_name("plan.json")

SHOWN_SHARE = 0.1
"""Share of the mutants that are printed if they are read: printing takes the longest."""


class PlanTarget:
    """Reads mutants of one plan.

    Args:
        folder: not used: mutants are read from memory, as `planner.plan.read_plan` does.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        example = json.loads(EXAMPLE.read_text(encoding="utf-8"))
        self._mutator = JsonMutator(example, special=_mutate_candidate)

    def check(self, rng: Random) -> None:
        """Read a mutant; see `read_and_show`."""
        read_and_show(self._mutator.mutant(rng), is_shown=rng.random() < SHOWN_SHARE)


def read_and_show(raw: bytes, *, is_shown: bool) -> None:
    """Read a mutant as every command does, show it, name its file, and write it again.

    Raises:
        BudgetplanError: the mutant is refused.
        FaultError: it is read, but not to what it says.
    """
    plan = Plan.from_json(parse_json(raw, where="plan file"))
    if is_shown:
        show_plan(plan, Console(file=StringIO(), highlight=False, width=100))
    name = plan_file_name(plan.candidate)
    if Path(name).name != name or len(name) > 200:
        raise FaultError(f"its file name is {name!r}")
    text = json.dumps(plan.to_json(), allow_nan=False)
    text.encode("utf-8")
    if Plan.from_json(json.loads(text)) != plan:
        raise FaultError("the plan that was written again is another one")


def _mutate_candidate(data: dict[str, Any], rng: Random) -> None:
    """Change one node of the candidate wherever a plan repeats it, so that the copies agree."""
    if not isinstance(data.get("candidate"), dict):
        return
    state = rng.getstate()
    for part in (data["candidate"], data.get("prediction"), data.get("measurement")):
        copies = part if isinstance(part, dict) else {}
        both = {k: copies[k] for k in ("workload", "placement") if k in copies}
        if both:
            rng.setstate(state)
            mutate(both, rng)
            copies.update(both)
