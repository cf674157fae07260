from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from planner.cli.cell_text import decision_of, difference, placement_of
from planner.cli.list_tables import score_columns
from planner.cli.plan_tables import show_plan
from planner.cli.report_tables import show_profile, show_report, unit_columns
from planner.cli.table_layout import (
    Column,
    Page,
    show_table,
    tables,
    wrapped_lines,
)
from planner.cost.budget import needed_bytes
from planner.cost.fit_probability import FitRule, smallest_budget_of
from planner.placement.placement_table import PlacementRow
from planner.plan import Accuracy, Plan
from planner.scoring.netscore import compute_scores
from planner.training.images.image_set import DataSource
from profiler.devices.table import lookup
from profiler.errors import InputError
from profiler.placement import Decision, Placement, PolicyChoice
from profiler.records import (
    DeviceLabel,
    Flops,
    Memory,
    OwnerBytes,
    Parameters,
    Report,
    Rung,
    UnitReport,
)
from profiler.units import GIB, MIB
from profiler.workload import Candidate, Workload

WIDTHS = (40, 60, 80, 160)
GPU = DeviceLabel(name="rtx-2060-super", full_name="NVIDIA GeForce RTX 2060 SUPER", kind="cuda")
CPU = DeviceLabel(name="cpu", full_name="the processor of this machine", kind="cpu")
CANDIDATE = Candidate(
    workload=Workload(
        model="vit_small_patch16_224", method="lora", rank=8, micro_batch=8, accumulation=4
    ),
    placement=Placement(
        dict.fromkeys(("blocks.0", "blocks.1", "blocks.2", "blocks.3/mlp"), Decision.RECOMPUTE)
    ),
    policy=PolicyChoice("optimal"),
)
UNITS = tuple(
    UnitReport(
        name=f"blocks.{i}",
        decision=CANDIDATE.placement.decision(f"blocks.{i}"),
        stored_bytes=12_345_678,
        boundary_bytes=1_234_567,
        working_bytes=23_456_789,
        forward_flops=12_345_678_901,
        backward_flops=2 * 12_345_678_901,
        recompute_flops=0,
        forward_seconds=0.001234,
        recompute_seconds=0.000567,
    )
    for i in range(12)
)

PLACED = tuple(
    PlacementRow(
        unit=unit.name,
        decision=unit.decision,
        stored_bytes=1_234_567,
        freed_bytes=11_111_111,
        recompute_seconds=0.000567,
        seconds_per_freed_mib=0.0000535,
        forward_bytes=123 * MIB,
        backward_bytes=234 * MIB,
        binding="backward" if unit is UNITS[-1] else None,
    )
    for unit in UNITS
)


def report(device: DeviceLabel = GPU, rung: str = "replayed", **changes: int) -> Report:
    return Report(
        candidate=CANDIDATE,
        device=device,
        rung=rung,
        memory=Memory(
            peak_bytes=changes.get("peak_bytes", 700 * MIB),
            reserved_bytes=None if device is CPU else 720 * MIB,
            device_bytes=changes.get("device_bytes", 1020 * MIB),
            at_peak=OwnerBytes(parameter=86 * MIB, activation=600 * MIB, temporary=14 * MIB),
            max_by_group=OwnerBytes(parameter=86 * MIB, activation=610 * MIB, temporary=90 * MIB),
        ),
        flops=Flops(forward=10**12, backward=2 * 10**12, recompute=10**11),
        step_seconds=0.1234,
        energy_joules=None if device is CPU else 21.6,
        parameters=Parameters(total=22_050_664, trainable=700_000),
        units=UNITS,
        notes=("time is a roofline: data sheet, uncalibrated",),
    )


def plan(measurement: Report | None) -> Plan:
    return Plan(
        candidate=CANDIDATE,
        prediction=report(),
        measurement=measurement,
        scores=compute_scores(accuracy_percent=87.5, parameters=22e6, macs=4.6e9),
        accuracy=Accuracy(value=0.875, source="measured on 256 images", kind="measured"),
        budget_bytes=2 * GIB,
        provenance={
            "study": "vit_s-2000MB",
            "weights": {"kind": "random", "detail": "no network"},
            "host_prediction": {"peak_bytes": 701 * MIB},
        },
    )


