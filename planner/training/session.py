"""A model in training: model, optimizer, placement and the steps taken so far."""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from planner.recipe import Recipe
from planner.training.active_placement import ActivePlacement
from planner.training.adaptive_rule import AdaptiveRule
from planner.training.parameter_groups import parameter_groups, set_learning_rate
from planner.training.rate_schedule import RateSchedule
from profiler.errors import MeasurementError
from profiler.models.build import BuiltModel
from profiler.placement import placement_from_json, placement_to_json
from profiler.records import DeviceKind
from profiler.running.memory_caps import is_out_of_memory
from profiler.training_step import Batch, TrainingStep, make_optimizer
from profiler.workload import Candidate

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from planner.cost.model import CostModel


NEWEST_STEPS = 32
"""Newest steps of a training whose duration is kept."""


class _StepBatches:
    """Micro-batches of the current step, kept on the host so that the step can be repeated.

    Attributes:
        seconds: time in which the source made the micro-batches.
    """

    def __init__(self, source: Iterator[Batch], *, count: int, device: DeviceKind) -> None:
        self._source, self._count, self._device = source, count, device
        self._drawn: list[Batch] = []
        self.seconds = 0.0

    def fetches(self) -> list[Callable[[], Batch]]:
        return [partial(self._fetch, index) for index in range(self._count)]

    def _fetch(self, index: int) -> Batch:
        began = time.perf_counter()
        while len(self._drawn) <= index:
            self._drawn.append(next(self._source))
        self.seconds += time.perf_counter() - began
        images, labels = self._drawn[index]
        return images.to(self._device), labels.to(self._device)


