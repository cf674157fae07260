"""The schedule of a probe, its statistics and its records, with made-up learners."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from planner.recipe import Recipe
from planner.scoring.accuracy_prior import COVERAGE
from planner.training.probe import (
    PlannedRun,
    StepLadder,
    _runs_of_rung,
    _schedule,
    is_clear,
    next_affordable_run,
    next_run,
    probe,
)
from planner.training.probe_records import (
    RATE_FACTORS,
    Learner,
    LearnerRule,
    ProbeRun,
    ProbeSetting,
    as_bits,
    planned_steps,
)
from planner.training.probe_statistics import (
    LearnerEstimate,
    best_rates,
    effect_of_kind,
    estimate_learners,
    kind_of_learner,
    seed_deviation,
)
from planner.training.short_runs import DEFAULTS, Gains, ShortRunModel
from profiler.errors import InputError, MeasurementError
from profiler.workload import Candidate, Workload

SETTING = ProbeSetting(
    data="fingerprint", weights="random", model="test_vit", image_size=32, train_images=320,
    held_out_images=200, device="cpu", seed=0,
)  # fmt: skip
RECIPE = Recipe(learning_rate=1e-3, epochs=8, source="test")


def learner(name: str) -> Learner:
    candidate = Candidate(workload=Workload(model="test_vit", image_size=32, num_classes=10))
    return Learner(name=name, candidate=candidate, recipe=RECIPE)


def made_run(
    name: str, accuracy: float, *, steps: int = 10, seed: int = 0, factor: float = 1.0
) -> ProbeRun:
    """A run that classifies the first images right, so that runs are perfectly correlated."""
    right = np.arange(SETTING.held_out_images) < accuracy * SETTING.held_out_images
    return ProbeRun(
        setting=SETTING, learner=name, rate_factor=factor, learning_rate=1e-3 * factor, seed=seed,
        steps=steps, seconds=float(steps), right=as_bits(right),
    )  # fmt: skip


class MadeUpRunner:
    """Learners of known accuracy; a step takes one second of a made-up clock."""

    def __init__(self, accuracy: dict[str, float], *, quick: str = "") -> None:
        self.accuracy, self.quick, self.now = accuracy, quick, 0.0
        self.done: list[tuple[str, int, int, float]] = []
        self.broken = ""

    def has_features(self, learner: Learner) -> bool:
        return learner.name == self.quick

    def run(
        self, learner: Learner, *, steps: int, seed: int, rate_factor: float,
        out_of_time: Callable[[], bool],
    ) -> ProbeRun | None:  # fmt: skip
        if learner.name == self.broken:
            raise MeasurementError("it broke")
        for _ in range(steps):
            if out_of_time():
                return None
            self.now += 1
        self.done.append((learner.name, steps, seed, rate_factor))
        penalty = 0.2 * abs(np.log(rate_factor))
        best = self.accuracy[learner.name]
        return made_run(
            learner.name, max(0.0, best - penalty - 1 / steps), steps=steps, seed=seed,
            factor=rate_factor,
        )  # fmt: skip


def search(
    runner: MadeUpRunner, *, seconds: float, known: list[ProbeRun] | None = None
) -> tuple[str, list[ProbeRun]]:
    runs = list(known or [])
    learners = [learner(name) for name in runner.accuracy]
    ladder = StepLadder.of(
        learners=sum(name != runner.quick for name in runner.accuracy),
        affordable_steps=400,
        most=80,
    )
    end = probe(
        runner, learners, ladder=ladder, seconds=seconds, known=runs, save=runs.append,
        clock=lambda: runner.now,
    )  # fmt: skip
    return end.reason, runs


# ---- the schedule --------------------------------------------------------------------------------

FIVE = {"full": 0.9, "lora": 0.8, "bitfit": 0.6, "ssf": 0.5, "head": 0.4}


def test_more_steps_go_to_the_better_learners_and_the_best_leads() -> None:
    runner = MadeUpRunner(FIVE)
    reason, runs = search(runner, seconds=10_000)
    assert reason == "more runs would not change the choice"
    estimates = estimate_learners(runs)
    assert estimates[0].learner == "full"
    assert estimates[0].best > 0.95
    spent = {name: sum(n for who, n, *_ in runner.done if who == name) for name in FIVE}
    assert spent["full"] > spent["bitfit"] > 0
    assert spent["full"] > spent["head"] > 0


def planned_runs(
    learners: list[Learner],
    ladder: StepLadder,
    made: Callable[[PlannedRun], ProbeRun],
    *,
    known: Sequence[ProbeRun] = (),
    runs: list[ProbeRun] | None = None,
) -> list[tuple[str, int, int, float]]:
    """Return all runs that a probe asks for, in their order; ``runs`` receives them too."""
    runs = [] if runs is None else runs
    runs += known
    keys = []
    while (planned := next_run(learners, runs, ladder=ladder)) is not None:
        key = (planned.learner.name, planned.steps, planned.seed, planned.rate_factor)
        assert key not in keys, "a run is asked for twice"
        keys.append(key)
        runs.append(made(planned))
    return keys


@pytest.mark.parametrize("rate", [1.0, 1 / 3])
def test_the_last_run_is_the_whole_training_of_the_leader_at_its_rate(rate: float) -> None:
    """The first rungs are clear, so nothing else is trained for as long."""

    def made(planned: PlannedRun) -> ProbeRun:
        accuracy = 0.95 if planned.learner.name == "lora" else 0.6
        factor = planned.rate_factor
        return made_run(
            planned.learner.name, accuracy if factor == rate else accuracy - 0.3,
            steps=planned.steps, seed=planned.seed, factor=factor,
        )  # fmt: skip

    ladder = StepLadder(first=10, rungs=2, most=80)
    keys = planned_runs([learner("lora"), learner("head")], ladder, made)
    assert keys[-1] == ("lora", 80, 0, rate)
    assert max(steps for _, steps, *_ in keys[:-1]) == 20


def test_learners_that_all_diverge_are_tried_at_a_lower_rate_and_no_more() -> None:
    ladder = StepLadder(first=10, rungs=2, most=80)
    keys = planned_runs(
        [learner("lora"), learner("head")],
        ladder,
        lambda p: diverged_run(p.learner.name, steps=p.steps, factor=p.rate_factor),
    )
    names = ["lora", "head"]
    assert keys == [(name, 10, 0, factor) for factor in (1.0, 1 / 3) for name in names]


def test_a_probe_s_last_seconds_are_the_leader_s() -> None:
    runner = MadeUpRunner({"full": 0.9, "lora": 0.9})
    runs: list[ProbeRun] = []
    probe(
        runner, [learner("full"), learner("lora")],
        ladder=StepLadder(first=20, rungs=2, most=80), seconds=180, known=runs,
        save=runs.append, clock=lambda: runner.now,
    )  # fmt: skip
    assert runner.done[-1][1] == 80
    assert max(steps for _, steps, *_ in runner.done[:-1]) == 20
    assert runner.now == 180


def test_the_end_of_the_time_is_the_leader_s() -> None:
    """After all five were trained, one whole training fits, or a longer comparison does."""
    ladder = StepLadder(first=20, rungs=3, most=80)
    learners = [learner(name) for name in FIVE]
    runs = [made_run(name, max(accuracy, 0.5), steps=20) for name, accuracy in FIVE.items()]

    def following(*, left: float, budget: float) -> tuple[str, int] | None:
        planned = next_affordable_run(
            learners, runs, ladder=ladder, quick=frozenset(), left=left, budget=budget
        )
        return None if planned is None else (planned.learner.name, planned.steps)

    assert following(left=100, budget=200) == ("full", 80)  # 80 s, and 40 s for the next rung
    assert following(left=121, budget=200) == ("lora", 40)
    assert following(left=79, budget=200) == ("lora", 40)
    assert following(left=100, budget=159) == ("lora", 40)  # more than half of the time
    runs[1] = replace(runs[1], seconds=200.0)  # the comparison does not fit, whatever the share
    assert following(left=100, budget=101) == ("full", 80)
    runs[1] = replace(runs[1], seconds=20.0)
    # a run that diverged ended early, and says nothing about the time of a whole one
    runs.append(replace(diverged_run("full", steps=40, factor=3.0), seconds=1.0))
    assert following(left=100, budget=200) == ("full", 80)
    del runs[-2:]
    assert following(left=100, budget=200) == ("head", 20)  # not all are compared


def test_learners_with_features_are_never_dropped() -> None:
    runner = MadeUpRunner(FIVE, quick="head")
    _, runs = search(runner, seconds=10_000)
    longest = max(run.steps for run in runs if run.learner == "full" and run.seed == 0)
    assert any(run.learner == "head" and run.steps >= longest / 2 for run in runs)


def test_a_probe_without_time_for_all_has_compared_the_most_promising() -> None:
    """Cached features make a learner quick, but not promising: it does not go first."""
    runner = MadeUpRunner(FIVE, quick="head")
    search(runner, seconds=50)
    first = runner.done[0][1]
    order = sorted(FIVE, key=lambda name: -DEFAULTS.effects[kind_of_learner(name) or ""])
    assert runner.done == [(name, first, 0, 1.0) for name in order[: len(runner.done)]]
    assert 2 <= len(runner.done) < len(FIVE)


def test_equal_learners_get_several_seeds_and_end() -> None:
    runner = MadeUpRunner({"full": 0.9, "lora": 0.9})
    reason, runs = search(runner, seconds=10_000)
    assert reason == "more runs would not change the choice"
    assert len(runner.done) == len(set(runner.done)), "no run is done twice"
    first, second = estimate_learners(runs)
    assert first.best == pytest.approx(0.5, abs=0.2)
    assert second.near_best > 0.5


def test_a_probe_ends_in_time_and_a_later_one_goes_on_as_if_it_had_not_ended() -> None:
    whole = MadeUpRunner(FIVE)
    search(whole, seconds=10_000)
    first = MadeUpRunner(FIVE)
    reason, runs = search(first, seconds=120)
    assert reason == "its time was over"
    assert first.now <= 120
    second = MadeUpRunner(FIVE)
    search(second, seconds=10_000, known=runs)
    assert first.done + second.done == whole.done


def test_a_learner_that_cannot_be_trained_is_left_out() -> None:
    runner = MadeUpRunner(FIVE)
    runner.broken = "full"
    _, runs = search(runner, seconds=10_000)
    assert estimate_learners(runs)[0].learner == "lora"


def test_one_learner_is_measured_too() -> None:
    runner = MadeUpRunner({"lora": 0.9})
    _, runs = search(runner, seconds=10_000)
    (only,) = estimate_learners(runs)
    assert only.best == 1
    assert only.low < only.accuracy < only.high


def diverged_run(name: str, *, steps: int, factor: float = 1.0) -> ProbeRun:
    return replace(made_run(name, 0.0, steps=steps, factor=factor), diverged=True)


def test_a_learner_that_diverged_says_nothing_of_the_others() -> None:
    sound = [
        made_run("full", 0.72, steps=40), made_run("full", 0.85, steps=80),
        made_run("bitfit", 0.6, steps=40), made_run("head", 0.5, steps=40),
    ]  # fmt: skip
    alone = {each.learner: each for each in estimate_learners(sound, planned_steps=320)}
    for longest in (40, 80, 320):
        runs = [*sound, made_run("lora", 0.7, steps=20), diverged_run("lora", steps=longest)]
        found = {each.learner: each for each in estimate_learners(runs, planned_steps=320)}
        lora = found.pop("lora")
        assert found == alone
        assert (lora.diverged, lora.expected, lora.high, lora.near_best) == (True, 0, 0, 0)


def test_a_leader_whose_whole_training_diverges_is_no_leader() -> None:
    ladder = StepLadder(first=20, rungs=2, most=80)
    learners = [learner("full"), learner("lora")]
    runs = [made_run("full", 0.5, steps=20), made_run("lora", 0.9, steps=20)]
    runs.append(diverged_run("lora", steps=80))
    assert [each.learner for each in ladder.estimates(runs)] == ["full", "lora"]
    planned = next_run(learners, runs, ladder=ladder)
    assert planned is not None
    # a lower rate that did not diverge is taken in place of the recipe's
    runs.append(made_run("lora", 0.8, steps=20, factor=1 / 3))
    assert best_rates(runs)["lora"] == 1 / 3
    assert [each.learner for each in ladder.estimates(runs)] == ["lora", "full"]


def test_a_learner_that_diverges_with_one_of_its_seeds_is_no_leader() -> None:
    runs = [made_run("full", 0.5), made_run("lora", 0.9), made_run("lora", 0.9, seed=1)]
    runs.append(replace(diverged_run("lora", steps=10), seed=2))
    assert [each.learner for each in estimate_learners(runs)] == ["full", "lora"]


def test_the_longest_recipe_is_planned_for_the_images_of_the_probe() -> None:
    short = replace(learner("a"), recipe=replace(RECIPE, epochs=2))
    assert short.candidate.workload.effective_batch == 32
    assert planned_steps([short, learner("b")], SETTING) == 80  # 10 in each of 8 epochs


def test_an_accuracy_on_test_images_has_their_error_too() -> None:
    runs = [made_run("a", 0.8, steps=80)]

    def variance(test_images: int | None) -> float:
        (found,) = estimate_learners(runs, planned_steps=80, test_images=test_images)
        return ((found.high - found.low) / 2.563) ** 2

    for images in (50, 400):
        added = variance(images) - variance(None)
        assert added == pytest.approx(0.8 * 0.2 / images, rel=0.15)


def test_a_learner_that_lags_far_behind_is_tried_at_a_lower_rate() -> None:
    ladder = StepLadder(first=10, rungs=2, most=20)
    learners = [learner(name) for name in "abc"]
    runs = [made_run("a", 0.8), made_run("b", 0.7), made_run("c", 0.1)]
    planned = next_run(learners, runs, ladder=ladder)
    assert planned is not None
    assert (planned.learner.name, planned.steps, planned.rate_factor) == ("c", 10, 1 / 3)
    runs.append(made_run("c", 0.9, factor=1 / 3))
    later = next_run(learners, runs, ladder=ladder)
    assert later is not None
    assert later.learner.name in "ac"  # the better half is a and c


def test_a_learner_is_trained_and_judged_at_the_rate_that_a_test_found_better() -> None:
    """At the recipe's rate it would be dropped first."""
    accuracy = {1 / 3: 0.2, 1.0: 0.4, 3.0: 0.8}
    learners = [learner(name) for name in "abcdefgh"]
    test = [
        replace(made_run("a", value, steps=30, factor=factor), of_rate_test=True)
        for factor, value in accuracy.items()
    ]
    keys = planned_runs(
        learners,
        StepLadder(first=20, rungs=3, most=160),
        lambda p: made_run(
            p.learner.name, accuracy[p.rate_factor] if p.learner.name == "a" else 0.5,
            steps=p.steps, seed=p.seed, factor=p.rate_factor,
        ),
        known=test,
    )  # fmt: skip
    of_a = [key[1:] for key in keys if key[0] == "a"]
    assert of_a[:2] == [(20, 0, 3.0), (40, 0, 3.0)]
    assert of_a[-1] == (160, 0, 3.0)


