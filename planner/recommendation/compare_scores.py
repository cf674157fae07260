"""The scores of several plans, and for which weights of the costs another plan would win.

    training_costs    costs of training as a plan records them
    compare_plans     for each cost of training, the winner by the weight of the costs
    differences       data sets, test images and devices that targets do not share

Only plans whose accuracy was measured or published are compared. An accuracy after the few steps
of a validation, a derived one and that of a probe's short trainings do not rank finished models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.cost.budget import needed_bytes
from planner.plan import Plan
from planner.recommendation.ranking_accuracy import ranks_candidates
from planner.recommendation.score_inputs import accuracy_images, read_scored_plan, score_inputs
from planner.scoring.counted_accuracy import counted_interval
from planner.scoring.sensitivity import ScoredPlan, WinningRange, winning_ranges
from planner.scoring.training_scores import IMAGES, TRAINING_FORMULAS, TrainingCosts
from planner.training.history import read_result
from planner.training.images.image_set import DataSource
from profiler.errors import InputError

SCORED_KINDS = ("measured", "published")
"""Kinds of an accuracy that scores are computed from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTarget:
    """A plan file or a trained folder with the numbers that scores need.

    Attributes:
        path: the file or folder.
        accuracy_percent: its accuracy in percent.
        costs: its costs of training.
        data: name of the data set, or the folder; None if it is not recorded.
        fingerprint: content of the data set (``DataSource``); None for a plan file.
        images: number of test images that the accuracy was counted on; None for a plan file.
        device: name of the device that the costs are predicted for.
    """

    path: Path
    accuracy_percent: float
    costs: TrainingCosts
    data: str | None = None
    fingerprint: str | None = None
    images: int | None = None
    device: str

    def to_json(self) -> dict[str, Any]:
        """Return what the accuracy and the costs are of, and the interval of the accuracy."""
        found: dict[str, Any] = {
            "path": str(self.path),
            "accuracy_percent": self.accuracy_percent,
            "data": self.data,
            "test_images": self.images,
            "device": self.device,
            "accuracy_interval_percent": None,
        }
        if self.images is not None:
            ends = counted_interval(self.accuracy_percent / 100, images=self.images)
            found["accuracy_interval_percent"] = [100 * end for end in ends]
        return found


def training_costs(plan: Plan) -> TrainingCosts:
    """Return the costs of training that a plan predicts."""
    prediction = plan.prediction
    images = prediction.candidate.workload.effective_batch
    seconds, joules = (
        None if value is None or value <= 0 else value * IMAGES / images
        for value in (prediction.step_seconds, prediction.energy_joules)
    )
    budget = plan.budget_bytes
    share = needed_bytes(prediction) / budget if budget else None
    return TrainingCosts(budget_share=share, seconds=seconds, joules=joules)


def read_score_target(path: Path) -> ScoreTarget:
    """Read a plan file or a trained folder.

    Raises:
        InputError: it is neither, or has no accuracy that was measured or published.
    """
    accuracy = score_inputs(path).get("accuracy_percent")
    plan = read_scored_plan(path)
    is_scored = path.is_dir() or (plan.accuracy.kind in SCORED_KINDS and ranks_candidates(plan))
    if accuracy is None or not is_scored:
        raise InputError(
            f"{path} has no accuracy that was measured in a whole training or published "
            f"(its kind is {plan.accuracy.kind!r}); train the plan, or give one --accuracy"
        )
    name, data = plan.provenance.get("data"), None
    if path.is_dir():
        data = DataSource.from_json(read_result(path).data, part="training.data")
        name = data.name
    return ScoreTarget(
        path=path,
        accuracy_percent=accuracy,
        costs=training_costs(plan),
        data=None if name is None else str(name),
        fingerprint=None if data is None else data.fingerprint,
        images=accuracy_images(path),
        device=plan.prediction.device.name,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """What targets do not share.

    Attributes:
        lines: a sentence for each difference.
        is_ranked: whether the accuracies are of one data set, so that a winner can be named.
    """

    lines: tuple[str, ...]
    is_ranked: bool


def differences(targets: Sequence[ScoreTarget]) -> Differences:
    """Compare the data sets, test images and devices that results are of."""
    lines, is_ranked = [], True
    names = {each.data or "an unknown data set" for each in targets}
    contents = {each.fingerprint for each in targets} - {None}
    images = {each.images for each in targets} - {None}
    if len(names) > 1:
        is_ranked = False
        lines.append(f"not ranked: accuracies of different data sets ({', '.join(sorted(names))})")
    elif len(contents) > 1 or len(images) > 1:
        is_ranked = False
        lines.append(f"not ranked: accuracies of different images of {names.pop()}")
    elif any(each.images is None for each in targets) and images:
        lines.append("accuracies counted here stand beside others, whose test images may differ")
    devices = {each.device for each in targets}
    if len(devices) > 1:
        lines.append(f"costs are predicted for different devices ({', '.join(sorted(devices))})")
    return Differences(lines=tuple(lines), is_ranked=is_ranked)


def compare_plans(
    targets: Sequence[ScoreTarget], *, accuracy_exponent: float
) -> Mapping[str, tuple[WinningRange, ...]]:
    """Return the winners by the weight of the costs, for each score that all targets have.

    Args:
        targets: plans to compare.
        accuracy_exponent: exponent of the accuracy.
    """
    found = {}
    for name, (_, needs) in TRAINING_FORMULAS.items():
        costs = [[getattr(each.costs, need) for need in needs] for each in targets]
        if any(cost is None for line in costs for cost in line):
            continue
        found[name] = winning_ranges(
            [
                ScoredPlan(
                    name=str(each.path), accuracy_percent=each.accuracy_percent, costs=tuple(line)
                )
                for each, line in zip(targets, costs, strict=True)
            ],
            accuracy_exponent=accuracy_exponent,
        )
    return found
