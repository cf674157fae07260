"""Profiles of workload families on one device: replayed once, then read from the store.

A *family* is a workload without micro-batch, accumulation, rank and optimizer
(``profiler.prediction.parametric.family_of``). Its profile has one part per unit option, each from
one or two replays, one part per optimizer, and the overhead of the caching allocator.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Self

import numpy as np
import numpy.typing as npt

from planner.cost.budget import AllocatorOverhead, OverheadProfile
from planner.methods.kinds import known_kind
from profiler.device_rules.caching_allocator import (
    AllocatorSettings,
    CachingAllocator,
    configuration,
)
from profiler.devices.table import DeviceSpec, multiprocessors, workspaces_of
from profiler.placement import Decision, Placement
from profiler.prediction.allocator_steps import run_steps, with_update, workspace_bytes
from profiler.prediction.parametric import (
    at_micro_batch,
    family_of,
    has_two_probes,
    profile_option,
    profile_update,
    update_family_of,
)
from profiler.prediction.profile_records import OptionProfile, UpdateProfile
from profiler.replay.event_log import EventLog
from profiler.store import Store
from profiler.unit_options import (
    COMMON_OPTIONS,
    KEPT,
    PartsByUnit,
    UnitOption,
    UnitParts,
    WholeUnit,
    options_of,
    uniform_placement,
)
from profiler.workload import HOST_OPTIMIZER, Candidate, Workload

MIXED = "mixed"
"""Name of the overhead of placements in which some units are recomputed and others are not."""

RECOMPUTED = WholeUnit(Decision.RECOMPUTE)

_MOST_LOGS = 4
"""Logs that are kept for readings at further micro-batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredParts:
    """The parts of every unit of a model, as the store holds them.

    Attributes:
        text: JSON of the parts by unit, a scalar array of text.
    """

    text: npt.NDArray[np.str_]

    @classmethod
    def of(cls, workload: Workload) -> Self:
        """Build the model of a workload and read the parts of its units."""
        from profiler.models.unit_parts import parts_of_unit
        from profiler.replay.reused_models import reused_model

        with reused_model(workload) as model:
            backbone, units = model.built.backbone, model.built.units
            parts = {unit: asdict(parts_of_unit(backbone, unit)) for unit in units}
        return cls(text=np.array(json.dumps(parts)))

    def parts(self) -> PartsByUnit:
        """Return the parts by unit, in forward order."""
        return {
            unit: UnitParts(
                branches=tuple(parts["branches"]),
                layers=tuple(parts["layers"]),
                token_mixer=parts["token_mixer"],
                has_depthwise=parts["has_depthwise"],
            )
            for unit, parts in json.loads(str(self.text)).items()
        }