def test_a_learning_rate_test_that_was_interrupted_decides_nothing() -> None:
    test = replace(made_run("a", 0.8, steps=30, factor=1 / 3), of_rate_test=True)
    planned = next_run([learner("a")], [test], ladder=StepLadder(first=20, rungs=2, most=80))
    assert planned is not None
    assert (planned.steps, planned.rate_factor) == (20, 1.0)


def test_a_second_try_decides_if_it_is_clearly_better() -> None:
    """Of 200 images, 2 more are within two standard errors, and 20 more are not."""
    ladder = StepLadder(first=10, rungs=2, most=20)
    for second, rate in ((0.11, 1.0), (0.2, 1 / 3)):
        runs = [made_run("a", 0.8), made_run("b", 0.01), made_run("c", 0.1)]
        runs += [made_run("b", 0.01, factor=1 / 3), made_run("c", second, factor=1 / 3)]
        decide = _runs_of_rung(runs, ladder, 0)
        assert [run.rate_factor for run in decide if run.learner == "c"] == [rate]


@pytest.mark.parametrize("case", range(20, 30))
def test_runs_of_later_stages_change_no_earlier_rung(case: int) -> None:
    """The schedule of all finished runs, in any order, holds each run that was made for a rung.

    Accuracies and divergences are drawn for each learner, rate and length.
    """
    rng = np.random.default_rng(case)
    drawn: dict[tuple[str, int, float], tuple[float, bool]] = {}

    def made(planned: PlannedRun) -> ProbeRun:
        key = (planned.learner.name, planned.steps, planned.rate_factor)
        accuracy, diverges = drawn.setdefault(key, (rng.uniform(0.1, 0.9), rng.random() < 0.15))
        run = made_run(
            planned.learner.name, 0.0 if diverges else accuracy, steps=planned.steps,
            seed=planned.seed, factor=planned.rate_factor,
        )  # fmt: skip
        return replace(run, diverged=diverges)

    learners = [learner(name) for name in "abcdef"]
    ladder = StepLadder(first=10, rungs=3, most=80)
    tested = [PlannedRun(learner=each, steps=30, seed=0, rate_factor=factor)
              for each in learners[:2] for factor in RATE_FACTORS]  # fmt: skip
    known = [replace(made(planned), of_rate_test=True) for planned in tested]
    runs: list[ProbeRun] = []
    keys = planned_runs(learners, ladder, made, known=known, runs=runs)
    walked = {
        (p.learner.name, p.steps, p.seed, p.rate_factor)
        for p in _schedule(learners, runs, ladder, frozenset())
    }
    of_rungs = [key for key in keys if key[1] < ladder.last]
    assert set(of_rungs) <= walked
    shuffled = [runs[place] for place in rng.permutation(len(runs))]
    assert next_run(learners, shuffled, ladder=ladder) is None


