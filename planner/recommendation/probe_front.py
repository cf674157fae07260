"""The probe stage: short trainings of the candidates of the front on the user's images.

Candidates that learn alike share their trainings (``planner.training.probe_records``). The result
is an expected accuracy of kind ``probe`` for each candidate, with an interval, and the probability
that it is the best one. The test images are never read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from planner.recommendation.checks import CheckedCandidate
from planner.recommendation.recipes import plan_recipe
from planner.recommendation.request import Notify, Request
from planner.scoring.accuracy_prior import COVERAGE, AccuracyEstimate
from planner.training.probe_records import (
    BackboneRules,
    Learner,
    LearnerRule,
    ProbeRule,
    ProbeSetting,
    planned_steps,
)
from planner.training.probe_statistics import (
    LearnerEstimate,
    estimate_learners,
    format_chance,
)
from profiler.models import backbones
from profiler.workload import Candidate, Workload

if TYPE_CHECKING:
    from planner.recipe import Recipe
    from planner.training.probe_messages import ProbeResult
    from planner.workers.run_pool import RunPool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOutcome:
    """Result of a probe for the candidates of a front.

    Attributes:
        estimates: estimate by the name of the learner, the best first.
        setting: setting of the runs; None without a run.
        rule: rule for which candidates learn alike.
        runs: number of finished runs, those of earlier probes included.
        earlier_runs: number of runs of earlier probes.
        seconds: duration of this probe.
        notes: sentences about the probe and its limits.
        workloads: workload of each learner, by its name.
        planned_steps: steps that the epochs of the longest plan take on the probe's images; None
            without a run.
    """

    estimates: Mapping[str, LearnerEstimate]
    setting: ProbeSetting | None
    rule: ProbeRule
    runs: int
    earlier_runs: int
    seconds: float
    notes: tuple[str, ...]
    workloads: Mapping[str, Workload] = field(default_factory=dict)
    planned_steps: int | None = None

    @property
    def trained(self) -> list[tuple[Workload, LearnerEstimate]]:
        """Workload and estimate of each learner whose training did not diverge."""
        return [
            (self.workloads[name], estimate)
            for name, estimate in self.estimates.items()
            if name in self.workloads and not estimate.diverged
        ]

    def estimate_of(self, workload: Workload) -> LearnerEstimate | None:
        """Return the estimate of a candidate's workload; None if it was not trained."""
        return self.estimates.get(self.rule.name(workload))

    def expected_accuracy(self, workload: Workload) -> AccuracyEstimate | None:
        """Return the expected accuracy of a workload; None if it was not trained."""
        found, setting = self.estimate_of(workload), self.setting
        if found is None or setting is None or found.diverged:
            return None
        seeds = "one seed" if found.seeds == 1 else f"{found.seeds} seeds"
        at_size = ""
        if setting.image_size != workload.image_size:
            at_size = f" at {setting.image_size} px in place of {workload.image_size}"
        return AccuracyEstimate(
            value=found.expected,
            kind="probe",
            source=f"probe of {found.learner}",
            reason=f"{100 * found.accuracy:.1f} % after {found.steps} steps here{at_size} on "
            f"{setting.train_images} images, {seeds}, tested on {setting.held_out_images} others, "
            f"none of them of the test part, {self._how_long(found)}; the best of "
            f"{len(self.estimates)} with a probability of "
            f"{format_chance(found.best)}",
            low=min(found.low, found.expected),
            high=max(found.high, found.expected),
            coverage=COVERAGE,
        )

    def _how_long(self, found: LearnerEstimate) -> str:
        """Return how the steps of a learner stand to the epochs of the longest plan."""
        if self.planned_steps is not None and found.steps >= self.planned_steps:
            return "after as many epochs as the longest plan has"
        return "and carried on to the epochs of the longest plan"

    def recipe(self, workload: Workload, recipe: Recipe) -> Recipe:
        """Return a recipe with the learning rate that the probe found better, or unchanged."""
        found = self.estimate_of(workload)
        if found is None or found.rate_factor == 1:
            return recipe
        return replace(
            recipe,
            learning_rate=recipe.learning_rate * found.rate_factor,
            source=f"learning rate by the probe, {found.rate_factor:.2g} times the default "
            f"({recipe.source})",
        )

    def to_json(self, workloads: Sequence[Workload]) -> dict[str, Any]:
        """Return the object ``probe`` of the answer.

        Args:
            workloads: workload of each entry of the front.
        """
        found = [self.estimate_of(workload) for workload in workloads]
        return {
            "setting": None if self.setting is None else asdict(self.setting),
            "runs": self.runs,
            "earlier_runs": self.earlier_runs,
            "seconds": self.seconds,
            "coverage": COVERAGE,
            "entries": [None if each is None else asdict(each) for each in found],
        }


