"""SVG charts of the page, as text. Coordinates are in a box of ``WIDTH`` x ``HEIGHT`` units.

Only numbers and escaped labels enter the text, so a plan of unknown origin cannot add markup.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from planner.cli.page.view import PageView
from planner.cost.budget import needed_bytes
from profiler.prediction.timeline import COLOURS, STACK, Timeline
from profiler.records import Report
from profiler.units import format_bytes_in, format_seconds, unit_as_asked

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, RIGHT = 640, 320, 76, 30, 50, 20

TICKS = 4
"""Wanted intervals of an axis; a step of 1, 2 or 5 times a power of ten gives about as many."""

LABEL_PLACES = ((9, 5), (-21, 5), (-6, -10), (-6, 22))
"""Places of a label beside its point, the preferred one first: right, left, above, below."""

LABEL_WIDTH, LABEL_HEIGHT = 14, 16


def front_chart(view: PageView) -> str:
    """Return device memory against step time of every plan and baseline, with the budget line."""
    plan = view.main.plan
    budget, unit = plan.budget_bytes, unit_as_asked(plan.budget_bytes)
    points: list[tuple[int, float | None, str, str]] = [
        (needed_bytes(row.plan.prediction), row.plan.prediction.step_seconds, row.name,
         "#2e7d32" if row.is_recommended else "#1f6f8b")
        for row in view.rows
    ]  # fmt: skip
    points += [
        (baseline.device_bytes, baseline.step_seconds, baseline.mark, "#888888")
        for baseline in view.baselines
    ]
    known = [(size, seconds, name, c) for size, seconds, name, c in points if seconds is not None]
    if not known:
        return ""
    right = 1.05 * max(budget, *(size for size, *_ in known))
    top = 1.1 * max(seconds for _, seconds, *_ in known)

    def place(size: float, seconds: float) -> tuple[float, float]:
        return LEFT + (WIDTH - LEFT - RIGHT) * size / right, _height(seconds / top)

    line, _ = place(budget, 0)
    parts = [
        _axes("device memory", "time of a step"),
        *(_tick_right(place(size, 0)[0], format_bytes_in(size, unit)) for size in ticks(right)),
        *(_tick_up(place(0, each)[1], format_seconds(each)) for each in ticks(top)),
        f'<line x1="{line:.1f}" x2="{line:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" class="budget"/>',
        f'<text x="{line - 4:.1f}" y="20" text-anchor="end">'
        f"budget {format_bytes_in(budget, unit)}</text>",
    ]
    placed = [place(size, seconds) for size, seconds, *_ in known]
    labels: list[tuple[float, float]] = []
    for (x, y), (*_, name, colour) in zip(placed, known, strict=True):
        label = _label_place((x, y), placed, labels)
        labels.append(label)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{colour}"/>'
            f'<text x="{label[0]:.1f}" y="{label[1]:.1f}">{escape(name)}</text>'
        )
    return _svg("".join(parts), "Memory and time of the plans")


def ticks(most: float) -> list[float]:
    """Return positive multiples of 1, 2 or 5 times a power of ten, about ``TICKS``, up to a number.

    Args:
        most: end of the axis, positive.
    """
    power = 10.0 ** math.floor(math.log10(most / TICKS))
    step = next(f * power for f in (1, 2, 5, 10) if most / (f * power) <= TICKS + 1)
    return [step * i for i in range(1, int(most / step) + 1)]


def _height(share: float) -> float:
    """Return the vertical place of a share of the axis."""
    return TOP + (HEIGHT - BOTTOM - TOP) * (1 - share)


def _label_place(
    point: tuple[float, float],
    points: Sequence[tuple[float, float]],
    labels: Sequence[tuple[float, float]],
) -> tuple[float, float]:
    """Return the place of a point's label that covers the fewest points and labels."""
    x, y = point

    def covered(place: tuple[float, float]) -> int:
        left, base = place
        middle = left + LABEL_WIDTH / 2, base - LABEL_HEIGHT / 2 + 3
        near = [(a, b) for a, b in points if (a, b) != point]
        near += [(a + LABEL_WIDTH / 2, b - LABEL_HEIGHT / 2 + 3) for a, b in labels]
        return sum(
            abs(a - middle[0]) < LABEL_WIDTH and abs(b - middle[1]) < LABEL_HEIGHT for a, b in near
        )

    return min(((x + right, y + down) for right, down in LABEL_PLACES), key=covered)