def test_next_run_repeats_none() -> None:
    ladder = StepLadder(first=10, rungs=2, most=40)
    learners = [learner("a"), learner("b")]
    runs: list[ProbeRun] = []
    while (planned := next_run(learners, runs, ladder=ladder)) is not None:
        key = (planned.learner.name, planned.steps, planned.seed, planned.rate_factor)
        assert key not in {(r.learner, r.steps, r.seed, r.rate_factor) for r in runs}
        runs.append(
            made_run(
                planned.learner.name, 0.8, steps=planned.steps, seed=planned.seed,
                factor=planned.rate_factor,
            )
        )  # fmt: skip
        assert len(runs) < 50
    assert is_clear(runs, StepLadder(first=10, rungs=3, most=40))


# ---- statistics ----------------------------------------------------------------------------------


def independent_run(
    rng: np.random.Generator, name: str, accuracy: float, *, seed: int = 0
) -> ProbeRun:
    right = rng.random(SETTING.held_out_images) < accuracy
    return replace(made_run(name, 0.5, seed=seed), right=as_bits(right))


def test_an_interval_covers_the_true_accuracy_as_often_as_stated() -> None:
    """300 made-up runs: binomial images around an accuracy that differs with the seed."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        run = independent_run(rng, "a", 0.9 + rng.normal(0, 0.01))
        (found,) = estimate_learners([run])
        covered += found.low <= 0.9 + rng.normal(0, 0.01) <= found.high
    # binomial: 80 % of 300 has a standard deviation of 2.3 points
    assert COVERAGE - 0.07 < covered / 300 < COVERAGE + 0.09


def test_an_interval_of_a_longer_training_covers_what_the_model_says() -> None:
    """300 made-up trainings that rise as the constants of the extrapolation say."""
    rng = np.random.default_rng(1)
    model = ShortRunModel(
        first=Gains(gain=9.0, more={}, own_deviation=9.0, common_deviation=9.0),
        later=Gains(gain=0.5, more={}, own_deviation=0.3, common_deviation=0.4),
    )
    covered = 0
    for _ in range(300):
        at = {10: 0.0, 20: 0.8}
        rise = 2 * 0.5 + np.sqrt(2) * rng.normal(0, 0.5)
        runs = [
            replace(independent_run(rng, "a", 1 / (1 + np.exp(-odds))), steps=steps)
            for steps, odds in at.items()
        ]
        (found,) = estimate_learners(runs, planned_steps=80, short_runs=model)
        covered += found.low <= 1 / (1 + np.exp(-(at[20] + rise))) <= found.high
    assert COVERAGE - 0.07 < covered / 300 < COVERAGE + 0.09


def test_common_errors_are_wider_where_few_nets_show_them() -> None:
    """The interval of a longer training is that of Student's t, with one less than the nets."""
    model = ShortRunModel(first=replace(KINDS.first, common_deviation=1.0), later=KINDS.later)
    widths = []
    for nets in (0, 3):
        (found,) = estimate_learners(
            [made_run("a", 0.5)], planned_steps=20, short_runs=replace(model, nets=nets)
        )
        widths.append(log_odds(found.high) - log_odds(found.low))
    # Quantiles of 90 %: 1.282 of the normal distribution, 1.886 of Student's t with 2 degrees.
    assert widths[1] / widths[0] == pytest.approx(1.886 / 1.282, rel=0.1)


