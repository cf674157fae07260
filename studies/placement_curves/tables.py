"""``tables.md``: every number of the README's text, from the raw rows."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import matched
import rows
from bound import POLICY as BOUND
from compiled import DECOMPOSED
from curves import Curves, Row, title
from peers import COMPILED

BUDGETS = ("80%", "60%", "40%", "30%", "20%")
_OURS = {*matched.OURS, BOUND, DECOMPOSED}
VIT_S = "ViT-S, batch 64"
_WITHIN = 1e-4
"""Of added time that counts as equal: a hundredth of a point."""


def _section(heading: str, *text: str) -> Iterator[str]:
    yield from (heading, "", *([*text, ""] if text else []))


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    yield from (f"| {' | '.join(line)} |" for line in lines)
    yield ""


def _percent(share: float, *, digits: int = 1, signed: bool = True) -> str:
    sign = "+" if signed else ""
    return f"{100 * share:{sign}.{digits}f} %"


def lines(evaluated: Curves, measured: Curves) -> Iterator[str]:
    """Yield the lines of ``tables.md``."""
    yield from _section(
        "# Tables of placement_curves",
        "Written by `run.py report` from the raw rows; the README says what they mean.",
    )
    yield from _budgets(evaluated)
    yield from _rivals(evaluated)
    yield from _bounds(evaluated)
    yield from _operating_points(evaluated, measured)
    yield from _host_bounds()
    yield from _peaks(measured)
    yield from _pairs(measured)


def summary(evaluated: Curves, measured: Curves) -> dict[str, Any]:
    """Return the numbers that the README and the project's documents quote."""
    judged = evaluated[VIT_S]
    added = {
        policy: {
            r["setting"]: r["added_share"]
            for r in judged
            if r["policy"] == policy and r["setting"] in BUDGETS
        }
        for policy in ("optimal", "optimal + micro-batches", "sac_ilp", BOUND)
    }
    rule = {
        name: _best(points, row)["added_share"] / row["added_share"]
        for name, points in evaluated.items()
        for row in _rule(points)
        if row["setting"] == "its best for 57%"
    }
    everything = [row for found in measured.values() for row in found]
    ratios = [r["peak_bytes"] / r["predicted_bytes"] for r in everything if "predicted_bytes" in r]
    verdicts = {"eager": Counter[str](), "compiled": Counter[str]()}
    for found in measured.values():
        for other, ours in _blocks(found):
            who = "compiled" if other["policy"] == COMPILED else "eager"
            verdicts[who].update(_verdict(r, other) for r in ours if r["accumulation"] == 1)
    return {
        "evaluator_curves": len(evaluated),
        "evaluator_vit_s_added_share": added,
        "evaluator_part_of_the_rule_at_43_percent_less": rule,
        "cpu_placements": len(ratios),
        "cpu_largest_peak_over_predicted": max(ratios),
        "cpu_points": {who: dict(sorted(words.items())) for who, words in verdicts.items()},
    }


def _budgets(evaluated: Curves) -> Iterator[str]:
    """What each budget costs."""
    yield from _section(
        "## Evaluator: what a budget costs",
        "Added time of `optimal` in so much of the peak of keeping everything, and in brackets what no",
        "recomputation of whole operators can beat; a dash where no placement fits.",
    )

    def cells(judged: list[Row]) -> Iterator[str]:
        found = {(r["policy"], r["setting"]): r["added_share"] for r in judged}
        for budget in BUDGETS:
            ours, bound = found.get(("optimal", budget)), found.get((BOUND, budget))
            said = "-" if ours is None else _percent(ours)
            yield said if bound is None or ours is None else f"{said} ({_percent(bound)})"

    yield from _table(
        ("curve", *BUDGETS), ((name, *cells(judged)) for name, judged in evaluated.items())
    )


def _others(judged: list[Row]) -> Iterable[Row]:
    """Return the points of others that keep less than everything, equal ones of a policy once.

    torch.compile's budget of 100 % is its `none`.
    """
    found = {}
    for row in judged:
        plain = (row["policy"], row["setting"]) == (COMPILED, "100%")
        if row["policy"] not in _OURS and row["peak_share"] < 1 and not plain:
            found.setdefault((row["policy"], row["peak_bytes"], row["added_share"]), row)
    return found.values()


def _quicker(judged: list[Row]) -> Iterator[tuple[Row, float]]:
    """Yield the points of others that ours in their peak does not reach, and what ours adds."""
    for row in _others(judged):
        best = _best(judged, row)
        ours = float("inf") if best is None else best["added_share"]
        if ours > row["added_share"] + _WITHIN:
            yield row, ours


