"""Profiles of workload families on one device: replayed once, then read from the store.

A *family* is a workload without micro-batch, accumulation, rank and optimizer
(``profiler.prediction.parametric.family_of``). Its profile has one part per unit option, each from
one or two replays, one part per optimizer, and the overhead of the caching allocator.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from functools import partial
from typing import Self

import numpy as np
import numpy.typing as npt

from planner.cost.allocator_readings import AllocatorReadings
from profiler.devices.table import DeviceSpec, multiprocessors
from profiler.prediction.parametric import (
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
    options_of,
    uniform_placement,
)
from profiler.workload import HOST_OPTIMIZER, Candidate, Workload


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
        self.allocator = AllocatorReadings(self)

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
                beside that of the workload.
        """
        for done, option in enumerate(options):
            if on_progress is not None and not self.has_option(workload, option):
                text = f"profiling {workload.model} with {workload.method}, units {option.key}"
                on_progress(text, done / len(options))
            self.option(workload, option)
        if self.device.is_cuda:
            for size in {workload.micro_batch, *micro_batches}:
                self.allocator.overhead(workload.replace(micro_batch=size), COMMON_OPTIONS)

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
        return self.allocator.has_overheads(workload, {workload.micro_batch, *micro_batches})

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
        return profile_option(family, placement, self._replay, self.device, rank=rank)

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

    # -- keys of the store -------------------------------------------------------------------

    @property
    def kernels(self) -> tuple[object, ...]:
        """Properties of the device that decide which kernels run and how much they allocate."""
        on = multiprocessors(self.device)
        return self.device.compute_capability or (0, 0), on.count, on.threads

    def _option_key(
        self, family: Workload, option: UnitOption, rank: int | None = None
    ) -> tuple[object, ...]:
        ranks = () if rank is None else (rank,)
        return "option", family.to_json(), option.key, *ranks, self._target, *self.kernels

    def _update_key(self, workload: Workload) -> tuple[object, ...]:
        return "update", update_family_of(workload).to_json(), workload.optimizer, self._target