class FamilyProfiles:
    """Makes, stores and returns the profiles of workload families on one device.

    Args:
        device: device whose kernels are replayed.
        store: store of profiles between runs; None keeps them in memory.
    """

    def __init__(self, device: DeviceSpec, store: Store | None = None) -> None:
        self.device = device
        self.store = store if store is not None else Store.in_memory()
        self._target = "cuda" if device.is_cuda else "cpu"
        self._options: dict[tuple[Workload, UnitOption, int | None], OptionProfile] = {}
        self._updates: dict[tuple[Workload, str], UpdateProfile] = {}
        self._parts: dict[Workload, PartsByUnit] = {}
        self._overheads: dict[tuple[object, ...], dict[int, AllocatorOverhead]] = {}
        self._logs: dict[tuple[Workload, str], EventLog] = {}

    def prepare(
        self,
        workload: Workload,
        on_progress: Callable[[str, float], None] | None = None,
        *,
        options: tuple[UnitOption, ...] = COMMON_OPTIONS,
    ) -> None:
        """Make the profile of a workload's family and of its update, unless the store has them.

        Args:
            workload: workload of the family.
            on_progress: called with (current replay, fraction done).
            options: unit options to profile.
        """
        self.prepare_units(workload, on_progress, options=options)
        self.update(workload)

    def prepare_units(
        self,
        workload: Workload,
        on_progress: Callable[[str, float], None] | None = None,
        *,
        options: tuple[UnitOption, ...] = COMMON_OPTIONS,
        micro_batches: Collection[int] = (),
    ) -> None:
        """Make the profile of a workload's family without its update (see ``prepare``).

        Args:
            workload: workload of the family.
            on_progress: see ``prepare``.
            options: see ``prepare``.
            micro_batches: micro-batches at which the overhead of the caching allocator is read,
                beside that of the workload. Later, each takes another replay.
        """
        for done, option in enumerate(options):
            if on_progress is not None and not self.has_option(workload, option):
                text = f"profiling {workload.model} with {workload.method}, units {option.key}"
                on_progress(text, done / len(options))
            self.option(workload, option)
        if self.device.is_cuda:
            for size in {workload.micro_batch, *micro_batches}:
                self.allocator_overhead(workload.replace(micro_batch=size), COMMON_OPTIONS)

    def is_stored(self, workload: Workload) -> bool:
        """Return whether the store has all that ``prepare`` makes with the default options."""
        return self.has_units(workload) and self.has_update(workload)

    def has_units(self, workload: Workload, micro_batches: Collection[int] = ()) -> bool:
        """Return whether the store has what ``prepare_units`` makes with the default options.

        Args:
            workload: workload of the family.
            micro_batches: see ``prepare_units``.
        """
        family = self.family(workload)
        keys = [self._option_key(family, option) for option in COMMON_OPTIONS]
        if not all(map(self.store.holds, keys)):
            return False
        if not self.device.is_cuda:
            return True
        # methods that do not learn in the units have no other overheads
        stored = self.store.find(OverheadProfile, self._overhead_key(workload, KEPT.key))
        wanted = {workload.micro_batch, *micro_batches}
        return stored is not None and wanted <= stored.readings().keys()

    def has_option(self, workload: Workload, option: UnitOption) -> bool:
        """Return whether ``option`` replays nothing."""
        key = self._profile_of(workload, option)
        return key in self._options or self.store.holds(self._option_key(*key))

    def has_update(self, workload: Workload) -> bool:
        """Return whether the store has the profile of a workload's update."""
        return self.store.holds(self._update_key(workload))

    def family(self, workload: Workload) -> Workload:
        """Return the representative of a workload's family.

        On a CPU, micro-batch 1 is a family of its own, because attention may copy less there. On a
        GPU attention is one kernel, and the difference is not worth the additional replays.
        """
        one_image = workload.micro_batch == 1 and not self.device.is_cuda
        return family_of(workload, of_one_image=one_image)

    def unit_parts(self, workload: Workload) -> PartsByUnit:
        """Return the branches and layers of every unit that can have decisions of their own."""
        family = family_of(workload)
        if family not in self._parts:
            # the modules of a model do not depend on the precision, so all precisions share a build
            common = family.replace(precision="fp32")
            if common not in self._parts:
                key = ("unit parts", common.to_json())
                stored = self.store.fetch(StoredParts, key, lambda: StoredParts.of(common))
                self._parts[common] = stored.parts()
            self._parts[family] = self._parts[common]
        return self._parts[family]

    def units(self, workload: Workload) -> tuple[str, ...]:
        """Return the names of the backbone's units, in forward order."""
        return tuple(self.unit_parts(workload))

    def unit_options(self, workload: Workload) -> tuple[UnitOption, ...]:
        """Return every option that units of the backbone have."""
        return options_of(self.unit_parts(workload))

    def learns_in_units(self, workload: Workload) -> bool:
        """Return whether backward runs through the units; with a linear probe it does not."""
        return self._family_option(family_of(workload), KEPT).learns_in_units

    # -- profiles of options and of the optimizer ----------------------------------------------

    def option(self, workload: Workload, option: UnitOption) -> OptionProfile:
        """Return the profile of a workload's family with all units under one option.

        A search needs the common options at every rank. The others mostly place a single candidate,
        so each rank has a profile of its own.
        """
        return self._family_option(*self._profile_of(workload, option))

    def _profile_of(
        self, workload: Workload, option: UnitOption
    ) -> tuple[Workload, UnitOption, int | None]:
        """Return the family, the option and the only rank of a profile; None for every rank."""
        family = self.family(workload)
        is_for_every_rank = option in COMMON_OPTIONS or not has_two_probes(family)
        return family, option, None if is_for_every_rank else workload.rank

    def _family_option(
        self, family: Workload, option: UnitOption, rank: int | None = None
    ) -> OptionProfile:
        """Return the profile of a family for one rank; None for every rank."""
        key = (family, option, rank)
        if key not in self._options:
            self._options[key] = self.store.fetch(
                OptionProfile,
                self._option_key(*key),
                lambda: self._replay_option(*key),
            )
        return self._options[key]

    def _replay_option(
        self, family: Workload, option: UnitOption, rank: int | None
    ) -> OptionProfile:
        if option != KEPT:
            kept = self._family_option(family, KEPT)
            # without a backward through the units, no option stores or recomputes anything
            if not kept.learns_in_units:
                return kept
        placement = uniform_placement(option, self.unit_parts(family))
        profile, logs = profile_option(family, placement, self._replay, self.device, rank=rank)
        if self.device.is_cuda and option in COMMON_OPTIONS:
            self._keep_log(family, option.key, logs[0])  # for the overhead
        return profile

    @staticmethod
    def update_of(workload: Workload) -> tuple[Workload, str]:
        """Return the family and the optimizer whose update a workload has."""
        return update_family_of(workload), workload.optimizer

    def update(self, workload: Workload) -> UpdateProfile:
        """Return the profile of the optimizer step.

        Raises:
            UsageError: the optimizer keeps its state in the host's memory, and the device has no
                link to it.
        """
        if self.device.is_cuda and workload.optimizer == HOST_OPTIMIZER:
            self.device.check_host_link(f"optimizer {HOST_OPTIMIZER}", instead="adamw")
        key = self.update_of(workload)
        if key not in self._updates:
            self._updates[key] = self.store.fetch(
                UpdateProfile, self._update_key(workload), lambda: self._replay_update(*key)
            )
        return self._updates[key]

    def _replay_update(self, family: Workload, optimizer: str) -> UpdateProfile:
        from profiler.replay.step_replay import replay_update

        return profile_update(family, optimizer, partial(replay_update, device=self.device))

    def _replay(self, candidate: Candidate) -> EventLog:
        from profiler.replay.step_replay import KernelMemory, ReplayOptions, replay_step

        # Scratch memory of CPU kernels is measured by running them, which is slow. Only the
        # replayed rung does that; ``place_within_budget`` corrects for the difference.
        memory = KernelMemory.ANY_BATCH if self.device.is_cuda else KernelMemory.NONE
        options = ReplayOptions(optimizer=False, kernel_memory=memory, repeated_units=True)
        return replay_step(candidate, device=self.device, options=options)

    # -- overhead of the caching allocator -------------------------------------------------------

    def allocator_overhead(
        self, workload: Workload, options: Collection[UnitOption] = (KEPT,)
    ) -> AllocatorOverhead:
        """Return the overhead of the caching allocator under a placement with some options.

        It is read from two replayed steps that are fed to the model of the allocator at the
        workload's micro-batch. If all units have one option, it is that of the replay. If their
        options differ, it is the largest of those of the common options among them, and, if some
        units are recomputed, of a placement that recomputes every other unit: blocks of units that
        are kept between units that are recomputed fragment the segments most. A replay of the
        placement itself (the replayed rung) differs from that by several percent either way.

        The optimizer's state is allocated between the activations of the first step. It counts only
        if whole weights are trained; other states are small.

        Args:
            workload: workload of the family.
            options: options of the units, in any order.
        """
        parts = self.unit_parts(workload)
        used = {*options} if self.learns_in_units(workload) else {KEPT}
        is_mixed = len(used) > 1
        if is_mixed:
            used = used.intersection(COMMON_OPTIONS) or {KEPT}
        placements = {option.key: uniform_placement(option, parts) for option in used}
        if is_mixed and RECOMPUTED in used:
            placements[MIXED] = _alternating(self.units(workload))
        found = [self._overhead(workload, *named) for named in placements.items()]
        largest = max(found, key=lambda each: each.unused_bytes)
        if not is_mixed:
            return largest
        # The sum of the roundings of all blocks depends little on the placement.
        kept = self._overhead(workload, KEPT.key, uniform_placement(KEPT, parts))
        return replace(largest, allocated=kept.allocated)

    def _overhead(self, workload: Workload, name: str, placement: Placement) -> AllocatorOverhead:
        """Return the overhead of a named placement; read it if no micro-batch so far was this."""
        key = self._overhead_key(workload, name)
        if key not in self._overheads:
            stored = self.store.find(OverheadProfile, key)
            self._overheads[key] = {} if stored is None else stored.readings()
        readings, micro_batch = self._overheads[key], workload.micro_batch
        if micro_batch not in readings:
            log = self._log(family_of(workload), name, placement)
            update = self.update(workload) if _updates_weights(workload) else None
            readings[micro_batch] = read_overhead(log, micro_batch, self.device, update)
            self.store.keep(key, OverheadProfile.of(readings))
        return readings[micro_batch]

    def _log(self, family: Workload, name: str, placement: Placement) -> EventLog:
        if (family, name) not in self._logs:
            candidate = Candidate(workload=family, placement=placement)
            self._keep_log(family, name, self._replay(candidate))
        return self._logs[family, name]

    def _keep_log(self, family: Workload, name: str, log: EventLog) -> None:
        if len(self._logs) >= _MOST_LOGS:
            del self._logs[next(iter(self._logs))]
        self._logs[family, name] = log

    # -- keys of the store -------------------------------------------------------------------

    @property
    def _kernels(self) -> tuple[object, ...]:
        """Properties of the device that decide which kernels run and how much they allocate."""
        on = multiprocessors(self.device)
        return self.device.compute_capability or (0, 0), on.count, on.threads

    def _option_key(
        self, family: Workload, option: UnitOption, rank: int | None = None
    ) -> tuple[object, ...]:
        ranks = () if rank is None else (rank,)
        return "option", family.to_json(), option.key, *ranks, self._target, *self._kernels

    def _overhead_key(self, workload: Workload, name: str) -> tuple[object, ...]:
        family = family_of(workload)
        optimizer = workload.optimizer if _updates_weights(workload) else ""
        text = json.dumps(family.to_json(), sort_keys=True)
        # environment variables change the workspaces of cuBLAS
        workspaces = workspaces_of(self.device)
        return "overhead", text, optimizer, name, *self._kernels, *workspaces, configuration()

    def _update_key(self, workload: Workload) -> tuple[object, ...]:
        return "update", update_family_of(workload).to_json(), workload.optimizer, self._target


