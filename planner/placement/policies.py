"""Registry of checkpoint policies: names, parameters, and use of the memory budget.

A policy is written as one word, which every command and the search accept alike. ``parse_policy``
reads a word into a ``PolicyChoice``; ``POLICIES`` holds the policy itself.

Policies that give every unit the same option, and need no budget:

    none         keep everything
    static       recompute every unit
    cheap, light, lean, lean-layers   drop some outputs inside every unit (profiler/unit_options.py)

Policies over a chain of units, without a budget:

    every-K, first-K, last-K   recompute the first of every K units, the first K, the last K
    chen                       segments of about sqrt(n) units (Chen et al. 2016, arXiv:1604.06174),
                               cut as torch.utils.checkpoint.checkpoint_sequential cuts them

Policies with a budget:

    adaptive     run-time rule of arXiv 2607.02158, applied to profiled bytes before the run. It may
                 exceed the budget
    rotor        least time over whole units and segments: the persistent schedules of Beaumont et
                 al. (arXiv:1911.13214) without their nested levels, so that nothing is recomputed
                 twice in a step
    optimal      least time over all options of every unit, and over segments
    offload      the same, and tensors of a unit may wait in the host's memory, at the bandwidth of
                 the link between host and GPU

``profiler.unit_options.uniform_placement`` makes the placements of uniform policies,
``planner.placement.chain_policies`` those of chain policies. This module imports no array library,
so that ``--help`` can list the policies without delay.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from profiler.devices.table import DeviceSpec
from profiler.errors import UnknownNameError, UsageError
from profiler.placement import Decision, PolicyChoice
from profiler.unit_options import ALL_LAYERS, HOST_OPTIONS, KEPT, UnitOption, WholeUnit


class BudgetUse(enum.Enum):
    """How a policy uses the memory budget.

    ``IGNORED``: it takes none. ``RULE``: the budget, in device bytes, is a parameter of its rule,
    and the placement may exceed it. ``LIMIT``: the peak of the placement is within the budget, in
    live bytes, or the policy raises ``InfeasibleError``.
    """

    IGNORED = "ignored"
    RULE = "rule"
    LIMIT = "limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyParameter:
    """A number that a policy takes.

    Attributes:
        name: name of the parameter.
        default: value if none is given.
        minimum: smallest value.
        is_exclusive: whether the minimum itself is refused.
        is_integer: whether only whole numbers are accepted.
    """

    name: str
    default: float
    minimum: float
    is_exclusive: bool = False
    is_integer: bool = False

    def check(self, policy: str, value: float) -> None:
        """Refuse a value out of range.

        Raises:
            UsageError: the value is too small or not a whole number.
        """
        too_small = value <= self.minimum if self.is_exclusive else value < self.minimum
        if too_small or (self.is_integer and value != int(value)):
            kind = "a whole number" if self.is_integer else "a number"
            bound = "above" if self.is_exclusive else "of at least"
            raise UsageError(
                f"{self.name} of checkpoint policy {policy} must be {kind} {bound} "
                f"{self.minimum:g}, got {value:g}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A registered policy: a ``UniformPolicy`` or a ``ChainPolicy``.

    Attributes:
        name: name, as in ``PolicyChoice.name``.
        summary: description in one line.
        budget: how the policy uses a budget.
        parameters: parameters of the policy.
        uses_host_memory: whether tensors of a unit may wait in the host's memory.
    """

    name: str
    summary: str
    budget: BudgetUse = BudgetUse.IGNORED
    parameters: tuple[PolicyParameter, ...] = ()
    uses_host_memory: bool = False

    @property
    def word(self) -> str:
        """The policy as it is written in commands, with ``K`` for its count: ``every-K``."""
        is_counted = any(parameter.name == "k" for parameter in self.parameters)
        return f"{self.name.removesuffix('-k')}-K" if is_counted else self.name

    @property
    def needs_budget(self) -> bool:
        """Whether the policy cannot place without a budget."""
        return self.budget is not BudgetUse.IGNORED

    def options(self, given: tuple[UnitOption, ...]) -> tuple[UnitOption, ...]:
        """Return the unit options that the policy places with, if it is given some."""
        return (*given, *HOST_OPTIONS) if self.uses_host_memory else given

    def check_device(self, device: DeviceSpec) -> None:
        """Refuse a device that the policy cannot place for.

        Raises:
            UsageError: the policy uses the host's memory, and the device has no link to it.
        """
        if self.uses_host_memory:
            device.check_host_link(f"checkpoint policy {self.word}", instead=OPTIMAL.name)

    def choice(self, parameters: Mapping[str, float] | None = None) -> PolicyChoice:
        """Return the policy with checked parameters; defaults fill in those that are missing.

        Raises:
            UnknownNameError: the policy has no such parameter.
            UsageError: a parameter is out of range.
        """
        given = dict(parameters or {})
        names = [parameter.name for parameter in self.parameters]
        for name in given:
            if name not in names:
                raise UnknownNameError(
                    kind=f"parameter of policy {self.name}",
                    name=name,
                    known=names,
                    hint=f"it takes {', '.join(names) or 'none'}",
                )
        values = {p.name: given.get(p.name, p.default) for p in self.parameters}
        for parameter in self.parameters:
            parameter.check(self.name, values[parameter.name])
        return PolicyChoice(self.name, values)


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformPolicy(Policy):
    """A policy that gives every unit the same option.

    Attributes:
        option: the option, as in ``profiler.unit_options``.
    """

    option: UnitOption


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainPolicy(Policy):
    """A policy that places a chain of units (``planner.placement.chain_policies``)."""


