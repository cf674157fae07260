from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import optuna
import pytest
from toy_costs import MB, ToyCosts

from planner.search import space
from planner.search.evaluation import PointEvaluator
from planner.search.exhaustive import evaluate_all
from planner.search.pareto import HypervolumeStagnation, non_dominated
from planner.search.problem import OBJECTIVES, SearchProblem, SearchResult
from planner.search.space import (
    SearchedMethod,
    SearchPoint,
    Space,
    divisors,
    limit_ranks,
    parse_methods,
    precisions_for,
    searched_method,
    working_methods,
)
from planner.search.study import search
from planner.search.trial_records import OutdatedTrialWarning
from profiler.devices.table import lookup
from profiler.errors import LONGEST_MESSAGE, InputError, UnknownNameError, UsageError
from profiler.models import forward_check
from profiler.placement import PolicyChoice
from profiler.units import DeviceBytes
from profiler.workload import Candidate, Workload

SPACE = Space(
    base=Workload(model="resnet18", num_classes=10, image_size=32),
    methods=(
        SearchedMethod(name="full"),
        SearchedMethod(name="head"),
        SearchedMethod(name="lora", ranks=(2, 8), default_rank=8),
    ),
    micro_batches=(1, 4, 16),
    effective_batch=16,
    precisions=("fp32", "bf16"),
)
PROBLEM = SearchProblem(
    space=SPACE, device=lookup("rtx-2060-super"), limit_bytes=DeviceBytes(420 * MB)
)


@pytest.fixture(scope="module")
def exhausted(tmp_path_factory: pytest.TempPathFactory) -> tuple[ToyCosts, SearchResult]:
    """One search of the whole space, slow enough to be made once."""
    cost, file = ToyCosts(), tmp_path_factory.mktemp("exhausted") / "toy.db"
    return cost, run(cost=cost, trials=10_000, storage=f"sqlite:///{file}")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(
    *,
    problem: SearchProblem = PROBLEM,
    cost: ToyCosts | None = None,
    trials: int = 20,
    name: str = "toy",
    **options: Any,
) -> SearchResult:
    costs = cost or ToyCosts()
    return search(problem, costs, trials=trials, seed=0, study_name=name, **options)


def stored(name: str = "toy") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///studies/{name}.db")


# ---- the space -----------------------------------------------------------------------------------


def test_points_are_the_product_with_ranks_only_where_a_method_has_one() -> None:
    points = list(SPACE.assignments())
    assert len(points) == (1 + 1 + 2) * 3 * 2 * 2 * 3
    assert len({json.dumps(p, sort_keys=True) for p in points}) == len(points)
    for assignment in points:
        assert ("lora_rank" in assignment) == (assignment["method"] == "lora")


def test_accumulation_keeps_the_effective_batch() -> None:
    points = [SPACE.point(assignment) for assignment in SPACE.assignments()]
    assert {point.workload.effective_batch for point in points} == {16}
    assert {point.workload.micro_batch for point in points} == {1, 4, 16}


def test_a_micro_batch_must_divide_the_effective_batch() -> None:
    with pytest.raises(UsageError, match="does not divide the effective batch 16"):
        replace(SPACE, micro_batches=(3,))


def test_a_space_needs_a_method() -> None:
    with pytest.raises(UsageError, match="at least one of methods"):
        replace(SPACE, methods=())


def test_starting_points_hold_each_method_plain_and_smallest() -> None:
    plain, smallest = SPACE.starting_points()[2], SPACE.starting_points()[5]
    assert SPACE.point(plain) == SearchPoint(
        workload=SPACE.base.replace(method="lora", rank=8, micro_batch=16),
        policy=PolicyChoice("none"),
    )
    assert smallest["lora_rank"] == 2
    assert smallest["micro_batch"] == 1
    assert smallest["precision"] == "bf16"


def test_divisors() -> None:
    assert divisors(12) == (1, 2, 3, 4, 6, 12)
    assert divisors(1) == (1,)


def test_half_precision_is_fp16_before_ampere() -> None:
    assert precisions_for(lookup("rtx-2060-super")) == ("fp32", "fp16")
    assert precisions_for(lookup("v100")) == ("fp32", "fp16")
    assert precisions_for(lookup("l4")) == ("fp32", "bf16")
    assert precisions_for(lookup("a100-40gb")) == ("fp32", "bf16")
    assert precisions_for(lookup("cpu")) == ("fp32", "bf16")