def _rivals(evaluated: Curves) -> Iterator[str]:
    """Whose points are below ours."""
    compiled = Counter(
        r["policy"] == COMPILED for judged in evaluated.values() for r in _others(judged)
    )
    yield from _section(
        "## Evaluator: points of others below ours",
        f"Of {compiled[False]} points of the other policies and {compiled[True]} of torch.compile's budget that keep less than",
        "everything: those that are quicker than ours in the very same peak (and a ten-thousandth more).",
    )
    below = (
        (
            name,
            f"{r['policy']} {r['setting']}",
            _percent(r["peak_share"], signed=False),
            *(_percent(share, digits=2) for share in (r["added_share"], ours)),
        )
        for name, judged in evaluated.items()
        for r, ours in _quicker(judged)
    )
    yield from _table(("curve", "point", "its peak", "its added time", "ours"), below)


def _bounds(evaluated: Curves) -> Iterator[str]:
    """How far ours is from the operator bound."""
    yield from _section(
        "## Evaluator: above the operator bound",
        "What no recomputation of whole operators can beat in the same budget (`bound.py`), in points of added time.",
    )

    def cells(judged: list[Row]) -> list[str]:
        bounds = {r["setting"]: r["added_share"] for r in judged if r["policy"] == BOUND}
        ours = [r for r in judged if r["policy"] == "optimal" and r["setting"] in bounds]
        above = sorted(100 * (r["added_share"] - bounds[r["setting"]]) for r in ours)
        if not above:
            return []
        shown = (statistics.median(above), above[0], above[-1])
        return [str(len(above)), *(f"{value:.2f}" for value in shown)]

    found = ((name, cells(judged)) for name, judged in evaluated.items())
    yield from _table(
        ("curve", "points", "median", "least", "most"),
        ((name, *line) for name, line in found if line),
    )


def _operating_points(evaluated: Curves, measured: Curves) -> Iterator[str]:
    """The rule where it saves what the paper says, and ours within its peak."""
    yield from _section(
        "## The paper's operating points",
        "The rule with the threshold that suits it best for 43 % and for 79 % less, or as near as it gets; `optimal` in",
        "its peak, and what part of the rule's added time that is.",
    )
    rule = ("curve", "the rule's peak", "its added time")
    yield "Evaluator:"
    yield ""
    yield from _table(
        (*rule, "`optimal`", "of the rule's"),
        (
            (name, *_shares(point), *_part(point, _best(judged, point)))
            for name, judged in evaluated.items()
            for point in _rule(judged)
        ),
    )
    yield "Measured on the CPU, where several micro-batches were the better plan also with them:"
    yield ""
    yield from _table(
        (*rule, "`optimal`", "of the rule's", "with micro-batches", "of the rule's"),
        (
            (name, *_shares(point), *_part(point, one), *_part(point, several))
            for name, found in measured.items()
            for point in _rule(found)
            for one, several in [_beside(found, point)]
        ),
    )


def _rule(judged: list[Row]) -> list[Row]:
    return [r for r in judged if r["setting"].startswith("its best for")]


def _best(judged: list[Row], other: Row) -> Row | None:
    """Return the quickest of ours in the very peak of another point."""
    room = other["peak_bytes"] * matched.SLACK
    own = [r for r in judged if r["policy"] == "optimal" and r["peak_bytes"] <= room]
    return min(own, key=lambda r: r["added_share"], default=None)


def _beside(found: list[Row], rule: Row) -> tuple[Row | None, Row | None]:
    """Return ours that was measured beside the rule, and ours with micro-batches."""
    own = {r["policy"]: r for r in found if r["block"] == rule["block"]}
    return own.get("optimal"), own.get("optimal + micro-batches")


def _shares(row: Row) -> tuple[str, str]:
    return _percent(row["peak_share"], signed=False), _percent(row["added_share"])


def _part(rule: Row, ours: Row | None) -> tuple[str, str]:
    if ours is None:
        return "", ""
    return _percent(ours["added_share"]), f"{ours['added_share'] / rule['added_share']:.2f}"


def _host_bounds() -> Iterator[str]:
    """What of the rule's predicted time ours and the bound are at 43 % less on the CPU."""
    yield from _section(
        "## Predicted for the CPU, in the rule's peak at 43 % less",
        "The planner's rates of this processor, for the rule, for `optimal` without micro-batches and for the operator",
        "bound (`host_bound.py`).",
    )

    def line(row: Row) -> Iterator[str]:
        rule, ours, bound = (
            row[f"{name}_share"] for name in ("rule_predicted", "optimal_predicted", "bound")
        )
        yield title(row["workload_name"])
        yield from (_percent(share) for share in (rule, ours, bound))
        yield from (f"{share / rule:.2f}" for share in (ours, bound))

    yield from _table(
        ("workload", "the rule", "`optimal`", "bound", "ours of the rule's", "bound of the rule's"),
        (tuple(line(row)) for row in rows.read("host_bound")),
    )


