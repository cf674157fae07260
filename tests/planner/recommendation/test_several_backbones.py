"""One front over two small backbones: levels, studies, files, reasons; and what is refused."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

import planner.recommendation.search_backbones as stage
from planner import recommend as recommend_by_api
from planner.api.early_checks import backbone_names, weights_by_backbone
from planner.cli import cli
from planner.recommendation import several_backbones
from planner.recommendation.alternatives import named_alternatives
from planner.recommendation.choose import ChosenEntry, choose
from planner.recommendation.named_rows import answer_rows, best_of_backbones
from planner.recommendation.ranking import Question
from planner.recommendation.request import Request
from planner.recommendation.search_backbones import search_backbones, smallest_backbone
from planner.recommendation.several_backbones import request_for_backbones, with_backbone_reason
from planner.search.problem import SearchResult, TrialResult
from planner.search.space import SearchedMethod, Space
from planner.training.run_options import RunOptions
from profiler.devices.table import device_label
from profiler.errors import UnknownNameError, UsageError
from profiler.units import GIB, DeviceBytes
from profiler.workload import Candidate, Workload

SMALL, LARGE = "resnet18", "vit_small_patch16_224"
QUESTION = Question(budget_bytes=DeviceBytes(2 * GIB), train_images=1005)


def part(model: str, study: str | None = None) -> Request:
    return Request(
        space=Space(
            base=Workload(model=model, num_classes=10),
            methods=(SearchedMethod(name="full"), SearchedMethod(name="head")),
            micro_batches=(8,),
            effective_batch=8,
            precisions=("fp32",),
        ),
        budget_bytes=DeviceBytes(2 * GIB),
        device=device_label("rtx-2060-super", ""),
        runs_on="cpu",
        run=RunOptions(data="digits"),
        study=study or "alone",
        trials=None,
    )


def row(model: str, method: str, score: float, **changes: Any) -> TrialResult:
    known: dict[str, Any] = {
        "cost": 1.0,
        "peak_bytes": GIB,
        "device_bytes": DeviceBytes(GIB),
        "step_seconds": 1.0,
        "energy_joules": 1.0,
        "reason": "of the method",
    }
    workload = Workload(model=model, method=method, num_classes=10, micro_batch=8)
    return TrialResult(
        candidate=Candidate(workload=workload), assignment={}, score=score, **(known | changes)
    )


@pytest.fixture
def both(tmp_path: Path) -> Request:
    return request_for_backbones([LARGE, SMALL], part, study="mine", storage=None, out=tmp_path)


def test_each_backbone_has_its_study_and_all_share_folder_and_storage(
    both: Request, tmp_path: Path
) -> None:
    assert [each.study for each in both.backbones] == [f"mine-{LARGE}", f"mine-{SMALL}"]
    assert {each.storage for each in both.backbones} == {"sqlite:///studies/mine.db"}
    assert {each.out for each in both.backbones} == {tmp_path / f"{LARGE}+{SMALL}-digits-2147MB"}
    led = both.led_by(SMALL)
    assert [each.space.base.model for each in led.backbones] == [SMALL, LARGE]
    assert led.of_backbone(LARGE) == both.of_backbone(LARGE)
    assert {each.question_study for each in (both, led, *led.backbones)} == {"mine"}
    assert part(SMALL).question_study == "alone"


def test_rows_are_held_to_the_limit_of_their_own_backbone(tmp_path: Path) -> None:
    def build(model: str, study: str | None = None) -> Request:
        found = part(model, study)
        precisions = ("fp32", "bf16") if model == SMALL else ("fp32",)  # bf16 needs more room
        return replace(found, space=replace(found.space, precisions=precisions))

    both = request_for_backbones([LARGE, SMALL], build, study="mine", storage=None, out=tmp_path)
    limits = {each.space.base.model: each.limit_bytes for each in both.backbones}
    assert limits[LARGE] != limits[SMALL]
    roomier, tighter = sorted(limits, key=lambda model: -limits[model])
    rows = [row(model, "full", 0.0, device_bytes=limits[roomier]) for model in (roomier, tighter)]
    found = SearchResult(study="", storage="", results=tuple(rows), trials=2, cost_unit=None)
    for asked in (both, both.led_by(SMALL)):
        assert [r.candidate.workload.model for r in found.fitting(asked.limit_of)] == [roomier]


@pytest.mark.parametrize("precisions", [("fp32",), ("fp32", "bf16")])
def test_the_named_budget_admits_what_it_was_named_for(precisions: tuple[str, ...]) -> None:
    """Before Ampere bf16 has errors of its own, and the search keeps room for the larger ones."""
    asked = part(SMALL)
    asked = replace(asked, space=replace(asked.space, precisions=precisions))
    for need in (600_000_000, 1_234_567_891):
        named = asked.budget_for(need)
        assert replace(asked, budget_bytes=named).limit_bytes >= need
        assert replace(asked, budget_bytes=DeviceBytes(named - GIB // 50)).limit_bytes < need


def test_one_name_is_an_ordinary_request(tmp_path: Path) -> None:
    alone = request_for_backbones([SMALL], part, study=None, storage=None, out=tmp_path)
    assert alone == part(SMALL)


def test_scores_of_two_backbones_are_on_one_scale(
    both: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {
        LARGE: [row(LARGE, "full", 0.4), row(LARGE, "head", 0.9)],
        SMALL: [row(SMALL, "full", 0.3), row(SMALL, "head", 0.0)],
    }

    def searched(problem: Any, cost: Any, **options: Any) -> SearchResult:
        found = rows[problem.space.base.model]
        return SearchResult(
            study=options["study_name"], storage="", results=tuple(found), trials=2, cost_unit=None,
            stopped="flat for 50 trials" if problem.space.base.model == SMALL else None,
        )  # fmt: skip

    monkeypatch.setattr(stage, "search", searched)
    found = search_backbones(both, None, lambda *_: None)
    scores = {
        (r.candidate.workload.model, r.candidate.workload.method): r.score for r in found.results
    }
    # distances within a backbone stay; the best method of each is at the level of the backbone
    assert scores[LARGE, "head"] - scores[LARGE, "full"] == pytest.approx(0.5)
    assert scores[SMALL, "full"] - scores[SMALL, "head"] == pytest.approx(0.3)
    assert scores[LARGE, "head"] > scores[SMALL, "full"]
    assert found.trials == 4
    assert found.stopped == f"{SMALL}: flat for 50 trials"
    random = replace(both, run=replace(both.run, pretrained=False))
    unmoved = search_backbones(random, None, lambda *_: None)
    assert [r.score for r in unmoved.results] == [0.4, 0.9, 0.3, 0.0]


def test_the_reason_of_a_backbone_is_that_of_its_level() -> None:
    level = "83.1 % on ImageNet; weights of 2022"
    rows = [
        row(LARGE, "full", 2.0, reason=f"{level}; of the method", level_reason=level),
        row(SMALL, "full", 1.0),
    ]
    entries: Any = [
        SimpleNamespace(result=each, plan=SimpleNamespace(candidate=each.candidate))
        for each in rows
    ]
    choice = ChosenEntry(index=0, reason="Because.", ties=(), decided_by="cost")
    said = with_backbone_reason(choice, entries).reason
    assert said.endswith(f"is expected to be the most accurate ({level}). Because.")


def test_an_answer_has_the_best_row_of_each_backbone() -> None:
    results = [
        row(LARGE, "full", 2.0),
        row(LARGE, "head", 1.5),
        row(SMALL, "full", 1.0, step_seconds=0.1),
        row(SMALL, "head", 0.5),
    ]
    best = best_of_backbones(results, QUESTION)
    assert best == {LARGE: results[0], SMALL: results[2]}
    assert {id(results[0]), id(results[2])} <= {id(r) for r in answer_rows(results, QUESTION)}
    assert best_of_backbones(results[:2], QUESTION) == {}


def test_when_nothing_fits_the_advice_is_for_the_smallest_backbone(both: Request) -> None:
    found = SearchResult(
        study="",
        storage="",
        results=(row(LARGE, "head", 0.0), row(SMALL, "head", 0.0, device_bytes=DeviceBytes(9))),
        trials=2,
        cost_unit=None,
    )
    asked, own = smallest_backbone(both, found)
    assert asked.space.base.model == SMALL
    assert own.results == found.results[1:]


# ---- names ---------------------------------------------------------------------------------------


def test_names_are_split_and_checked() -> None:
    assert backbone_names("vit_s, resnet18,", budget_bytes=GIB) == ["vit_s", "resnet18"]
    assert backbone_names(["vit_s"], budget_bytes=GIB) == ["vit_s"]
    assert len(backbone_names("auto", budget_bytes=2 * GIB)) > 1
    with pytest.raises(UsageError, match="twice"):
        backbone_names("vit_s,vit_small_patch16_224", budget_bytes=GIB)
    with pytest.raises(UsageError, match="no backbone"):
        backbone_names(" , ", budget_bytes=GIB)
    with pytest.raises(UnknownNameError):
        backbone_names("vit_s,vit_ss", budget_bytes=GIB)


def test_folders_of_many_backbones_have_short_names_of_their_own() -> None:
    assert several_backbones._joined([SMALL, "vit_s"]) == f"{SMALL}+vit_s"
    many = [[SMALL, LARGE, f"convnext_{size}"] for size in ("tiny", "small", "base")]
    names = [several_backbones._joined(models) for models in many]
    assert len(set(names)) == 3
    assert all(name.startswith(f"{SMALL}+2-more-") and len(name) < 60 for name in names)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--weights", "w.safetensors"], f"use --weights {SMALL}=w.safetensors"),
        (["--weights", "vit_t=w.safetensors"], f"is about {SMALL}, {LARGE}"),
        (["--weights", f"{SMALL}=w.safetensors"] * 2, f"two files for {SMALL}"),
        (["--weights", "vits=w.safetensors"], "did you mean"),
    ],
)
def test_weights_name_their_backbone_if_there_are_several(
    options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(b"")
    command = ["recommend", "--vram", "2GB", "--model", f"{SMALL},{LARGE}", *options]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


def test_weights_by_backbone() -> None:
    def found(models: list[str], weights: Any) -> dict[str, str]:
        return {name: str(file) for name, file in weights_by_backbone(models, weights).items()}

    both = [SMALL, "vit_s"]
    assert found(both, None) == {}
    for weights in (["vit_s=b=1.pt::ema"], {LARGE: Path("b=1.pt::ema")}):
        assert found(both, weights) == {"vit_s": "b=1.pt::ema"}
    assert found(both, [f"{LARGE}=b", f"{SMALL}=a"]) == {"vit_s": "b", SMALL: "a"}
    # the file of one backbone needs no name, and may contain "="
    assert found([SMALL], "epoch=3.pt") == {SMALL: "epoch=3.pt"}
    assert found([SMALL], [f"{SMALL}=a"]) == {SMALL: "a"}


# ---- the whole flow ------------------------------------------------------------------------------


def test_two_small_backbones_in_one_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    answer = recommend_by_api(
        ["test_vit", "test_resnet"],
        vram="2GB",
        image_size=32,
        effective_batch=4,
        methods=["full", "head"],
        precisions=["fp32"],
        optimizers=["adamw"],
        checkpoints=["none"],
        validations=0,
        study="pair",
        training_free=False,
    )
    models = [entry.plan.candidate.workload.model for entry in answer.front]
    assert set(models) == {"test_vit", "test_resnet"}
    chosen = models[answer.recommended]
    other = ({*models} - {chosen}).pop()
    assert other in {
        models[a.index] for a in answer.alternatives if a.name == "backbone" and a.index is not None
    }
    assert answer.study == f"pair-{chosen}"
    data = json.loads(json.dumps(answer.to_json()))
    assert [each["model"] for each in data["backbones"]] == [chosen, other]
    assert data["other_backbone"] is None
    assert "backbones" in answer.why
    for entry in answer.front:
        model = entry.plan.candidate.workload.model
        assert entry.file.name.startswith(model)
        assert entry.plan.provenance["study"] == f"pair-{model}"
    choice = choose(answer.front, question=QUESTION)
    rows = named_alternatives(
        answer.front, choice, {}, question=QUESTION, searched=[e.result for e in answer.front]
    )
    assert sum(each.name == "backbone" for each in rows) == 1


def test_questions_asked_in_a_row_have_studies_of_their_own() -> None:
    names = set()
    for _ in range(3):
        names.add(several_backbones.joint_study_name(["vit_s", "tiny_vit"]))
        time.sleep(2e-3)
    assert len(names) == 3