def test_the_default_rank_is_among_the_ranks_to_search() -> None:
    assert searched_method("full") == SearchedMethod(name="full")
    prefix = searched_method("prefix", ranks=(4, 8))
    assert prefix.ranks == (4, 8, 20)


def test_methods_that_do_not_work_on_a_backbone_are_left_out_with_the_reason() -> None:
    load = Workload(model="vit_tiny_patch16_224", num_classes=10)
    names, refused = working_methods(load, ["full", "bn_head", "head"])
    assert names == ["full", "head"]
    assert "no BatchNorm" in refused["bn_head"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_methods_are_checked_in_parallel_as_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Workload(model="test_byobnet", image_size=33, num_classes=10)
    names = ["full", "bn_head", "prefix", "head", "qlora"]
    found = []
    for least in (len(names), len(names) + 1):
        monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path / str(least)))
        monkeypatch.setattr("planner.search.space.LEAST_PARALLEL_CHECKS", least)
        found.append(working_methods(load, names))
        forward_check._refusal.cache_clear()
    assert found[0] == found[1]
    assert {*found[0][1]} == {"prefix", "qlora"}

    def checked_again(*_: object) -> None:
        raise AssertionError("the results of the other processes are not used")

    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path / "third"))
    monkeypatch.setattr("planner.search.space.LEAST_PARALLEL_CHECKS", len(names))
    parent, check = os.getpid(), space._refusal_of_method
    monkeypatch.setattr(
        "planner.search.space._refusal_of_method",
        lambda *given: checked_again() if os.getpid() == parent else check(*given),
    )
    assert working_methods(load, names) == found[0]


def test_methods_by_name() -> None:
    assert parse_methods("lora, full,lora") == ["lora", "full"]
    assert "galore" in parse_methods("all")
    with pytest.raises(UnknownNameError, match="did you mean lora"):
        parse_methods("lorra")


# ---- the search ----------------------------------------------------------------------------------


def exhaustive_front() -> set[tuple[float, ...]]:
    """Estimate every point, without a sampler, and filter."""
    evaluator = PointEvaluator(PROBLEM, ToyCosts())
    results = [evaluator.evaluate(SPACE.point(a), a) for a in SPACE.assignments()]
    rows = [result.objectives for result in results]
    violations = [result.device_bytes - PROBLEM.limit_bytes for result in results]
    return {rows[i] for i in non_dominated(rows, directions=OBJECTIVES, violations=violations)}


def front_of(result: SearchResult) -> set[tuple[float, ...]]:
    rows = [e.objectives for e in result.results]
    excess = [e.device_bytes - PROBLEM.limit_bytes for e in result.results]
    return {rows[i] for i in non_dominated(rows, directions=OBJECTIVES, violations=excess)}


def test_an_exhausted_search_has_the_front_of_the_enumeration(
    exhausted: tuple[ToyCosts, SearchResult],
) -> None:
    _, result = exhausted
    size = len(list(SPACE.assignments()))
    assert result.trials == size
    assert result.stopped is not None and "every point" in result.stopped
    assert front_of(result) == exhaustive_front()


def test_every_point_is_evaluated_and_the_study_keeps_front_and_kept_rows() -> None:
    last = list(SPACE.assignments())[-1]
    result = search(
        PROBLEM,
        ToyCosts(),
        trials=None,
        seed=0,
        study_name="toy",
        kept_rows=lambda rows: [r for r in rows if r.assignment == last],
    )
    points = list(SPACE.assignments())
    assert [e.assignment for e in result.results] == points
    assert front_of(result) == exhaustive_front()
    kept = stored()
    assert {tuple(trial.values) for trial in kept.trials} >= exhaustive_front()
    assert last in [trial.params for trial in kept.trials]
    assert len(kept.trials) < len(points) / 2
    assert kept.user_attrs["exhaustive"]["points"] == len(points)
    more = len(kept.trials) + 1
    assert len(run(trials=more).results) == more  # the sampler goes on


