"""Does a short probe find the method that a whole training would find best?

python studies/probe/run.py        reads the trainings, writes summary.json and prints it

``train.py`` makes the trainings. A case is one net on one labelled set with one seed. The truth of a
case is the test accuracy of every method after the longest training. All rules see the held-out
part only. *Regret* is the test accuracy of the best method less that of the chosen one.

    effects     the kind of methods that was best in the cases of other sets or nets; costs nothing
    probe 50 %  the product's probe, replayed (``replayed.py``); the share is its processor time over
                that of the whole trainings of all methods
    even        all methods for two epochs, the best held-out accuracy
    one epoch   all methods for one epoch, the best held-out accuracy
    published   the order of published comparisons; costs nothing
    always X    the same method in every case; costs nothing
    whole       all whole trainings, the best held-out accuracy: no probe can be expected to be better
    learned     a ridge regression over method, curve and published effect (scikit-learn), fitted to
                the cases of the other sets, or to those of the other nets

The constants of the product's estimate (``planner.training.short_runs``) were fitted to these rows.
For every case they are therefore fitted anew to the cases of the other sets, in the rules
``..., other lengths`` to those of them with another whole length, and in the rules
``..., other nets`` to those of the other kinds of nets. The rules ``..., without effects`` do not use
the effects of the kinds, as the product does for long plans.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import numpy as np
from cases import IMAGENET, LONG_STEPS, METHODS, SHORT_STEPS, Case, as_probe_run
from effect_weight import with_best_weight
from harness import Rows, write_summary
from replayed import CaseRows, by_published_order, cost_of, replay_probe, row_key, whole_cost
from short_run_fit import Curves, MethodCurve, cautious_fit, clipped_log_odds, fit_short_runs

from planner.scoring.published_tables import compared_family, method_effects
from planner.training.probe_statistics import LearnerEstimate, estimate_learners, kind_of_learner
from planner.training.short_runs import DEFAULTS, ShortRunModel

NEAR = 0.01
PROBE_SHARES = (0.1, 0.25, 0.5)
SHOWN_SHARE = 0.25
"""Share whose intervals are reported, and that is compared with other rules."""

LeftOut = Literal["sets", "nets", "lengths", "sets and nets"]
"""What the cases of a fit do not share with the judged case: its set, its kind of net, both its set
and its whole length, or both its set and its kind of net, as with a user's own."""

Cases = dict[Case, CaseRows]


