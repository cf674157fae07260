"""The first screen over answers of any content: its lines, its width, and the command in it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from test_first_screen import GPU, UNKNOWN, answer, frozen_option, plan, screen

from planner.cli.alternative_rows import LEAST_ROWS
from planner.cli.first_screen import MOST_LINES
from planner.plan import FitProbability, Plan
from planner.recipe import Recipe
from planner.recommendation.answer import Alternative, AlternativeName, Recommendation
from planner.recommendation.baselines import Baseline
from planner.recommendation.probe_front import ProbeOutcome
from planner.recommendation.ranking_accuracy import ranks_candidates
from planner.scoring.accuracy_prior import AccuracyEstimate
from planner.training.images.image_set import DataSource
from planner.training.probe_records import LearnerRule
from profiler.models.backbones import ALIASES
from profiler.placement import Placement, PolicyChoice
from profiler.units import GIB, MIB
from profiler.workload import LEVERS, Candidate

METHODS = ("full", "head", "bn_head", "adaptformer", "vpt_deep", "adalora", "partial_2")
NAMES: tuple[AlternativeName, ...] = (
    "fastest", "most accurate", "smallest", "safest", "backbone", "full", "paper", "smaller images",
)  # fmt: skip
MODELS = (*ALIASES.values(), "vit_so400m_patch14_siglip_gap_448.pali2_10b_pt")
FROZEN = (
    frozen_option(),
    frozen_option("openclip_l14", fits=False),
    frozen_option("siglip_b16"),
)
WORDS = st.text("abcdefgh ijklmnop ", min_size=1, max_size=400)
NUMBERS = st.one_of(st.none(), st.floats(min_value=1e-6, max_value=1e4))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A plan of any method, levers, memory and duration."""
    base = plan(draw(st.sampled_from(METHODS)), need=draw(st.integers(500 * MIB, 200 * GIB)))
    precision = draw(st.sampled_from(("fp32", "bf16", "fp16")))
    levers = draw(st.sets(st.sampled_from(LEVERS)))
    if precision != "fp32":
        levers -= {"tf32"}
    workload = base.candidate.workload.replace(
        model=draw(st.sampled_from(MODELS)),
        precision=precision,
        levers=tuple(levers),
        rank=draw(st.sampled_from((None, 8, 4096))),
        micro_batch=draw(st.sampled_from((1, 32, 65_536))),
        accumulation=draw(st.sampled_from((1, 16, 4096))),
        image_size=draw(st.sampled_from((32, 224, 384))),
        num_classes=draw(st.sampled_from((2, 21_843))),
    )
    placed = {"placement": base.candidate.placement, "policy": base.candidate.policy}
    if "compile" in levers or draw(st.booleans()):
        placed = {"placement": Placement({}), "policy": PolicyChoice("none")}
    candidate = Candidate(workload=workload, **placed)
    report = replace(
        base.prediction,
        candidate=candidate,
        device=replace(GPU, full_name=draw(st.sampled_from(DEVICES))),
        step_seconds=draw(NUMBERS),
        energy_joules=draw(NUMBERS),
    )
    has_run, has_recipe = draw(st.booleans()), draw(st.booleans())
    known = draw(st.sampled_from((None, 0.9)))
    return replace(
        base,
        candidate=candidate,
        prediction=report,
        measurement=report if has_run else None,
        rehearsal=report if draw(st.booleans()) else None,
        accuracy=replace(
            UNKNOWN, value=known, kind="none" if known is None else "published", source=draw(WORDS)
        ),
        fits=draw(st.sampled_from((None, FITS))),
        recipe=Recipe(learning_rate=1.25e-5, epochs=100, source="published")
        if has_recipe
        else None,
    )


DEVICES = (
    "NVIDIA GeForce GTX 1050",
    "NVIDIA GeForce RTX 5090 Laptop GPU",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
    "CPU",
)
FITS = FitProbability(probability=0.992, compared=436, kind="attention", context_bytes=0)


@st.composite
def answers(draw: st.DrawFn) -> Recommendation:
    """An answer with any rows, and long names, paths and reasons."""
    rows = draw(st.lists(plans(), min_size=1, max_size=6))
    base = answer(*rows, why=draw(WORDS), budget=draw(st.integers(500 * MIB, 200 * GIB)))
    indices = st.one_of(st.none(), st.integers(0, len(rows) - 1))
    named = draw(st.lists(st.tuples(st.sampled_from(NAMES), indices), max_size=10))
    chosen = draw(st.integers(0, len(rows) - 1))
    request = base.request
    several = draw(st.booleans())
    run = SimpleNamespace(data=draw(DATA), weights=None)
    asked: Any = SimpleNamespace(
        **{
            **vars(request),
            "run": run,
            "train_images": draw(st.integers(1, 10**8)),
            "others": (request,) if several else (),
            "has_weights": draw(st.booleans()),
            "space": SimpleNamespace(base=rows[chosen].candidate.workload),
        }
    )
    folder = Path(draw(st.sampled_from(("plans", "/" + "a-long-name/" * 12))))
    free = draw(st.sampled_from((None, (), FROZEN)))
    baseline = Baseline(prediction=rows[0].prediction, fits=False)
    return replace(
        base,
        request=asked,
        front=tuple(
            replace(
                entry,
                file=folder / entry.file,
                expected=AccuracyEstimate(value=None, kind=None, source=None, reason=draw(WORDS)),
            )
            for entry in base.front
        ),
        recommended=chosen,
        alternatives=tuple(Alternative(name=name, index=i, note=draw(WORDS)) for name, i in named),
        notes=("a note",) * draw(st.integers(0, 300)),
        dropped=("a row",) * draw(st.integers(0, 3)),
        training_free=free,
        recommended_training_free=0 if free and draw(st.booleans()) else None,
        baselines=draw(st.sampled_from(({}, {"lora": baseline}))),
    )