def test_the_probability_of_the_best_is_that_of_a_paired_comparison() -> None:
    """b differs from a in 12 images: 9 gained, 3 lost. Exact: P(gain) from a beta posterior."""
    base = np.arange(SETTING.held_out_images) % 2 == 0
    other = base.copy()
    other[np.flatnonzero(~base)[:9]] = True
    other[np.flatnonzero(base)[:3]] = False
    runs = [
        replace(made_run(name, 0.5, seed=seed), right=as_bits(right))
        for name, right in (("a", base), ("b", other))
        for seed in range(3)  # equal seeds: the deviation over seeds is small
    ]
    estimates = {e.learner: e for e in estimate_learners(runs)}
    # Weights of 9 and 3 images under a uniform Dirichlet: their shares follow Beta(9, 3).
    rng = np.random.default_rng(1)
    shares = rng.beta(9, 3, size=100_000)
    weight = rng.beta(12, 188, size=100_000)
    deviation = seed_deviation(runs) / np.sqrt(3) * np.sqrt(2)
    gain = weight * (2 * shares - 1) + rng.normal(0, deviation, size=100_000)
    assert estimates["b"].best == pytest.approx(float((gain > 0).mean()), abs=0.02)
    assert estimates["a"].best + estimates["b"].best == pytest.approx(1)


