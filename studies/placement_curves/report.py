"""Draw the curves, write ``results.json`` and print the tables of the README."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from typing import Any

import matched
import matplotlib as mpl
import rows
from bound import POLICY as BOUND
from evaluate import MODELS
from peers import COMPILED, PLAIN_COMPILED

from profiler.measure import environment

mpl.use("Agg")
from matplotlib import pyplot as plt

Row = dict[str, Any]
STYLES = {
    "optimal": ("C0", "o-"),
    "optimal + micro-batches": ("C9", "s--"),
    "micro-batches": ("C9", "s"),
    "cheap": ("C2", "D"),
    "light": ("C2", "d"),
    "static": ("black", "X"),
    "adaptive": ("C3", "v-"),
    "rotor": ("0.35", "p"),
    "first-k": ("C1", "^-"),
    "every-k": ("C4", "P"),
    "chen": ("C5", "*"),
    "timm set_grad_checkpointing": ("C6", "+"),
    "sac_ilp": ("C7", "x-"),
    "torch.compile budget": ("C8", "h-"),
    BOUND: ("0.6", ":"),
}
RIVALS = STYLES.keys() - {*matched.OURS, BOUND}


def _overheads(group: list[Row]) -> list[Row]:
    """Return the rows that were judged, with their peak and time relative to `none`."""
    base = next((r for r in group if r["policy"] == "none"), None)
    if base is None:
        return []
    judged = []
    for row in group:
        if "error" in row or row["policy"] == "none":
            continue
        added = row.get("added_milliseconds")
        if added is None:
            added = row["milliseconds"] - base["milliseconds"]
        judged.append(
            row
            | {
                "peak_share": row["peak_bytes"] / base["peak_bytes"],
                "added_share": added / base["milliseconds"],
            }
        )
    return judged


def _draw(axis, title: str, judged: list[Row]) -> None:
    for policy, (colour, style) in STYLES.items():
        points = [
            (r["peak_share"] * 100, r["added_share"] * 100) for r in judged if r["policy"] == policy
        ]
        if policy != COMPILED:  # which is not monotone: in the order of its budgets
            points.sort()
        if points:
            size = 3.5 if policy == "optimal" else 5
            axis.plot(
                *zip(*points, strict=True), style, color=colour, label=policy, ms=size, lw=1.2
            )
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("peak, % of keeping everything", fontsize=8)
    axis.set_ylabel("added step time, %", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)


def _order(item: tuple[tuple[object, ...], list[Row]]) -> tuple[bool, int]:
    """Full fine-tuning first, models as they are listed."""
    (model, method, _), _ = item
    return method != "full", [*MODELS].index(model)


def _print_rivals(title: str, judged: list[Row]) -> None:
    """Say which points of the others are not beaten by the quickest of ours that fits in their peak.

    A hundredth of a point of added time counts as equal, and a ten-thousandth of the peak.
    """
    ours = [r for r in judged if r["policy"] == "optimal"]
    others = [r for r in judged if r["policy"] in RIVALS]
    above = 0
    print(f"\n## {title}: {len(others)} points of others")
    for row in others:
        fitting = [
            r["added_share"] for r in ours if r["peak_bytes"] <= row["peak_bytes"] * matched.SLACK
        ]
        best = min(fitting, default=float("inf"))
        if best > row["added_share"] + 1e-4:
            above += 1
            print(
                f"   {row['policy']:28s} {row['setting']:24s} peak {row['peak_share']:6.1%}"
                f" time {row['added_share']:+7.2%}, ours {best:+7.2%}"
            )
    print(f"   {above} under ours")


def _print_bound(title: str, judged: list[Row]) -> None:
    """Say how far ours is above what no recomputation of whole operators can beat in its budget."""
    bounds = {r["setting"]: r["added_share"] for r in judged if r["policy"] == BOUND}
    ours = [r for r in judged if r["policy"] == "optimal" and r["setting"] in bounds]
    if not ours:
        return
    above = sorted(100 * (r["added_share"] - bounds[r["setting"]]) for r in ours)
    print(
        f"\n## {title}: {len(ours)} of ours above the operator bound by a median of"
        f" {statistics.median(above):.2f} points, {above[0]:.2f} to {above[-1]:.2f}"
    )


def _print_operating_points(title: str, judged: list[Row]) -> None:
    """Print the rule where it saves what the paper says, and ours within its peak."""
    for rule in (r for r in judged if r["setting"].startswith("its best for")):
        if "block" in rule:  # measured beside each other
            ours = [r for r in judged if (r["policy"], r["block"]) == ("optimal", rule["block"])]
        else:
            room = rule["peak_bytes"] * matched.SLACK
            ours = [r for r in judged if r["policy"] == "optimal" and r["peak_bytes"] <= room]
        best = min(ours, key=lambda r: r["added_share"], default=None)
        if best is not None:
            print(
                f"| {title} | {100 * rule['peak_share']:.1f} % | {100 * rule['added_share']:+.1f} %"
                f" | {100 * best['added_share']:+.1f} % | {best['added_share'] / rule['added_share']:.2f} |"
            )


def _host_curves() -> dict[str, list[Row]]:
    """Return the measured rows, with their time against `none` in the same round.

    torch.compile's is against its own budget of 1, which keeps everything: what Inductor's fusion
    gains is not the budget's.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows.read("host"):
        groups.setdefault(row["workload_name"], []).append(row)
    found = {}
    for name, group in groups.items():
        measured = [row for row in group if "error" not in row]
        base = measured[0]
        compiled = next((r for r in measured if r["block"] == PLAIN_COMPILED), base)
        found[name] = [
            row
            | _against(row["cpu_seconds"], (compiled if row["policy"] == COMPILED else base))
            | {"peak_share": row["peak_bytes"] / base["peak_bytes"]}
            for row in measured
        ]
    return found