def _count(*, default: int, minimum: int) -> tuple[PolicyParameter, ...]:
    parameter = PolicyParameter(name="k", default=default, minimum=minimum, is_integer=True)
    return (parameter,)


POLICIES: Mapping[str, UniformPolicy | ChainPolicy] = MappingProxyType(
    {
        policy.name: policy
        for policy in (
            UniformPolicy(
                name="none",
                summary="keep everything",
                option=KEPT,
            ),
            UniformPolicy(
                name="static",
                summary="recompute every unit",
                option=WholeUnit(Decision.RECOMPUTE),
            ),
            UniformPolicy(
                name="cheap",
                summary="drop outputs of normalisation, activation functions and dropout",
                option=WholeUnit(Decision.DROP_CHEAP),
            ),
            UniformPolicy(
                name="light",
                summary="as cheap, and drop outputs of depthwise convolutions, attention and scans",
                option=WholeUnit(Decision.DROP_CHEAP_AND_MIXING),
            ),
            UniformPolicy(
                name="lean",
                summary="as light, with a recomputation for each use of a cheap output",
                option=WholeUnit(Decision.DROP_PER_USE),
            ),
            UniformPolicy(
                name="lean-layers",
                summary="as lean, and drop outputs of all layers but the costliest",
                option=ALL_LAYERS,
            ),
            ChainPolicy(
                name="every-k",
                summary="recompute the first of every K units",
                parameters=_count(default=2, minimum=1),
            ),
            ChainPolicy(
                name="first-k",
                summary="recompute the first K units",
                parameters=_count(default=1, minimum=0),
            ),
            ChainPolicy(
                name="last-k",
                summary="recompute the last K units",
                parameters=_count(default=1, minimum=0),
            ),
            ChainPolicy(
                name="chen",
                summary="recompute in about sqrt n segments, the last one kept",
            ),
            ChainPolicy(
                name="rotor",
                summary="least time within the budget over whole units and segments",
                budget=BudgetUse.LIMIT,
            ),
            ChainPolicy(
                name="adaptive",
                summary="recompute a unit entered with live bytes at or above threshold x budget",
                budget=BudgetUse.RULE,
                parameters=(
                    PolicyParameter(name="threshold", default=0.5, minimum=0, is_exclusive=True),
                ),
            ),
            ChainPolicy(
                name="optimal",
                summary="least time within the budget over all options of every unit",
                budget=BudgetUse.LIMIT,
            ),
            ChainPolicy(
                name="offload",
                summary="as optimal, and tensors may wait in the host's memory",
                budget=BudgetUse.LIMIT,
                uses_host_memory=True,
            ),
        )
    }
)
"""Every policy by name, in the order in which commands list them."""

OPTIMAL = PolicyChoice("optimal")
OFFLOAD = PolicyChoice("offload")
STATIC = PolicyChoice("static")


def policy_words(*, needs_budget: bool | None = None) -> tuple[str, ...]:
    """Return the words that ``parse_policy`` accepts, with ``K`` for a count.

    Args:
        needs_budget: True to list only policies that need a budget, False to list only the others;
            None for all.
    """
    policies = POLICIES.values()
    return tuple(p.word for p in policies if needs_budget in (None, p.needs_budget))


def find_policy(name: str, *, word: str | None = None) -> UniformPolicy | ChainPolicy:
    """Return a policy by name.

    Args:
        name: name of the policy: ``every-k``.
        word: the word to show if there is no such policy; None for the name.

    Raises:
        UnknownNameError: no such policy.
    """
    policy = POLICIES.get(name)
    if policy is None:
        words = policy_words()
        raise UnknownNameError(
            kind="checkpoint policy",
            name=word or name,
            known=words,
            hint=f"use one of {', '.join(words)}",
        )
    return policy


def parse_policy(word: str, *, threshold: float | None = None) -> PolicyChoice:
    """Read a policy as commands write it: ``optimal``, or ``every-3`` for every-K with K = 3.

    Args:
        word: the policy; a count that is left out (``every-k``) has its default.
        threshold: threshold of a policy that has one; None for its default.

    Raises:
        UnknownNameError: no such policy.
        UsageError: the count or the threshold is out of range.
    """
    written = PolicyChoice.from_display_name(word.strip())
    policy = find_policy(written.name, word=word)
    given = dict(written.parameters)
    if threshold is not None and not math.isfinite(threshold):
        raise UsageError(f"the threshold must be a finite number, got {threshold!r}")
    if threshold is not None and any(p.name == "threshold" for p in policy.parameters):
        given["threshold"] = threshold
    return policy.choice(given)