def test_short_runs_are_weak_evidence() -> None:
    """The longer the planned training, the less sure is the leader of short runs."""
    runs = [made_run("a", 0.7), made_run("b", 0.6)]
    sure = [estimate_learners(runs, planned_steps=n)[0].best for n in (10, 20, 100)]
    assert sure == sorted(sure, reverse=True)
    assert sure[0] > 0.99
    # One doubling: the gap of the log-odds, and an error of each learner's own. The images add
    # little, because both learners answer the same ones.
    gap = np.log(0.7 / 0.3) - np.log(0.6 / 0.4)
    deviation = DEFAULTS.first.own_deviation * np.sqrt(2)
    expected = 0.5 * (1 + math.erf(gap / deviation / np.sqrt(2)))
    assert sure[1] == pytest.approx(expected, abs=0.04)


KINDS = ShortRunModel(
    first=Gains(
        gain=0.4, more={"head": -0.3, "low rank": 0.4}, own_deviation=0.2, common_deviation=0.1
    ),
    later=Gains(
        gain=0.2, more={"head": -0.2, "low rank": 0.5}, own_deviation=0.2, common_deviation=0.1
    ),
)


def log_odds(accuracy: float) -> float:
    return math.log(accuracy / (1 - accuracy))


def test_a_method_rises_as_its_kind_does() -> None:
    """lora is behind head after the short runs, and overtakes it; an unknown method has no kind."""
    names = {"head, adamw, 32 a step": -0.3, "lora r8, adamw, 32 a step": 0.4, "mine": 0.0}
    runs = [made_run(name, 0.6 if name[0] == "h" else 0.5) for name in names]
    found = {e.learner: e for e in estimate_learners(runs, planned_steps=80, short_runs=KINDS)}
    for name, more in names.items():
        final = log_odds(0.6 if name[0] == "h" else 0.5) + 3 * (0.4 + more)
        assert found[name].expected == pytest.approx(1 / (1 + math.exp(-final)), abs=0.01)
    assert found["lora r8, adamw, 32 a step"].best > found["head, adamw, 32 a step"].best


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lora r8, adamw, 32 a step", "low rank"), ("vit_s partial_2, sgd, 8 of 2", "partial"),
        ("head", "head"), ("peft:loha, adamw, 32 a step", None),
    ],
)  # fmt: skip
def test_the_kind_of_a_learner_follows_from_its_name(name: str, kind: str | None) -> None:
    assert kind_of_learner(name) == kind