DATA = st.one_of(
    st.sampled_from(
        ("digits", "vtab:diabetic_retinopathy", "/srv/" + "photos/" * 30, "写真/" * 20)
    ),
    WORDS,
)


@settings(max_examples=25, deadline=None)
@given(answers(), st.sampled_from((40, 56, 80, 120)))
def test_every_answer_is_shown_whole_with_its_command(shown: Recommendation, width: int) -> None:
    lines = screen(shown, width=width).splitlines()
    # a terminal wraps what is wider: only commands are, so that they can be copied
    wide = [line for line in lines if cell_len(line) > width]
    assert all(line.startswith("budgetplan ") for line in wide)
    entry = shown.front[shown.recommended]
    text = "".join("".join(lines).split())
    for sentence in (shown.why, entry.expected.reason, entry.plan.candidate.workload.model):
        if sentence != entry.expected.reason or not ranks_candidates(entry.plan):
            assert "".join(sentence.split()) in text
    # beyond one screen there are at most the least alternatives, each in few lines
    used = sum(max(1, math.ceil(cell_len(line) / width)) for line in lines)
    if width >= 80 and used > MOST_LINES and "OR" in (line[:2] for line in lines):
        first = next(i for i, line in enumerate(lines) if line.startswith("OR"))
        rows = lines[first + 1 : lines.index("", first)]
        assert sum(not line.startswith("    ") for line in rows) <= LEAST_ROWS
    entry = shown.front[shown.recommended]
    assert any(line.endswith(f"budgetplan train {entry.file}") for line in lines)
    if shown.recommended_training_free is not None:
        assert any(str(shown.recommended_file) in line for line in lines)
    load, text = entry.plan.candidate.workload, "\n".join(lines)
    assert lines[0].startswith(load.model)
    assert f"({shown.request.train_images:,} images, {load.num_classes:,} classes)" in text
    assert "RUN THIS" in text
    for fact in ("memory", "time", "energy", "trains", "why"):
        assert f"\n  {fact} " in text


def test_a_long_path_takes_lines_from_alternatives_and_not_from_sentences() -> None:
    shown = answer(*(plan(name) for name in ("lora", "full", "head", "bn_head")), why="it is cheap")
    (entry, *rest) = shown.front
    deep = replace(entry, file=Path("/" + "deep/" * 180) / entry.file)
    short, long = screen(shown), screen(replace(shown, front=(deep, *rest)))
    assert "\n  smallest" in short and "\n  smallest" not in long
    for text in (short, long):
        assert all(f"\n  {name}" in text for name in ("fastest", "full"))
        assert "measures it on test images." in " ".join(text.split())


def test_a_probe_that_trained_nothing_says_why_on_the_first_screen() -> None:
    shown = answer(plan())
    assert "nothing was probed" not in screen(shown)
    rule = LearnerRule(device="cpu", has_batch_norm=False)
    outcome = ProbeOutcome(
        estimates={}, setting=None, rule=rule, runs=0, earlier_runs=0, seconds=0.0,
        notes=("nothing was probed: the weights cannot be loaded here; give --weights FILE",),
    )  # fmt: skip
    text = " ".join(screen(replace(shown, probe=outcome)).split())
    assert "Not known: accuracy (nothing was probed: the weights cannot be loaded here" in text


def test_in_a_narrow_terminal_an_alternative_is_a_paragraph_of_all_its_cells() -> None:
    text = screen(answer(plan(), plan("adaptformer", need=600 * MIB)), width=40)
    said = "fastest: adaptformer r8, optimal, batch 32x1, fp16, 0.63 GB, 640 images/s, 0.8 Wh,"
    assert f"{said} same tier" in " ".join(text.split())


def test_a_long_name_of_the_images_wraps() -> None:
    shown = answer(plan())
    data = "/home/user/" + "a-folder/" * 20 + "flowers"
    run = SimpleNamespace(data=data, weights=None)
    request: Any = SimpleNamespace(**{**vars(shown.request), "run": run})
    lines = screen(replace(shown, request=request)).splitlines()
    end = lines.index("(1,295 images, 10 classes), 224 px; 2.00 GB")
    assert "".join(lines[:end]).replace(" ", "") == f"vit_small_patch16_224on{data}"


def test_of_a_folder_the_images_to_train_and_to_test_are_shown() -> None:
    shown = answer(plan())
    source = DataSource(
        name="photos/", train_images=128, selection_images=12, held_out_images=20, fingerprint="0"
    )
    folder = {"train_images": 128, "source": source}
    request: Any = SimpleNamespace(**{**vars(shown.request), **folder})
    first, *_ = screen(replace(shown, request=request)).splitlines()
    assert "(128 + 32 images, 10 classes)" in first
