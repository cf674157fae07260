"""Published values first, then the algebra of the formulas and their domains."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from planner.scoring.netscore import compute_scores, ppt, sustainable_accuracy
from profiler.errors import UsageError

VIT_S = {
    "accuracy_percent": 89.7,
    "inference_seconds": 21.3,
    "inference_watts": 144.2,
    "inference_peak_mib": 1084,
}


def test_table_v_row_of_the_paper():
    got = compute_scores(**VIT_S)
    assert got.ns_e == pytest.approx(69.3933355622, abs=1e-9)
    assert got.ns_m == pytest.approx(70.5241245163, abs=1e-9)
    assert got.ns_sharp == pytest.approx(61.8057623567, abs=1e-9)


@pytest.mark.parametrize(
    ("accuracy", "seconds", "watts", "mib", "published"),
    [
        (65.1, 78.878, 44.32, 214, (63.68, 66.72, 57.86)),  # UniFormer-S, SSV2
        (67.1, 164.436, 54.70, 324, (63.18, 66.79, 56.91)),  # UniFormer-B, SSV2
    ],
)
def test_stage_two_rows_of_the_group(accuracy, seconds, watts, mib, published):
    got = compute_scores(
        accuracy_percent=accuracy,
        inference_seconds=seconds,
        inference_watts=watts,
        inference_peak_mib=mib,
    )
    assert (got.ns_e, got.ns_m, got.ns_sharp) == pytest.approx(published, abs=0.005)


@pytest.mark.parametrize(
    ("accuracy", "parameters", "gflops", "published"),
    [(83.0, 50.3e6, 259, 35.61), (80.8, 22e6, 42, 46.64)],
)
def test_netscore_with_gflops(accuracy, parameters, gflops, published):
    got = compute_scores(accuracy_percent=accuracy, parameters=parameters, flops=gflops * 1e9)
    assert got.netscore_flops == pytest.approx(published, abs=0.005)
    assert got.netscore is None


@pytest.mark.parametrize(
    ("accuracy", "parameters", "macs", "expected"),
    [(76.13, 25.557e6, 4.089e9, 55.07), (71.878, 3.505e6, 0.3008e9, 74.03)],
)
def test_netscore_with_macs(accuracy, parameters, macs, expected):
    got = compute_scores(accuracy_percent=accuracy, parameters=parameters, macs=macs)
    assert got.netscore == pytest.approx(expected, abs=0.005)
    assert got.netscore_flops is None


def test_sam_of_the_groups_summary():
    got = compute_scores(accuracy_percent=91.71, energy_joules=127_792.014)
    assert got.sam_1 == pytest.approx(0.179594, abs=1e-6)
    assert got.sam_2 == pytest.approx(0.032254, abs=1e-6)
    assert got.sam_3 == pytest.approx(0.005793, abs=1e-6)
    assert got.sam_4 == pytest.approx(got.sam_2**2)
    assert got.sam_5 == pytest.approx(got.sam_1**5)


@pytest.mark.parametrize(
    ("mean_percent", "parameters", "published"),
    [(72.25, 0.29e6, 0.7136), (69.43, 0.56e6, 0.678), (71.70, 2.38e6, 0.6535), (52.94, 0, 0.53)],
)
def test_ppt_of_the_benchmark(mean_percent, parameters, published):
    value = ppt(accuracy_percent=mean_percent, trainable_parameters=parameters)
    assert value == pytest.approx(published, abs=1e-3)


def test_ppt_uses_the_trainable_parameters_when_given():
    both = compute_scores(accuracy_percent=72.25, parameters=85.8e6, trainable_parameters=0.29e6)
    assert both.ppt == pytest.approx(0.7136, abs=1e-4)
    assert compute_scores(accuracy_percent=72.25, parameters=0.29e6).ppt == both.ppt


def test_unit_traps_of_the_paper():
    """Accuracy as a fraction costs 80 dB and time in milliseconds 7.5 dB; the first is refused."""
    in_milliseconds = compute_scores(**{**VIT_S, "inference_seconds": 21_300})
    assert in_milliseconds.ns_e - compute_scores(**VIT_S).ns_e == pytest.approx(-7.5)
    with pytest.raises(UsageError, match=r"percentage, got 0\.897; .*write 89\.7"):
        compute_scores(accuracy_percent=0.897)


def test_a_decade_of_cost():
    base = compute_scores(**VIT_S, parameters=1e6, macs=1e9)
    dear = compute_scores(**{**VIT_S, "inference_peak_mib": 10840}, parameters=1e7, macs=1e9)
    assert dear.ns_m - base.ns_m == pytest.approx(-2.5)
    assert dear.ns_e == base.ns_e
    assert dear.netscore - base.netscore == pytest.approx(-10)


def test_nothing_but_accuracy_gives_nothing():
    assert set(compute_scores(accuracy_percent=50).to_json().values()) == {None}


def test_keys_of_the_contract():
    contract = "netscore netscore_flops ns_e ns_m ns_sharp sam_1 sam_2 sam_3 sam_4 sam_5 ppt"
    assert list(compute_scores(accuracy_percent=50).to_json()) == contract.split()


@pytest.mark.parametrize("accuracy", [0.0, -3.0, 100.5, math.nan, math.inf, 1.0])
def test_accuracy_outside_its_range(accuracy):
    with pytest.raises(UsageError, match="accuracy_percent"):
        compute_scores(accuracy_percent=accuracy)


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "name",
    [
        "parameters",
        "macs",
        "flops",
        "inference_seconds",
        "inference_watts",
        "inference_peak_mib",
        "energy_joules",
    ],
)
def test_costs_are_positive(name, bad):
    with pytest.raises(UsageError, match=name):
        compute_scores(accuracy_percent=50, **{name: bad})


def test_sam_needs_more_than_a_joule():
    with pytest.raises(UsageError, match="above 1"):
        sustainable_accuracy(accuracy_percent=50, energy_joules=1.0, exponent=1)
    assert compute_scores(accuracy_percent=50, energy_joules=0.5).sam_1 is None


def test_extreme_costs_do_not_overflow():
    got = compute_scores(accuracy_percent=50, parameters=1e300, macs=1e300, flops=1e-300)
    assert math.isfinite(got.netscore)
    assert math.isfinite(got.netscore_flops)


def test_needs_no_numeric_package():
    code = "import sys, planner.scoring.netscore; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
