"""Fills the template with an answer or with plans, and writes the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.cli.cell_text import training_command
from planner.cli.page.charts import bytes_chart, cost_chart, front_chart, legend, step_chart
from planner.cli.page.view import (
    FROZEN_HEADERS,
    HEADERS,
    BaselineRow,
    PageView,
    PlanRow,
    frozen_cells,
    frozen_plan_cells,
)
from planner.cost.budget import needed_bytes
from planner.disk.drafts import write_file
from planner.disk.free_space import check_folder
from planner.plan import Plan
from profiler.errors import InputError
from profiler.units import format_bytes_in, format_joules, format_seconds, unit_as_asked

if TYPE_CHECKING:
    from planner.recommendation.answer import Recommendation
    from planner.training_free.plan_file import FrozenPlan

PAGE_MARK = b"<!-- budgetplan page -->"
"""Text near the beginning of each page, by which a later page may replace it."""


def check_page_file(path: Path) -> None:
    """Refuse a file that the page cannot be written to, before any work.

    Raises:
        InputError: there is no such folder, nothing can be written into it, or there is a file that
            is no page of this program.
    """
    if not path.absolute().parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")
    if path.exists() and not (path.is_file() and _is_page(path)):
        raise InputError(f"{path} exists and is no page of budgetplan; give another file")
    check_folder(path.absolute().parent)


def _is_page(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return PAGE_MARK in file.read(1024)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def write_answer_page(answer: Recommendation, path: Path) -> None:
    """Write the page of an answer, as ``recommend --html`` does.

    Raises:
        InputError: the file cannot be written.
    """
    write_page(answer_view(answer), path)


def answer_view(answer: Recommendation) -> PageView:
    """Return the content of the page of an answer."""
    roles: dict[int, list[str]] = {}
    for each in answer.alternatives:
        if each.index is not None:
            roles.setdefault(each.index, []).append(each.name)
    rows = [
        PlanRow(
            name=str(i + 1),
            plan=entry.plan,
            command=training_command(entry.file, weights=answer.weights_of(entry)),
            roles=tuple(roles.get(i, ())),
            is_recommended=i == answer.recommended,
        )
        for i, entry in enumerate(answer.front)
    ]
    workload = answer.front[answer.recommended].plan.candidate.workload
    return PageView(
        title=f"{workload.model} on {answer.request.run.data}",
        rows=rows,
        why=answer.why or answer.reason,
        baselines=[
            BaselineRow(
                mark=chr(ord("a") + i),
                name=name.replace("_", ", ") if "_" in name else f"{name}, no checkpointing",
                device_bytes=needed_bytes(baseline.prediction),
                step_seconds=baseline.prediction.step_seconds,
                fits=baseline.fits,
            )
            for i, (name, baseline) in enumerate(answer.baselines.items())
        ],
        notes=(*answer.dropped, *answer.notes),
        frozen=[
            frozen_cells(option, unit_as_asked(answer.request.budget_bytes))
            for option in answer.training_free or ()
        ],
    )


def plans_view(plans: Sequence[tuple[Path, Plan]], frozen: Sequence[FrozenPlan] = ()) -> PageView:
    """Return the content of the page of plan files.

    Args:
        plans: plans that fine-tune, with their files.
        frozen: plans without fine-tuning.
    """
    rows = [
        PlanRow(name=str(i), plan=plan, command=training_command(path))
        for i, (path, plan) in enumerate(plans, start=1)
    ]
    models = dict.fromkeys(row.plan.candidate.workload.model for row in rows)
    if not rows:
        models = dict.fromkeys(plan.candidate.model for plan in frozen)
    notes = dict.fromkeys(note for row in rows for note in row.plan.prediction.notes)
    return PageView(
        title=", ".join(models),
        rows=rows,
        notes=tuple(notes),
        frozen=[frozen_plan_cells(plan, unit_as_asked(plan.budget_bytes)) for plan in frozen],
    )


def write_page(view: PageView, path: Path, *, with_step: bool = True) -> None:
    """Write the page of an answer or of plans.

    Args:
        view: the content.
        path: file to write.
        with_step: whether one step of the main plan is replayed, for its memory over time.

    Raises:
        InputError: the file cannot be written.
    """
    check_page_file(path)
    step = _step_svg(view.main.plan) if with_step and view.rows else ""
    write_file(path, page_html(view, step=step).encode())


def page_html(view: PageView, *, step: str = "") -> str:
    """Return the page as text; every text of a plan is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("planner.cli.page", ""), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("page.html").render(
        view=view,
        headers=HEADERS,
        frozen_headers=FROZEN_HEADERS,
        legend=legend(),
        step=Markup(step),
        **(_charts(view) if view.rows else {}),
    )


def _charts(view: PageView) -> dict[str, Any]:
    """Return the texts and charts of the plans that fine-tune; the page has at least one."""
    from markupsafe import Markup

    main, unit = view.main.plan, unit_as_asked(view.main.plan.budget_bytes)
    predictions = {row.name: row.plan.prediction for row in view.rows}
    seconds = {n: p.step_seconds for n, p in predictions.items() if p.step_seconds is not None}
    joules = {n: p.energy_joules for n, p in predictions.items() if p.energy_joules is not None}
    need = needed_bytes(main.prediction)
    second_texts = {n: format_seconds(v) for n, v in seconds.items()}
    joule_texts = {n: format_joules(v) for n, v in joules.items()}
    return {
        "share": min(100.0, 100 * need / main.budget_bytes),
        "used": format_bytes_in(need, unit),
        "budget": format_bytes_in(main.budget_bytes, unit),
        "front": Markup(front_chart(view)),
        "baselines": [baseline.cells(unit) for baseline in view.baselines],
        "owners": Markup(bytes_chart(view)),
        "times": Markup(cost_chart("Time of a step", seconds, second_texts)),
        "energies": Markup(cost_chart("Energy of a step", joules, joule_texts)),
    }


def _step_svg(plan: Plan) -> str:
    """Return the memory over one step of a plan, replayed; empty for an unknown device."""
    from planner.target_device import find_target
    from profiler.errors import UnknownNameError
    from profiler.prediction.allocator_steps import BLOCK_BYTES
    from profiler.prediction.timeline import Timeline
    from profiler.replay.step_replay import replay_step

    try:
        spec = find_target(plan.prediction.device.name).spec
    except UnknownNameError:
        return ""
    log = replay_step(plan.candidate, device=spec)
    if spec.is_cuda:
        log = log.rounded(BLOCK_BYTES)
    return step_chart(Timeline.of(log, columns=300), plan.prediction, plan.budget_bytes)
