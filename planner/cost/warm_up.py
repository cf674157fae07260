"""Profiles for a search, made in parallel before it starts.

Without them a search spends most of its time on replays, one after the other. A family that could
not be profiled here is profiled by the search when it needs it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from planner.cost.family_profiles import FamilyProfiles
from planner.parallel import map_forked
from profiler.errors import BudgetplanError
from profiler.unit_options import UnitOption
from profiler.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class _Missing:
    """A part of the profiles that is made in one go.

    Attributes:
        workloads: a workload with each optimizer. They share the profile of the units and the model
            of the update.
        is_update: whether the optimizer's updates are profiled; otherwise the units.
        micro_batches: micro-batches of the family.
    """

    workloads: tuple[Workload, ...]
    is_update: bool
    micro_batches: frozenset[int] = frozenset()


def profile_families(
    profiles: FamilyProfiles,
    workloads: Iterable[Workload],
    on_progress: Callable[[str, float], None],
) -> None:
    """Profile the families of some workloads in parallel, except those that are stored.

    Args:
        profiles: profiles to complete. A store in memory is left as it is, because forked processes
            cannot write to it.
        workloads: workloads; many may share a family.
        on_progress: called with (profiled model and method, fraction done).
    """
    if profiles.store.folder is None:
        return
    families: dict[Workload, dict[str, Workload]] = defaultdict(dict)
    micro_batches: dict[Workload, set[int]] = defaultdict(set)
    updates: dict[Workload, dict[str, Workload]] = defaultdict(dict)
    for workload in workloads:
        family = profiles.family(workload)
        families[family].setdefault(workload.optimizer, workload)
        micro_batches[family].add(workload.micro_batch)
        family, optimizer = profiles.update_of(workload)
        updates[family].setdefault(optimizer, workload)
    missing = []
    for family, of_family in families.items():
        sizes = frozenset(micro_batches[family])
        absent = tuple(load for load in of_family.values() if not profiles.has_units(load, sizes))
        if absent:
            missing.append(_Missing(workloads=absent, is_update=False, micro_batches=sizes))
    missing.sort(key=lambda each: each.workloads[0].rank is None)  # a rank doubles the replays
    # The updates are last, because the shortest parts balance the load of the processes. Those of
    # one family are a part, because they share its model.
    for of_family in updates.values():
        absent = tuple(load for load in of_family.values() if not profiles.has_update(load))
        if absent:
            missing.append(_Missing(workloads=absent, is_update=True))

    def prepare(part: _Missing) -> None:
        for workload in part.workloads:
            if part.is_update:
                with suppress(BudgetplanError):  # the search meets it too, and says so
                    profiles.update(workload)
            else:
                profiles.prepare_units(workload, micro_batches=part.micro_batches)

    def report(part: _Missing, fraction: float) -> None:
        first = part.workloads[0]
        on_progress(f"profiled {first.model} with {first.method}", fraction)

    if missing:
        on_progress(f"profiling {missing[0].workloads[0].model}", 0.0)
    map_forked(prepare, missing, report)


def profile_options(
    profiles: FamilyProfiles,
    workloads: Iterable[Workload],
    on_progress: Callable[[str, float], None],
) -> None:
    """Profile every unit option of some workloads in parallel, except those that are stored.

    Args:
        profiles: profiles to complete; a store in memory is left as it is.
        workloads: workloads that will be placed over all options of their units.
        on_progress: called with (profiled model and method, fraction done).
    """
    if profiles.store.folder is None:
        return
    missing = [
        (workload, option)
        for workload in workloads
        for option in profiles.unit_options(workload)
        if not profiles.has_option(workload, option)
    ]

    def make(part: tuple[Workload, UnitOption]) -> None:
        profiles.option(*part)

    def report(part: tuple[Workload, UnitOption], fraction: float) -> None:
        workload, _ = part
        on_progress(f"profiled {workload.model} with {workload.method}", fraction)

    map_forked(make, missing, report)
