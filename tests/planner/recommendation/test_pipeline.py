"""The whole flow on a small model: really searched, replayed, run and written."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from PIL import Image

import planner.training.validation
from planner.cli.cell_text import training_steps
from planner.cost.budget import needed_bytes, round_up_to_printed
from planner.plan import Accuracy, read_plan, write_plan
from planner.recommendation.answer import FrontEntry, Recommendation, candidate_summary
from planner.recommendation.build_entry import accuracy_after_run
from planner.recommendation.choose import choose
from planner.recommendation.data_facts import DataFacts, data_facts
from planner.recommendation.image_size import default_image_size, image_size_notes
from planner.recommendation.notes import answer_notes
from planner.recommendation.pipeline import recommend
from planner.recommendation.ranking import Question, expected_accuracy
from planner.recommendation.real_runs import validate_plan
from planner.recommendation.request import Limits, Request, question_folder, study_name
from planner.recommendation.study_note import study_note
from planner.scoring.accuracy_prior import AccuracyEstimate
from planner.scoring.netscore import compute_scores
from planner.search.space import SearchedMethod, Space
from planner.training.run_options import RunOptions
from planner.training.validation import Validation
from profiler.devices.table import device_label
from profiler.errors import (
    BudgetplanError,
    InfeasibleError,
    InputError,
    MeasurementError,
    OutOfMemoryError,
    UnmetLimitError,
    UsageError,
)
from profiler.models.backbones.weights import WeightSource
from profiler.records import Rung
from profiler.running.emulated.libraries import why_not_emulated
from profiler.units import GIB, MIB, DeviceBytes, format_bytes, format_bytes_as, parse_bytes
from profiler.workload import Candidate, Workload

RUNS_IN_PROCESS = True
pytestmark = pytest.mark.slow

SPACE = Space(
    base=Workload(model="test_vit", num_classes=10, image_size=32),
    methods=(
        SearchedMethod(name="full"),
        SearchedMethod(name="head"),
        SearchedMethod(name="lora", ranks=(2, 8), default_rank=8),
    ),
    micro_batches=(2, 8),
    effective_batch=8,
    precisions=("fp32",),
)
PRETRAINED = WeightSource(kind="pretrained", detail="for this test")
QUESTION = Question(budget_bytes=DeviceBytes(2 * GIB), train_images=1005)
EMULATION = "profiler.running.emulated.libraries.why_not_emulated"
RUN = RunOptions(data="digits", steps=2, pretrained=False)


@pytest.fixture(autouse=True)
def cached(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles of the small model are made once for the whole module."""
    folder = tmp_path_factory.getbasetemp() / "profiles"
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(folder))


def request(folder: Path, **changes: Any) -> Request:
    asked = Request(
        space=SPACE,
        budget_bytes=2 * GIB,
        device=device_label("rtx-2060-super", "as the test says"),
        runs_on="cpu",
        run=RUN,
        study="small",
        trials=14,
        storage=f"sqlite:///{folder / 'small.db'}",
        validations=2,
        has_weights=False,
        out=folder / "plans",
    )
    return replace(asked, **changes)


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Recommendation:
    folder = tmp_path_factory.mktemp("answered")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUDGETPLAN_CACHE", str(tmp_path_factory.getbasetemp() / "profiles"))
        return recommend(request(folder))


def test_the_same_question_asked_again_names_the_same_plan_files(tmp_path: Path) -> None:
    files = []
    for study in ("monday", "tuesday"):
        asked = request(tmp_path, study=study, validations=0, trials=3)
        files.append([entry.file for entry in recommend(asked).front])
    assert files[0] == files[1]
    assert sorted(files[0]) == sorted((tmp_path / "plans").glob("*.json"))


# ---- the answer ----------------------------------------------------------------------------------


def test_everything_on_the_front_was_replayed_and_fits(answered: Recommendation) -> None:
    assert answered.front
    for entry in answered.front:
        assert entry.plan.prediction.rung == Rung.REPLAYED
        assert needed_bytes(entry.plan.prediction) <= answered.request.budget_bytes


def test_every_row_was_rehearsed_and_says_how_probably_it_fits(answered: Recommendation) -> None:
    if why_not_emulated():
        pytest.skip(why_not_emulated())
    for entry in answered.front:
        rehearsal, prediction = entry.plan.rehearsal, entry.plan.prediction.memory
        assert rehearsal is not None
        assert rehearsal.rung is Rung.EMULATED
        assert rehearsal.step_seconds is None
        assert rehearsal.memory.reserved_bytes == prediction.reserved_bytes
        assert rehearsal.memory.run_peak_bytes == prediction.run_peak_bytes
        assert entry.plan.fits is not None
        assert entry.plan.fits.probability > 0.99