def printed(show: Callable[[Console], None], *, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    show(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


PAGES: dict[str, Callable[[Console], None]] = {
    "prediction": lambda console: show_report(report(), console, budget_bytes=2 * GIB),
    "profile": lambda console: show_profile(report(), console),
    "placement": lambda console: show_profile(report(), console, placement_rows=PLACED),
    "plan": lambda console: show_plan(plan(report(CPU, "measured")), console),
    "scores": lambda console: show_table(
        score_columns(compute_scores(accuracy_percent=90.0, parameters=22e6), 0.9, None), console
    ),
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_no_line_is_wider_than_the_terminal_and_no_cell_is_cut(page: str, width: int) -> None:
    text = printed(PAGES[page], width=width)
    assert all(len(line) <= width for line in text.splitlines())
    assert not letters(printed(PAGES[page], width=1000)) - letters(text)


def letters(text: str) -> Counter[str]:
    """Number of times that each character is printed: a cut text has fewer than a whole one."""
    return Counter("".join(text.split()))


NUMBERS = st.integers(0, 10**6).map(str)
WORDS = st.integers(1, 60).flatmap(lambda size: st.text("abc/._ ", min_size=size, max_size=size))
"""Texts of any length up to 60, with and without spaces."""


@given(
    st.lists(st.tuples(WORDS, WORDS, NUMBERS, WORDS), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(40, 160),
)
def test_tables_of_any_texts_lose_no_character(
    rows: list[tuple[str, str, str, str]], keys: int, width: int
) -> None:
    unit, method, size, why = zip(*rows, strict=True)
    columns = [
        Column(header="", cells=unit, justify="left"),
        Column(header="", cells=method, justify="left"),
        Column(header="", cells=size),
        Column(header="", cells=why, justify="left", wraps=True),
    ]
    parts = tables(columns, keys=keys, width=width)
    printed_cells = Counter[str]()
    for number, column in enumerate(columns):
        if number < keys or not column.is_empty:
            times = len(parts) if number < keys else 1
            printed_cells += letters("".join(column.cells) * times)
    text = printed(lambda console: Page(console).block(*parts), width=width)
    assert letters(text) == printed_cells
    assert all(len(line) <= width for line in text.splitlines())


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), st.integers(40, 160))
def test_facts_of_any_names_lose_no_character(facts: list[tuple[str, str]], width: int) -> None:
    text = printed(lambda console: Page(console).facts(facts), width=width)
    assert letters(text) == letters("".join(name + value for name, value in facts))


@pytest.mark.parametrize("width", [40, 80])
def test_long_names_are_printed_whole(width: int) -> None:
    """A name that is broken by the end of a line cannot be copied."""
    name = "mine_vit_small_patch16_224_mobilenetv2_100-mobilenetv2_100"
    url = f"sqlite:///studies/{name}.db"
    shown = replace(plan(None), provenance={"study": name, "storage": url, "a long name of it": 1})
    text = printed(lambda console: show_plan(shown, console), width=width)
    assert name in text and url in text
    assert re.search(r"a long name of it\s+1\n", text)
    sentence = f"the study {name} is continued by `recommend --study {name}`"
    text = printed(lambda console: Page(console).sentences([sentence]), width=width)
    assert text.count(name) == 2
    assert " ".join(text.split()) == f"- {sentence}"


@given(st.text("ab 写-", max_size=200), st.integers(4, 60))
def test_wrapped_lines_lose_no_character_and_fit(text: str, width: int) -> None:
    lines = wrapped_lines(text, width)
    assert letters("".join(lines)) == letters(text)
    assert all(cell_len(line) <= width for line in lines)


@pytest.mark.parametrize("images", [None, [], {"name": 3}, {"name": "x", "train_images": -1}])
def test_a_plan_shows_the_images_of_its_run(images: object) -> None:
    source = DataSource(
        name="pets", train_images=7, held_out_images=2, fingerprint="0", selection_images=1,
        skipped_files=3, skip_reasons={".heic": 3},
    )  # fmt: skip
    shown, unread = (
        replace(plan(None), provenance={"run": {"images": content}})
        for content in ({**source.to_json(), "of a newer version": 1}, images)
    )
    text = printed(lambda console: show_plan(shown, console), width=200)
    assert "7 training images, 1 for selection, 2 for the test, 3 files skipped (3 .heic)" in text
    assert "training images" not in printed(lambda c: show_plan(unread, c), width=200)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_number_of_a_profile_is_there_at_any_width(width: int) -> None:
    text = printed(PAGES["profile"], width=width)
    for cell in ("blocks.11", "11.77 MiB", "1.18 MiB", "22.37 MiB", "12.3 G", "1.23 ms", "567 µs"):
        assert cell in text


def test_a_wide_terminal_gets_one_table_and_a_narrow_one_several() -> None:
    columns = [
        Column(header="row", cells=["a", "b"], justify="left"),
        *(Column(header=f"number {i}", cells=["1.234 GiB", "-"]) for i in range(9)),
    ]
    assert len(tables(columns, keys=1, width=200)) == 1
    narrow = tables(columns, keys=1, width=60)
    assert len(narrow) > 1
    assert all(table.columns[0].header.plain == "row" for table in narrow)
    shown = [str(column.header) for table in narrow for column in table.columns[1:]]
    assert shown == [f"number {i}" for i in range(9)]


def test_a_column_of_unknowns_is_left_out_but_never_a_key() -> None:
    columns = [
        Column(header="row", cells=["-"]),
        Column(header="unknown", cells=["-"]),
        Column(header="known", cells=["1"]),
    ]
    (table,) = tables(columns, keys=1, width=80)
    assert [str(column.header) for column in table.columns] == ["row", "known"]


def test_a_run_on_the_cpu_is_never_shown_as_the_gpu_s() -> None:
    text = printed(
        lambda c: show_plan(plan(report(CPU, "measured", peak_bytes=702 * MIB)), c), width=160
    )
    header = next(line for line in text.splitlines() if "replayed for" in line)
    assert "measured on" in header
    row = next(line for line in text.splitlines() if line.strip().startswith("peak"))
    assert row.split() == ["peak", "of", "tensors", "0.68", "GiB", "0.68", "GiB", "0.69", "GiB"]


def test_predicted_beside_measured_on_the_same_device() -> None:
    measured = report(GPU, "measured", peak_bytes=707 * MIB)
    text = printed(lambda c: show_plan(plan(measured), c), width=160)
    row = next(line for line in text.splitlines() if line.strip().startswith("peak"))
    assert row.split() == ["peak", "of", "tensors", "0.68", "GiB", "0.69", "GiB", "-0.99", "%"]


def test_a_budget_is_said_to_fit_or_not() -> None:
    enough = smallest_budget_of(report())
    fits = printed(lambda c: show_report(report(), c, budget_bytes=enough), width=80)
    assert "fits a budget of" in fits
    # the bare prediction leaves no room for its error
    tight = printed(lambda c: show_report(report(), c, budget_bytes=1020 * MIB), width=80)
    assert "does not fit a budget of" in tight
    # almost all errors are 0, so that a little room has P > 99 %, but a plan leaves a page
    replayed = replace(report(), rung=Rung.REPLAYED)
    rule = FitRule.of(replayed.candidate.workload, lookup("rtx-2060-super"))
    room = rule.largest_context_bytes - rule.context_bytes + MIB
    small = needed_bytes(replayed) + room
    nearly = printed(lambda c: show_report(replayed, c, budget_bytes=small), width=120)
    assert "does not fit a budget of" in nearly
    assert "(it leaves less than 2 MiB of room)" in nearly


def test_parts_of_a_unit_are_named_in_its_decision() -> None:
    decisions = unit_columns(UNITS, CANDIDATE.placement)[1].cells
    assert list(decisions[:5]) == ["recompute", "recompute", "recompute", "recompute mlp", "keep"]
    layers = dict.fromkeys(("b/attn.qkv", "b/attn.proj", "b/mlp.fc1"), "recompute")
    assert decision_of("b", Placement(decisions={"b": "light"} | layers)) == (
        "light, recompute proj qkv fc1"
    )
    numbered = {"b/downsample.0": "recompute"}
    assert decision_of("b", Placement(decisions=numbered)) == "recompute downsample.0"
    assert decision_of("b", Placement(decisions=layers | {"b/mlp.proj": "recompute"})) == (
        "recompute attn.proj attn.qkv mlp.fc1 +1"
    )


def test_decisions_are_shown_once() -> None:
    plain = printed(lambda c: show_profile(report(), c), width=160)
    placed = printed(lambda c: show_profile(report(), c, placement_rows=PLACED), width=160)
    assert plain.count("decision") == placed.count("decision") == 1
    assert placed.index("Placement, composed") < placed.index("decision")
    assert "the peak is set by blocks.11 (backward)" in placed


def test_a_sentence_wraps_and_is_never_cut() -> None:
    long = "a sentence of many words that goes on and on beyond the width of any narrow terminal"
    columns = [
        Column(header="name", cells=["adaptformer"], justify="left"),
        Column(header="default", cells=["8 bottleneck width"], justify="left"),
        Column(header="meaning", cells=[long], justify="left", wraps=True),
    ]
    text = printed(lambda console: show_table(columns, console), width=60)
    assert "…" not in text
    assert all(word in text for word in long.split())
    assert len(tables(columns, keys=1, width=80)) == 1


def test_difference() -> None:
    assert difference(101.0, 100.0) == "+1.00 %"
    assert difference(None, 100.0) == "-"
    assert difference(101.0, None) == "-"
    assert difference(101.0, 0) == "-"


def test_placement_in_words() -> None:
    kept = Candidate(workload=CANDIDATE.workload)
    assert placement_of(kept) == "none"
    assert placement_of(replace(kept, policy=PolicyChoice("adaptive"))) == "adaptive: nothing"
    every_third = replace(CANDIDATE, policy=PolicyChoice("every-k", {"k": 3}))
    assert placement_of(every_third).startswith("every-3: ")
    assert placement_of(CANDIDATE) == "optimal: 1 in parts, 3 recompute"


def test_an_empty_list_is_an_error_not_a_blank() -> None:
    with pytest.raises(InputError, match="nothing to list"):
        show_table([], Console(file=io.StringIO()))
