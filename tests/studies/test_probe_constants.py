"""The constants of the product are those that the study took, and its fit finds known ones."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.training.short_runs import DEFAULTS

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


def test_the_constants_of_made_up_curves_are_found_again() -> None:
    from short_run_fit import MethodCurve, fit_short_runs

    rng = np.random.default_rng(0)
    more = {"head": -0.3, "full": 0.3, None: 0.0}
    cases = []
    for _ in range(300):
        common = rng.normal(0, 0.4)
        case = []
        for kind in ("head", "full", None, None) * 2:
            first, slope = rng.normal(0, 1), rng.normal(1, 0.5)
            short = {10: first, 20: first + slope}
            rise = 2 * (0.2 + more[kind] + 0.5 * slope)
            rise += np.sqrt(2) * (common + rng.normal(0, 0.3))
            case.append(
                MethodCurve(kind=kind, short=short, planned_steps=80, final=short[20] + rise)
            )
        cases.append(case)
    found = fit_short_runs(cases)
    assert found.gain == pytest.approx(0.2, abs=0.1)
    assert found.kept == pytest.approx(0.5, abs=0.05)
    assert found.more == pytest.approx({"head": -0.3, "full": 0.3}, abs=0.05)
    # the mean rise of the first doubling is 1, of the other two 0.2 + 0.5
    assert found.first_more == pytest.approx({"head": -0.2, "full": 0.2}, abs=0.05)
    assert found.own_deviation == pytest.approx(0.3, abs=0.03)
    assert found.common_deviation == pytest.approx(0.4, abs=0.05)
    # Where the slope is not known its spread of 0.5 is an error too: twice, over 3 doublings.
    own = np.sqrt((2 * 0.5) ** 2 + 2 * 0.3**2) / np.sqrt(3)
    assert found.first_own_deviation == pytest.approx(own, abs=0.03)
    assert found.first_common_deviation == pytest.approx(0.4 * np.sqrt(2 / 3), abs=0.05)
    assert found.curves == 2400


def test_a_kind_of_few_curves_stays_near_the_common_gain() -> None:
    from short_run_fit import PULL, MethodCurve, fit_short_runs

    flat = [
        MethodCurve(kind=None, short={10: 0.0, 20: 0.0}, planned_steps=40, final=0.0)
        for _ in range(1000)
    ]
    steep = MethodCurve(kind="full", short={10: 0.0, 20: 0.0}, planned_steps=40, final=1.0)
    found = fit_short_runs([[*flat, steep]])
    assert found.more["full"] == pytest.approx(1 / (1 + PULL), abs=0.01)
