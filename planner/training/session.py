"""One training under way: model, optimizer, data order, and the steps taken so far."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from planner.training.adaptive_rule import AdaptiveRule, memory_in_use
from planner.training.learning_rate import LearningRate
from planner.training.oom_fallback import tighter_placements
from planner.training.training_device import device_type
from profiler.checkpointing.apply import AppliedPlacement, apply_adaptive, apply_placement
from profiler.errors import (
    MeasurementError,
)
from profiler.models.build import BuiltModel
from profiler.placement import PolicyChoice, placement_from_json
from profiler.running.memory_caps import is_out_of_memory
from profiler.training_step import (
    Batch,
    TrainingStep,
    make_optimizer,
)
from profiler.workload import Candidate

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from planner.cost.model import CostModel


# ---- a model in training -------------------------------------------------------------------------


class _StepImages:
    """The micro-batches of one step, kept on the host until the step is done, for a repetition."""

    def __init__(self, source: Iterator[Batch], *, count: int, device: str) -> None:
        self._source, self._count, self._device = source, count, device
        self._drawn: list[Batch] = []

    def fetches(self) -> list[Callable[[], Batch]]:
        return [partial(self._fetch, index) for index in range(self._count)]

    def _fetch(self, index: int) -> Batch:
        while len(self._drawn) <= index:
            self._drawn.append(next(self._source))
        images, labels = self._drawn[index]
        return images.to(self._device), labels.to(self._device)


class Session:
    """A model in training and everything that changes from step to step.

    Args:
        candidate: what to train, and the placement to start with.
        built: the model, on its device.
        device: where it is.
        rate: the learning rate.
        total_steps: length of the training.
        tighter: candidates to step down to, in order; found when not given.
        cost: to be asked for them.
        rule: decides in place of the placement, until memory runs out.
        in_use: what the rule looks at.
    """

    def __init__(
        self,
        *,
        candidate: Candidate,
        built: BuiltModel,
        device: str,
        rate: LearningRate,
        total_steps: int,
        tighter: Iterable[Candidate] | None = None,
        cost: CostModel | None = None,
        rule: AdaptiveRule | None = None,
        in_use: Callable[[], int] | None = None,
    ) -> None:
        self.built, self.device, self.rate = built, device, rate
        self.model = built.model
        workload = candidate.workload
        kind = device_type(device)
        optimizer = make_optimizer(
            self.model,
            workload,
            method=built.method,
            foreach=kind == "cuda",
            learning_rate=rate.value,
        )
        built.method.on_training_start(self.model, total_steps=total_steps)
        self.step = TrainingStep(
            self.model,
            optimizer,
            workload,
            method=built.method,
            device_type=kind,
            mark=self._mark,
        )
        self.step_downs: list[str] = []
        self._asked = self._followed = candidate
        self._phase = ""
        self._cost = cost
        self._tighter = None if tighter is None else iter(tighter)
        if rule is None:
            self._applied = self._apply(candidate)
        else:
            policy = PolicyChoice("adaptive", {"threshold": rule.threshold})
            self._followed = replace(candidate, policy=policy)
            self._applied = apply_adaptive(
                self.model,
                budget_bytes=rule.budget_bytes,
                threshold=rule.threshold,
                live_bytes=in_use or memory_in_use(device),
                units=built.units,
            )

    @property
    def candidate(self) -> Candidate:
        """What the model follows; under a rule, with the placement that it decided last."""
        return replace(self._followed, placement=self._applied.placement)

    def close(self) -> None:
        """Give the model its own forward back."""
        self._applied.remove()

    def run(self, source: Iterator[Batch]) -> float:
        """Run one step on the next images and return its loss, stepping down if memory runs out."""
        images = _StepImages(source, count=self.step.workload.accumulation, device=self.device)
        self.set_rate()
        states = random_states()
        while True:
            refusal = self._attempt(images)
            if isinstance(refusal, float):
                return refusal
            self._step_down(refusal)
            set_random_states(states)

    def set_rate(self) -> None:
        """Give the optimizer the learning rate of the next step."""
        for group in self.step.optimizer.param_groups:
            group["lr"] = self.rate.at(self.step.global_step)

    def _attempt(self, images: _StepImages) -> float | str:
        """Return the loss, or what the allocator said (the error itself holds activations)."""
        try:
            return float(self.step.run(images.fetches()))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            said = " ".join(str(error).split())[:160]
            if self._phase == "optimizer":
                raise MeasurementError(
                    f"memory ran out while the optimizer updated ({said}); what it had changed "
                    "cannot be undone; continue with --resume and more memory"
                ) from error
            return said

    def _mark(self, phase: str) -> AbstractContextManager[None]:
        from contextlib import nullcontext

        self._phase = phase
        return nullcontext()

    def _step_down(self, reason: str) -> None:
        before = self.candidate
        self._applied.remove()
        self.step.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if self.step.device_type == "cuda":
            torch.cuda.empty_cache()
        if self._tighter is None:
            self._tighter = self._below(before)
        found = next(self._tighter, None)
        if found is None:
            raise MeasurementError(
                f"memory ran out with placement {before.policy.display_name!r}, the tightest "
                f"there is ({reason}); make a plan with a smaller micro-batch"
            )
        self._applied = self._apply(found)
        self.step_downs.append(
            f"step {self.step.global_step + 1}: memory ran out under placement "
            f"{before.policy.display_name!r}, went on under "
            f"{self.candidate.policy.display_name!r} ({reason})"
        )

    def _below(self, candidate: Candidate) -> Iterator[Candidate]:
        return tighter_placements(candidate, self.built.units, self._cost)

    def _apply(self, candidate: Candidate) -> AppliedPlacement:
        self._followed = candidate
        return apply_placement(self.model, candidate.placement, units=self.built.units)

    # -- what a checkpoint holds ---------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return everything but the learned tensors, as tensors and plain data."""
        scaler = self.step.scaler
        return {
            "optimizer": self.step.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "method": self.built.method.training_state(self.model),
            "random": random_states(),
            "global_step": self.step.global_step,
            "asked_placement": self._asked.to_json()["placement"],
            "placement": self.candidate.to_json()["placement"],
            "step_downs": list(self.step_downs),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state`` returned."""
        self.step.optimizer.load_state_dict(state["optimizer"])
        if self.step.scaler is not None:
            self.step.scaler.load_state_dict(state["scaler"])
        self.built.method.restore_training_state(self.model, state["method"])
        self.step.global_step = int(state["global_step"])
        self.step_downs = [str(text) for text in state["step_downs"]]
        if self._with_placement(state["asked_placement"]) == self._asked:
            self._follow(self._with_placement(state["placement"]))
        # else it is asked for another now, which changes nothing of what is learned
        set_random_states(state["random"])

    def _with_placement(self, data: object) -> Candidate:
        placement, policy = placement_from_json(data)
        return replace(self._asked, placement=placement, policy=policy)

    def _follow(self, candidate: Candidate) -> None:
        by_rule = self.candidate.policy.name == candidate.policy.name == "adaptive"
        if candidate != self.candidate and not by_rule:
            self._applied.remove()
            self._tighter = self._below(candidate)
            self._applied = self._apply(candidate)


def random_states() -> dict[str, Any]:
    """Return the states of torch's generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_states(states: Mapping[str, Any]) -> None:
    """Put torch's generators back."""
    torch.set_rng_state(states["cpu"].cpu())
    if states["cuda"] and torch.cuda.is_initialized():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
