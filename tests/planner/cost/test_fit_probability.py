"""The probability that a training fits its budget."""

from __future__ import annotations

import json
import random
import re

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from planner.cli import cli
from planner.cli.options import Percent
from planner.cost.fit_probability import (
    GPU,
    SLOW_BF16,
    FitRule,
    KnownErrors,
    check_risk,
    fit_of,
)
from planner.cost.place_by_policy import default_cost_model, place_by_policy
from planner.placement.policies import OPTIMAL
from profiler.devices.table import LARGEST_REPORTED_CONTEXT_BYTES, cuda_context, lookup
from profiler.errors import InfeasibleError, UsageError
from profiler.prediction.report import predict
from profiler.units import GIB, MIB, DeviceBytes
from profiler.workload import Candidate, Workload

VIT = Workload(model="test_vit", num_classes=10, micro_batch=2, image_size=32)


def test_the_probability_counts_the_known_errors_that_would_still_fit() -> None:
    known = KnownErrors(kind="x", errors=(-0.1, 0.0, 0.0, 0.02))
    assert known.probability(-0.2) == 0
    assert known.probability(0.0) == 3 / 5
    assert known.probability(0.02) == known.probability(5.0) == 4 / 5
    assert known.error_at(0.4) == 0.0
    assert known.error_at(0.2) == 0.02
    assert known.error_at(0.01) == 0.02  # too few for 1 %
    assert not known.is_enough_for(0.01)
    assert KnownErrors(kind="x", errors=(-0.5,) * 9).error_at(0.4) == 0.0  # no credit


