"""The rules of choice on candidates in closed form."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from planner.recommendation.method_reason import cheaper_equal, method_reason, some_names
from planner.recommendation.named_rows import answer_rows, named_rows
from planner.recommendation.ranking import EDGE, Question, best_of, equal_methods
from planner.scoring.method_evidence import relative_score
from planner.search.problem import COST_IMAGES, SGD_STEP, TrialResult
from profiler.placement import Decision, Placement
from profiler.units import GIB, DeviceBytes
from profiler.workload import Candidate, Workload

VIT, TINY_VIT, RESNET = "vit_small_patch16_224", "tiny_vit_21m_224", "resnet18"
FEW, MANY = 1000, 50_000


def row(
    method: str = "lora",
    *,
    rank: int | None = None,
    seconds: float = 1.0,
    gib: float = 1.0,
    model: str = VIT,
    images: int = FEW,
    recomputed: bool = False,
    **workload: object,
) -> TrialResult:
    load = Workload(model=model, method=method, rank=rank).replace(**workload)
    placement = Placement({"blocks.0": Decision.RECOMPUTE} if recomputed else {})
    score = relative_score(model=model, method=method, data="x", rank=rank, train_images=images)
    return TrialResult(
        candidate=Candidate(workload=load, placement=placement),
        assignment={},
        score=score.value - (SGD_STEP if load.optimizer == "sgd" else 0.0),
        cost=100 * seconds,
        peak_bytes=int(gib * GIB),
        device_bytes=DeviceBytes(int(gib * GIB)),
        step_seconds=seconds,
        energy_joules=100 * seconds,
        reason="",
    )


def question(*, gib: float = 2.0, images: int = FEW, **options: object) -> Question:
    budget = DeviceBytes(int(gib * GIB))
    return Question(budget_bytes=budget, train_images=images, **options)


def chosen(*rows: TrialResult, **options: object) -> int:
    best = best_of(rows, question(**options))
    return next(i for i, each in enumerate(rows) if each is best)


# ---- memory and time -----------------------------------------------------------------------------


def test_memory_within_the_budget_is_no_cost_and_its_edge_is_left_free() -> None:
    small, large = row(seconds=1.04, gib=0.5), row(seconds=1.0, gib=1.9)
    assert chosen(small, large) == 1
    assert chosen(small, large, gib=1.9 / (EDGE + 0.01)) == 0
    assert chosen(large, gib=1.9) == 0  # nothing else is left


def test_more_memory_must_save_three_percent() -> None:
    assert chosen(row(seconds=1.02, gib=0.5), row(seconds=1.0, gib=1.5)) == 0


def test_three_percent_of_the_time_count_even_where_the_energy_rises() -> None:
    slow = replace(row(seconds=1.04, gib=0.5), energy_joules=98.0)
    fast = replace(row(seconds=1.0, gib=1.5), energy_joules=100.0)
    assert question().cost(slow) < 1.03 * question().cost(fast)
    assert chosen(slow, fast) == 1
    assert chosen(slow, fast, objective="energy") == 0


def test_of_equal_cost_the_plan_without_checkpointing_is_taken() -> None:
    assert chosen(row(recomputed=True, gib=0.5), row(gib=0.8)) == 1


@pytest.mark.parametrize("budget", [0.5, 0.7, 1.0, 1.4, 2.0, 4.0])
def test_a_larger_budget_is_never_slower_by_more_than_the_margin(budget: float) -> None:
    rows = [
        row(seconds=1 + 0.3 * k / 20 + (0.05 if again else 0), gib=2.0 / (1 + k), recomputed=again)
        for k, again in product(range(20), (False, True))
    ]

    def seconds(gib: float) -> float:
        fitting = [r for r in rows if r.device_bytes <= gib * GIB]
        found = best_of(fitting, question(gib=gib)).step_seconds
        assert found is not None
        return found

    assert seconds(1.5 * budget) <= 1.03 * seconds(budget)


# ---- methods and ranks ---------------------------------------------------------------------------


def test_of_equal_methods_the_published_and_known_default_wins() -> None:
    rows = [
        row("lora", rank=8),
        row("lora", rank=2, seconds=0.98, gib=0.9),
        row("adaptformer", rank=8, seconds=0.9),
        row("side", rank=64, seconds=0.4, gib=0.3),
        row("prefix", rank=2, seconds=0.5),
        row("full", seconds=1.3),
    ]
    assert chosen(*rows) == 0
    assert equal_methods(rows) == ["lora", "adaptformer", "side"]
    much_cheaper = row("adaptformer", rank=8, seconds=0.7)
    assert chosen(rows[0], much_cheaper) == 1


def reason(*searched: TrialResult, answered: list[int], **options: object) -> str:
    return method_reason(
        searched[answered[0]],
        answered=[searched[i] for i in answered],
        question=question(**options),
        searched=searched,
    )


def test_the_reason_names_what_decided_among_all_methods_that_were_searched() -> None:
    """A better known method without a row in the answer is one of the equal methods, too."""
    lora, ssf = row("lora", rank=8), row("ssf", seconds=0.9)
    cheap = row("adaptformer", rank=8, seconds=0.7)
    names = "of 3 methods that are expected to be equally accurate"
    told = reason(cheap, ssf, lora, row("prefix", rank=2), answered=[0, 1])
    assert told.startswith(f"it costs 30 % less than lora, the best known {names} (adaptformer, ")
    assert reason(lora, ssf, row("side", rank=8), answered=[0, 1]).startswith(
        f"it is the best known {names} (lora, "
    )
    told = reason(cheap, ssf, lora, answered=[0, 1], objective="time")
    assert told.startswith(f"it is the best by time {names}")
    edge = row("lora", rank=8, gib=1.98)
    told = reason(row("adaptformer", rank=8), ssf, edge, answered=[0, 1])
    assert told.startswith("it leaves more of the budget free than lora, the best known")


@pytest.mark.parametrize(
    ("names", "text"),
    [("a", "a"), ("abcd", "a, b, c, d"), ("abcde", "a, b, c and 2 more")],
)
def test_a_reason_names_few_methods_and_counts_the_others(names: str, text: str) -> None:
    assert some_names(list(names)) == text


def test_the_reason_names_methods_that_failed_the_later_checks() -> None:
    lora, ssf, head = row("lora", rank=8), row("ssf"), row("head")
    assert reason(ssf, head, lora, answered=[0, 1]).startswith(
        "lora did not pass the later checks; it is the best known of 2 methods"
    )
    told = reason(head, lora, ssf, answered=[0])
    assert told.startswith("lora, ssf did not pass the later checks, though expected to be more")
    alone = reason(lora, head, answered=[0, 1])
    assert alone.startswith("no other method that fits is expected to be as accurate")


def test_full_is_preferred_where_it_costs_no_more() -> None:
    full, lora = row("full", model=RESNET), row("lora", rank=8, model=RESNET, seconds=1.0)
    assert chosen(lora, full) == 1
    cheaper = row("lora", rank=8, model=RESNET, seconds=0.9)
    assert chosen(cheaper, full) == 0


def test_many_images_go_to_full_training_on_transformers() -> None:
    rows = [
        row("lora", rank=8, images=MANY, seconds=0.7),
        row("full", images=MANY),
        row("side", rank=8, images=MANY, seconds=0.3),
        row("ssf", images=MANY, seconds=0.9),
    ]
    assert chosen(*rows, images=MANY) == 1


def test_nothing_is_recommended_without_evidence_on_the_family() -> None:
    cheap = [row(m, rank=8, model=TINY_VIT, seconds=0.1) for m in ("lora", "adaptformer", "side")]
    head, full = row("head", model=TINY_VIT, seconds=0.2), row("full", model=TINY_VIT)
    assert chosen(*cheap, head, full) == 4
    assert chosen(*cheap, head) == 3


def test_sgd_never_ties_with_adamw() -> None:
    adamw, sgd = row(rank=8), row(rank=8, seconds=0.5, optimizer="sgd")
    assert chosen(adamw, sgd) == 0


def test_an_objective_takes_the_least_of_its_kind() -> None:
    rows = [row("lora", rank=8), row("side", rank=8, seconds=0.5)]
    assert chosen(*rows) == 0
    assert chosen(*rows, objective="time") == chosen(*rows, objective="energy") == 1
    ssf = row("ssf", seconds=1.2)  # 73.1 % on VTAB-1k, the highest of the methods here
    assert chosen(*rows, ssf, objective="accuracy") == 2


def cheaper(*rows: TrialResult, **options: object) -> str:
    """Return the remark on a row that costs less than the chosen one."""
    return cheaper_equal(rows[chosen(*rows, **options)], rows, question(**options))


def test_a_plan_that_is_a_little_faster_than_the_chosen_one_is_said() -> None:
    small, large = row(seconds=1.02, gib=0.5), row(seconds=1.0, gib=1.5)
    told = "adamw takes 2.0 % less time, but needs 1.00 GiB more: savings up to 3% count as equal"
    assert cheaper(small, large, objective="time").endswith(told)
    assert "takes 2.0 % less energy" in cheaper(small, large, objective="energy")
    recomputed = row(seconds=1.0, gib=0.3, recomputed=True)
    assert "takes 2.0 % less time, but checkpoints" in cheaper(small, recomputed, objective="time")
    # of side, the slower plan stands for the method, and is faster than that of lora
    others = row("side", rank=8, seconds=1.01, gib=0.6), row("side", rank=8, gib=0.7)
    assert chosen(small, *others, objective="time") == 1
    assert "side r8, 32x1, fp32, adamw takes 1.0 % less time" in cheaper(
        small, *others, objective="time"
    )


def test_no_faster_plan_is_said_where_there_is_none_or_another_rule_decided() -> None:
    small, large = row(seconds=1.02, gib=0.5), row(seconds=1.0, gib=1.5)
    assert cheaper(small, large) == ""  # time and energy together
    assert cheaper(large, objective="time") == ""
    assert cheaper(small, row(seconds=1.0, gib=1.99), objective="time") == ""  # at the edge
    slow = row(seconds=1.5, gib=0.5)
    assert cheaper_equal(slow, [slow, large], question(objective="time")) == ""
    assert cheaper_equal(large, [], question(objective="time")) == ""


# ---- named rows ----------------------------------------------------------------------------------


def test_rows_are_named_and_different() -> None:
    rows = [
        row("lora", rank=8, precision="fp16"),
        row("lora", rank=8, micro_batch=4, accumulation=8, precision="fp16", seconds=1.08, gib=0.6),
        row("lora", rank=8, micro_batch=1, accumulation=32, seconds=2.2, gib=0.4),
        row("lora", rank=8, seconds=2, gib=1.9),
        row("side", rank=8, seconds=0.5, gib=0.7),
        row("prefix", rank=2, gib=0.1),
        row("full", seconds=1.5, gib=1.6),
        row("head", seconds=0.3, gib=0.3),
    ]
    names = {name: rows.index(found) for name, found in named_rows(rows, question()).items()}
    assert names == {
        "recommended": 0, "fastest": 4, "most accurate": 0, "safest": 1, "smallest": 2,
        "full": 6, "paper": 3,
    }  # fmt: skip
    found = answer_rows(rows, question())
    assert found[0] is rows[0]
    assert len({id(each) for each in found}) == len(found) == 6


@pytest.mark.parametrize(("seconds", "fastest"), [(0.98, 0), (0.96, 1)])
def test_another_row_is_called_the_fastest_only_if_it_saves_three_percent(
    seconds: float, fastest: int
) -> None:
    rows = [row("lora", rank=8), row("side", rank=8, seconds=seconds)]
    names = named_rows(rows, question())
    assert names["recommended"] is rows[0]
    assert names["fastest"] is rows[fastest]


def test_an_answer_of_one_method_is_filled_with_the_next_best_methods() -> None:
    rows = [row(m, model=TINY_VIT) for m in ("lora", "head", "full", "bitfit")]
    assert answer_rows(rows, question())[:2] == [rows[2], rows[1]]
    assert len(answer_rows(rows, question())) == 4


def test_the_cost_of_a_row_without_time_and_energy_is_of_one_image_too() -> None:
    asked, known = question(), row("full")
    images = known.candidate.workload.effective_batch
    known = replace(known, step_seconds=images * 2.0, energy_joules=None, cost=2.0 * COST_IMAGES)
    unknown = replace(known, step_seconds=None)
    assert asked.cost(unknown) == asked.cost(known) == 2.0