def test_a_dropped_method_keeps_its_kind() -> None:
    """It rises as the others do from 10 to 20 steps and later, beside the difference of kinds."""
    runs = [made_run("head", 0.60), made_run("head", 0.62, steps=20), made_run("lora", 0.50)]
    found = {e.learner: e for e in estimate_learners(runs, planned_steps=80, short_runs=KINDS)}
    risen = log_odds(0.62) - log_odds(0.60)
    at_20 = log_odds(0.50) + risen + 0.4 - (-0.3)
    final = at_20 + 2 * (0.2 + 0.5)
    assert found["lora"].expected == pytest.approx(1 / (1 + math.exp(-final)), abs=0.01)


def test_each_doubling_gives_a_share_of_the_one_before() -> None:
    """Of a rise of 1, 0.6, 0.36, ... whole doublings add up, and no training rises beyond 2.5."""
    gains = replace(KINDS.later, gain=1.0, decay=0.6)
    for doublings in range(5):
        rise = sum(0.6**number for number in range(doublings))
        assert gains.rise(doublings, None) == pytest.approx(rise)
    assert gains.rise(50, None) == pytest.approx(1 / (1 - 0.6))
    # After two doublings with a rise of 1 + 0.6, the next one gives 0.36.
    assert replace(gains, gain=0.0, carried=1.0).unusual_rise([(None, 1.6)], 2) == (
        pytest.approx(0.36)
    )
    assert replace(gains, carried=1.0).unusual_rise([(None, -9.0)], 1) == -1.0  # none fall


