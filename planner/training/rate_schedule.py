"""The learning rate over the steps of a training, also after a resume with another length.

Within the warm-up, a resume takes the new length whole. After it, a cosine that is
stretched over more steps would raise the rate at the moment of the resume. Instead the rate falls
to zero over the steps that are left, from its value at that moment or ``LEAST_RESUMED_FACTOR``,
whichever is higher: after a training that had ended, a rate of almost zero would learn nothing. A
constant rate does not change.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from planner.recipe import LAST_RATE_FACTOR, Recipe
from profiler.json_records import Fraction, NonNegativeInt, PositiveInt, read_record

LEAST_RESUMED_FACTOR = 0.1
"""Smallest factor of the rate at which a training of another length goes on; a choice of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateSchedule:
    """Factor of the learning rate by step.

    Attributes:
        total_steps: optimizer steps of the whole training.
        start_step: step of the last resume with another length; 0 for none.
        start_factor: factor of the rate from which it falls to zero after that step; None if the
            schedule has the new length whole.
    """

    total_steps: PositiveInt
    start_step: NonNegativeInt = 0
    start_factor: Fraction | None = None

    def factor(self, step: int, recipe: Recipe) -> float:
        """Return the factor of the rate at a step, in (0, 1].

        Args:
            step: number of the step, from 0.
            recipe: schedule and warm-up.
        """
        if self.start_factor is None or recipe.schedule == "constant":
            return recipe.rate_factor(step, total_steps=self.total_steps)
        falling = max(1, self.total_steps - self.start_step)
        done = min(1.0, max(0, step - self.start_step) / falling)
        return max(self.start_factor * 0.5 * (1 + math.cos(math.pi * done)), LAST_RATE_FACTOR)

    def resumed(self, step: int, recipe: Recipe, *, total_steps: int) -> Self:
        """Return the schedule of a training that goes on from a step with another length.

        Args:
            step: steps done.
            recipe: schedule and warm-up.
            total_steps: optimizer steps of the whole training, as requested now.
        """
        if total_steps == self.total_steps:
            return self
        is_whole = self.start_factor is None
        if is_whole and step <= recipe.warm_up_within(total_steps=self.total_steps):
            return replace(self, total_steps=total_steps, start_step=step)
        factor = max(self.factor(step, recipe), LEAST_RESUMED_FACTOR)
        return replace(self, total_steps=total_steps, start_step=step, start_factor=factor)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read the object that ``to_json`` returns.

        Raises:
            InputError: the data is no schedule.
        """
        schedule = read_record(cls, data, part="checkpoint.schedule")
        if schedule.start_step == 0:  # earlier versions wrote a factor of 1 there
            return replace(schedule, start_factor=None)
        return schedule