def _against(seconds: list[float], base: Row) -> Row:
    rounds = [a / b - 1 for a, b in zip(seconds, base["cpu_seconds"], strict=True)]
    return {"added_share": statistics.median(rounds), "added_shares": rounds}


def _print_pairs(title: str, measured: list[Row]) -> None:
    """Print, as the README has it, each other point beside ours in its peak.

    Of the differences between their added times in a round: the median, and the third from either
    end, between which the true median lies with a probability of 93 % for 11 rounds.
    """
    print(f"\n## {title}\n")
    print("| point of another | its peak, added time | `optimal` in it | difference, points |")
    print("| --- | --- | --- | --- |")
    blocks: dict[str, list[Row]] = {}
    for row in measured:
        blocks.setdefault(row["block"], []).append(row)
    verdicts: Counter[str] = Counter()
    for name, block in [*blocks.items()][1:]:
        other = next(r for r in block if not r["policy"].startswith("optimal"))
        ours = [r for r in block if r is not other]
        if not ours:
            print(f"| {name} | {_point(other)} | - | |")
        for row in ours:
            pairs = zip(row["added_shares"], other["added_shares"], strict=True)
            differences = sorted(100 * (a - b) for a, b in pairs)
            middle, low, high = statistics.median(differences), differences[2], differences[-3]
            verdict = "level" if low <= 0 <= high else "lower" if high < 0 else "higher"
            batches = f", {row['accumulation']} micro-batches" if row["accumulation"] > 1 else ""
            if not batches:
                verdicts[verdict] += 1
            print(
                f"| {name} | {_point(other)} | {_point(row)}{batches}"
                f" | {middle:+.0f} ({low:+.0f} to {high:+.0f}) {verdict} |"
            )
    print("\n" + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()))


def _point(row: Row) -> str:
    predicted = row.get("predicted_share")
    said = "" if predicted is None else f" (predicted {100 * predicted:+.0f})"
    return f"{100 * row['peak_share']:.1f} %, {100 * row['added_share']:+.0f} %{said}"


def _print_host_bound() -> None:
    """Print what of the rule's predicted time ours and the bound are at 43 % less on the CPU."""
    print("\n| predicted for the CPU | the rule | ours | bound | ours, bound of the rule's |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows.read("host_bound"):
        shares = [row[f"{name}_share"] for name in ("rule_predicted", "optimal_predicted", "bound")]
        said = " | ".join(f"+{100 * share:.1f} %" for share in shares)
        rule, ours, bound = shares
        print(f"| {row['workload_name']} | {said} | {ours / rule:.2f}, {bound / rule:.2f} |")


def _print_truth(host: dict[str, list[Row]]) -> None:
    """Print how measured peaks lie to predicted ones and to budgets, and how steady the rounds are."""
    everything = [row for measured in host.values() for row in measured]
    ratios = [r["peak_bytes"] / r["predicted_bytes"] for r in everything if "predicted_bytes" in r]
    over = [r for r in everything if r["peak_bytes"] > r.get("budget_bytes", r["peak_bytes"])]
    if ratios:
        print(
            f"\n## {len(ratios)} placements: measured over predicted peak {max(ratios):.5f} at most,"
        )
        print(f"   {min(ratios):.5f} at least; {len(over)} over their budget")
    for name, measured in host.items():
        spread = [max(row["cpu_seconds"]) / min(row["cpu_seconds"]) for row in measured]
        print(f"   {name}: slowest over quickest round {statistics.median(spread):.2f}")


def write() -> None:
    """Write ``curves.png`` and ``results.json``."""
    evaluated = {}
    for (model, method, _), group in sorted(rows.curves(rows.read("evaluator")), key=_order):
        judged = _overheads(group)
        if judged:
            batch = next(r["micro_batch"] for r in group if r["policy"] == "none")
            evaluated[f"{model}, {method}, batch {batch}"] = judged
    measured = _host_curves()
    host = {f"CPU, measured: {name}": found for name, found in measured.items()}
    panels = evaluated | host
    columns = 3
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(13, 3.7 * lines), squeeze=False)
    for axis, (title, judged) in zip(axes.flat, panels.items(), strict=False):
        _draw(axis, title, judged)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    handles = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncol=7, fontsize=8)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(rows.HERE / "curves.png", dpi=90)
    result = {
        "schema": "budgetplan.study/placement_curves/1",
        "environment": environment(),
        "evaluator": rows.read("evaluator"),
        "host": rows.read("host"),
        "host_bound": rows.read("host_bound"),
    }
    (rows.HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    for title, judged in evaluated.items():
        _print_rivals(title, judged)
        _print_bound(title, judged)
    print("\n| curve | the rule's peak | its added time | ours in it | of the rule's |")
    print("| --- | --- | --- | --- | --- |")
    for title, judged in panels.items():
        _print_operating_points(title, judged)
    for title, found in host.items():
        _print_pairs(title, found)
    _print_host_bound()
    _print_truth(measured)
    for title, judged in evaluated.items():
        print(f"\n## {title}")
        for row in judged:
            budget = row.get("budget_bytes")
            claim = row.get("predicted_bytes") or row.get("claimed_bytes")
            print(
                f"{row['policy']:28s} {row['setting']:32s} peak {row['peak_share']:6.1%}"
                f" time {row['added_share']:+7.2%}"
                + (f" / budget {row['peak_bytes'] / budget:.4f}" if budget else "")
                + (f" / claimed {row['peak_bytes'] / claim:.4f}" if claim else "")
            )
