"""The placement that a model in training follows, replaced when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.training.adaptive_rule import AdaptiveRule
from planner.training.oom_fallback import tighter_placements
from profiler.checkpointing.apply import apply_adaptive, apply_placement
from profiler.models.build import BuiltModel
from profiler.placement import PolicyChoice
from profiler.workload import Candidate

if TYPE_CHECKING:
    from planner.cost.model import CostModel


class ActivePlacement:
    """A placement applied to a model, with the tighter placements that may follow it.

    Args:
        built: the model.
        candidate: its workload, and the placement to apply.
        cost: cost model that computes tighter placements; None for fixed ones.
        rule: the adaptive rule, followed in place of the candidate's placement; None without it.
        live_bytes: function that returns the bytes in use; required by the rule.
    """

    def __init__(
        self,
        built: BuiltModel,
        candidate: Candidate,
        *,
        cost: CostModel | None = None,
        rule: AdaptiveRule | None = None,
        live_bytes: Callable[[], int] | None = None,
    ) -> None:
        self._built, self._cost = built, cost
        self._tighter: Iterator[Candidate] | None = None  # computed when needed
        if rule is None:
            self._apply(candidate)
            return
        assert live_bytes is not None
        policy = PolicyChoice("adaptive", {"threshold": rule.threshold})
        self._candidate = replace(candidate, policy=policy)
        self._applied = apply_adaptive(
            built.model,
            budget_bytes=rule.budget_bytes,
            threshold=rule.threshold,
            live_bytes=live_bytes,
            units=built.units,
        )

    @property
    def candidate(self) -> Candidate:
        """The candidate in training; under a rule, with its decisions of the last forward."""
        return replace(self._candidate, placement=self._applied.placement)

    def remove(self) -> None:
        """Restore the model's own forward."""
        self._applied.remove()

    def apply_next(self) -> bool:
        """Apply the next tighter placement, after ``remove``; return False if there is none."""
        if self._tighter is None:
            self._tighter = tighter_placements(self.candidate, self._built.units, self._cost)
        found = next(self._tighter, None)
        if found is not None:
            self._apply(found)
        return found is not None

    def restore(self, candidate: Candidate) -> None:
        """Apply the placement of a checkpoint; tighter ones are computed from it.

        Nothing changes if it is the current one, or if both are the adaptive rule's.
        """
        by_rule = self._candidate.policy.name == candidate.policy.name == "adaptive"
        if candidate != self.candidate and not by_rule:
            self.remove()
            self._tighter = tighter_placements(candidate, self._built.units, self._cost)
            self._apply(candidate)

    def _apply(self, candidate: Candidate) -> None:
        self._candidate = candidate
        self._applied = apply_placement(
            self._built.model, candidate.placement, units=self._built.units
        )
