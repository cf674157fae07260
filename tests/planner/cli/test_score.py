"""The command score for plans and trained folders, and the formulas that it prints."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from planner.cli import cli
from planner.plan import write_plan
from planner.scoring.netscore import FORMULAS, Scores, compute_scores

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_plan import make_plan

NUMBERS = {
    "parameters": 22e6, "macs": 4.6e9, "flops": 9.2e9, "inference_seconds": 21.3,
    "inference_watts": 144.2, "inference_peak_mib": 1084.0, "energy_joules": 5000.0,
}  # fmt: skip


def test_the_printed_formulas_are_those_that_are_computed() -> None:
    scores = compute_scores(accuracy_percent=89.7, **NUMBERS).to_json()
    symbols = {
        "a": 89.7, "A": 0.897, "p": 22.0, "m": 4.6, "f": 9.2, "t": 21.3, "P": 144.2, "r": 1084.0,
        "E": 5000.0, "n": 22e6, "log10": math.log10, "sqrt": math.sqrt, "exp": math.exp,
    }  # fmt: skip
    assert set(FORMULAS) == set(scores)
    for name, (formula, _) in FORMULAS.items():
        text = formula.replace("log10 E", "log10(E)").replace("^", "**")
        text = re.sub(r"(\d|\)|\b[trP]) (?=[a-zA-Z(])", r"\1 * ", text)
        text = text.replace("A exp", "A * exp")
        assert scores[name] == pytest.approx(eval(text, {}, symbols)), (name, text)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_score_needs_exactly_what_its_formula_names(name: str) -> None:
    needs = FORMULAS[name][1]
    only = {need: NUMBERS[need] for need in needs}
    assert getattr(compute_scores(accuracy_percent=50, **only), name) is not None
    for need in needs:
        less = {k: v for k, v in NUMBERS.items() if k != need}
        assert getattr(compute_scores(accuracy_percent=50, **less), name) is None


def call(*arguments: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="budgetplan")
    return done.exit_code, done.stdout, done.stderr


def test_the_numbers_of_a_plan_are_used_and_an_option_replaces_one(tmp_path: Path) -> None:
    plan = make_plan()
    path = tmp_path / "plan.json"
    write_plan(plan, path)
    code, out, _ = call("score", path, "--accuracy", "80", "--json")
    assert code == 0
    data = json.loads(out)
    assert plan.prediction.flops is not None
    forward = plan.prediction.flops.forward / plan.candidate.workload.effective_batch
    expected = compute_scores(
        accuracy_percent=80,
        parameters=plan.prediction.parameters.total,
        macs=forward / 2,
    )
    assert data["netscore"] == pytest.approx(expected.netscore)
    assert data["missing"]["sam"] == ["energy_joules"]
    assert set(Scores().to_json()) <= set(data)
    code, out, _ = call("score", path, "--accuracy", "80")
    assert code == 0
    assert "sqrt(p)" in out
    assert "Not computed, for lack of" in out


def test_json_keeps_its_nulls_and_names_what_is_missing() -> None:
    code, out, _ = call("score", "--accuracy", "89.7", "--json")
    assert code == 0
    data = json.loads(out)
    assert data["netscore"] is None
    assert data["missing"]["netscore"] == ["parameters", "macs"]
    code, out, err = call("score", "--accuracy", "89.7")
    assert (code, out) == (2, "")
    assert "an accuracy alone gives no score" in err
    code, _, err = call("score", "nothing.json")
    assert code == 4
    assert "does not exist" in err