def bytes_chart(view: PageView) -> str:
    """Return, for each plan, a bar of its live bytes at the peak by owner."""
    rows = [(row, row.plan.prediction.memory.at_peak) for row in view.rows]
    known = [(row, owners) for row, owners in rows if owners is not None]
    if not known:
        return ""
    most = max(owners.total for _, owners in known)
    parts, y = [], 4.0
    for row, owners in known:
        x = float(LEFT)
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(row.name)}</text>'
        )
        for owner in STACK:
            width = (WIDTH - LEFT - 10) * getattr(owners, owner) / most
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="20" '
                f'fill="{COLOURS[owner]}"/>'
            )
            x += width
        y += 28
    return _svg("".join(parts), "Live bytes at the peak by owner", height=y)


def legend() -> Sequence[tuple[str, str]]:
    """Return owner and colour of the charts of bytes."""
    return [(owner, COLOURS[owner]) for owner in STACK]


def step_chart(timeline: Timeline, report: Report, budget_bytes: int) -> str:
    """Return live bytes by owner over one step, with the budget line.

    The line is the budget less the memory outside of live tensors: context, rounding, free blocks.
    """
    outside = needed_bytes(report) - report.memory.peak_bytes
    limit = budget_bytes - outside
    top = 1.05 * max(limit, timeline.peak_bytes)
    columns = len(timeline.ticks)
    step = (WIDTH - LEFT - RIGHT) / max(1, columns - 1)
    base = [0.0] * columns
    parts = []
    for row, owner in enumerate(STACK):
        above = [low + float(size) for low, size in zip(base, timeline.owners[row], strict=True)]
        outline = [(LEFT + step * i, _height(y / top)) for i, y in enumerate(above)]
        outline += [(LEFT + step * i, _height(base[i] / top)) for i in reversed(range(columns))]
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in outline)
        parts.append(f'<polygon points="{text}" fill="{COLOURS[owner]}"/>')
        base = above
    y = _height(limit / top)
    unit = unit_as_asked(budget_bytes)
    parts.append(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="budget"/>'
        f'<text x="{LEFT + 6}" y="{y + 24:.1f}">budget less '
        f"{format_bytes_in(outside, unit)} outside of tensors</text>"
    )
    parts += [_tick_up(_height(size / top), format_bytes_in(size, unit)) for size in ticks(top)]
    parts.append(_axes("births and deaths of tensors in one step", "live bytes"))
    return _svg("".join(parts), "Live bytes over one step")


def cost_chart(title: str, values: Mapping[str, float], texts: Mapping[str, str]) -> str:
    """Return a bar for each name, with its text."""
    if not values:
        return ""
    most = max(values.values()) or 1.0
    parts, y = [], 4.0
    for name, value in values.items():
        width = (WIDTH - LEFT - 120) * value / most
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="20" fill="#1f6f8b"/>'
            f'<text x="{LEFT + width + 6:.1f}" y="{y + 15}">{escape(texts[name])}</text>'
        )
        y += 28
    return _svg("".join(parts), title, height=y)


def _axes(horizontal: str, vertical: str) -> str:
    bottom = HEIGHT - BOTTOM
    return (
        f'<path d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}" fill="none" stroke="#777"/>'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">{escape(horizontal)} '
        f"&#8594;</text>"
        f'<text x="4" y="20">{escape(vertical)} &#8593;</text>'
    )


def _tick_right(x: float, text: str) -> str:
    bottom = HEIGHT - BOTTOM
    return (
        f'<path d="M{x:.1f} {bottom}v5" stroke="#777"/>'
        f'<text x="{x:.1f}" y="{bottom + 19}" text-anchor="middle" class="tick">{text}</text>'
    )


def _tick_up(y: float, text: str) -> str:
    return (
        f'<path d="M{LEFT - 5} {y:.1f}h5" stroke="#777"/>'
        f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" class="tick">{text}</text>'
    )


def _svg(content: str, title: str, *, height: float = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"{content}</svg>"
    )