def test_all_methods_go_on_rising_as_fast_as_they_rose() -> None:
    """Both kinds rose by 0.5 more than usual in the doubling before; 0.8 of it goes on."""
    model = replace(KINDS, later=replace(KINDS.later, decay=0.5, carried=0.8))
    starts = {"head": 0.0, "lora": -1.0}
    usual = {name: 0.2 + more for name, more in (("head", -0.2), ("lora", 0.5))}
    ends = {name: starts[name] + usual[name] / 0.5 + 0.5 for name in starts}
    runs = [
        made_run(name, 1 / (1 + math.exp(-odds)), steps=steps)
        for steps, at in ((10, starts), (20, ends))
        for name, odds in at.items()
    ]
    found = {e.learner: e for e in estimate_learners(runs, planned_steps=80, short_runs=model)}
    for name in starts:
        final = ends[name] + (1 + 0.5) * (usual[name] + 0.8 * 0.5 * 0.5)
        assert log_odds(found[name].expected) == pytest.approx(final, abs=0.05)


def test_the_half_that_is_expected_to_be_better_goes_on() -> None:
    """After the first rung lora is fourth of four; its kind rises, so it stays."""
    methods = {"bitfit": 0.60, "ssf": 0.58, "bn_head": 0.56, "lora": 0.52}
    ladder = StepLadder(first=10, rungs=2, most=80, short_runs=KINDS)
    runs = [made_run(name, accuracy) for name, accuracy in methods.items()]
    learners = [learner(name) for name in methods]
    rates = []
    while (planned := next_run(learners, runs, ladder=ladder)) is not None and planned.steps == 10:
        rates.append(planned.learner.name)
        runs.append(made_run(planned.learner.name, 0.1, factor=planned.rate_factor))
    assert set(rates) == {"lora", "bitfit"}


def test_the_deviation_over_seeds_is_pooled() -> None:
    runs = [
        made_run(name, accuracy, seed=seed)
        for name, accuracies in (("a", (0.90, 0.94)), ("b", (0.70, 0.74, 0.78)))
        for seed, accuracy in enumerate(accuracies)
    ]
    squares = 0.0008 + 2 * 0.0016
    assert seed_deviation(runs) == pytest.approx(np.sqrt((squares + 1e-4) / 4))
    assert seed_deviation(runs[:1]) == 0.01


def test_another_rate_must_be_clearly_better() -> None:
    runs = [made_run("a", 0.80), made_run("a", 0.805, factor=3.0)]
    assert best_rates(runs) == {"a": 1.0}
    runs.append(made_run("a", 0.95, factor=1 / 3))
    assert best_rates(runs) == {"a": 1 / 3}


def test_a_learner_dropped_early_is_carried_on_to_the_steps_of_the_others() -> None:
    runs = [
        made_run("a", 0.6), made_run("b", 0.5), made_run("c", 0.1),
        made_run("a", 0.9, steps=20), made_run("b", 0.8, steps=20),
    ]  # fmt: skip
    first, second, last = estimate_learners(runs)
    assert (first.learner, second.learner, last.learner) == ("a", "b", "c")
    assert (last.steps, last.best) == (10, 0)
    assert last.expected > 0.1  # carried on to the steps of the others


def test_a_changed_learning_rate_is_carried_on_as_the_others_are() -> None:
    """The learner whose rate was changed has one length at its new rate, the other has two."""
    runs = [
        made_run("lora", 0.5), made_run("lora", 0.80, steps=20),
        made_run("lora b", 0.2), made_run("lora b", 0.4, steps=20),
        made_run("lora b", 0.80, steps=20, factor=3.0),
    ]  # fmt: skip
    found = {each.learner: each for each in estimate_learners(runs, planned_steps=160)}
    assert found["lora b"].rate_factor == 3.0
    assert found["lora b"].expected == pytest.approx(found["lora"].expected, abs=0.01)
    assert found["lora b"].best == pytest.approx(0.5, abs=0.05)


def with_effects(deviation: float, **changes: int) -> ShortRunModel:
    return replace(
        KINDS, effects={"low rank": 0.8, "head": 0.0}, effect_deviation=deviation, **changes
    )


def test_effects_and_short_trainings_count_by_their_precisions() -> None:
    """In closed form: two learners, one difference of normal errors each."""
    runs = [made_run("head", 0.60), made_run("lora", 0.50)]
    found = {
        e.learner: e
        for e in estimate_learners(runs, planned_steps=80, short_runs=with_effects(0.3))
    }
    carried = {
        name: log_odds(accuracy) + 3 * (0.4 + KINDS.first.more[kind])
        for name, accuracy, kind in (("head", 0.6, "head"), ("lora", 0.5, "low rank"))
    }
    own, prior = 3 * 0.2**2, 0.3**2
    mean = (carried["head"] + carried["lora"] - 0.8) / 2
    for name, effect in (("head", 0.0), ("lora", 0.8)):
        odds = (prior * carried[name] + own * (mean + effect)) / (own + prior)
        assert log_odds(found[name].expected) == pytest.approx(odds, abs=0.03)