def test_an_error_of_a_small_prediction_is_relative_to_the_small_size() -> None:
    """By hand: one page of 2 MiB is 0.5 % of 400 MiB, whatever is predicted below that."""
    known = KnownErrors(kind="x", errors=(0.0,) * 98 + (0.005,) * 2, small_bytes=400 * MIB)
    assert known.error_of(102 * MIB, 100 * MIB) == known.error_of(302 * MIB, 300 * MIB) == 0.005
    assert known.error_of(804 * MIB, 800 * MIB) == 0.005
    assert known.largest_prediction(102 * MIB, risk=0.01) == 100 * MIB
    assert known.largest_prediction(402 * MIB, risk=0.01) == 400 * MIB
    assert known.largest_prediction(804 * MIB, risk=0.01) == 800 * MIB
    for predicted in (100 * MIB, 400 * MIB, 800 * MIB):
        available = known.smallest_available(predicted, risk=0.01)
        assert available == predicted + max(2 * MIB, predicted // 200)
        assert known.probability(known.error_of(available, predicted)) == 100 / 101
        assert known.probability(known.error_of(available - MIB, predicted)) == 98 / 101


@given(
    available=st.integers(0, 8 * GIB),
    error=st.floats(0, 0.3),
    small=st.sampled_from((0, 400 * MIB)),
)
def test_the_largest_prediction_is_that_of_a_bisection(
    available: int, error: float, small: int
) -> None:
    known = KnownErrors(kind="x", errors=(error,), small_bytes=small)
    low, high = -GIB, available + 1  # what needs at most the available bytes, and what more
    while high - low > 1:
        middle = (low + high) // 2
        if middle + error * max(middle, small) <= available:
            low = middle
        else:
            high = middle
    assert abs(known.largest_prediction(available, risk=0.5) - low) <= 1


def test_new_errors_are_within_the_stated_one_as_often_as_stated() -> None:
    """The guarantee itself, for errors that are drawn from one distribution."""
    rng, risk, within, rounds = random.Random(3), 0.1, 0, 4000
    for _ in range(rounds):
        drawn = sorted(rng.expovariate(1.0) for _ in range(30))
        new = rng.expovariate(1.0)
        within += new <= KnownErrors(kind="x", errors=tuple(drawn)).error_at(risk)
    assert 0.88 <= within / rounds <= 0.94  # k / (n + 1) = 28 / 31 = 0.903


@given(
    need=st.integers(400_000_000, 60 * GIB),
    errors=st.lists(st.floats(-0.2, 0.3), min_size=1, max_size=200),
    risk=st.floats(0.001, 0.5),
    context=st.integers(0, 300_000_000),
    more=st.integers(0, 200_000_000),
    small=st.sampled_from((0, 400 * MIB, 2 * GIB)),
)
def test_the_smallest_budget_allows_the_prediction_it_was_made_for(
    need: int, errors: list[float], risk: float, context: int, more: int, small: int
) -> None:
    known = KnownErrors(kind="x", errors=tuple(sorted(errors)), small_bytes=small)
    rule = FitRule(known=known, context_bytes=context, largest_context_bytes=context + more)
    budget = rule.smallest_budget(need, risk=risk)
    assert rule.largest_prediction(budget, risk=risk) >= need
    if known.is_enough_for(risk):
        assert rule.probability(need, budget) >= 1 - risk - 1e-9
    # a smaller budget by the printed digits does not do
    assert rule.largest_prediction(budget - GIB // 50, risk=risk) < need


def test_room_is_left_for_the_largest_context_where_it_is_assumed() -> None:
    assumed, measured = lookup("rtx-3060"), lookup("rtx-3090")
    for device, largest in (
        (assumed, LARGEST_REPORTED_CONTEXT_BYTES),
        (measured, cuda_context(measured).nbytes),
    ):
        rule = FitRule.of(VIT, device)
        assert rule.largest_context_bytes == largest
        limit = rule.largest_prediction(2 * GIB, risk=0.01)
        need = limit - rule.context_bytes
        assert need * (1 + rule.known.error_at(0.01)) <= 2 * GIB - largest
    report = predict(Candidate(workload=VIT), device=assumed)
    found = fit_of(report, 2 * GIB)
    assert found is not None
    assert found.probability > 0.99
    assert any("largest reported CUDA context" in note for note in found.notes)
    assert fit_of(report, 350_000_000).probability == 0


def test_thin_evidence_is_that_for_the_risk_of_the_question() -> None:
    report = predict(Candidate(workload=VIT), device=lookup("rtx-3090"))
    compared = len(FitRule.of(VIT, lookup("rtx-3090")).known.errors)

    def notes(risk: float) -> tuple[str, ...]:
        found = fit_of(report, 2 * GIB, risk=risk)
        assert found is not None
        return found.notes

    enough = 1 / (compared + 1)
    assert notes(1.01 * enough) == ()
    (note,) = notes(0.1 * enough)
    assert f"only {compared} runs" in note


def test_bf16_before_ampere_is_a_kind_of_its_own() -> None:
    bf16 = VIT.replace(precision="bf16")
    assert FitRule.of(bf16, lookup("rtx-2060-super")).known.kind == SLOW_BF16
    assert FitRule.of(bf16, lookup("rtx-3060")).known.kind == GPU


@pytest.mark.parametrize("risk", [0.0, -0.1, 0.51, float("nan")])
def test_a_risk_out_of_its_domain_is_refused(risk: float) -> None:
    with pytest.raises(UsageError, match="risk must be above 0"):
        check_risk(risk)


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.05", 0.05), (" 2.5% ", 0.025)])
def test_a_risk_is_written_as_percent_or_as_a_fraction(text: str, share: float) -> None:
    assert Percent().convert(text, None, None) == pytest.approx(share)
    with pytest.raises(click.BadParameter, match="is no share"):
        Percent().convert("little", None, None)


def test_predict_says_how_probably_it_fits() -> None:
    arguments = [
        "predict",
        "--model",
        "test_vit",
        "--method",
        "head",
        "--batch-size",
        "2",
        "--device",
        "rtx-3090",
    ]
    done = CliRunner().invoke(cli, [*arguments, "--vram", "2GB", "--json"])
    fits = json.loads(done.stdout)["fits"]
    assert (done.exit_code, fits["kind"]) == (0, GPU)
    assert fits["probability"] > 0.99
    assert "(P > 99 %)" in CliRunner().invoke(cli, [*arguments, "--vram", "2GB"]).stdout


def test_an_optimal_placement_keeps_the_margin_of_its_budget() -> None:
    """A refusal names a budget that is enough at the risk, and placing for it succeeds."""
    device = lookup("rtx-3060")
    cost = default_cost_model(device)
    load = Workload(model="test_vit", micro_batch=4, image_size=64, num_classes=10)
    with pytest.raises(InfeasibleError) as caught:
        place_by_policy(load, OPTIMAL, cost, budget_bytes=DeviceBytes(330 * MIB))
    smallest = caught.value.smallest_bytes
    assert smallest is not None
    placed = place_by_policy(load, OPTIMAL, cost, budget_bytes=DeviceBytes(smallest))
    fits = fit_of(predict(placed, device=device), smallest)
    assert fits is not None
    assert fits.probability >= 0.99


def test_the_printed_budget_of_a_refusal_is_one_that_the_same_command_accepts() -> None:
    arguments = [
        "predict", "--model", "test_vit", "--method", "head", "--batch-size", "2", "--device",
        "rtx-2060-super", "--image-size", "64",
    ]  # fmt: skip
    refused = CliRunner().invoke(cli, [*arguments, "--vram", "310MB"])
    assert refused.exit_code == 3
    found = re.search(r"the smallest budget that would is (\d+) MB", refused.stderr)
    assert found is not None, refused.stderr
    assert "does not fit a budget" in refused.stdout
    accepted = CliRunner().invoke(cli, [*arguments, "--vram", f"{found[1]}MB"])
    assert accepted.exit_code == 0
    assert "(P > 99 %)" in accepted.stdout