def _peaks(measured: Curves) -> Iterator[str]:
    """How measured peaks lie to predicted ones and to budgets, and how steady the rounds are."""
    everything = [row for found in measured.values() for row in found]
    ratios = [r["peak_bytes"] / r["predicted_bytes"] for r in everything if "predicted_bytes" in r]
    over = [
        f"{title(r['workload_name'])} by {r['peak_bytes'] - r['budget_bytes']} bytes"
        for r in everything
        if r["peak_bytes"] > r.get("budget_bytes", r["peak_bytes"])
    ]
    yield from _section(
        "## Measured on the CPU: peaks",
        f"Of {len(ratios)} placements the measured peak is {min(ratios):.5f} to {max(ratios):.5f} of the predicted one.",
        f"Above the budget: {'; '.join(over) or 'none'}.",
    )
    yield from _table(
        ("workload", "slowest over quickest round"),
        (
            (name, f"{statistics.median(_spread(row) for row in found):.2f}")
            for name, found in measured.items()
        ),
    )


def _spread(row: Row) -> float:
    return max(row["cpu_seconds"]) / min(row["cpu_seconds"])


def _difference(ours: Row, other: Row) -> tuple[float, float, float]:
    """Return how many points more ours adds in a round: the median, and its bounds.

    They are the third from either end: between them the true median lies with a probability of
    93 % for 11 rounds.
    """
    pairs = zip(ours["added_shares"], other["added_shares"], strict=True)
    differences = sorted(100 * (a - b) for a, b in pairs)
    return statistics.median(differences), differences[2], differences[-3]


def _verdict(ours: Row, other: Row) -> str:
    _, low, high = _difference(ours, other)
    return "level" if low <= 0 <= high else "lower" if high < 0 else "higher"


def _blocks(found: list[Row]) -> Iterator[tuple[Row, list[Row]]]:
    """Yield each point of another and ours beside it; `none`'s own block is left out."""
    blocks: dict[str, list[Row]] = {}
    for row in found:
        blocks.setdefault(row["block"], []).append(row)
    for block in [*blocks.values()][1:]:
        other = next(r for r in block if not r["policy"].startswith("optimal"))
        yield other, [r for r in block if r is not other]


def _pairs(measured: Curves) -> Iterator[str]:
    """Each other point beside ours in its peak."""
    yield from _section(
        "## Measured on the CPU: each point of others beside ours",
        "Peak: the CPU allocator's own account, of keeping everything. Time: CPU seconds added to those of keeping",
        "everything in the same round, torch.compile's to its own budget of 100 %; the median of eleven rounds. Of the",
        "difference also the third from either end: between these the true median lies with a probability of 93 %.",
        "A point that is missing had the same placement as another; a dash: ours has no placement there, the same one,",
        "or keeps everything.",
    )
    verdicts = {"the eager policies": Counter[str](), "torch.compile's budget": Counter[str]()}
    for found in measured.values():
        for other, ours in _blocks(found):
            who = [*verdicts][other["policy"] == COMPILED]
            verdicts[who].update(_verdict(r, other) for r in ours if r["accumulation"] == 1)
    for who, words in verdicts.items():
        said = ", ".join(f"{words[word]} {word}" for word in ("lower", "level", "higher"))
        yield f"Ours without micro-batches against {who}: {said} of {words.total()}."
    yield ""
    for name, found in measured.items():
        yield from _section(f"### {name}")
        yield from _table(
            ("point", "its peak, added time", "`optimal` in it", "difference, points"),
            (line for other, ours in _blocks(found) for line in _compared(other, ours)),
        )


def _compared(other: Row, ours: list[Row]) -> Iterator[tuple[str, ...]]:
    if not ours:
        yield other["block"], _point(other), "-", ""
    for row in ours:
        middle, low, high = _difference(row, other)
        difference = f"{middle:+.0f} ({low:+.0f} to {high:+.0f}) {_verdict(row, other)}"
        count = row["accumulation"]
        batches = f", {count} micro-batches" if count > 1 else ""
        yield other["block"], _point(other), _point(row) + batches, difference


def _point(row: Row) -> str:
    predicted = row.get("predicted_share")
    said = "" if predicted is None else f" (predicted {_percent(predicted, digits=0)})"
    peak = _percent(row["peak_share"], signed=False)
    return f"{peak}, {_percent(row['added_share'], digits=0)}{said}"