def test_effects_do_not_count_for_whole_trainings_and_long_plans() -> None:
    def best_of(runs: list[ProbeRun], planned: int, model: ShortRunModel) -> float:
        found = estimate_learners(runs, planned_steps=planned, short_runs=model)
        return {each.learner: each.best for each in found}["head"]

    whole = [made_run("head", 0.60, steps=80), made_run("lora", 0.60, steps=80)]
    assert best_of(whole, 80, with_effects(0.1)) == pytest.approx(0.5, abs=0.05)
    short = [made_run("head", 0.90), made_run("lora", 0.50)]
    counted = best_of(short, 80, with_effects(0.1, effect_steps=80))
    assert counted < best_of(short, 80, with_effects(0.1, effect_steps=79))


def test_effects_compare_methods_of_one_backbone_only() -> None:
    assert effect_of_kind("lora r8, adamw, 32 a step", with_effects(0.1)) == 0.8
    assert math.isnan(effect_of_kind("vit_s lora r8, adamw, 32 a step", with_effects(0.1)))
    assert math.isnan(effect_of_kind("peft:loha, adamw", with_effects(0.1)))


def test_the_kind_that_was_best_elsewhere_is_trained_first() -> None:
    ladder = StepLadder(first=10, rungs=2, most=80, short_runs=with_effects(0.3))
    learners = [learner("unknown"), learner("head"), learner("lora"), learner("other")]
    runs: list[ProbeRun] = []
    while len(runs) < 4 and (planned := next_run(learners, runs, ladder=ladder)) is not None:
        runs.append(made_run(planned.learner.name, 0.5, factor=planned.rate_factor))
    assert [run.learner for run in runs] == ["lora", "unknown", "head", "other"]


# ---- records -------------------------------------------------------------------------------------


def test_a_run_survives_a_study(rng_seed: int = 3) -> None:
    rng = np.random.default_rng(rng_seed)
    for images in (1, 3, 8, 143, 401):
        right = rng.random(images) < 0.5
        setting = replace(SETTING, held_out_images=images)
        run = replace(made_run("a", 0.5), setting=setting, right=as_bits(right))
        again = ProbeRun.from_json(json.loads(json.dumps(run.to_json())))
        assert again == run
        assert np.array_equal(again.right_images, right)
        assert again.accuracy == right.mean()


@pytest.mark.parametrize(
    "change",
    [
        {"right": "ff"},
        {"right": "zz" * 25},
        {"steps": 0},
        {"rate_factor": float("nan")},
        {"unknown": 1},
        {"learner": "x" * 500},
    ],
)
def test_an_edited_run_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ProbeRun.from_json(made_run("a", 0.5).to_json() | change)


def test_candidates_that_learn_alike_share_a_learner() -> None:
    base = Workload(
        model="test_resnet", method="full", micro_batch=4, accumulation=8, num_classes=10,
        frozen_batch_norm=True, precision="bf16", levers=("channels_last", "fused"),
    )  # fmt: skip

    def name(workload: Workload, device: str = "cpu") -> str:
        return LearnerRule(device=device, has_batch_norm=True).name(workload)

    assert name(base) == name(base.replace(micro_batch=16, accumulation=2, precision="fp32"))
    assert name(base) != name(base.replace(optimizer="sgd"))
    on_host = base.replace(optimizer="adamw_host", levers=())
    assert name(base) == name(on_host)
    assert name(base, "cuda") == name(on_host, "cuda")
    assert name(base) != name(base.replace(accumulation=4))
    assert name(base, "cuda") != name(base.replace(precision="fp32"), "cuda")
    # BatchNorm that normalises by the batch learns from the micro-batch.
    own = base.replace(frozen_batch_norm=False)
    assert name(own) != name(own.replace(micro_batch=16, accumulation=2))
    without = LearnerRule(device="cpu", has_batch_norm=False)
    assert without.name(own) == without.name(own.replace(micro_batch=16, accumulation=2))
    trained = without.workload(own)
    assert (trained.micro_batch, trained.accumulation, trained.precision) == (32, 1, "fp32")
    assert trained.levers == ()
    assert LearnerRule(device="cuda", has_batch_norm=False).workload(own) == own


def test_estimates_of_nothing_are_nothing() -> None:
    assert estimate_learners([]) == ()
    assert not is_clear([], StepLadder(first=10, rungs=3, most=40))
    assert isinstance(estimate_learners([made_run("a", 1.0)])[0], LearnerEstimate)
