"""The first screen of an answer: its layout at several widths, and that it shows what it should."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from planner.cli.cell_text import watt_hours
from planner.cli.first_screen import MOST_LINES, show_first_screen, usage_bar
from planner.plan import Accuracy, Plan
from planner.recipe import Recipe
from planner.recommendation.answer import Alternative, FrontEntry, Recommendation
from planner.recommendation.ranking_accuracy import ranks_candidates
from planner.recommendation.request import EnergyRates
from planner.scoring.accuracy_prior import AccuracyEstimate
from planner.scoring.backbone_facts import other_backbone
from planner.training.images.image_set import DataSource
from planner.training_free.option_cost import probe_cost
from planner.training_free.options import TrainingFreeOption
from profiler.devices.table import device_spec
from profiler.models.frozen.catalogue import frozen_model
from profiler.placement import Decision, Placement, PolicyChoice
from profiler.prediction.inference import PartCost, data_set_cost
from profiler.records import (
    DeviceLabel,
    Memory,
    OwnerBytes,
    Parameters,
    Report,
    Rung,
    ValueInterval,
)
from profiler.units import GIB, MIB, format_bytes_in, format_seconds, unit_as_asked
from profiler.workload import Candidate, Workload

GPU = DeviceLabel(
    name="rtx-2060-super",
    full_name="NVIDIA GeForce RTX 2060 SUPER",
    kind="cuda",
    note="no GPU was found here, so this is for the study's RTX 2060 SUPER",
)
UNKNOWN = Accuracy(value=None, source="no published accuracy on digits was found", kind="none")
LONG_WHY = "six methods are expected to be equally accurate on ViTs and few images; " * 4


def plan(method: str = "lora", *, need: int = 1200 * MIB, **changes: object) -> Plan:
    candidate = Candidate(
        workload=Workload(
            model="vit_small_patch16_224", method=method, rank=8, micro_batch=32, precision="fp16",
            num_classes=10,
        ),
        placement=Placement({"blocks.0": Decision.RECOMPUTE}),
        policy=PolicyChoice("optimal"),
    )  # fmt: skip
    report = Report(
        candidate=candidate,
        device=GPU,
        rung=Rung.REPLAYED,
        memory=Memory(peak_bytes=need - 400 * MIB, reserved_bytes=need - 300 * MIB,
                      device_bytes=need,
                      at_peak=OwnerBytes(parameter=86 * MIB, activation=need - 486 * MIB)),
        flops=None,
        step_seconds=0.05,
        energy_joules=9.0,
        parameters=Parameters(total=22_050_664, trainable=600_000),
    )  # fmt: skip
    recipe = Recipe(learning_rate=1e-3, epochs=8, source="published")
    known: dict[str, object] = {
        "accuracy": UNKNOWN, "budget_bytes": 2 * 10**9, "recipe": recipe,
    }  # fmt: skip
    return Plan(candidate=candidate, prediction=report, **(known | changes))


def answer(
    *plans: Plan,
    why: str = LONG_WHY,
    budget: int = 2 * 10**9,
    model: str = "vit_small_patch16_224",
    weights: Path | None = None,
) -> Recommendation:
    name = "plans/vit_small_patch16_224-lora-r8-b32x1-fp16-adamw-optimal-8b4f6b9d.json"
    front = tuple(
        FrontEntry(
            plan=replace(each, budget_bytes=budget),
            file=Path(name),
            result=SimpleNamespace(score=-float(i)),
            expected=AccuracyEstimate(
                value=None, kind=None, source=None, reason="no published accuracy was found"
            ),
        )
        for i, each in enumerate(plans)
    )
    names = ("fastest", "full", "smallest", "most accurate", "safest")
    alternatives = [
        Alternative(name=name, index=i, note="")
        for i, name in enumerate(names[: len(plans) - 1], start=1)
    ]
    alternatives.append(Alternative(name="paper", index=None, note="needs 2.25 GiB, does not fit"))
    return Recommendation(
        request=SimpleNamespace(
            train_images=1295, images_of=lambda recipe: 1295, has_weights=True,
            runs_on="cpu", run=SimpleNamespace(data="digits", weights=weights),
            trains_pretrained=True, others=(), source=None, energy_rates=EnergyRates(),
            device=SimpleNamespace(memory_bytes=8 * GIB),
            space=SimpleNamespace(base=Workload(model=model)),
            budget_bytes=budget,
            of_backbone=lambda model: SimpleNamespace(run=SimpleNamespace(weights=weights)),
        ),
        study="s", storage="sqlite://", trials=1, seconds=1.0, front=front, recommended=0,
        reason=why, why=why, baselines={}, ties=(1,), alternatives=tuple(alternatives),
        notes=("a", "b"),
    )  # fmt: skip


def screen(shown: Recommendation, *, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    show_first_screen(shown, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def frozen_option(name: str = "dinov2_l", *, fits: bool = True) -> TrainingFreeOption:
    """A model without fine-tuning that takes 0.5 s and 50 J for 32 images."""
    model, gpu = frozen_model(name), device_spec("rtx-2060-super")
    parts = {"images": PartCost(seconds=0.5, host_seconds=0.0, watts=100.0)}
    cost = data_set_cost(
        parts, batch=32, dtype="float16", device=gpu, num_classes=10, predicted_classes=100
    )
    is_probe = model.kind == "features"
    return TrainingFreeOption(
        model=model, batch=32, dtype="float16", is_four_bit=False, peak_bytes=10**9,
        device_bytes=1_200 * MIB, fits=fits, accuracy=model.accuracies.get("cifar100"),
        num_classes=10, cost=cost, probe=probe_cost(cost, 1024, 10, 1295) if is_probe else None,
        plan_file=Path("plans/features-dinov2_l-b32-fp16.json") if fits else None,
    )  # fmt: skip


SIX = [plan(), *(plan("adaptformer", need=(600 + 100 * i) * MIB) for i in range(5))]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_it_has_at_most_25_lines_and_nothing_is_wider_but_the_command(width: int) -> None:
    lines = screen(answer(*SIX), width=width).splitlines()
    wide = [line for line in lines if len(line) > width]
    assert all("budgetplan train" in line for line in wide)
    # a terminal wraps the command
    assert sum(1 + (len(line) - 1) // width if line else 1 for line in lines) <= MOST_LINES


def test_skipped_files_have_a_line_with_their_reasons() -> None:
    source = DataSource(
        name="photos", train_images=10, held_out_images=4, selection_images=2, fingerprint="0",
        skipped_files=1_203, skip_reasons={"hidden or system": 1_200, ".heic": 3},
    )  # fmt: skip
    base = answer(*SIX)

    def lines_with(source: DataSource) -> list[str]:
        asked = SimpleNamespace(**{**vars(base.request), "source": source})
        return screen(replace(base, request=asked)).splitlines()

    lines = lines_with(source)
    assert lines[1] == "1,203 files skipped (1200 hidden or system, 3 .heic)"
    assert len(lines) <= MOST_LINES
    without = lines_with(replace(source, skipped_files=0, skip_reasons={}))
    assert not any("skipped" in line for line in without)


def test_the_numbers_are_those_of_the_plan() -> None:
    text = screen(answer(*SIX))
    steps = 8 * 40  # floor(1295 / 32) = 40 whole steps an epoch
    for part in (
        "RUN THIS   lora r8, fp16, batch 32, adamw, optimal checkpointing, lr 0.001",
        "1.26 GB of 2.00 GB",
        f"50 ms a step, 640 images/s; steps of 8 epochs: {format_seconds(steps * 0.05)}",
        f"9 J a step, {watt_hours(steps * 9.0)} in all",
        "600 k of 22.1 M parameters",
        "planned for GeForce RTX 2060 SUPER (no GPU here; --device names another)",
        "2 remarks: --notes",
    ):
        assert part in " ".join(text.split()) or part in text, part
    assert "budgetplan train plans/vit_small" in text


def test_a_time_that_the_launches_decide_is_said_to_be_assumed() -> None:
    one = plan()
    launched = replace(one, prediction=replace(one.prediction, host_decides=True))
    clause = "images/s (the host's launches decide, assumed)"
    assert [clause in screen(answer(each), width=120) for each in (one, launched)] == [False, True]


def test_a_budget_above_the_memory_of_the_device_is_said_beside_it() -> None:
    shown = answer(*SIX, budget=10 * GIB)
    assert "1.17 GiB of 10.00 GiB" in screen(shown, width=120)
    assert "; the device has 8.00 GiB" in screen(shown, width=120)
    assert "the device has" not in screen(answer(*SIX))


@pytest.mark.parametrize("need", [1_850 * 10**6, 1_872 * 10**6, 1_900 * 10**6])
def test_the_parts_of_the_margin_add_up_to_the_rest_of_a_tight_budget(need: int) -> None:
    text = " ".join(screen(answer(plan(need=need))).split())
    found = re.search(r"([0-9.]+) GB of 2.00 GB .* margin ([0-9.]+) GB: (.*) time ", text)
    assert found is not None
    used, rest, parts = found.groups()
    assert float(used) + float(rest) == pytest.approx(2.0)
    shown = [float(part.split()[0]) for part in parts.split(", ")]
    assert sum(shown) == pytest.approx(float(rest))
    assert "for a larger CUDA context" in parts


def test_a_wide_margin_needs_no_parts() -> None:
    assert "  margin " not in screen(answer(plan(need=1_500 * 10**6)))


def test_a_predicted_time_and_energy_stand_with_their_ranges() -> None:
    first = plan()
    ranges = {
        "step_seconds_interval": ValueInterval(low=0.034, high=0.123),
        "energy_joules_interval": ValueInterval(low=0.84, high=1200.0),
    }
    with_ranges = replace(first, prediction=replace(first.prediction, **ranges))
    text = screen(answer(with_ranges, *SIX[1:]))
    assert "50 ms (34 to 123) a step" in text
    assert "9 J (0.84 to 1200) a step" in text


def test_the_command_names_the_weights_of_the_question() -> None:
    command = screen(answer(*SIX, weights=Path("my weights.safetensors"))).splitlines()
    (line,) = [line for line in command if line.startswith("budgetplan train")]
    assert line.endswith("8b4f6b9d.json --weights 'my weights.safetensors'")


def test_memory_is_one_number_in_the_unit_of_the_budget() -> None:
    gb, gib = screen(answer(*SIX)), screen(answer(*SIX, budget=2 * GIB))
    assert "1.26 GB of 2.00 GB" in gb
    assert "GiB" not in gb.replace("needs 2.25 GiB", "")
    assert "1.17 GiB of 2.00 GiB" in gib
    assert "920" not in gb  # neither the peak nor the reserved bytes
    assert "MiB" not in gib


def test_names_of_one_row_are_joined_and_the_recommended_row_is_none() -> None:
    shown = answer(*SIX[:3])
    double = replace(
        shown,
        alternatives=(
            Alternative(name="safest", index=0, note=""),
            Alternative(name="smallest", index=1, note=""),
            Alternative(name="fastest", index=1, note=""),
        ),
    )
    text = screen(double)
    assert "fastest, smallest" in text
    assert "safest" not in text
    assert "same tier" in text


def test_an_accuracy_is_shown_only_if_it_can_rank() -> None:
    short = {"losses": [1.0] * 4, "accuracy_images": 64}
    long = {"losses": [1.0] * 50, "accuracy_images": 200}
    ran = Accuracy(value=0.123, source="measured on 64 images", kind="measured")
    published = Accuracy(value=0.876, source="arXiv", kind="published")
    assert not ranks_candidates(plan(accuracy=ran, provenance={"run": short}))
    assert not ranks_candidates(plan(accuracy=ran))
    assert ranks_candidates(plan(accuracy=ran, provenance={"run": long}))
    assert "12.3 %" not in screen(answer(plan(accuracy=ran, provenance={"run": short})))
    assert "87.6 % (published: arXiv)" in screen(answer(plan(accuracy=published)))
    interval = replace(published, low=0.80, high=0.90, coverage=0.9, kind="probe")
    assert "80-90 %" in screen(answer(plan(), plan(accuracy=interval)))


def test_unknown_time_and_energy_are_said_to_be_unknown() -> None:
    bare = plan()
    bare = replace(
        bare,
        prediction=replace(bare.prediction, step_seconds=None, energy_joules=None),
        recipe=None,
    )
    text = screen(answer(bare))
    assert "time     not known" in text
    assert "energy   not known" in text


@given(st.floats(min_value=0, max_value=3))
def test_the_bar_is_full_at_the_budget_and_never_wider(share: float) -> None:
    bar = usage_bar(share)
    assert len(bar) == 20
    filled = sum("▏▎▍▌▋▊▉█".index(c) + 1 if c in "▏▎▍▌▋▊▉█" else 0 for c in bar)
    assert abs(filled - 160 * min(share, 1)) <= 0.5


@pytest.mark.parametrize(
    ("size", "unit", "printed"),
    [
        (2 * 10**9, "GB", "2.00 GB"),
        (2 * GIB, "GiB", "2.00 GiB"),
        (600 * 10**6, "MB", "600 MB"),
        (512 * MIB, "MiB", "512 MiB"),
        (8_123_456_789, "GB", "8.12 GB"),
    ],
)
def test_the_unit_is_the_one_that_was_asked_in(size: int, unit: str, printed: str) -> None:
    assert unit_as_asked(size) == unit
    assert format_bytes_in(size, unit) == printed


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("winner", [None, 1])
def test_a_model_without_fine_tuning_is_a_row_and_may_win(width: int, winner: int | None) -> None:
    options = (frozen_option("openclip_l14", fits=False), frozen_option())
    shown = replace(answer(*SIX), training_free=options, recommended_training_free=winner)
    lines = screen(shown, width=width).splitlines()
    (row,) = [line for line in lines if line.startswith("  no tuning")]
    assert "dinov2_l" in row and "91.7 % publ." in row and "64" in row.split()
    # 1,295 images at 50 J for 32
    assert watt_hours(1295 * 50 / 32) in row or width == 80
    assert len(lines) <= MOST_LINES
    assert all(len(line) <= width or "budgetplan " in line for line in lines)
    text = "\n".join(lines)
    assert ("91.7 % published" in text) == (winner is not None)
    command = "budgetplan train plans/features-dinov2_l-b32-fp16.json"
    assert (command in text) == (winner is not None)
    assert str(shown.recommended_file).startswith("plans/features") == (winner is not None)


def test_one_line_names_a_backbone_that_is_expected_to_be_better() -> None:
    other = other_backbone("vit_small_patch16_224", budget_bytes=2 * 10**9)
    assert other is not None
    lines = [line for line in screen(answer(*SIX)).splitlines() if "See also" in line]
    assert len(lines) == 1
    assert other.better_at in lines[0]
    assert f"{other.time_ratio:.2g}x time" in lines[0]
    assert "See also" not in screen(answer(*SIX, model="test_vit"))


def test_with_several_backbones_the_rows_name_theirs() -> None:
    base = answer(*SIX)
    asked = SimpleNamespace(**{**vars(base.request), "others": (base.request,)})
    rows = (*base.alternatives, Alternative(name="backbone", index=5, note=""))
    text = screen(replace(base, request=asked, alternatives=rows))
    assert "vit_s adaptformer r8" in text
    assert "  backbone" in text
    assert "See also" not in text


def test_the_costs_of_a_training_stand_beside_its_energy() -> None:
    asked = answer(plan())
    assert "costs" not in screen(asked)
    rates = EnergyRates(price_per_kwh=0.3, grams_per_kwh=400.0)
    priced = replace(
        asked, request=SimpleNamespace(**vars(asked.request) | {"energy_rates": rates})
    )
    # 8 epochs of 40 steps of 9 J are 0.0008 kWh
    assert "costs    price 0.00024, 0.32 g CO2, by your rates of a kWh" in screen(priced)
    dark = plan()
    dark = replace(dark, prediction=replace(dark.prediction, energy_joules=None))
    unknown = replace(priced, front=(replace(priced.front[0], plan=dark),))
    assert "costs    price not known, not known g CO2" in screen(unknown)


def test_a_power_limit_stands_beside_the_energy_that_it_holds_for() -> None:
    limited = plan()
    limited = replace(limited, prediction=replace(limited.prediction, power_limit_watts=140.0))
    assert "9 J a step at a limit of 140 W" in screen(answer(limited))


def measured_answer(seconds: float, interval: ValueInterval | None = None) -> Recommendation:
    """An answer that predicts 50 ms a step and 16 s of training, and measured other ones."""
    base = plan()
    predicted = replace(base.prediction, step_seconds_interval=interval)
    run = replace(predicted, rung=Rung.MEASURED, step_seconds=seconds, step_seconds_interval=None)
    return answer(replace(base, prediction=predicted, measurement=run), why="it is cheap")


@pytest.mark.parametrize(
    ("seconds", "interval", "said"),
    [
        (0.1, None, "slower measured 100 ms a step, predicted 50 ms: 8 epochs take 32 s, not 16 s"),
        (0.02, None, "faster measured 20 ms a step, predicted 50 ms: 8 epochs take 6.4 s, not"),
        (0.06, (0.045, 0.055), "slower measured 60 ms a step, predicted 50 ms (45 to 55): 8"),
        (0.07, (0.01, 0.1), "slower measured 70 ms a step, predicted 50 ms (10 to 100): 8 epochs"),
    ],
)
def test_a_measured_step_far_from_the_predicted_one_is_said(
    seconds: float, interval: tuple[float, float] | None, said: str
) -> None:
    low_high = None if interval is None else ValueInterval(low=interval[0], high=interval[1])
    text = screen(measured_answer(seconds, low_high), width=120)
    assert said in " ".join(text.split())


def test_a_measured_step_is_not_said_where_it_is_near_or_of_another_device() -> None:
    near = screen(measured_answer(0.06))
    far = measured_answer(0.1)
    (entry,) = far.front
    other = replace(far, front=(replace(entry, host_prediction=entry.plan.prediction),))
    for text in (near, screen(other)):
        assert "checked" in text
        assert "slower" not in text