def test_as_many_as_asked_were_really_run_and_the_recommended_is_one(
    answered: Recommendation,
) -> None:
    run = [entry for entry in answered.front if entry.plan.measurement is not None]
    assert len(run) == 2
    assert answered.front[answered.recommended] in run
    measured = [entry.plan.measurement for entry in run]
    assert all(report is not None and report.rung is Rung.MEASURED for report in measured)


def test_a_run_on_the_cpu_is_as_its_replay_for_the_cpu_says(answered: Recommendation) -> None:
    for entry in answered.front:
        if entry.plan.measurement is None:
            continue
        assert entry.plan.measurement.device.name == "cpu"
        assert entry.host_prediction is not None
        seen = entry.plan.measurement.memory.peak_bytes
        assert abs(entry.host_prediction.memory.peak_bytes / seen - 1) < 0.005


def test_with_random_weights_every_accuracy_says_so(answered: Recommendation) -> None:
    for entry in answered.front:
        assert entry.expected.value is None
        if entry.plan.accuracy.value is not None:
            assert "random weights" in entry.plan.accuracy.source
    assert any("random weights" in note for note in answered.notes)


def test_plan_files_hold_the_plans(answered: Recommendation) -> None:
    for entry in answered.front:
        assert read_plan(entry.file).to_json() == json.loads(json.dumps(entry.plan.to_json()))
    assert len({entry.file for entry in answered.front}) == len(answered.front)


def test_the_json_is_the_contracts(answered: Recommendation) -> None:
    data = json.loads(json.dumps(answered.to_json(), allow_nan=False))
    assert data["schema"] == "budgetplan.recommendation/1"
    assert data["budget_bytes"] == 2 * GIB
    assert data["trials"] == 14
    assert 0 <= data["recommended"] < len(data["front"])
    for plan in data["front"]:
        assert {
            "candidate",
            "prediction",
            "measurement",
            "scores",
            "accuracy",
            "provenance",
        } <= set(plan)
        assert {"value", "source"} <= set(plan["accuracy"])


def test_baselines_are_the_papers_defaults_composed(answered: Recommendation) -> None:
    assert set(answered.baselines) == {
        "full", "full_static", "full_adaptive", "lora", "lora_static", "lora_adaptive",
    }  # fmt: skip
    for baseline in answered.baselines.values():
        load = baseline.prediction.candidate.workload
        assert baseline.prediction.rung == Rung.COMPOSED
        assert (load.micro_batch, load.precision, load.optimizer) == (32, "fp32", "adamw")
    peaks = {name: b.prediction.memory.peak_bytes for name, b in answered.baselines.items()}
    assert peaks["full_static"] <= peaks["full"]


def test_the_reason_names_the_choice_and_its_numbers(answered: Recommendation) -> None:
    chosen = answered.front[answered.recommended].plan
    assert answered.reason.startswith(candidate_summary(chosen.candidate))
    assert format_bytes_as(needed_bytes(chosen.prediction), 2 * GIB) in answered.reason