def probe_front(
    request: Request,
    candidates: Sequence[CheckedCandidate],
    pool: RunPool | None,
    notify: Notify,
) -> ProbeOutcome | None:
    """Probe the candidates of a front; None if no probe was requested.

    Args:
        request: the request.
        candidates: candidates that passed the replay.
        pool: runs it, here or on a worker; None if nothing is to be run.
        notify: called with (stage, current work, fraction of the stage done).

    Raises:
        InputError: the data, the weights or the study cannot be used.
        MeasurementError: the child process died.
    """
    from planner.recommendation.probe_run_order import run_probe_order
    from planner.recommendation.run_limits import probe_limit

    if request.probe_seconds is None:
        return None
    rule = rule_of(request)
    lacking = [
        part.space.base.model
        for part in request.backbones
        if part.trains_pretrained and not part.has_weights
    ]
    if lacking:
        of_which = f" of {', '.join(lacking)}" if request.others else ""
        return _no_probe(
            rule,
            f"nothing was probed: the pretrained weights{of_which} cannot be loaded here, and "
            "random ones order methods in another way; give --weights FILE",
        )
    learners = learners_of(request, [c.candidate for c in candidates], rule)
    assert pool is not None, "a probe is a real run"
    result = run_probe_order(
        request,
        learners,
        purpose="compare",
        rule=rule,
        seconds=request.probe_seconds,
        limit_seconds=probe_limit(request, learners, rule),
        pool=pool,
        on_progress=lambda text, done: notify("probe", text, done),
    )
    return _outcome(result, learners, rule)


def unused_probe_notes(request: Request, storage: str) -> tuple[str, ...]:
    """Return a note on a probe that the study holds and the request does not ask for.

    Args:
        request: the request.
        storage: URL of the storage.

    Raises:
        InputError: the study cannot be read.
    """
    from planner.search.probe_storage import read_probe_runs
    from planner.training.probe_process import readable_runs

    if request.probe_seconds is not None:
        return ()
    runs = readable_runs(read_probe_runs(storage, request.study))
    if len({run.learner for run in runs}) < 2:  # a test of learning rates has one
        return ()
    return (
        f"the study {request.study} holds {len(runs)} short trainings of a probe, which this "
        "answer does not use; --probe-minutes goes on from those of the same data and recipes",
    )


def final_recipe(request: Request, probe: ProbeOutcome | None, workload: Workload) -> Recipe:
    """Return the recipe of a plan, with the learning rate of the probe if there was one."""
    recipe = plan_recipe(request, workload)
    return recipe if probe is None else probe.recipe(workload, recipe)


def rule_of(request: Request) -> ProbeRule:
    """Return the rule for which candidates of a request learn alike."""
    if request.others:
        rules = {part.space.base.model: _rule_of_backbone(part) for part in request.backbones}
        return BackboneRules(rules=rules)
    return _rule_of_backbone(request)


def _rule_of_backbone(request: Request) -> LearnerRule:
    base = request.space.base
    backbone = backbones.shared_shapes(
        base.model, num_classes=base.num_classes, image_size=base.image_size
    )
    return LearnerRule(
        device="cpu" if _trains_on_cpu(request) else "cuda",
        has_batch_norm=backbones.has_batch_norm(backbone),
    )


