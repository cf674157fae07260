"""The constants of the product are those that the study took, and its fit finds known ones."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from planner.training.short_runs import DEFAULTS

if TYPE_CHECKING:
    from short_run_fit import MethodCurve

STUDY_FOLDERS = ("probe",)
CONSTANTS = Path(__file__).parents[2] / "studies" / "probe" / "constants.json"


def approximately(value: Any) -> Any:
    """Return a value that equals another up to the rounding of another machine's arithmetic."""
    if isinstance(value, dict):
        return {name: approximately(each) for name, each in value.items()}
    return pytest.approx(value, rel=1e-9) if isinstance(value, float) else value


def test_the_constants_of_the_product_are_those_of_the_studys_rows() -> None:
    import fit

    found = json.loads(json.dumps(fit.constants()))
    assert found["taken"] == approximately(json.loads(json.dumps(asdict(DEFAULTS))))
    assert found == approximately(json.loads(CONSTANTS.read_text("utf-8")))


def made_up_case(rng: np.random.Generator, more: dict[str | None, float]) -> list[MethodCurve]:
    """Return curves that rise by 0.3 to 20 steps, then by 0.2 a doubling and that of their kind."""
    from short_run_fit import MethodCurve

    common, case = rng.normal(0, 0.4), []
    for kind in ("head", "full", None, None) * 2:
        first = rng.normal(0, 1)
        rise = 2 * (0.2 + more[kind]) + np.sqrt(2) * (common + rng.normal(0, 0.3))
        short = {10: first, 20: first + 0.3}
        final = short[20] + rise
        case.append(MethodCurve(kind=kind, short=short, planned_steps=80, final=final))
    return case


def test_the_constants_of_made_up_curves_are_found_again() -> None:
    from short_run_fit import fit_short_runs

    rng = np.random.default_rng(0)
    more = {"head": -0.3, "full": 0.3, None: 0.0}
    found = fit_short_runs([made_up_case(rng, more) for _ in range(300)])
    for kind, each in more.items():
        assert found.later.rise(2, kind) == pytest.approx(2 * (0.2 + each), abs=0.1)
        assert found.first.rise(3, kind) == pytest.approx(0.3 + 2 * (0.2 + each), abs=0.1)
    assert found.later.own_deviation == pytest.approx(0.3, abs=0.02)
    assert found.later.common_deviation == pytest.approx(0.4, abs=0.05)
    assert found.first.own_deviation == pytest.approx(0.3 * np.sqrt(2 / 3), abs=0.02)
    assert found.curves == 2400


@pytest.mark.parametrize("carried", [1.0, 0.5])
def test_the_decay_and_the_carried_share_are_found_again(carried: float) -> None:
    """Cases of two lengths; what a case rose above the usual 0.8 goes on in a share."""
    from short_run_fit import MethodCurve, fit_short_runs

    rng = np.random.default_rng(2)
    cases = []
    for number in range(400):
        unusual, steps = rng.normal(0, 0.3), (80, 320)[number % 2]
        doublings = 2 if steps == 80 else 4
        later = (0.8 + carried * unusual) * sum(0.6**each for each in range(1, doublings))
        short = {20: 0.0, 40: 0.8 + unusual}
        curves = [
            MethodCurve(
                kind="head", short=short, planned_steps=steps,
                final=short[40] + later + rng.normal(0, 0.05),
            )
            for _ in range(4)
        ]  # fmt: skip
        cases.append(curves)
    found = fit_short_runs(cases)
    assert found.first.decay == found.later.decay == pytest.approx(0.6, abs=0.051)
    assert found.later.carried == pytest.approx(carried, abs=0.1)
    assert found.later.common_deviation < 0.05


def test_effects_are_differences_within_a_case() -> None:
    """Cases of other levels and of other methods: the effects are those that were put in."""
    from short_run_fit import MethodCurve, fit_short_runs

    rng = np.random.default_rng(1)
    effects = {"head": -0.5, "affine": 0.0, "low rank": 0.5}
    cases = []
    for number in range(400):
        kinds = list(effects) if number % 2 else ["head", "low rank"]
        level = rng.normal(0, 3)
        cases.append([
            MethodCurve(
                kind=kind, short={10: 0.0, 20: 0.0}, planned_steps=40,
                final=level + effects[kind] + rng.normal(0, 0.2),
            )
            for kind in kinds * 2
        ])  # fmt: skip
    found = fit_short_runs(cases)
    assert found.effects == pytest.approx(effects, abs=0.03)
    assert found.effect_deviation == pytest.approx(0.2, abs=0.02)


def test_the_deviations_of_several_nets_are_those_of_nets_left_out() -> None:
    """Each net's methods rise by another amount, which a fit to the other net does not know."""
    from short_run_fit import MethodCurve, cautious_fit, fit_short_runs

    def net(rise: float) -> list[list[MethodCurve]]:
        return [[
            MethodCurve(
                kind=kind, short={10: 0.0, 20: 0.0}, planned_steps=40,
                final=rise if kind == "full" else -rise,
            )
            for kind in ("full", "head")
        ]] * 200  # fmt: skip

    alone = fit_short_runs(net(1.0))
    assert alone.later.own_deviation == pytest.approx(0.0, abs=0.05)
    both = cautious_fit({"a": net(1.0), "b": net(-1.0)})
    # The fit to the other net expects 1 where -1 comes: an error of 2, in two methods of a case.
    assert both.later.own_deviation == pytest.approx(2 * np.sqrt(2), abs=0.1)


def test_a_kind_of_few_curves_stays_near_the_common_gain() -> None:
    from short_run_fit import PULL, MethodCurve, fit_short_runs

    flat = [
        MethodCurve(kind=None, short={10: 0.0, 20: 0.0}, planned_steps=40, final=0.0)
        for _ in range(1000)
    ]
    steep = MethodCurve(kind="full", short={10: 0.0, 20: 0.0}, planned_steps=40, final=1.0)
    found = fit_short_runs([[*flat, steep]])
    assert found.later.more["full"] == pytest.approx(1 / (1 + PULL), abs=0.01)