def test_ns_e_needs_the_power_of_inference(
    answered: Recommendation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = [e.plan for e in answered.front if e.plan.scores is not None]
    assert ran
    assert all(p.scores is not None and p.scores.ns_e is None for p in ran)  # no sensor on a CPU
    really = planner.training.validation.validate
    monkeypatch.setattr(
        planner.training.validation,
        "validate",
        lambda *args, **options: replace(really(*args, **options), inference_watts=150.0),
    )
    checked = validate_plan(ran[0], run=RUN, runs_on="cpu", notify=lambda *_: None)
    seen, scored = checked.provenance["run"], checked.scores
    assert seen["inference_watts"] == 150.0
    assert scored is not None
    assert checked.accuracy.value is not None
    assert (
        scored.ns_e
        == compute_scores(
            accuracy_percent=100 * checked.accuracy.value,
            inference_seconds=seen["inference_seconds"],
            inference_watts=150.0,
        ).ns_e
    )


def test_the_note_of_the_study_states_the_constraint_of_its_trials(
    answered: Recommendation,
) -> None:
    note = study_note(answered)
    trials = optuna.load_study(study_name="small", storage=answered.storage).trials
    limit = {trial.values[2] - trial.constraints["budget"] for trial in trials}
    assert limit == {answered.request.limit_bytes}
    assert format_bytes_as(answered.request.limit_bytes, 2 * GIB) in note


def test_the_study_is_there(answered: Recommendation) -> None:
    study = optuna.load_study(study_name="small", storage=answered.storage)
    assert len(study.trials) == 14
    assert all("budget" in trial.constraints for trial in study.trials)


def test_an_fp16_plan_runs_in_fp32_under_its_own_placement(
    answered: Recommendation, tmp_path: Path
) -> None:
    plan = next(e.plan for e in answered.front if e.plan.measurement is None)
    load = plan.candidate.workload.replace(precision="fp16")
    candidate = replace(plan.candidate, workload=load)
    plan = replace(
        plan,
        candidate=candidate,
        prediction=replace(plan.prediction, candidate=candidate),
        rehearsal=None,
    )
    checked = validate_plan(plan, run=RUN, runs_on="cpu", notify=lambda *_: None)
    assert checked.measurement is not None
    assert checked.candidate == candidate
    ran = checked.measurement.candidate
    assert ran == replace(candidate, workload=load.replace(precision="fp32"))
    assert any("ran in fp32" in note for note in checked.provenance["run"]["notes"])
    write_plan(checked, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json").measurement == checked.measurement
    assert checked.accuracy.kind == "measured"
    assert checked.provenance["host_prediction"]["peak_bytes"] > 0


@pytest.mark.parametrize("kind", ["probe", "published", "prior"])
def test_a_short_run_replaces_no_known_accuracy_in_an_answer_and_in_a_plan(
    answered: Recommendation, kind: Any
) -> None:
    entry = next(e for e in answered.front if e.validation is not None)
    run = entry.validation
    assert run is not None
    known = Accuracy(value=0.9, source="the test", kind=kind, low=0.8, high=0.95, coverage=0.8)
    checked = validate_plan(
        replace(entry.plan, accuracy=known, measurement=None),
        run=RUN,
        runs_on="cpu",
        notify=lambda *_: None,
    )
    assert checked.accuracy == known
    assert (checked.scores is None) == (kind != "published")
    assert 0 <= checked.provenance["run"]["accuracy"] <= 1
    assert accuracy_after_run(known, run) == accuracy_after_run(known, None) == known
    nothing = Accuracy(value=None, source="no table", kind="none")
    assert accuracy_after_run(nothing, run) == run.accuracy
    long = replace(run, losses=(1.0,) * 60, accuracy_images=256, weights=PRETRAINED)
    assert accuracy_after_run(known, long).kind == ("probe" if kind == "probe" else "measured")
    # the accuracy is that of pretrained weights
    assert accuracy_after_run(known, replace(long, weights=run.weights)) == known


def test_only_rows_that_are_accurate_enough_are_really_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search ranks ``full`` first, and only ``head`` is within the limit."""

    def expected(asked: Request, workload: Workload) -> AccuracyEstimate:
        value = 0.9 if workload.method == "head" else 0.7
        return AccuracyEstimate(value=value, kind="prior", source="the test", reason="r")

    monkeypatch.setattr("planner.recommendation.after_probe.expected_accuracy", expected)
    monkeypatch.setattr(EMULATION, lambda: "an emulated GPU needs gcc")
    asked = request(tmp_path, validations=1)
    answer = recommend(replace(asked, limits=Limits(min_accuracy=0.8)))
    assert {entry.plan.candidate.workload.method for entry in answer.front} == {"head"}
    assert answer.front[answer.recommended].plan.measurement is not None
    below = "its expected accuracy is 70.0 %, and 80 % was requested"
    assert {f"full: {below}", f"lora: {below}"} <= set(answer.dropped)
    stages: set[str] = set()
    with pytest.raises(UnmetLimitError, match=r"highest expected accuracy is 90\.0 %"):
        recommend(
            replace(asked, limits=Limits(min_accuracy=0.95)),
            notify=lambda stage, *_: stages.add(stage),
        )
    assert not stages, "the highest expected accuracy is known before the search"


@pytest.mark.parametrize(
    ("limits", "device", "text"),
    [
        ({"min_accuracy": 0.9}, "rtx-2060-super", "no accuracy on digits is known"),
        ({"max_kwh": 1.0}, "cpu", "the power of this device is not known"),
    ],
)
def test_a_limit_that_cannot_be_checked_is_refused_before_the_search(
    tmp_path: Path, limits: dict[str, float], device: str, text: str
) -> None:
    stages: list[str] = []
    label = device_label(device, "as the test says")
    with pytest.raises(BudgetplanError, match=text):
        recommend(
            request(tmp_path, limits=Limits(**limits), device=label),
            notify=lambda stage, *_: stages.append(stage),
        )
    assert not stages


# ---- when it does not go well --------------------------------------------------------------------


def test_the_smallest_budget_that_is_named_is_enough_and_little_less_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EMULATION, lambda: "an emulated GPU needs gcc")
    methods = tuple(method for method in SPACE.methods if method.name != "full")
    space = replace(SPACE, methods=methods, micro_batches=(2,))
    with pytest.raises(InfeasibleError) as caught:
        recommend(request(tmp_path, space=space, budget_bytes=1 * MIB))
    smallest = caught.value.smallest_bytes
    assert smallest is not None
    printed = str(caught.value).partition("the smallest budget that would is ")[2]
    named = parse_bytes(re.split("[,;]", printed)[0].replace(" ", ""))
    assert named >= smallest
    assert not list(tmp_path.glob("plans/*"))
    enough = request(tmp_path, space=space, budget_bytes=named, study="enough", validations=0)
    assert recommend(enough).front
    less = int(0.97 * named)
    little = request(tmp_path, space=space, budget_bytes=less, study="less", validations=0)
    with pytest.raises(InfeasibleError):
        recommend(little)


def test_a_run_that_needs_too_much_is_dropped_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = planner.training.validation.validate
    refused: list[str] = []

    def first_is_too_large(candidate: Any, run: RunOptions, **options: Any) -> Validation:
        if not refused:
            refused.append(candidate_summary(candidate))
            raise OutOfMemoryError(cap_bytes=options["budget_bytes"])
        return really(candidate, run, **options)

    monkeypatch.setattr(planner.training.validation, "validate", first_is_too_large)
    monkeypatch.setattr(EMULATION, lambda: "an emulated GPU needs gcc")
    answer = recommend(request(tmp_path, validations=1))
    assert any(line.startswith(refused[0]) and "memory cap" in line for line in answer.dropped)
    assert any("nothing was rehearsed" in n and "needs gcc" in n for n in answer.notes)
    assert refused[0] not in [candidate_summary(e.plan.candidate) for e in answer.front]
    assert answer.front[answer.recommended].plan.measurement is not None


def test_when_every_run_fails_nothing_is_recommended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(candidate: Any, run: RunOptions, **options: Any) -> Validation:
        raise MeasurementError("the run died")

    monkeypatch.setattr(planner.training.validation, "validate", fails)
    monkeypatch.setattr(EMULATION, lambda: "an emulated GPU needs gcc")
    with pytest.raises(MeasurementError, match="the run died"):
        recommend(request(tmp_path))
    assert not (tmp_path / "plans").exists()


def test_an_interrupted_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EMULATION, lambda: "an emulated GPU needs gcc")

    def interrupt(stage: str, text: str, fraction: float) -> None:
        if text.startswith("trial 5"):
            raise KeyboardInterrupt

    asked = request(tmp_path, validations=0)
    with pytest.raises(KeyboardInterrupt):
        recommend(asked, notify=interrupt)
    study = optuna.load_study(study_name="small", storage=asked.storage)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 5
    answer = recommend(asked)
    assert answer.trials == 14
    assert all(entry.plan.measurement is None for entry in answer.front)


def test_a_published_accuracy_is_expected_of_its_own_size_and_weights_alone(
    answered: Recommendation, tmp_path: Path
) -> None:
    vit = Workload(model="vit_small_patch16_224", method="full", num_classes=100)
    result = replace(answered.front[0].result, candidate=Candidate(workload=vit))

    def expected(
        load: Workload, weights: Path | None = None, *, has_weights: bool = True
    ) -> float | None:
        asked = request(
            tmp_path,
            space=replace(SPACE, base=load),
            run=replace(RUN, data="cifar100", pretrained=True, weights=weights),
            has_weights=has_weights,
        )
        assert (asked.backbone_levels[load.model].imagenet_top1 is None) == (weights is not None)
        row = replace(result, candidate=Candidate(workload=load))
        return expected_accuracy(asked, row.candidate.workload).value

    assert expected(vit) == expected(vit, has_weights=False) == 0.897
    assert expected(vit.replace(image_size=64)) is None
    assert expected(vit, weights=tmp_path / "own.safetensors") is None


def test_totals_are_of_the_images_that_the_recipe_trains_on(answered: Recommendation) -> None:
    entry = answered.front[0]
    recipe = entry.plan.recipe
    assert recipe is not None
    whole = replace(recipe, selects_epoch=False, patience_epochs=None)
    plan = replace(entry.plan, recipe=whole)
    changed = replace(
        answered,
        request=replace(answered.request, set_apart_images=143),
        front=(replace(entry, plan=plan), *answered.front[1:]),
    )
    batch = plan.candidate.workload.effective_batch
    for each, answer, images in ((entry.plan, answered, 1295), (plan, changed, 1295 + 143)):
        totals = answer.totals[0]
        assert totals is not None
        steps = recipe.epochs * (images // batch)
        assert (totals.images, totals.steps, training_steps(answer, each)) == (images, steps, steps)


# ---- choosing ------------------------------------------------------------------------------------


def ran(
    entry: FrontEntry, *, value: float, steps: int, weights: WeightSource = PRETRAINED
) -> FrontEntry:
    assert entry.validation is not None
    validation = replace(
        entry.validation,
        weights=weights,
        accuracy=Accuracy(value=value, source="measured", kind="measured"),
        accuracy_images=256,
        losses=(1.0,) * steps,
    )
    return replace(entry, validation=validation)


def test_only_entries_that_were_run_are_recommended(answered: Recommendation) -> None:
    entry = next(e for e in answered.front if e.plan.measurement is not None)
    better = replace(entry.result, score=entry.result.score + 1)
    unmeasured = replace(entry, plan=replace(entry.plan, measurement=None), result=better)
    assert choose([unmeasured, entry], question=QUESTION).index == 1
    assert choose([unmeasured, unmeasured], question=QUESTION).index == 0


def test_the_reason_counts_methods_that_were_not_run(answered: Recommendation) -> None:
    entry = next(e for e in answered.front if e.plan.measurement is not None)
    load = entry.plan.candidate.workload
    other = Candidate(workload=load.replace(method="bitfit" if load.method != "bitfit" else "full"))
    result = replace(entry.result, candidate=other)
    unmeasured = replace(
        entry, plan=replace(entry.plan, measurement=None, candidate=other), result=result
    )
    chosen = choose([entry, unmeasured], question=QUESTION)
    assert chosen.index == 0
    assert "2 methods that are expected to be equally accurate" in chosen.why


def test_a_long_run_decides_a_short_one_does_not(answered: Recommendation) -> None:
    entry = next(e for e in answered.front if e.plan.measurement is not None)
    worse = replace(entry, result=replace(entry.result, score=entry.result.score - 1))
    long = [ran(e, value=v, steps=60) for e, v in zip((entry, worse), (0.5, 0.7), strict=True)]
    chosen = choose(long, question=QUESTION)
    assert (chosen.index, chosen.ties, chosen.decided_by) == (1, (), "probe")
    assert "best measured accuracy" in chosen.reason
    # the plan fine-tunes pretrained weights, and the runs had none
    random = WeightSource(kind="random", detail="for this test")
    others = [ran(e, value=0.1, steps=60, weights=random) for e in (entry, worse)]
    assert choose(others, question=QUESTION).decided_by != "probe"
    assert choose(others, question=replace(QUESTION, pretrained=False)).decided_by == "probe"
    short = [ran(e, value=v, steps=6) for e, v in zip((entry, worse), (0.5, 0.7), strict=True)]
    assert choose(short, question=QUESTION).index == 0


def test_a_long_run_without_an_error_is_not_certain(answered: Recommendation) -> None:
    """256 of 256 images right are not more than 255 of them."""
    entry = next(e for e in answered.front if e.plan.measurement is not None)
    worse = replace(entry, result=replace(entry.result, score=entry.result.score - 1))
    pairs = zip((entry, worse), (255 / 256, 1.0), strict=True)
    chosen = choose([ran(e, value=v, steps=60) for e, v in pairs], question=QUESTION)
    assert {chosen.index, *chosen.ties} == {0, 1}


def test_the_answer_names_its_alternatives(answered: Recommendation) -> None:
    rows = {each.name: each for each in answered.alternatives}
    assert {"fastest", "most accurate", "smallest", "safest", "full"} <= set(rows)
    chosen = answered.front[answered.recommended].result
    smallest = rows["smallest"].index
    assert smallest is not None
    assert answered.front[smallest].result.device_bytes <= chosen.device_bytes
    full = rows["full"].index
    assert full is not None
    assert answered.front[full].plan.candidate.workload.method == "full"


# ---- small pieces --------------------------------------------------------------------------------


def test_classes_without_a_download() -> None:
    digits = DataFacts(num_classes=10, train_images=1295, set_apart_images=143)
    assert data_facts("digits", image_size=32, is_used=False) == digits
    assert data_facts("digits", image_size=32, is_used=True) == digits
    cifar = DataFacts(num_classes=100, train_images=45_000, set_apart_images=5_000)
    assert data_facts("cifar100", image_size=32, is_used=False) == cifar
    assert data_facts("cifar10-c:fog:2", image_size=32, is_used=False).num_classes == 10
    with pytest.raises(UsageError, match="severity from 1 to 5"):
        data_facts("cifar10-c:fog", image_size=32, is_used=False)
    with pytest.raises(InputError):
        data_facts("no/such/folder", image_size=32, is_used=False)


def test_a_data_set_that_is_not_here_is_refused_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUDGETPLAN_DATA", str(tmp_path))
    with pytest.raises(InputError):
        data_facts("cifar10-c:fog:2", image_size=32, is_used=True)


def test_the_images_of_a_folder_are_a_note(tmp_path: Path) -> None:
    for shade, name in enumerate(("a", "b")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (8, 8), 4 * shade + i).save(tmp_path / "pets" / name / f"{i}.png")
    (tmp_path / "pets" / "a" / "x.heic").touch()
    facts = data_facts(str(tmp_path / "pets"), image_size=32, is_used=False)
    assert facts.num_classes == 2
    assert facts.images_per_class == (2, 2)
    assert facts.set_apart_images == 2
    found = SimpleNamespace(stopped=None, cost_unit="joules", failures=())
    notes = answer_notes(replace(request(tmp_path), source=facts.source), found, [])
    assert notes[0].endswith(
        "pets: 4 training images, 2 for selection, 2 for the test, 1 file skipped (1 .heic)"
    )


def test_unequal_classes_count_as_fewer_images(tmp_path: Path) -> None:
    """60 and 30 images say as much about the two means as 40 and 40: 1/60 + 1/30 = 2/40."""
    asked = request(tmp_path)
    assert replace(asked, images_per_class=(60, 30)).balanced_images == 80
    assert replace(asked, images_per_class=(40, 40)).balanced_images == 80
    found = SimpleNamespace(stopped=None, cost_unit="joules", failures=())
    notes = answer_notes(replace(asked, images_per_class=(900, 30)), found, [])
    assert any("30 to 900 training images" in note for note in notes)
    even = answer_notes(replace(asked, images_per_class=(500, 505)), found, [])
    assert not any("training images:" in note for note in even)
    assert asked.balanced_images == asked.train_images


def test_plans_lie_in_a_folder_of_their_question(tmp_path: Path) -> None:
    assert question_folder("vit_s", "some/photos", 2 * 10**9) == "vit_s-photos-2000MB"
    for data in ("..", "/", "cifar10-c:fog:2"):
        name = question_folder("hf-hub:a/b", data, 10**9)
        assert name == Path(name).name
        assert not name.startswith((".", "-"))


def test_dinov2_is_fine_tuned_at_224_and_the_answer_says_so() -> None:
    assert default_image_size("vit_small_patch14_dinov2") == 224
    assert default_image_size("vit_small_patch16_224") == 224
    assert default_image_size("vit_base_patch16_384") == 384
    patches = SimpleNamespace(patch_embed=SimpleNamespace(patch_size=(14, 14)))
    said = image_size_notes("vit_small_patch14_dinov2", 224, is_default=True, built=patches)
    assert "518 px" in " ".join(said)
    odd = image_size_notes("vit_small_patch14_dinov2", 230, is_default=False, built=patches)
    assert "224 or 238 px" in " ".join(odd)


def test_a_studys_name_is_a_file_name() -> None:
    name = study_name("hf/some-model", device_label("t4"), 2 * 10**9)
    assert name.startswith("hf_some-model-t4-2000MB-")
    assert "/" not in name


@pytest.mark.parametrize(
    "size", [1, MIB, MIB + 1, 999 * MIB + 5, GIB - 1, GIB + 1, 3 * GIB + 12345]
)
def test_a_rounded_size_is_enough_as_printed(size: int) -> None:
    printed = parse_bytes(format_bytes(round_up_to_printed(size)).replace(" ", ""))
    assert size <= printed <= size + max(MIB, GIB // 50)