def _trains_on_cpu(request: Request) -> bool:
    """Return whether short trainings take place on a CPU.

    Workers train on the GPU that the user has named; without one they do as this machine would.
    """
    if request.runs_on != "cpu":
        return False
    names_gpu = request.device.kind != "cpu" and not request.device.note
    return not (request.uses_workers and names_gpu)


def learners_of(
    request: Request, candidates: Sequence[Candidate], rule: ProbeRule
) -> tuple[Learner, ...]:
    """Return one learner for each class of candidates that learn alike, in their order."""
    found: dict[str, Learner] = {}
    for candidate in candidates:
        workload, name = rule.workload(candidate.workload), rule.name(candidate.workload)
        # On a CPU nothing is recomputed: the probe's time counts there, not its memory.
        stands_for = Candidate(workload=workload) if rule.device == "cpu" else candidate
        if name not in found:
            recipe = plan_recipe(request, candidate.workload)
            found[name] = Learner(name=name, candidate=stands_for, recipe=recipe)
    return tuple(found.values())


def _outcome(result: ProbeResult, learners: Sequence[Learner], rule: ProbeRule) -> ProbeOutcome:
    # A study may hold runs of learners that are not on this front.
    names = {learner.name for learner in learners}
    runs = [run for run in result.runs if run.learner in names]
    planned = planned_steps(learners, runs[0].setting) if runs else None
    found = estimate_learners(runs, planned_steps=planned, test_images=result.test_images)
    estimates = {each.learner: each for each in found}
    return ProbeOutcome(
        estimates=estimates,
        setting=runs[0].setting if runs else None,
        rule=rule,
        runs=len(runs),
        earlier_runs=result.earlier_runs,
        seconds=result.seconds,
        notes=tuple(_probe_notes(result, learners, estimates)),
        workloads={learner.name: learner.candidate.workload for learner in learners},
        planned_steps=planned,
    )


def _probe_notes(
    result: ProbeResult, learners: Sequence[Learner], estimates: Mapping[str, LearnerEstimate]
) -> list[str]:
    missing = [
        learner.name
        for learner in learners
        if learner.name not in estimates and learner.name not in result.failures
    ]
    kept = f", {result.earlier_runs} of them by an earlier probe" if result.earlier_runs else ""
    notes = [
        f"the probe ended after {result.seconds:.0f} s and {len(result.runs)} trainings{kept}: "
        f"{result.reason}"
    ]
    if result.runs:
        notes += _scale_notes(result, learners)
    if any(run.from_features for run in result.runs):
        notes.append(
            "the probe trained heads, side networks and last units on stored activations, "
            "without augmentation"
        )
    if missing:
        notes.append(f"the probe had no time for {'; '.join(missing)}; give it more minutes")
    return [*notes, *(f"{name}: {reason}" for name, reason in result.failures.items())]


def _scale_notes(result: ProbeResult, learners: Sequence[Learner]) -> Iterator[str]:
    """Yield a note for each way in which the probe's trainings are smaller than the plans'."""
    setting = result.runs[0].setting
    sizes = {learner.candidate.workload.image_size for learner in learners} - {setting.image_size}
    if sizes:
        planned = " and ".join(map(str, sorted(sizes)))
        cause = "its time allows no more" if setting.device == "cpu" else "all backbones take it"
        yield (
            f"the probe trained at {setting.image_size} px in place of {planned} px, because "
            f"{cause}: its accuracies order the methods, and are not those of the plans"
        )
    longest = max(run.steps for run in result.runs)
    steps = planned_steps(learners, setting)
    if longest < steps:
        yield (
            f"the longest trainings of the probe had {longest} steps, and the epochs of the "
            f"longest plan take {steps} on its {setting.train_images} images: the accuracies are "
            "carried on to these, with an error that studies/probe measured, and the order may be "
            "another"
        )


def _no_probe(rule: ProbeRule, note: str) -> ProbeOutcome:
    return ProbeOutcome(
        estimates={},
        setting=None,
        rule=rule,
        runs=0,
        earlier_runs=0,
        seconds=0.0,
        notes=(note,),
    )
