"""A timeline as one HTML file: an inline SVG, a table, and a few lines of script for the pointer.

Nothing is loaded from elsewhere, so the file can be mailed and opened anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape

import numpy as np

from profiler.prediction.timeline import (
    COLOURS,
    SHADES,
    STACK,
    Timeline,
    labels,
    scale_of,
    unit_label,
)
from profiler.units import format_bytes

WIDTH, HEIGHT = 1000, 420

LEFT, TOP, STRIP = 64, 44, 22

RULES = 5

_Map = Callable[[float], float]


def page(timeline: Timeline, *, title: str = "", caption: str = "") -> str:
    """Return the whole file; title and caption are plain text."""
    heading = escape(title or "Live bytes over one training step")
    return _PAGE.format(
        title=heading,
        style=_STYLE,
        label=escape(timeline.peak_label),
        caption=escape(caption),
        drawing="\n".join(_drawing(timeline)),
        table=_table(timeline),
        data=_data(timeline),
        script=_SCRIPT,
    )


def _drawing(timeline: Timeline) -> list[str]:
    factor, unit = scale_of(timeline.peak_bytes)
    highest = timeline.peak_bytes * 1.08
    total = max(timeline.total_ticks, 1)

    def across(tick: float) -> float:
        return LEFT + WIDTH * tick / total

    def up(nbytes: float) -> float:
        return TOP + HEIGHT * (1 - nbytes / highest)

    lines = [*_rules(timeline, up, factor, unit), *_areas(timeline, across, up)]
    for span in timeline.phases:
        x = across(span.start)
        lines.append(
            f'<line class="phase" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + HEIGHT}"/>'
        )
    for span in labels(timeline.phases, total, per_letter=0.007):
        x = across((span.start + span.end) / 2)
        lines.append(f'<text class="name" x="{x:.1f}" y="{TOP - 8}">{escape(span.name)}</text>')
    lines += _strip(timeline, across)
    x, y = across(timeline.peak_tick), up(timeline.peak_bytes)
    lines.append(f'<circle class="peak" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
    side, anchor = (9, "start") if x < LEFT + WIDTH / 2 else (-9, "end")
    place = f'x="{x + side:.1f}" y="{y - 5:.1f}" text-anchor="{anchor}"'
    lines.append(f'<text class="label" {place}>{escape(timeline.peak_label)}</text>')
    lines.append(f'<line id="cursor" x1="0" x2="0" y1="{TOP}" y2="{TOP + HEIGHT}"/>')
    return lines


def _rules(timeline: Timeline, up: _Map, factor: int, unit: str) -> list[str]:
    lines = []
    step = _round_step(timeline.peak_bytes / factor / RULES)
    for index in range(int(timeline.peak_bytes / factor / step) + 1):
        y, value = up(index * step * factor), index * step
        lines.append(
            f'<line class="rule" x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        lines.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}">{value:g}</text>')
    lines.append(f'<text class="tick" x="{LEFT - 8}" y="{TOP - 8}">{unit}</text>')
    return lines


def _round_step(rough: float) -> float:
    power = 10.0 ** np.floor(np.log10(max(rough, 1e-9)))
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= rough))


def _areas(timeline: Timeline, across: _Map, up: _Map) -> list[str]:
    edges = np.vstack(
        [np.zeros(len(timeline.ticks), dtype=np.int64), timeline.owners.cumsum(axis=0)]
    )
    xs = [across(tick) for tick in [*timeline.ticks.tolist(), timeline.total_ticks]]
    lines = []
    for row, name in enumerate(STACK):
        if not timeline.owners[row].any():
            continue
        upper = [up(value) for value in edges[row + 1].tolist()]
        lower = [up(value) for value in edges[row].tolist()]
        there = _stairs(xs, upper)
        back = list(reversed(_stairs(xs, lower)))
        points = "L".join(f"{x:.1f} {y:.1f}" for x, y in [*there, *back])
        lines.append(f'<path d="M{points}Z" fill="{COLOURS[name]}"/>')
    return lines


def _stairs(xs: list[float], ys: list[float]) -> list[tuple[float, float]]:
    """Return the corners of a step curve: each height holds until the next column."""
    corners = []
    for index, y in enumerate(ys):
        if index == 0 or y != ys[index - 1]:
            corners.append((xs[index], y))
        if index + 1 == len(ys) or y != ys[index + 1]:
            corners.append((xs[index + 1], y))
    return corners


def _strip(timeline: Timeline, across: _Map) -> list[str]:
    y = TOP + HEIGHT + 8
    lines = []
    for span in timeline.units:
        x, width = across(span.start), max(across(span.end) - across(span.start), 0.5)
        lines.append(
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{STRIP}" '
            f'fill="{SHADES[span.kind]}"><title>{escape(span.name)}, {span.kind}</title></rect>'
        )
    for span in labels(timeline.units, max(timeline.total_ticks, 1), per_letter=0.006):
        x, name = across((span.start + span.end) / 2), escape(unit_label(span.name))
        lines.append(f'<text class="unit" x="{x:.1f}" y="{y + 15}">{name}</text>')
    return lines


def _table(timeline: Timeline) -> str:
    at_peak = timeline.at_peak()
    highest = {name: getattr(timeline.highest, name) for name in STACK}
    rows = [
        f'<tr><td><i style="background:{COLOURS[name]}"></i>{name}</td>'
        f"<td>{format_bytes(at_peak[name])}</td><td>{format_bytes(highest[name])}</td>"
        f'<td id="now-{name}"></td></tr>'
        for name in reversed(STACK)
        if highest[name]
    ]
    total = format_bytes(timeline.peak_bytes)
    rows.append(f'<tr class="sum"><td>all</td><td>{total}</td><td></td><td id="now-all"></td></tr>')
    return "\n".join(rows)


def _data(timeline: Timeline) -> str:
    places: list[tuple[str, str]] = [timeline.place(tick) for tick in timeline.ticks.tolist()]
    names = sorted(set(places))
    data = {
        "owners": list(STACK),
        "ticks": timeline.ticks.tolist(),
        "total": timeline.total_ticks,
        "bytes": timeline.owners.T.tolist(),
        "places": names,
        "place": [names.index(place) for place in places],
        "left": LEFT,
        "width": WIDTH,
    }
    # a unit's name must not be able to end the script element
    return json.dumps(data, separators=(",", ":")).replace("</", "<\\/")


_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;color:#1a1a1a;background:#fff;margin:24px auto;
max-width:1120px;padding:0 16px}
h1{font-size:18px;margin:0 0 2px}
p{margin:0 0 12px;color:#444}
svg{width:100%;height:auto;display:block}
text{font:12px system-ui,sans-serif;fill:#333}
.name,.unit{text-anchor:middle}.tick{text-anchor:end;fill:#666}.unit{font-size:10px;pointer-events:none}
.rule{stroke:#000;stroke-opacity:.1}.phase{stroke:#333;stroke-dasharray:4 3;stroke-width:.8}
.peak{fill:#111}.label{font-weight:600;fill:#111}rect{stroke:#fff;stroke-width:.6}#cursor{stroke:#111;stroke-width:.8;visibility:hidden}
table{border-collapse:collapse;margin-top:14px}
td,th{padding:2px 18px 2px 0;text-align:right;font-variant-numeric:tabular-nums;min-width:84px}
td:first-child,th:first-child{text-align:left}
th{font-weight:600;border-bottom:1px solid #bbb}.sum td{border-top:1px solid #bbb}
i{display:inline-block;width:12px;height:12px;margin-right:8px;border-radius:2px;vertical-align:-1px}
#where{min-height:1.5em}
"""

_SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
const svg = document.querySelector("svg"), cursor = document.getElementById("cursor");
const where = document.getElementById("where");
const size = n =>
  n >= 2 ** 30 ? (n / 2 ** 30).toFixed(2) + " GiB" : (n / 2 ** 20).toFixed(1) + " MiB";
const show = (name, n) => {
  const cell = document.getElementById("now-" + name);
  if (cell) cell.textContent = size(n);
};
svg.addEventListener("pointermove", event => {
  const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
  const x = (event.clientX - box.left) * view.width / box.width;
  const tick = (x - data.left) / data.width * data.total;
  if (tick < 0 || tick > data.total) return;
  let column = data.ticks.findIndex(t => t > tick);
  column = column < 0 ? data.ticks.length - 1 : Math.max(0, column - 1);
  cursor.setAttribute("x1", x); cursor.setAttribute("x2", x); cursor.style.visibility = "visible";
  const bytes = data.bytes[column], place = data.places[data.place[column]];
  where.textContent = "at the pointer: " + place[0] + ", " + place[1];
  data.owners.forEach((name, i) => show(name, bytes[i]));
  show("all", bytes.reduce((a, b) => a + b, 0));
});
"""

_PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="budgetplan plot">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{{title}}</title>
<style>{{style}}</style>
</head>
<body>
<h1>{{title}}</h1>
<p>From left to right storages are born and freed: an order, not a duration.</p>
<svg viewBox="0 0 {LEFT + WIDTH + 8} {TOP + HEIGHT + STRIP + 12}" role="img" aria-label="{{label}}">
{{drawing}}
</svg>
<p>Strip: units, forward in blue, recomputed in dark blue, backward in sand. {{caption}}</p>
<table>
<tr><th>owner</th><th>at the peak</th><th>highest</th><th>at the pointer</th></tr>
{{table}}
</table>
<p id="where"></p>
<script type="application/json" id="data">{{data}}</script>
<script>{{script}}</script>
</body>
</html>
"""