class Session:
    """A model in training and everything that changes from step to step.

    Args:
        candidate: workload of the model, and the placement to begin with.
        built: the model, on its device.
        device: kind of that device.
        recipe: learning rate, schedule, weight decay and smoothing.
        total_steps: number of optimizer steps of the whole training.
        cost: cost model that computes tighter placements; None for fixed ones.
        rule: the adaptive rule, followed in place of the placement until memory runs out.
        live_bytes: function that returns the bytes in use, for the rule.

    Attributes:
        step: the training step, with optimizer and gradient scaler.
        schedule: learning rate by step.
        step_downs: one sentence for each change of placement after an out-of-memory error.
        step_seconds: durations of the newest steps, without the loading of images. There are none
            on CUDA with accumulation: the GPU works while the next micro-batch is loaded, so the
            time without the loading would be too short.
        loaded_step_seconds: durations of the newest steps with the loading of images.
        learning_rate: rate of the last step, before the factors of layers; None before a step.
    """

    def __init__(
        self,
        *,
        candidate: Candidate,
        built: BuiltModel,
        device: DeviceKind,
        recipe: Recipe,
        total_steps: int,
        cost: CostModel | None = None,
        rule: AdaptiveRule | None = None,
        live_bytes: Callable[[], int] | None = None,
    ) -> None:
        self.built, self.device, self.recipe = built, device, recipe
        self.schedule = RateSchedule(total_steps=total_steps)
        workload = candidate.workload
        optimizer = make_optimizer(
            self.model,
            workload,
            method=built.method,
            foreach=device == "cuda",
            learning_rate=recipe.learning_rate,
            groups=parameter_groups(self.model, recipe, at_once=device == "cuda"),
        )
        built.method.on_training_start(self.model, total_steps=total_steps)
        self.step = TrainingStep(
            self.model,
            optimizer,
            workload,
            method=built.method,
            device_type=device,
            mark=self._note_phase,
            label_smoothing=recipe.label_smoothing,
        )
        self.step_downs: list[str] = []
        self.step_seconds: deque[float] = deque(maxlen=NEWEST_STEPS)
        self.loaded_step_seconds: deque[float] = deque(maxlen=NEWEST_STEPS)
        self.learning_rate: float | None = None
        self._phase = ""
        self._requested = candidate
        self._active = ActivePlacement(
            built,
            candidate,
            cost=cost,
            rule=rule,
            live_bytes=live_bytes,
        )

    @property
    def model(self) -> torch.nn.Module:
        """The model in training."""
        return self.built.model

    @property
    def candidate(self) -> Candidate:
        """The candidate in training; under a rule, with its decisions of the last forward."""
        return self._active.candidate

    def close(self) -> None:
        """Restore the model's own forward."""
        self._active.remove()

    def run(self, source: Iterator[Batch]) -> float:
        """Run one step on the next images and return its loss.

        If the allocator refuses memory in forward or backward, the step is repeated on the same
        images and from the same random state under a tighter placement. Limitation: BatchNorm's
        running statistics are then updated twice by these images.

        Raises:
            MeasurementError: memory ran out under the tightest placement, or in the optimizer.
        """
        batches = _StepBatches(source, count=self.step.workload.accumulation, device=self.device)
        self.set_rate()
        states = random_states()
        began = time.perf_counter()
        while True:
            outcome = self._attempt(batches)
            if isinstance(outcome, float):
                self._note_time(time.perf_counter() - began, loading_seconds=batches.seconds)
                return outcome
            self._step_down(outcome)
            set_random_states(states)

    def _note_time(self, seconds: float, *, loading_seconds: float) -> None:
        """Keep the duration of a step."""
        self.loaded_step_seconds.append(seconds)
        if self.step.device_type == "cpu" or self.step.workload.accumulation == 1:
            self.step_seconds.append(seconds - loading_seconds)

    def set_rate(self) -> None:
        """Set the optimizer's learning rate to that of the next step."""
        factor = self.schedule.factor(self.step.global_step, self.recipe)
        rate = self.learning_rate = self.recipe.learning_rate * factor
        set_learning_rate(self.step.optimizer, rate)

    @property
    def reserved_bytes(self) -> int | None:
        """Highest bytes of the CUDA allocator's segments; None on a CPU."""
        if self.device != "cuda":
            return None
        return int(torch.cuda.max_memory_reserved(self.device))

    def _attempt(self, batches: _StepBatches) -> float | str:
        """Return the loss, or the message of the allocator's refusal.

        The exception itself is dropped: its traceback holds the activations.
        """
        try:
            return float(self.step.run(batches.fetches()))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            message = " ".join(str(error).split())[:160]
            if self._phase == "optimizer":
                raise MeasurementError(
                    f"memory ran out while the optimizer updated ({message}); the update is half "
                    "done and cannot be repeated; continue with --resume and more memory"
                ) from error
            return message

    def _note_phase(self, phase: str) -> AbstractContextManager[None]:
        self._phase = phase
        return nullcontext()

    def _step_down(self, message: str) -> None:
        """Free the failed attempt and apply the next tighter placement."""
        before = self.candidate.policy.display_name
        self._active.remove()
        self.step.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if self.step.device_type == "cuda":
            torch.cuda.empty_cache()
        if not self._active.apply_next():
            raise MeasurementError(
                f"memory ran out with placement {before!r}, the tightest there is "
                f"({message}); make a plan with a smaller micro-batch"
            )
        self.step_downs.append(
            f"step {self.step.global_step + 1}: memory ran out under placement {before!r}; "
            f"continued under {self.candidate.policy.display_name!r} ({message})"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state beside the trained tensors, as tensors and plain data."""
        scaler = self.step.scaler
        return {
            "optimizer": self.step.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "method": self.built.method.training_state(self.model),
            "random": random_states(),
            "global_step": self.step.global_step,
            "schedule": self.schedule.to_json(),
            "asked_placement": _placement_json(self._requested),
            "placement": _placement_json(self.candidate),
            "step_downs": list(self.step_downs),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state that ``state_dict`` returned.

        The checkpoint's placement is restored only if the training was requested with the same one.
        A resumed training may be given another placement, which changes no result.
        """
        # The groups are those of this device. Parameters are in the same order in all groupings.
        groups = self.step.optimizer.state_dict()["param_groups"]
        self.step.optimizer.load_state_dict({**state["optimizer"], "param_groups": groups})
        if self.step.scaler is not None:
            self.step.scaler.load_state_dict(state["scaler"])
        self.built.method.restore_training_state(self.model, state["method"])
        self.step.global_step = int(state["global_step"])
        if "schedule" in state:  # checkpoints of earlier versions have none
            before = RateSchedule.from_json(state["schedule"])
            self.schedule = before.resumed(
                self.step.global_step, self.recipe, total_steps=self.schedule.total_steps
            )
        self.step_downs = [str(text) for text in state["step_downs"]]
        requested = (self._requested.placement, self._requested.policy)
        if placement_from_json(state["asked_placement"]) == requested:
            placement, policy = placement_from_json(state["placement"])
            self._active.restore(replace(self._requested, placement=placement, policy=policy))
        set_random_states(state["random"])


def _placement_json(candidate: Candidate) -> dict[str, object]:
    return placement_to_json(candidate.placement, candidate.policy)


def random_states() -> dict[str, Any]:
    """Return the states of torch's CPU and CUDA generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_states(states: Mapping[str, Any]) -> None:
    """Restore states that ``random_states`` returned."""
    torch.set_rng_state(states["cpu"].cpu())
    if states["cuda"] and torch.cuda.is_initialized():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
