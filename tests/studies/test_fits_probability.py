"""The known errors of the planner are those of the committed rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

STUDY_FOLDERS = ("", "fits_probability")


def test_the_planner_has_the_errors_of_the_committed_rows(tmp_path: Path) -> None:
    from known_errors import write_errors

    from planner.cost.fit_probability import ERRORS_FILE

    write_errors(tmp_path / "errors.json")
    assert (tmp_path / "errors.json").read_text() == ERRORS_FILE.read_text()


def test_no_step_with_a_probability_of_99_percent_ran_out() -> None:
    from known_errors import brim_of_hollow_gpu

    found = brim_of_hollow_gpu()
    assert found["ran_out"] == 0
    assert found["said_99_percent"] > 0


def test_a_family_of_backbones_is_judged_by_the_errors_of_the_others() -> None:
    from known_errors import left_out_families

    found = left_out_families()
    assert set(found) == {"attention", "convolution", "scan"}
    from known_errors import RISK

    for family in found.values():
        assert family["ran_out"] <= RISK * family["said_99_percent"]
        assert family["said_99_percent"] > 0


def test_four_in_five_steps_with_3_percent_to_spare_have_99_percent() -> None:
    from known_errors import ON_CPU, RISK, judged

    rows = [r for r in judged() if r["kind"] != ON_CPU]
    spare = [r["said"] >= 1 - RISK for r in rows if r["room"] == 0.03 and r["fits"]]
    assert sum(spare) >= 0.8 * len(spare)
    said = [r["fits"] for r in rows if r["said"] >= 1 - RISK]
    assert said.count(False) <= RISK * len(said)


@pytest.mark.parametrize("left_out", ["model", "family"])
def test_no_step_exceeds_the_budget_that_is_planned_for_it(left_out: str) -> None:
    from known_errors import planned

    found = planned(left_out)
    assert found["steps"] > 300
    assert found["exceeded"] == 0


def test_the_summary_is_of_these_rows() -> None:
    from known_errors import HERE, brim_of_hollow_gpu

    summary = json.loads((HERE / "summary.json").read_text())
    assert summary["brim_of_hollow_gpu"] == brim_of_hollow_gpu()
