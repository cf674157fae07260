"""Reserved bytes of the caching allocator, read from steps that are fed to its model.

Reserved bytes depend on the order of all mallocs and frees, so they have no formula in micro-batch
and placement as live bytes have. They are read in two ways:

    overhead   at a micro-batch of a family, for all placements over some options: the unused bytes
               of a few patterns. A policy leaves them free when it places
    reading    for a placement at a micro-batch, rank and optimizer: its step is put together
               from those of its options (``profiler.prediction.placed_steps``). It takes some ten
               milliseconds, and agrees with the replay of the placement

Both are kept in the store (``planner.cost.reading_tables``).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from planner.cost.budget import (
    AllocatorOverhead,
    AllocatorReading,
    OverheadProfile,
    StoredReadings,
)
from planner.cost.reading_tables import ReadingTables
from planner.methods.kinds import known_kind
from profiler.arrays import Ints
from profiler.device_rules.caching_allocator import (
    AllocatorSettings,
    CachingAllocator,
    configuration,
)
from profiler.devices.table import DeviceSpec, workspaces_of
from profiler.placement import Decision
from profiler.prediction.allocator_steps import (
    run_steps,
    with_second_micro_batch,
    with_update,
    workspace_bytes,
)
from profiler.prediction.parametric import family_of
from profiler.prediction.placed_steps import PlacedSteps
from profiler.prediction.profile_records import OptionProfile, UpdateProfile, terms
from profiler.replay.event_log import EventLog
from profiler.store import Store
from profiler.unit_options import COMMON_OPTIONS, KEPT, UnitOption, WholeUnit
from profiler.workload import Workload

RECOMPUTED, SEGMENT = WholeUnit(Decision.RECOMPUTE), WholeUnit(Decision.SEGMENT)

MIXED = "mixed"
"""Name of the overhead of placements in which some units are recomputed and others are not."""

_MOST_STEPS, _MOST_SIZES = 8, 64
"""Sets of steps, and of sizes, that are kept; with more, all are dropped."""


class UnitProfiles(Protocol):
    """The part of ``planner.cost.family_profiles.FamilyProfiles`` that is read here."""

    device: DeviceSpec
    store: Store

    @property
    def kernels(self) -> tuple[object, ...]:
        """Properties of the device that decide which kernels run and how much they allocate."""

    def option(self, workload: Workload, option: UnitOption) -> OptionProfile:
        """Return the profile of a workload's family with all units under one option."""

    def update(self, workload: Workload) -> UpdateProfile:
        """Return the profile of the optimizer step."""

    def units(self, workload: Workload) -> tuple[str, ...]:
        """Return the names of the backbone's units, in forward order."""

    def learns_in_units(self, workload: Workload) -> bool:
        """Return whether backward runs through the units."""