def complete_cases(rows: list[dict[str, Any]]) -> Cases:
    """Return the cases of which all short and whole trainings were made."""
    found: dict[tuple[str, str, int], dict[Any, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        found[row["model"], row["data"], row["seed"]][row_key(row)] = row
    cases = {
        Case(model=model, data=data, seed=seed, steps=steps): mine
        for (model, data, seed), mine in found.items()
        for steps in LONG_STEPS[model]
    }
    return {
        case: mine
        for case, mine in cases.items()
        if all(
            (method, steps, 0, 1.0) in mine
            for method in case.methods
            for steps in (*SHORT_STEPS, case.steps)
        )
    }


def held_out(found: CaseRows, method: str, steps: int) -> float:
    """Return the held-out accuracy of a training at the recipe's rate."""
    return float(found[method, steps, 0, 1.0]["held_out_accuracy"])


def odds_of(found: CaseRows, method: str, steps: int) -> float:
    """Return the log-odds of the same."""
    row = found[method, steps, 0, 1.0]
    return clipped_log_odds(row["held_out_accuracy"], row["held_out_images"])


def curves_of(cases: Cases) -> list[Curves]:
    """Return the curves of the methods of each case."""
    return [
        [
            MethodCurve(
                kind=kind_of_learner(method), short={s: odds_of(found, method, s) for s in SHORT_STEPS},
                planned_steps=case.steps, final=odds_of(found, method, case.steps),
            )
            for method in case.methods
        ]
        for case, found in cases.items()
    ]  # fmt: skip


# ---- rules ---------------------------------------------------------------------------------------


def choices_of(case: Case, cases: Cases) -> dict[str, tuple[str, float]]:
    """Return (method, processor seconds) of every rule that can be judged on the rows of a case."""
    found, methods = cases[case], case.methods

    def best(steps: int) -> tuple[str, float]:
        chosen = max(methods, key=lambda m: held_out(found, m, steps))
        return chosen, sum(cost_of(found[m, steps, 0, 1.0]) for m in methods)

    one, two, whole = (best(steps) for steps in (*SHORT_STEPS, case.steps))
    short_cost = one[1] + two[1]
    choices = {
        "even": two, "one epoch": one, "published": (by_published_order(case.model)[0], 0.0), "whole": whole,
        **{f"always {m}": (m, 0.0) for m in methods},
    }  # fmt: skip
    for by in get_args(LeftOut):
        model = constants_for(case, cases, by=by)
        if model is None:
            continue
        known = {m: model.effects.get(kind_of_learner(m) or "", 0.0) for m in methods}
        choices[f"effects of kinds, other {by}"] = max(methods, key=lambda m: known[m]), 0.0
        predicted = learned_log_odds(case, found, others_of(case, cases, by=by))
        choices[f"learned, other {by}"] = max(methods, key=lambda m: predicted[m]), short_cost
    for name, model in probe_constants(case, cases).items():
        for share in PROBE_SHARES:
            replayed = replay_probe(found, case, share=share, short_runs=model)
            if replayed.missing is None and replayed.runs:
                chosen = estimates_of(case, cases, share, model)[0].learner
                choices[probe_name(share, name)] = chosen, replayed.cpu_seconds
    return choices


def probe_constants(case: Case, cases: Cases) -> dict[str, ShortRunModel]:
    """Return the constants of the probes that are replayed, by a part of their names."""
    found: dict[str, ShortRunModel] = {}
    for by in get_args(LeftOut):
        model = constants_for(case, cases, by=by)
        if model is not None:
            found["" if by == "sets" else f"other {by}"] = model
    if "" in found:
        found["without effects"] = replace(found[""], effect_steps=0)
    return found


def probe_name(share: float, name: str = "") -> str:
    """Return the name of a rule: the probe in a share of the time, with which constants."""
    return f"probe {100 * share:.0f} %" + (f", {name}" if name else "")


def kind_of(model: str) -> str:
    """Return the family of a net: Lite0 and Lite1 are one."""
    return model.rstrip("0123456789")


def others_of(case: Case, cases: Cases, *, by: LeftOut) -> Cases:
    """Return the cases of the other sets, of these the ones of other lengths, or of other nets."""

    def is_other(other: Case) -> bool:
        if "nets" in by and kind_of(other.model) == kind_of(case.model):
            return False
        if by == "lengths" and other.steps == case.steps:
            return False
        return by == "nets" or other.data != case.data

    return {other: found for other, found in cases.items() if is_other(other)}


def constants_for(case: Case, cases: Cases, *, by: LeftOut) -> ShortRunModel | None:
    """Return the constants of the extrapolation, fitted to other cases; None without any."""
    others = others_of(case, cases, by=by)
    if not others:
        return None
    return _fitted(others)


_FITTED: dict[tuple[Case, ...], ShortRunModel] = {}
"""Constants by the cases that they were fitted to."""


def _fitted(cases: Cases) -> ShortRunModel:
    keys = tuple(cases)
    if keys not in _FITTED:
        by_net: dict[str, list[Curves]] = defaultdict(list)
        for case, curves in zip(keys, curves_of(cases), strict=True):
            by_net[kind_of(case.model)].append(curves)
        _FITTED[keys] = with_best_weight(cautious_fit(by_net), cases)
    return _FITTED[keys]


def estimates_of(
    case: Case, cases: Cases, share: float, model: ShortRunModel
) -> tuple[LearnerEstimate, ...]:
    """Return the product's estimates after a replayed probe."""
    runs = replay_probe(cases[case], case, share=share, short_runs=model).runs
    return estimate_learners(
        runs,
        planned_steps=case.steps,
        test_images=cases[case][case.methods[0], case.steps, 0, 1.0]["test_images"],
        short_runs=model,
    )


def features_of(case: Case, found: CaseRows, method: str) -> list[float]:
    """Return the inputs of the learned model: kinds of methods, the curve, the published effect."""
    names = sorted({m for each in METHODS.values() for m in each})
    first, second = (odds_of(found, method, s) for s in SHORT_STEPS)
    effects = method_effects(compared_family(case.model), "few")
    return [
        first, second, second - first, effects.get(method, 0.0), float(method in effects),
        float(case.model not in IMAGENET), *(float(method == name) for name in names),
    ]  # fmt: skip


def learned_log_odds(case: Case, found: CaseRows, others: Cases) -> dict[str, float]:
    """Return the log-odds after the whole training by a ridge regression on other cases."""
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    inputs, targets = [], []
    for other, cells in others.items():
        for method in other.methods:
            inputs.append(features_of(other, cells, method))
            targets.append(odds_of(cells, method, other.steps))
    model = make_pipeline(StandardScaler(), Ridge(alpha=3.0)).fit(inputs, targets)
    rows = [features_of(case, found, method) for method in case.methods]
    return dict(zip(case.methods, map(float, model.predict(rows)), strict=True))


# ---- the summary ---------------------------------------------------------------------------------


def report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the summary's numbers."""
    cases = complete_cases(rows)
    each = [of_case(case, cases) for case in cases]
    truths: dict[tuple[str, str, int], list[dict[str, float]]] = defaultdict(list)
    for case in each:
        truths[case["model"], case["data"], case["steps"]].append(case["truth"])
    for case in each:
        mine = truths[case["model"], case["data"], case["steps"]]
        truth = {m: float(np.mean([t[m] for t in mine])) for m in mine[0]}
        case["regret_of_mean"] = {
            rule: round(max(truth.values()) - truth[method], 4)
            for rule, method in case["choices"].items()
        }
    nets = dict.fromkeys(case.model for case in cases)
    lengths = sorted({case.steps for case in cases})
    return {
        "cases": len(each),
        "near": NEAR,
        "long_steps": LONG_STEPS,
        "rules": of_rules(each),
        "rules_by_net": {net: of_rules([c for c in each if c["model"] == net]) for net in nets},
        "against_probe": {
            rule: paired(each, probe_name(SHOWN_SHARE), rule)
            for rule in ("even", "one epoch", "published", "effects of kinds, other sets",
                         "effects of kinds, other nets", "learned, other sets",
                         "learned, other nets")
        },
        "intervals": {by: of_intervals(each, by) for by in get_args(LeftOut)},
        "intervals_by_net": {
            net: of_intervals([c for c in each if c["model"] == net], "sets") for net in nets
        },
        "rules_by_steps": {
            steps: of_rules([c for c in each if c["steps"] == steps]) for steps in lengths
        },
        "intervals_by_steps": {
            steps: {
                by: of_intervals([c for c in each if c["steps"] == steps], by)
                for by in get_args(LeftOut)
            }
            for steps in lengths
        },
        "intervals_of_whole": intervals_of_whole(cases),
        "fitted_by_case": fitted_by_case(cases),
        "feature_cost": feature_cost(),
        "fitted": asdict(_fitted(cases)) if cases else None,
        "each": [{key: value for key, value in case.items() if key != "estimates"} for case in each],
    }  # fmt: skip


def fitted_by_case(cases: Cases) -> dict[str, Any]:
    """Return the constants fitted to the cases of one net and one length."""
    found: dict[str, list[Curves]] = defaultdict(list)
    for case, curves in zip(cases, curves_of(cases), strict=True):
        found[f"{case.model} {case.steps}"].append(curves)
    return {name: asdict(fit_short_runs(mine)) for name, mine in found.items()}


def feature_cost() -> dict[str, float]:
    """Return the cost of probes of a frozen backbone in forward passes over the images."""
    seconds = {row["what"]: row["cpu_seconds"] for row in Rows(HERE, "feature_cost").read()}
    whole = seconds.get("one forward pass")
    return {what: round(each / whole, 3) for what, each in seconds.items()} if whole else {}


def of_case(case: Case, cases: Cases) -> dict[str, Any]:
    """Return truth, choices, costs and estimates of a case."""
    found, methods, long = cases[case], case.methods, case.steps
    truth = {m: found[m, long, 0, 1.0]["test_accuracy"] for m in methods}
    choices, whole = choices_of(case, cases), whole_cost(found, case)
    return {
        "model": case.model, "data": case.data, "seed": case.seed, "steps": case.steps,
        "test_images": found[methods[0], long, 0, 1.0]["test_images"],
        "whole_cpu_seconds": round(whole, 1), "truth": truth,
        "held_out": {m: held_out(found, m, long) for m in methods},
        "choices": {rule: method for rule, (method, _) in choices.items()},
        "cost": {rule: round(cost / whole, 3) for rule, (_, cost) in choices.items() if cost},
        "regret": {
            rule: round(max(truth.values()) - truth[m], 4) for rule, (m, _) in choices.items()
        },
        "estimates": {by: shown_estimates(case, cases, by) for by in get_args(LeftOut)},
    }  # fmt: skip


def shown_estimates(case: Case, cases: Cases, by: LeftOut) -> list[dict[str, Any]]:
    """Return the probe's estimates of the methods of a case, the best first; none without rows."""
    model = constants_for(case, cases, by=by)
    if model is None:
        return []
    replayed = replay_probe(cases[case], case, share=SHOWN_SHARE, short_runs=model)
    return [] if replayed.missing else [
        {"method": e.learner, "steps": e.steps, "accuracy": round(e.expected, 4),
         "low": round(e.low, 4), "high": round(e.high, 4), "best": round(e.best, 3),
         "near_best": round(e.near_best, 3)}
        for e in estimates_of(case, cases, SHOWN_SHARE, model)
    ]  # fmt: skip


def of_rules(each: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what every rule reaches, in the order of the first case."""
    names = list(dict.fromkeys(rule for case in each for rule in case["choices"]))
    return {rule: of_rule(rule, each) for rule in names}


def of_rule(rule: str, each: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how often a rule is within one point of the best, its regret and its cost."""
    mine = [case for case in each if rule in case["regret"]]
    regrets = [case["regret"][rule] for case in mine]
    of_mean = [case["regret_of_mean"][rule] for case in mine]
    costs = [case["cost"].get(rule, 0.0) for case in mine]
    return {
        **with_interval(sum(regret <= NEAR + 1e-9 for regret in regrets), len(regrets)),
        "mean_regret": round(float(np.mean(regrets)), 4),
        "largest_regret": round(max(regrets), 4),
        "right_of_mean": sum(regret <= NEAR + 1e-9 for regret in of_mean),
        "mean_regret_of_mean": round(float(np.mean(of_mean)), 4),
        "mean_cost": round(float(np.mean(costs)), 3),
    }


def paired(each: list[dict[str, Any]], ours: str, theirs: str) -> dict[str, Any]:
    """Return in how many cases one rule's choice is better than another's, with a sign test."""
    from scipy.stats import binomtest

    pairs = [
        (c["regret"][ours], c["regret"][theirs])
        for c in each
        if {ours, theirs} <= c["regret"].keys()
    ]
    better, worse = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
    chance = binomtest(better, better + worse).pvalue if better + worse else 1.0
    return {
        "cases": len(pairs), "better": better, "worse": worse, "p_value": round(float(chance), 4),
        "mean_gain": round(float(np.mean([b - a for a, b in pairs])), 4) if pairs else None,
    }  # fmt: skip


def of_intervals(each: list[dict[str, Any]], by: LeftOut) -> dict[str, Any] | None:
    """Return the coverage, the width and the error of the probe's intervals."""
    found = [(case["truth"][e["method"]], e) for case in each for e in case["estimates"][by]]
    best = [(case["truth"][e["method"]], e) for case in each for e in case["estimates"][by][:1]]
    if not found:
        return None
    inside, first = (
        [e["low"] <= truth <= e["high"] for truth, e in pairs] for pairs in (found, best)
    )
    return {
        "of_all": with_interval(sum(inside), len(inside)),
        "of_the_chosen": with_interval(sum(first), len(first)),
        "median_width": round(float(np.median([e["high"] - e["low"] for _, e in found])), 4),
        "median_width_of_the_chosen": round(
            float(np.median([e["high"] - e["low"] for _, e in best])), 4
        ),
        "median_error": round(float(np.median([abs(e["accuracy"] - t) for t, e in found])), 4),
        "mean_error": round(float(np.mean([e["accuracy"] - t for t, e in found])), 4),
    }


def intervals_of_whole(cases: Cases) -> dict[str, Any]:
    """Return coverage and width of the intervals of whole trainings, the narrowest to be had.

    They hold the error of the held-out images, of the seed, and, for ``on_test_images``, of the
    test images.
    """
    found: dict[str, Any] = {}
    for name, counts_test in (("on_any_images", False), ("on_test_images", True)):
        inside, widths = [], []
        for case, rows in cases.items():
            whole = {m: rows[m, case.steps, 0, 1.0] for m in case.methods}
            estimates = estimate_learners(
                [as_probe_run(dict(row)) for row in whole.values()],
                test_images=whole[case.methods[0]]["test_images"] if counts_test else None,
                short_runs=replace(DEFAULTS, effect_steps=0),
            )
            for each in estimates:
                inside.append(each.low <= whole[each.learner]["test_accuracy"] <= each.high)
                widths.append(each.high - each.low)
        found[name] = with_interval(sum(inside), len(inside)) | {
            "median_width": round(float(np.median(widths)), 4)
        }
    return found


def of_random_weights(cases: Cases, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the gain of pretrained weights over random ones, by net and whole length.

    Args:
        cases: trainings from pretrained weights.
        rows: trainings from random weights, of the same cases and methods.
    """
    random: dict[Case, dict[str, float]] = defaultdict(dict)
    for row in rows:
        case = Case(**{key: row[key] for key in ("model", "data", "seed", "steps")})
        random[case][row["method"]] = row["test_accuracy"]
    groups: dict[str, list[tuple[Case, dict[str, float]]]] = defaultdict(list)
    for case, accuracies in random.items():
        if case in cases and accuracies.keys() == set(case.methods):
            groups[f"{case.model} {case.steps}"].append((case, accuracies))
            groups["all"].append((case, accuracies))
    found = {}
    for name, group in groups.items():
        pretrained = [
            {m: cases[case][m, case.steps, 0, 1.0]["test_accuracy"] for m in case.methods}
            for case, _ in group
        ]
        pairs = [
            (theirs[m], mine[m])
            for mine, (case, theirs) in zip(pretrained, group, strict=True)
            for m in case.methods
        ]
        best = [
            (max(theirs.values()), max(mine.values()))
            for mine, (_, theirs) in zip(pretrained, group, strict=True)
        ]
        found[name] = {
            "cases": len(group),
            "methods": len(pairs),
            "methods_better": sum(mine > theirs for theirs, mine in pairs),
            "best_better": sum(mine > theirs for theirs, mine in best),
            "mean_best_random": round(float(np.mean([theirs for theirs, _ in best])), 4),
            "mean_best_pretrained": round(float(np.mean([mine for _, mine in best])), 4),
            "smallest_gain_of_best": round(min(mine - theirs for theirs, mine in best), 4),
            "mean_gain_of_methods": round(float(np.mean([b - a for a, b in pairs])), 4),
        }
    return found


@cache
def _interval(count: int, total: int) -> Mapping[str, float]:
    from scipy.stats import binomtest

    interval = binomtest(count, total).proportion_ci(confidence_level=0.95)
    return {"low": round(float(interval.low), 4), "high": round(float(interval.high), 4)}


def with_interval(count: int, total: int) -> dict[str, Any]:
    """Return a share with its exact binomial interval (Clopper and Pearson) of 95 %."""
    share = round(count / total, 4)
    return {"cases": total, "right": count, "share": share, **_interval(count, total)}


def main() -> None:
    """Write the summary."""
    rows, random = Rows(HERE, "trainings"), Rows(HERE, "random_weights")
    rows.pack()
    random.pack()
    found = report(rows.read())
    found["random_weights"] = of_random_weights(complete_cases(rows.read()), random.read())
    write_summary(HERE, [*rows.read(), *random.read()], **found)
    for name in (
        "cases", "against_probe", "intervals", "intervals_by_net", "feature_cost", "fitted", "random_weights"
    ):  # fmt: skip
        print(name, found[name])
    for rule, values in found["rules"].items():
        print(f"{rule:22}", values)
    for case in found["each"]:
        print(case["model"], case["data"], case["seed"], case["choices"], case["truth"])


if __name__ == "__main__":
    main()