def read_overhead(
    log: EventLog, micro_batch: int, device: DeviceSpec, update: UpdateProfile | None = None
) -> AllocatorOverhead:
    """Return the overhead of a replayed family at a micro-batch.

    Args:
        log: log of a family's step without an optimizer.
        micro_batch: micro-batch to resize it to.
        device: GPU of the replay.
        update: profile of the optimizer's update; None to leave it out.
    """
    workspaces = workspaces_of(device)
    allocator = CachingAllocator(AllocatorSettings.parse(configuration()))
    resized = at_micro_batch(log, micro_batch, device)
    if update is not None:
        resized = with_update(resized, update)
    run_steps(allocator, resized, steps=2, workspaces=workspaces)
    live = resized.peak_bytes + workspace_bytes(resized, workspaces)
    return AllocatorOverhead(
        allocated=allocator.peak_allocated_bytes / live,
        unused_bytes=allocator.peak_reserved_bytes - live,
    )


def _updates_weights(workload: Workload) -> bool:
    """Return whether whole weights are trained, so that the optimizer's state is large."""
    return known_kind(workload.method) == "full"


def _alternating(units: Sequence[str]) -> Placement:
    """Return the placement that recomputes every other unit."""
    return Placement(dict.fromkeys(units[::2], Decision.RECOMPUTE))
