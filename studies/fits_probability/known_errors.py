"""The errors of committed predictions, and how often a stated probability of fitting held.

``compared`` reads the rows of studies/hollow_gpu, of the cells of this study and of
studies/memory_truth. Nothing here needs torch.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "studies")]

from harness import Rows

from planner.cost.fit_probability import GPU, ON_CPU, SLOW_BF16, KnownErrors, least_room_of
from profiler.devices.table import lookup
from profiler.units import GIB, MIB

HERE = Path(__file__).resolve().parent
HOLLOW_GPU = ROOT / "studies" / "hollow_gpu" / "results"
DEVICES = ("rtx-2060-super", "rtx-3060", "h200")
CAP_BYTES = 2 * GIB
RISK = 0.01
SMALL_BYTES = {GPU: 400 * MIB, SLOW_BF16: 400 * MIB, ON_CPU: 0}
"""Predictions below this have errors relative to it; a page of 2 MiB is 0.5 % of 400 MiB."""
ROOMS = (-0.02, -0.005, 0.0, 0.0005, 0.002, 0.005, 0.01, 0.03)
"""Budgets of the evaluation, relative to the prediction."""
BANDS = ((0.0, 0.05), (0.05, 0.5), (0.5, 0.9), (0.9, 0.99), (0.99, 1.0))
FAMILIES = {
    **dict.fromkeys(("vit_t", "vit_s", "vit_b", "dinov2_s", "swin_t", "tiny_vit"), "attention"),
    **dict.fromkeys(("resnet18", "mobilenetv2", "mobilenetv3", "convnext_t"), "convolution"),
    **dict.fromkeys(("vim_t", "mambavision_t"), "scan"),
}
"""Family of each backbone of studies/hollow_gpu (``backbone_kind`` of studies/gpu_grid)."""
PARTS = ("convolution", "scan")
"""Parts of the rows of this study, each of one family."""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A committed step that was predicted and then run.

    Attributes:
        kind: kind of its prediction, as the planner groups them.
        family: attention, convolution or scan; ``cpu`` on a CPU.
        model: name of the backbone.
        predicted_bytes: predicted bytes.
        real_bytes: real bytes.
    """

    kind: str
    family: str
    model: str
    predicted_bytes: int
    real_bytes: int

    @property
    def error(self) -> float:
        """Error of its prediction."""
        return known_of([self], self.kind).error_of(self.real_bytes, self.predicted_bytes)


def compared() -> Iterator[Step]:
    """Yield every committed step that ran."""
    for device in DEVICES:  # not the native rows: plans train with expandable segments
        for row in Rows(HOLLOW_GPU, device).read():
            yield from _compared_row(row, device)
    for part in PARTS:
        for row in Rows(HERE, part).read():
            yield from _compared_row(row, row["device"], family=part)
    for row in Rows(ROOT / "studies" / "memory_truth").latest("cell").values():
        if "real_bytes" in row:
            yield Step(
                kind=ON_CPU,
                family=ON_CPU,
                model=row["workload"]["model"],
                predicted_bytes=row["replayed_bytes"],
                real_bytes=row["real_bytes"],
            )


def _compared_row(row: Row, device: str, *, family: str | None = None) -> Iterator[Step]:
    if "reserved" not in row:
        return
    model, _, _, precision, *_ = row["cell"].split()
    is_slow = precision == "bf16" and (lookup(device).compute_capability or (8, 0)) < (8, 0)
    yield Step(
        kind=SLOW_BF16 if is_slow else GPU,
        family=family or FAMILIES[model],
        model=model,
        predicted_bytes=row["predicted"].get("needed", row["predicted"]["reserved"]),
        real_bytes=_real_need(row),
    )


def _real_need(row: Row) -> int:
    """Return the real reserved bytes; more than the cap if the step ran out under it."""
    ran_out = row.get("capped", {}).get("out_of_memory", False)
    return max(row["reserved"], CAP_BYTES + 1) if ran_out else int(row["reserved"])


def known_of(steps: Sequence[Step], kind: str) -> KnownErrors:
    """Return the errors of steps of one kind."""
    scale = KnownErrors(
        kind=kind,
        errors=(),
        small_bytes=SMALL_BYTES[kind],
        least_room_bytes=least_room_of(kind),
    )
    errors = sorted(scale.error_of(s.real_bytes, s.predicted_bytes) for s in steps)
    return replace(scale, errors=tuple(errors))


