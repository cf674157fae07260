"""The command score for plans and trained folders, and the formulas that it prints."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from planner.cli import cli
from planner.cli.list_tables import score_columns
from planner.plan import Accuracy, read_plan, write_plan
from planner.recommendation.compare_scores import ScoreTarget, differences
from planner.scoring.netscore import FORMULAS, Scores, compute_scores
from planner.scoring.training_scores import TrainingCosts
from profiler.devices.table import device_label

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
    named = {
        clause.split()[0]: {o[2:].replace("-", "_") for o in clause.split() if o.startswith("--")}
        for clause in " ".join(err.split()).partition("gives no score: ")[2].split(", ")
    }
    assert set(named) == {"NetScore", "NS-E", "NS-M", "NS#", "SAM"}
    for title, key in (("NetScore", "netscore"), ("NS-E", "ns_e"), ("NS-M", "ns_m")):
        assert named[title] == set(FORMULAS[key][1])
    code, _, err = call("score", "nothing.json")
    assert code == 4
    assert "does not exist" in err


# ---- training scores -----------------------------------------------------------------------------


def two_plans(folder: Path) -> tuple[Path, Path]:
    """Write an accurate, slow plan and a cheap one; both accuracies are published."""
    paths = []
    for name, value, seconds in (("accurate", 0.9, 10.0), ("cheap", 0.8, 1.0)):
        plan = make_plan()
        accuracy = Accuracy(value=value, source="a paper", kind="published")
        prediction = replace(plan.prediction, step_seconds=seconds)
        path = folder / f"{name}.json"
        made = replace(
            plan, accuracy=accuracy, prediction=prediction, provenance={"data": "digits"}
        )
        write_plan(made, path)
        paths.append(path)
    return paths[0], paths[1]


def test_of_several_plans_the_winner_by_the_weight_of_the_costs_is_named(tmp_path: Path) -> None:
    accurate, cheap = two_plans(tmp_path)
    code, out, _ = call("score", accurate, cheap, "--json")
    assert code == 0
    data = json.loads(out)
    first, second = data["winners"]["train_time"]
    assert (first["name"], second["name"]) == (str(accurate), str(cheap))
    # 2 log10(90/80) = w log10(10)
    assert first["high"] == pytest.approx(2 * math.log10(90 / 80))
    gap = data["targets"][0]["train_time"] - data["targets"][1]["train_time"]
    assert gap == pytest.approx(40 * math.log10(90 / 80) - 20 / 8)
    assert [w["name"] for w in data["winners"]["budget_fit"]] == [str(accurate)]
    code, out, _ = call("score", accurate, cheap)
    assert code == 0
    assert "wins from exponent" in " ".join(out.split())


def test_other_exponents_change_the_training_scores_alone(tmp_path: Path) -> None:
    path, _ = two_plans(tmp_path)
    usual = json.loads(call("score", path, "--json")[1])
    other = json.loads(call("score", path, "--json", "--cost-exponent", "0.25")[1])
    seconds = 20 * 2 * math.log10(90) - usual["training"]["train_time"]
    assert 20 * 2 * math.log10(90) - other["training"]["train_time"] == pytest.approx(2 * seconds)
    assert {k: v for k, v in usual.items() if k != "training"} == {
        k: v for k, v in other.items() if k != "training"
    }


@pytest.mark.parametrize(
    ("data", "device", "words", "is_ranked"),
    [
        ("cifar100", None, "not ranked: accuracies of different data sets (cifar100, digits)",
         False),
        (None, None, "not ranked: accuracies of different data sets (an unknown data set, digits)",
         False),
        ("digits", "t4", "costs are predicted for different devices", True),
        ("digits", None, None, True),
    ],
)  # fmt: skip
def test_results_of_other_data_or_devices_are_named_and_ranked_only_on_one_data_set(
    data: str | None, device: str | None, words: str | None, is_ranked: bool, tmp_path: Path
) -> None:
    accurate, cheap = two_plans(tmp_path)
    plan = read_plan(cheap)
    prediction = plan.prediction
    if device is not None:
        prediction = replace(prediction, device=device_label(device))
    provenance = {} if data is None else {"data": data}
    write_plan(replace(plan, prediction=prediction, provenance=provenance), cheap)
    found = json.loads(call("score", accurate, cheap, "--json")[1])
    code, out, _ = call("score", accurate, cheap)
    assert code == 0
    assert found["is_ranked"] is is_ranked
    assert bool(found["winners"]) is is_ranked
    assert ("wins from" in " ".join(out.split())) is is_ranked
    assert len(found["differences"]) == (words is not None)
    if words is not None:
        assert found["differences"][0].startswith(words)
        assert sum(words in line for line in out.splitlines()) == 1


def test_other_test_images_of_one_folder_are_not_ranked() -> None:
    def target(**changes: Any) -> ScoreTarget:
        given = {"path": Path("a"), "accuracy_percent": 90.0, "costs": TrainingCosts(),
                 "data": "photos", "fingerprint": "1", "images": 20, "device": "t4"}  # fmt: skip
        return ScoreTarget(**given | changes)

    assert differences([target(), target()]).lines == ()
    for change in ({"fingerprint": "2"}, {"images": 21}):
        unlike = differences([target(), target(**change)])
        assert not unlike.is_ranked
        assert unlike.lines == ("not ranked: accuracies of different images of photos",)
    published = differences([target(), target(fingerprint=None, images=None)])
    assert published.is_ranked and len(published.lines) == 1
    # Agresti and Coull: (18 + 2) / 24 with 1.96 sqrt(p (1 - p) / 24)
    low, high = target().to_json()["accuracy_interval_percent"]
    assert (low, high) == pytest.approx((68.42, 98.24), abs=0.01)


def test_ppt_takes_the_trainable_parameters() -> None:
    arguments = ("score", "--accuracy", "89.7", "--parameters", "22e6", "--json")
    whole = json.loads(call(*arguments)[1])["ppt"]
    few = json.loads(call(*arguments, "--trainable-parameters", "0")[1])["ppt"]
    assert few == pytest.approx(0.897)
    assert whole == pytest.approx(0.897 * math.exp(-math.log10(3.2)))
    alone = call("score", "--accuracy", "89.7", "--trainable-parameters", "22e6", "--json")[1]
    assert json.loads(alone)["ppt"] == pytest.approx(whole)
    assert "ppt" not in json.loads(alone)["missing"]


@pytest.mark.parametrize("option", ["--accuracy-exponent", "--cost-exponent"])
def test_exponents_without_a_target_are_refused(option: str) -> None:
    code, out, err = call("score", "--accuracy", "89.7", "--parameters", "22e6", option, "0.25")
    assert (code, out) == (2, "")
    assert "need a TARGET" in " ".join(err.split())


def test_the_default_exponents_are_those_of_the_published_scores(tmp_path: Path) -> None:
    path, other = two_plans(tmp_path)
    found = json.loads(call("score", path, other, "--json")[1])
    assert (found["accuracy_exponent"], found["cost_exponent"]) == (2.0, 1 / 8)
    text = " ".join(call("score", "--help")[1].split())
    assert "[default: 2.0]" in text and "[default: 0.125]" in text


def test_scores_have_the_digits_that_the_test_images_support() -> None:
    scores = compute_scores(accuracy_percent=90, **NUMBERS)
    for images, digits, of_ratio in ((20, 0, 2), (10_000, 1, 4), (None, 4, 4)):
        cells = dict(zip(*(c.cells for c in score_columns(scores, 0.9, images)[:2]), strict=True))
        assert scores.netscore is not None and scores.ppt is not None
        assert cells["netscore"] == f"{scores.netscore:.{digits}f}"
        assert cells["ppt"] == f"{scores.ppt:.{of_ratio}f}"


def test_an_accuracy_of_another_kind_is_not_compared(tmp_path: Path) -> None:
    path, other = two_plans(tmp_path)
    plan = make_plan()
    probed = Accuracy(value=0.9, source="short trainings", kind="probe")
    write_plan(replace(plan, accuracy=probed), other)
    code, _, err = call("score", path, other)
    assert code == 4
    assert "'probe'" in err
    code, _, err = call("score", path, path, "--accuracy", "80")
    assert code == 2
    assert "give one TARGET" in err
