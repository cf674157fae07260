"""Fill the store with the profiles that a search will ask for, on every core at once.

A cold search spends most of its time on replays. What is not made here, for whatever reason, the
search makes in turn when it comes to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from planner.cost.model import CostModel
from planner.parallel import forked
from profiler.prediction.parametric import update_family_of
from profiler.workload import Workload

Progress = Callable[[str, float], None]


def prefetch(model: CostModel, workloads: Iterable[Workload], on_progress: Progress) -> None:
    """Profile the families of some workloads in parallel; those that are stored are left alone.

    Args:
        model: whose store is filled; nothing happens when it keeps its profiles in memory.
        workloads: whose families; many may be of the same.
        on_progress: called with (what was profiled, fraction done).
    """
    if model.store.folder is None:
        return
    families: dict[Workload, dict[tuple[Workload, str], Workload]] = {}
    for workload in workloads:
        update = update_family_of(workload), workload.optimizer
        families.setdefault(model.family(workload), {})[update] = workload
    missing = [
        tuple(by_update.values())
        for by_update in families.values()
        if not all(map(model.is_prepared, by_update.values()))
    ]
    missing.sort(key=lambda family: family[0].rank is None)  # a rank doubles the replays

    def prepare(family: tuple[Workload, ...]) -> None:
        for workload in family:
            model.prepare(workload)

    def tell(family: tuple[Workload, ...], fraction: float) -> None:
        on_progress(f"profiled {family[0].model} with {family[0].method}", fraction)

    if missing:
        on_progress(f"profiling {missing[0][0].model}", 0.0)
    forked(prepare, missing, tell)
