"""The explanation of a plan against predictions of the same candidates."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from planner.api import explain, predict
from planner.cli import cli
from planner.cost.budget import needed_bytes
from planner.cost.fit_probability import DEFAULT_RISK, FitRule
from planner.plan import Accuracy, Plan, write_plan
from planner.recommendation.explain import Explanation
from profiler.devices.table import cuda_context, lookup
from profiler.workload import Workload

SMALL = {"image_size": 32, "num_classes": 10, "device": "rtx-2060-super"}
GIVEN = 428 * 10**6
"""Budget that is compared with, in place of the plan's: the plan fits it, and the default does not.
"""


def limit() -> int:
    """Return the largest prediction that keeps the margin of the budget."""
    rule = FitRule.of(Workload(model="test_vit"), lookup("rtx-2060-super"))
    return rule.largest_prediction(GIVEN, risk=DEFAULT_RISK)


@pytest.fixture(scope="module")
def plan() -> Plan:
    report = predict(
        "test_vit", "lora", rank=4, batch_size=4, accumulate=2, precision="fp16",
        checkpoint="static", **SMALL,
    )  # fmt: skip
    return Plan(
        candidate=report.candidate,
        prediction=report,
        accuracy=Accuracy(value=None, source="none", kind="none"),
        budget_bytes=10**9,
    )


@pytest.fixture(scope="module")
def found(plan: Plan) -> Explanation:
    return explain(plan, vram="428MB")


def test_the_steps_lead_from_the_plain_default_to_the_plan(plan: Plan, found: Explanation) -> None:
    changes = [row.change for row in found.steps]
    assert changes == [
        "full, fp32, batch 8, adamw", "method lora r4", "precision fp16", "batch 4x2",
        "static checkpointing",
    ]  # fmt: skip
    plain = predict("test_vit", "full", batch_size=8, **SMALL)
    lora = predict("test_vit", "lora", rank=4, batch_size=8, **SMALL)
    for row, report in zip(found.steps[:2], (plain, lora), strict=True):
        assert row.need_bytes == needed_bytes(report)
        assert row.step_seconds == report.step_seconds
    assert found.steps[-1].need_bytes == needed_bytes(plan.prediction)
    assert plan.budget_bytes != found.budget_bytes == GIVEN
    assert [row.fits for row in found.steps] == [row.need_bytes <= limit() for row in found.steps]
    assert not found.steps[0].fits
    assert found.steps[-1].fits


def test_the_parts_of_the_peak_add_up_to_the_need(plan: Plan, found: Explanation) -> None:
    assert found.at_peak.total + found.outside_bytes == needed_bytes(plan.prediction)
    context = cuda_context(lookup("rtx-2060-super")).nbytes
    assert 0 < context == found.context_bytes < found.outside_bytes
    assert found.peak_phase in {"forward", "backward", "recompute", "loss", "optimizer"}


def test_the_need_and_its_margin_decide_whether_it_fits(plan: Plan, found: Explanation) -> None:
    rule = FitRule.of(plan.candidate.workload, lookup("rtx-2060-super"))
    smallest = found.need_bytes + found.margin.total_bytes
    assert found.free_bytes == GIVEN - smallest
    assert rule.largest_prediction(smallest, risk=DEFAULT_RISK) >= found.need_bytes
    assert rule.largest_prediction(smallest - 2, risk=DEFAULT_RISK) < found.need_bytes


def test_neighbours_change_one_choice(found: Explanation) -> None:
    rows = {row.change: row for row in found.neighbours}
    assert {"half the micro-batch", "without checkpointing", "double the micro-batch"} <= set(rows)
    without = predict(
        "test_vit", "lora", rank=4, batch_size=4, accumulate=2, precision="fp16", **SMALL
    )
    assert rows["without checkpointing"].need_bytes == needed_bytes(without)
    assert all(row.fits == (row.need_bytes <= limit()) for row in rows.values())


def test_the_command_prints_tables_and_json(
    plan: Plan, found: Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    write_plan(plan, path)
    monkeypatch.setattr("planner.api.explain", lambda plan, **_: found)
    shown = CliRunner().invoke(cli, ["explain", str(path)], env={"COLUMNS": "80"})
    assert shown.exit_code == 0, shown.stderr
    assert "From the plain default to this plan" in shown.stdout
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    for heading, end in (("Memory at the peak", "the plan needs"), ("The budget", "budget")):
        rows = shown.stdout.partition(heading)[2].splitlines()[2:]
        sizes = [int(size) for row in rows for size in re.findall(r"([0-9]+) MB", row)[:1]]
        names = [row.strip().partition("  ")[0] for row in rows]
        last = names.index(end)
        assert sum(sizes[:last]) == sizes[last]
    data = json.loads(CliRunner().invoke(cli, ["explain", str(path), "--json"]).stdout)
    assert data["schema"] == "budgetplan.explanation/1"
    assert data["steps"][0]["change"].startswith("full, fp32")


def test_the_tensors_at_the_peak_add_up_to_the_live_bytes(found: Explanation) -> None:
    live = found.at_peak.total - found.at_peak.temporary
    listed = sum(kind.nbytes for kind in found.tensors if kind.owner != "temporary")
    assert listed == pytest.approx(live, rel=0.05)  # the allocator may give larger blocks
    sizes = [kind.nbytes for kind in found.tensors]
    assert sizes == sorted(sizes, reverse=True)
    assert any("blocks." in kind.units for kind in found.tensors)


def test_a_budget_that_is_too_small_lists_the_tensors(
    plan: Plan, found: Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "planner.api.explain", lambda plan, *, vram, **_: replace(found, budget_bytes=vram)
    )
    file = tmp_path / "plan.json"
    write_plan(plan, file)
    command = ["explain", str(file), "--progress", "none", "--vram"]
    result = CliRunner().invoke(cli, [*command, "1MB"], terminal_width=80)
    assert result.exit_code == 0, result.output
    assert "does not fit 1 MB" in result.stdout
    assert "Tensors alive at the peak" in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    fits = CliRunner().invoke(cli, [*command, "4GB"], terminal_width=80)
    assert fits.exit_code == 0, fits.output
    assert "Tensors alive" not in fits.stdout