def test_estimates_of_a_chunk_are_stored_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.search.exhaustive._POINTS_PER_REPORT", 16)
    costs = ToyCosts()
    found = evaluate_all(PointEvaluator(PROBLEM, costs))
    assert found is not None
    chunks = [len(list(group)) for _, group in groupby(SPACE.assignments(), lambda a: a["method"])]
    assert len(costs.batches) == sum(-(-points // 16) for points in chunks)
    assert costs.batches[-1] == len(costs.priced)


def test_a_space_that_takes_too_long_goes_to_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.search.exhaustive.EXHAUSTIVE_SECONDS", 0.0)
    monkeypatch.setattr("planner.search.study.DEFAULT_TRIALS", 12)
    result = search(PROBLEM, ToyCosts(), trials=None, seed=0, study_name="toy")
    assert result.trials == 12


def test_forked_processes_evaluate_the_same_points_in_the_same_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reasons of refused points come back too."""
    monkeypatch.setattr("planner.search.exhaustive._POINTS_BEFORE_ESTIMATE", 1)
    monkeypatch.setattr("planner.search.exhaustive._POINTS_PER_REPORT", 16)
    found = {}
    for seconds in (float("inf"), -1.0):
        monkeypatch.setattr("planner.search.exhaustive._SECONDS_FOR_A_FORK", seconds)
        costs = ToyCosts(refuses="lora")
        found[seconds] = evaluate_all(PointEvaluator(PROBLEM, costs))
        priced = len(costs.priced)
        # the other points are priced in other processes
        assert (priced < 30) == (seconds < 0)
    assert found[-1.0] == found[float("inf")]
    assert found[-1.0] is not None
    assert found[-1.0].failures


def test_a_variant_of_adamw_has_no_other_optimizer() -> None:
    space = replace(SPACE, methods=(SearchedMethod(name="galore"), SearchedMethod(name="full")))
    points = [space.point(a).workload for a in space.assignments()]
    assert {p.optimizer for p in points if p.method == "galore"} == {"adamw"}
    assert {p.optimizer for p in points if p.method == "full"} == {"adamw", "sgd"}
    assert all("optimizer" not in a for a in space.starting_points() if a["method"] == "galore")


def test_a_short_search_holds_the_starting_points_and_repeats_nothing() -> None:
    result = run(trials=40)
    assert result.trials == len(result.results) == 40
    keys = [json.dumps(e.assignment, sort_keys=True) for e in result.results]
    assert len(set(keys)) == 40
    for answers in SPACE.starting_points():
        assert json.dumps(answers, sort_keys=True) in keys


def test_equal_seeds_give_equal_searches() -> None:
    first, second = run(name="a", trials=30), run(name="b", trials=30)
    assert [e.assignment for e in first.results] == [e.assignment for e in second.results]


def test_what_fits_lists_a_run_once(exhausted: tuple[ToyCosts, SearchResult]) -> None:
    found = exhausted[1].fitting(lambda workload: PROBLEM.limit_bytes)
    assert all(e.device_bytes <= PROBLEM.limit_bytes for e in found)
    runs = [(e.candidate.workload, tuple(e.candidate.placement.decisions)) for e in found]
    assert len(set(runs)) == len(runs) < len(exhausted[1].results)


def test_every_trial_carries_the_budget_as_a_constraint_old_and_new() -> None:
    result = run(trials=12)
    for trial, evaluation in zip(stored().trials, result.results, strict=True):
        excess = float(evaluation.device_bytes - PROBLEM.limit_bytes)
        assert trial.constraints["budget"] == excess
        assert trial.system_attrs["constraints"] == [excess]
        assert Candidate.from_json(trial.user_attrs["candidate"]) == evaluation.candidate
        assert trial.values == list(evaluation.objectives)


def test_the_study_says_what_it_is_of() -> None:
    run(trials=1)
    attributes = stored().user_attrs
    assert attributes["model"] == "resnet18"
    assert attributes["limit_bytes"] == PROBLEM.limit_bytes
    assert attributes["cost_unit"] == "joules"
    assert attributes["device"] == "rtx-2060-super"
    assert "torch" in attributes["versions"]


def test_without_power_the_cost_is_time_and_the_study_says_so() -> None:
    result = run(cost=ToyCosts(watts=None), trials=3)
    assert result.cost_unit == "seconds"
    assert "seconds for 1000 images" in stored().metric_names
    only = result.results[0]
    assert only.step_seconds is not None
    assert only.cost == pytest.approx(only.step_seconds / 16 * 1000)


def test_a_family_is_prepared_once(exhausted: tuple[ToyCosts, SearchResult]) -> None:
    cost, _ = exhausted
    families = [(w.method, w.rank, w.precision, w.optimizer) for w in cost.prepared]
    assert len(set(families)) == len(families) == 4 * 2 * 2


def test_a_method_that_fails_is_a_failed_trial_with_its_reason() -> None:
    result = run(cost=ToyCosts(refuses="head"), trials=20)
    assert result.trials == 20
    assert all(e.candidate.workload.method != "head" for e in result.results)
    failed = [t for t in stored().trials if t.state == optuna.trial.TrialState.FAIL]
    assert {t.user_attrs["reason"] for t in failed} == {"head is refused"}


def test_a_continued_study_has_the_reasons_of_its_failed_trials() -> None:
    first = run(cost=ToyCosts(refuses="head"), trials=20)
    cost = ToyCosts(refuses="head")
    second = run(cost=cost, trials=21)
    assert set(first.failures) == {"head is refused"}
    assert second.failures[: len(first.failures)] == first.failures
    assert set(second.failures) == {"head is refused"}
    assert len(stored().trials) == second.trials == 21


@pytest.mark.parametrize("rates", ["toy", "new"])
def test_a_failed_trial_of_other_versions_is_evaluated_again(
    rates: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(cost=ToyCosts(refuses="head"), trials=20)
    count = len(first.failures)
    if rates == "toy":
        monkeypatch.setattr("planner.search.trial_records.versions", lambda: {"timm": "99"})
    outdated = count if rates == "toy" else 20
    with pytest.warns(OutdatedTrialWarning, match=f"{outdated} of 20 trials"):
        second = run(cost=ToyCosts(rates_version=rates), trials=20)
    assert count > 0
    assert second.failures == ()
    assert {r.candidate.workload.method for r in second.results} >= {"head"}


def test_a_long_reason_is_stored_as_one_printable_line() -> None:
    cost = ToyCosts(refuses="head", refusal="refused\n\x1b[2J" + "x" * 400)
    first = run(cost=cost, trials=20)
    (reason,) = set(first.failures)
    assert reason.isprintable()
    assert len(reason) <= LONGEST_MESSAGE
    assert run(cost=cost, trials=20).failures == first.failures


def test_a_flat_front_stops_the_search_when_asked() -> None:
    result = run(trials=10_000, stop=HypervolumeStagnation(window=15, tolerance=0.02))
    assert result.stopped == "the front did not grow in 15 trials"
    assert result.trials < len(list(SPACE.assignments()))


# ---- going on ------------------------------------------------------------------------------------


def test_a_study_goes_on_to_the_number_of_trials_asked_for() -> None:
    run(trials=15)
    cost = ToyCosts()
    result = run(cost=cost, trials=25)
    assert result.trials == 25
    assert len(stored().trials) == 25
    assert len(cost.prepared) <= 16
    keys = [json.dumps(e.assignment, sort_keys=True) for e in result.results]
    assert len(set(keys)) == 25


def test_a_finished_study_evaluates_nothing() -> None:
    first = run(trials=15)
    cost = ToyCosts()
    again = run(cost=cost, trials=15)
    assert cost.priced == []
    assert again.results == first.results
    assert again.cost_unit == first.cost_unit


def test_an_interrupted_study_is_whole_and_goes_on() -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(trials=20, on_trial=interrupt)
    assert [t.state.name for t in stored().trials] == ["COMPLETE"] * 7
    assert run(trials=20).trials == 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"limit_bytes": 1}, "for a predicted memory of at most 420 MB, not 1 B"),
        ({"device": lookup("t4")}, "it was started for the device rtx-2060-super, not t4"),
        (
            {"space": replace(SPACE, effective_batch=32)},
            "it was started for an effective batch of 16, not 32",
        ),
    ],
)
def test_a_study_of_another_problem_is_refused(change: dict[str, Any], said: str) -> None:
    run(trials=1)
    with pytest.raises(InputError, match=said):
        run(problem=replace(PROBLEM, **change), trials=2)


def test_a_linear_probe_has_nothing_to_recompute(
    exhausted: tuple[ToyCosts, SearchResult],
) -> None:
    placed = {
        method: {not e.candidate.placement.is_none for e in exhausted[1].results
                 if e.candidate.workload.method == method}
        for method in ("head", "full")
    }  # fmt: skip
    assert placed == {"head": {False}, "full": {False, True}}


def test_a_study_of_somebody_else_is_refused() -> None:
    Path("studies").mkdir()
    study = optuna.create_study(study_name="toy", storage="sqlite:///studies/toy.db")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(InputError):
        run(trials=1)


def damaged() -> Iterator[tuple[str, bytes]]:
    yield "text", b"this is no database, but long enough to look at" * 50
    yield "truncated", b"SQLite format 3\0" + bytes(50)


@pytest.mark.parametrize("content", [c for _, c in damaged()], ids=[n for n, _ in damaged()])
def test_a_damaged_database_is_one_line(content: bytes) -> None:
    Path("studies").mkdir()
    Path("studies/toy.db").write_bytes(content)
    with pytest.raises(InputError) as caught:
        run(trials=1)
    assert "studies/toy.db" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert Path("studies/toy.db").read_bytes() == content


def test_a_foreign_database_is_left_as_it_is() -> None:
    Path("studies").mkdir()
    with sqlite3.connect("studies/toy.db") as database:
        database.execute("CREATE TABLE recipes (name TEXT)")
    database.close()
    before = Path("studies/toy.db").read_bytes()
    with pytest.raises(InputError, match="holds no Optuna studies"):
        run(trials=1)
    assert Path("studies/toy.db").read_bytes() == before


@pytest.mark.parametrize("kept", [0, 4, 12])
def test_a_database_whose_creation_was_killed_is_completed(kept: int) -> None:
    run(trials=1)
    with sqlite3.connect("studies/toy.db") as whole:
        made = whole.execute("SELECT sql FROM sqlite_master WHERE type = 'table'").fetchall()
    whole.close()
    Path("studies/toy.db").unlink()
    with sqlite3.connect("studies/toy.db") as database:
        database.execute("PRAGMA journal_mode=WAL")
        for (statement,) in made[:kept]:
            database.execute(statement)
    database.close()
    assert run(trials=1).trials == 1


@pytest.mark.parametrize("url", ["toy.db", "nosuchdialect://host/db", "sqlite:////proc/no/toy.db"])
def test_a_storage_of_no_use_is_one_line(url: str) -> None:
    with pytest.raises(InputError) as caught:
        run(trials=1, storage=url)
    assert "\n" not in str(caught.value)


def test_a_password_of_a_storage_is_not_shown() -> None:
    with pytest.raises(InputError) as caught:
        run(trials=1, storage="nosuchdialect://me:secret@host/db")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a/b", ".hidden"])
def test_a_name_must_be_a_file_name(name: str) -> None:
    with pytest.raises(UsageError):
        run(trials=1, name=name)


def test_partial_k_trains_no_more_units_than_there_are() -> None:
    base = Workload(model="test_vit", image_size=32)
    limited = limit_ranks(searched_method("partial_k"), base)
    assert limited.ranks == (1, 2, 4)  # of its six blocks
    assert limited.default_rank in limited.ranks
    assert limit_ranks(searched_method("lora"), base) == searched_method("lora")


def test_trials_of_other_rates_are_evaluated_again() -> None:
    first = run(cost=ToyCosts(rates_version="old"), trials=8)
    with pytest.warns(OutdatedTrialWarning, match="8 of 8 trials"):
        second = run(cost=ToyCosts(rates_version="new", watts=50.0), trials=8)
    assert second.trials == 8
    assert {result.rates_version for result in second.results} == {"new"}
    key = {json.dumps(r.assignment, sort_keys=True): r.cost for r in first.results}
    again = [
        (key[name], result.cost)
        for result in second.results
        if (name := json.dumps(result.assignment, sort_keys=True)) in key
    ]
    assert again
    assert all(new == pytest.approx(old / 2) for old, new in again)
    assert len(stored().trials) == 16
    with pytest.warns(OutdatedTrialWarning, match="8 of 16"):
        assert run(cost=ToyCosts(rates_version="new", watts=50.0), trials=8).trials == 8