class AllocatorReadings:
    """Reads the caching allocator for placements of workload families.

    Args:
        profiles: profiles of the families on a GPU.
    """

    def __init__(self, profiles: UnitProfiles) -> None:
        self.profiles = profiles
        self.device, self.store = profiles.device, profiles.store
        self._overheads = ReadingTables[int, AllocatorOverhead](self.store, OverheadProfile)
        self._readings = ReadingTables[str, AllocatorReading](self.store, StoredReadings)
        self._steps: dict[tuple[Workload, tuple[UnitOption, ...]], PlacedSteps | None] = {}
        self._sizes: dict[tuple[object, ...], Ints] = {}

    # -- one placement ---------------------------------------------------------------------------

    def reading(
        self, workload: Workload, unit_options: Sequence[UnitOption]
    ) -> AllocatorReading | None:
        """Return the bytes of a step under a placement.

        Args:
            workload: the workload; two micro-batches stand for all that a step accumulates.
            unit_options: option of each unit, in forward order.

        Returns:
            The reading; None if an option is not among the common ones and ``segment``, or if the
            steps of the options cannot be combined.
        """
        if not self.profiles.learns_in_units(workload):
            unit_options = [KEPT] * len(unit_options)
        if not {*unit_options} <= {*COMMON_OPTIONS, SEGMENT}:
            return None
        words = (option.key for option in unit_options)
        size = f"{workload.micro_batch}x{min(workload.accumulation, 2)}"
        key, name = self._reading_key(workload), f"{size} {workload.rank} {' '.join(words)}"
        found = self._readings.find(key, name)
        if found is not None:
            return found
        log = self._placed_log(workload, unit_options)
        if log is None:
            return None
        if workload.accumulation > 1:
            log = with_second_micro_batch(log)
        point = terms(workload.micro_batch, workload.rank)
        log = with_update(log, self.profiles.update(workload), point)
        found = read_allocator(log, self.device)
        self._readings.add(key, name, found)
        return found

    @contextmanager
    def written_together(self) -> Iterator[None]:
        """Write the readings and overheads that are made inside to the store at the end."""
        with self._overheads.written_together(), self._readings.written_together():
            yield

    def _placed_log(
        self, workload: Workload, unit_options: Sequence[UnitOption]
    ) -> EventLog | None:
        """Return the log of a placement's step without an optimizer; None if there is none."""
        used = {*unit_options}
        options = tuple(used) if len(used) == 1 else COMMON_OPTIONS
        steps = self._placed_steps(workload, options)
        if steps is None:
            return None
        sizes = [self._sizes_of(workload, option) for option in options]
        return steps.log(unit_options, sizes)

    def _placed_steps(
        self, workload: Workload, options: tuple[UnitOption, ...]
    ) -> PlacedSteps | None:
        key = (family_of(workload), options)
        if key not in self._steps:
            if len(self._steps) >= _MOST_STEPS:
                self._steps.clear()
            profiles = {option: self.profiles.option(workload, option) for option in options}
            try:
                steps = PlacedSteps({option: each.steps for option, each in profiles.items()})
            except ValueError:
                steps = None
            self._steps[key] = steps
        return self._steps[key]

    def _sizes_of(self, workload: Workload, option: UnitOption) -> Ints:
        """Return the bytes of the storages of an option's step."""
        key = (family_of(workload), workload.micro_batch, workload.rank, option)
        if key not in self._sizes:
            if len(self._sizes) >= _MOST_SIZES:
                self._sizes.clear()
            profile = self.profiles.option(workload, option)
            sums = profile.partial_sums(workload.micro_batch, self.device)
            point = terms(workload.micro_batch, workload.rank)
            self._sizes[key] = profile.steps.nbytes(point, sums)
        return self._sizes[key]

    # -- all placements over some options --------------------------------------------------------

    def overhead(
        self, workload: Workload, options: Collection[UnitOption] = (KEPT,)
    ) -> AllocatorOverhead:
        """Return the overhead of the caching allocator under a placement with some options.

        It is read from two steps at the workload's micro-batch and the rank of the family. If all
        units have one option, it is that of its step. If their options differ, it is the largest
        over the common options among them and, if some units are recomputed, over a placement that
        recomputes every other unit: blocks of units that are kept between units that are
        recomputed fragment the segments most. The reading of the placement itself differs from that
        by several percent either way.

        The optimizer's state is allocated between the activations of the first step. It counts only
        if whole weights are trained; other states are small.

        Args:
            workload: workload of the family.
            options: options of the units, in any order.
        """
        used = {*options} if self.profiles.learns_in_units(workload) else {KEPT}
        is_mixed = len(used) > 1
        if is_mixed:
            used = used.intersection(COMMON_OPTIONS) or {KEPT}
        count = len(self.profiles.units(workload))
        patterns = {option.key: [option] * count for option in used}
        if is_mixed and RECOMPUTED in used:
            patterns[MIXED] = [KEPT if i % 2 else RECOMPUTED for i in range(count)]
        found = [self._overhead(workload, name, each) for name, each in patterns.items()]
        largest = max(found, key=lambda each: each.unused_bytes)
        if not is_mixed:
            return largest
        # The sum of the roundings of all blocks depends little on the placement.
        kept = self._overhead(workload, KEPT.key, [KEPT] * count)
        return replace(largest, allocated=kept.allocated)

    def has_overheads(self, workload: Workload, micro_batches: Collection[int]) -> bool:
        """Return whether the store has overheads of a family at some micro-batches."""
        # methods that do not learn in the units have no other overheads
        stored = self.store.find(OverheadProfile, self._overhead_key(workload, KEPT.key))
        return stored is not None and {*micro_batches} <= stored.readings().keys()

    def _overhead(
        self, workload: Workload, name: str, unit_options: Sequence[UnitOption]
    ) -> AllocatorOverhead:
        """Return the overhead of a named pattern; read it if no micro-batch so far was this."""
        key, micro_batch = self._overhead_key(workload, name), workload.micro_batch
        found = self._overheads.find(key, micro_batch)
        if found is not None:
            return found
        load = workload.replace(rank=family_of(workload).rank)
        log = self._placed_log(load, unit_options)
        if log is None:  # steps that cannot be combined
            log = self._placed_log(load, [KEPT] * len(unit_options))
            assert log is not None, "a single step needs no combination"
        if _updates_weights(workload):
            log = with_update(log, self.profiles.update(load), terms(micro_batch, load.rank))
        found = read_allocator(log, self.device).overhead
        self._overheads.add(key, micro_batch, found)
        return found

    # -- keys of the store -----------------------------------------------------------------------

    def _reading_key(self, workload: Workload) -> tuple[object, ...]:
        return "reading", *self._key(workload), workload.optimizer, "fused" in workload.levers

    def _overhead_key(self, workload: Workload, name: str) -> tuple[object, ...]:
        optimizer = workload.optimizer if _updates_weights(workload) else ""
        return "overhead", *self._key(workload), optimizer, name

    def _key(self, workload: Workload) -> tuple[object, ...]:
        text = json.dumps(family_of(workload).to_json(), sort_keys=True)
        # environment variables change the workspaces of cuBLAS
        return text, *self.profiles.kernels, *workspaces_of(self.device), configuration()


def read_allocator(log: EventLog, device: DeviceSpec) -> AllocatorReading:
    """Return the bytes of two steps on the model of the caching allocator.

    Args:
        log: log of a step.
        device: GPU whose workspaces the step takes.
    """
    workspaces = workspaces_of(device)
    allocator = CachingAllocator(AllocatorSettings.parse(configuration()))
    run_steps(allocator, log, steps=2, workspaces=workspaces)
    return AllocatorReading(
        live_bytes=log.peak_bytes + workspace_bytes(log, workspaces),
        allocated_bytes=allocator.peak_allocated_bytes,
        reserved_bytes=allocator.peak_reserved_bytes,
    )


def _updates_weights(workload: Workload) -> bool:
    """Return whether whole weights are trained, so that the optimizer's state is large."""
    return known_kind(workload.method) == "full"