def write_errors(path: Path) -> None:
    """Write the errors that the planner reads; an error is rounded up at its sixth digit."""
    by_kind: dict[str, Counter[float]] = {}
    for step in compared():
        by_kind.setdefault(step.kind, Counter())[math.ceil(step.error * 1e6) / 1e6] += 1
    content = {
        "schema": "budgetplan.fit_errors/2",
        "source": "studies/fits_probability: errors of predictions and their numbers of steps",
        "kinds": {
            kind: {"small_bytes": SMALL_BYTES[kind], "errors": sorted(by_kind[kind].items())}
            for kind in sorted(by_kind)
        },
    }
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


# -- judging ---------------------------------------------------------------------------------------


def judged(left_out: str = "model") -> list[Row]:
    """Return (P, whether it fitted) of every step and room, by the errors of other steps.

    Args:
        left_out: attribute of a step; steps that share its value are not among the errors.
    """
    steps = list(compared())
    groups: dict[tuple[str, str], list[Step]] = {}
    for step in steps:
        groups.setdefault((step.kind, getattr(step, left_out)), []).append(step)
    rows = []
    for (kind, name), own in sorted(groups.items()):
        known = known_of([s for s in steps if s.kind == kind and s not in own], kind)
        if not known.errors:
            continue
        for step in own:
            for room in ROOMS:
                available = math.floor((1 + room) * step.predicted_bytes)
                said = known.probability(known.error_of(available, step.predicted_bytes))
                fits = step.real_bytes <= available
                rows.append({"kind": kind, "group": name, "room": room, "said": said, "fits": fits})
    return rows


def planned(left_out: str = "model") -> Row:
    """Return how many steps on a GPU exceed the budget that is planned for them at ``RISK``.

    Args:
        left_out: see ``judged``.
    """
    steps = [step for step in compared() if step.kind == GPU]
    exceeded = 0
    for step in steps:
        name = getattr(step, left_out)
        known = known_of([s for s in steps if getattr(s, left_out) != name], GPU)
        budget = known.smallest_available(step.predicted_bytes, risk=RISK)
        exceeded += step.real_bytes > budget
    return {"steps": len(steps), "exceeded": exceeded}


def left_out_families() -> Row:
    """Return for each family how often the errors of the other families said 99 %, and were wrong."""
    found: Row = {}
    for row in judged("family"):
        if row["kind"] != GPU:
            continue
        counts = found.setdefault(row["group"], {"budgets": 0, "said_99_percent": 0, "ran_out": 0})
        is_said = row["said"] >= 1 - RISK
        counts["budgets"] += 1
        counts["said_99_percent"] += is_said
        counts["ran_out"] += is_said and not row["fits"]
    return found


def one_step_of_a_model() -> Row:
    """Return what one step of each model says about a model that was never seen.

    Steps of one model resemble each other. One step each of n models is exchangeable with a step of
    a new model, which n steps of a few models are not. Its step is the one with the largest error.
    """
    largest: dict[str, float] = {}
    for step in compared():
        if step.kind == GPU:
            largest[step.model] = max(step.error, largest.get(step.model, -1.0))
    known = KnownErrors(
        kind=GPU, errors=tuple(sorted(largest.values())), small_bytes=SMALL_BYTES[GPU]
    )
    return {
        "models": len(largest),
        "probability_with_3_percent_to_spare": known.probability(0.03),
        "largest_error": known.errors[-1],
    }


def bands(rows: Sequence[Row]) -> list[Row]:
    """Return each band of stated probabilities with the share that fitted and its interval."""
    from scipy.stats import binomtest

    found = []
    for low, high in BANDS:
        some = [r for r in rows if low <= r["said"] < high or (high == 1.0 and r["said"] == 1.0)]
        if not some:
            continue
        fitted = sum(r["fits"] for r in some)
        interval = binomtest(fitted, len(some)).proportion_ci(0.95, method="exact")
        stated = sum(r["said"] for r in some) / len(some)
        found.append(
            {
                "from": low,
                "to": high,
                "steps": len(some),
                "stated_mean": stated,
                "fitted": fitted / len(some),
                "low": interval.low,
                "high": interval.high,
                "stated_is_inside_or_below": bool(stated <= interval.high),
            }
        )
    return found


def brim_of_hollow_gpu() -> Row:
    """Return how often the steps of studies/hollow_gpu near 2 GiB ran out where P was >= 99 %."""
    steps = list(compared())
    ran = out = 0
    for device in DEVICES:
        for row in Rows(HOLLOW_GPU, device).read():
            if "capped" not in row or "reserved" not in row:
                continue
            (step,) = _compared_row(row, device)
            others = [s for s in steps if s.kind == step.kind and s.model != step.model]
            known = known_of(others, step.kind)
            room = known.error_of(CAP_BYTES, step.predicted_bytes)
            if known.probability(room) >= 1 - RISK:
                ran += 1
                out += bool(row["capped"].get("out_of_memory"))
    return {"said_99_percent": ran, "ran_out": out}
