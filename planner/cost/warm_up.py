"""Profiles for a search, made in parallel before it starts.

Without them a search spends most of its time on replays, one after the other. A family that could
not be profiled here is profiled by the search when it needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from planner.cost.family_profiles import FamilyProfiles
from planner.cost.model import CostModel
from planner.parallel import map_forked
from profiler.prediction.parametric import update_family_of
from profiler.workload import Workload


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
    families: dict[Workload, dict[tuple[Workload, str], Workload]] = {}
    for workload in workloads:
        update = update_family_of(workload), workload.optimizer
        families.setdefault(profiles.family(workload), {})[update] = workload
    missing = [
        tuple(by_update.values())
        for by_update in families.values()
        if not all(map(profiles.is_stored, by_update.values()))
    ]
    missing.sort(key=lambda family: family[0].rank is None)  # a rank doubles the replays

    def prepare(family: tuple[Workload, ...]) -> None:
        for workload in family:
            profiles.prepare(workload)

    def report(family: tuple[Workload, ...], fraction: float) -> None:
        on_progress(f"profiled {family[0].model} with {family[0].method}", fraction)

    if missing:
        on_progress(f"profiling {missing[0][0].model}", 0.0)
    map_forked(prepare, missing, report)


def prefetch(
    model: CostModel, workloads: Iterable[Workload], on_progress: Callable[[str, float], None]
) -> None:
    """Call ``profile_families``."""
    profile_families(model.profiles, workloads, on_progress)
