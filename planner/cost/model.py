"""The cost model: bytes, seconds and joules of candidates on one device, and their placements.

Every number is of the *composed* rung: the profile of the workload's family, evaluated at its
micro-batch and rank and added up under a placement. ``profiler.prediction.report`` replays the
candidate itself to check it. The parts:

    family_profiles   replay a family once per unit option, or read it from the store
    allocator_readings   reserved bytes of a placement on the model of the caching allocator
    unit_costs        evaluate the profile at a micro-batch and rank
    peak_tables       peak and recompute time of a placement, as array operations
    step_estimate     the same with workspaces, allocator overhead, CUDA context and energy
    workload_chain    the placement problem
    composed_report   a report with FLOPs and a table of units

``estimate`` takes some microseconds once the family has been profiled, which takes seconds, and
some ten milliseconds if it reads the allocator.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from functools import cached_property, partial

import numpy as np

from planner.cost.allocator_readings import RECOMPUTED
from planner.cost.budget import AllocatorOverhead, live_budget, smallest_budget
from planner.cost.composed_report import composed_report
from planner.cost.family_profiles import FamilyProfiles
from planner.cost.fit_probability import context_clause
from planner.cost.peak_tables import PeakTables, TableIndices
from planner.cost.step_estimate import PreparedWorkload, StepEstimate, estimate_step
from planner.cost.unit_costs import KeptCosts, OptionCosts, UnitCosts, unit_costs
from planner.cost.workload_chain import HEAD, workload_chain
from planner.placement.chain import Chain, option_indices
from planner.placement.chain_cost import peak_bytes
from planner.placement.chain_policies import place_chain
from planner.placement.placement_table import PlacementRow, placement_table
from planner.placement.policies import BudgetUse, UniformPolicy, find_policy, parse_policy
from profiler.arrays import Floats
from profiler.devices.table import DeviceSpec, cuda_context, workspaces_of
from profiler.errors import InfeasibleError, InputError, UsageError
from profiler.placement import Decision, Placement, PolicyChoice
from profiler.prediction.parametric import family_of
from profiler.prediction.profile_records import terms
from profiler.prediction.report import is_layout_fitted
from profiler.records import Report
from profiler.store import Store
from profiler.timing.lever_factors import UNFITTED, layout_class
from profiler.timing.rates import rates, rates_version
from profiler.timing.roofline import Rates
from profiler.timing.step_load import LOAD_SUMS
from profiler.unit_options import (
    COMMON_OPTIONS,
    HOST_OPTIONS,
    KEPT,
    UnitOption,
    WholeUnit,
    option_with,
    uniform_placement,
)
from profiler.units import DeviceBytes, LiveBytes
from profiler.workload import Candidate, Workload

_NO_LOAD = np.zeros(LOAD_SUMS)

NEAR_THE_BUDGET = 0.1
"""Share of a budget by which the bytes without a reading of the allocator may miss it, for a
reading to be made. Overheads by option differ from readings by up to 9 % of the device bytes
(studies/unseen_models)."""

_MOST_PLACEMENTS = 100_000
"""Placements of a family whose table positions are kept; with more, all are dropped."""


class CostModel:
    """Predicts and places candidates on one device.

    Args:
        device: device to predict for.
        store: store of profiles between runs; None keeps them in memory.
        roofline: rates to use instead of the device's, for example calibrated ones.
        power_limit_watts: power limit of the GPU; None for the board's own.
    """

    def __init__(
        self,
        device: DeviceSpec,
        store: Store | None = None,
        *,
        roofline: Rates | None = None,
        power_limit_watts: float | None = None,
    ) -> None:
        self.device = device
        self.power_limit_watts = power_limit_watts
        self.profiles = FamilyProfiles(device, store)
        self._roofline = roofline
        # those of cuBLASLt are counted whether or not the step takes them
        self._workspace_bytes = sum(workspaces_of(device))
        self._context_bytes = cuda_context(device).nbytes if device.is_cuda else 0
        self._costs: dict[tuple[object, ...], UnitCosts] = {}
        self._by_option: dict[tuple[object, ...], OptionCosts] = {}
        self._kept: dict[tuple[object, ...], KeptCosts] = {}
        self._prepared: dict[Workload, PreparedWorkload] = {}
        self._overheads: dict[tuple[Workload, frozenset[UnitOption]], AllocatorOverhead] = {}
        self._indices: dict[Workload, dict[Placement, TableIndices]] = {}
        self._chains: dict[tuple[Workload, tuple[UnitOption, ...]], Chain] = {}

    # -- profiles ------------------------------------------------------------------------------

    def prepare(
        self, workload: Workload, on_progress: Callable[[str, float], None] | None = None
    ) -> None:
        """Profile the family of a workload, unless the store has its profile."""
        self.profiles.prepare(workload, on_progress)

    def learns_in_units(self, workload: Workload) -> bool:
        """Return whether backward runs through the units; with a linear probe it does not."""
        return self.profiles.learns_in_units(workload)

    def rates(self, workload: Workload) -> Rates | None:
        """Return the rates that times are computed from; None if no time is known.

        That is the case if the rates of the device are unknown, and under ``channels_last`` if its
        factors do not hold for the workload, as in a replay (``can_time``).
        """
        if self._roofline is not None:
            return self._roofline
        found = rates(self.device, workload, power_limit_watts=self.power_limit_watts)
        if found is None or "channels_last" not in workload.levers or not self.device.is_cuda:
            return found
        known = is_layout_fitted(workload, unfitted_share=self._unfitted_share(workload, found))
        return found if known else None

    def _unfitted_share(self, workload: Workload, found: Rates) -> float:
        """Return the share of a step's time that kernels without a factor of a layout take."""
        point = terms(workload.micro_batch, workload.rank)
        total = unfitted = 0.0
        for part in (self.profiles.option(workload, KEPT), self.profiles.update(workload)):
            work = part.work
            seconds = work.seconds(point, found)
            classes = np.array([layout_class(name) == UNFITTED for name in work.kernels.tolist()])
            total += float(seconds.sum())
            unfitted += float(seconds[classes[work.kernel]].sum())
        return unfitted / total

    @cached_property
    def rates_version(self) -> str:
        """Version of the rates: estimates of two versions are not comparable."""
        if self._roofline is not None:
            return f"given: {self._roofline.source}"
        return rates_version(self.device, power_limit_watts=self.power_limit_watts)

    def costs(
        self, workload: Workload, options: tuple[UnitOption, ...] = COMMON_OPTIONS
    ) -> UnitCosts:
        """Return bytes and seconds of every unit under each of some options."""
        family = self.profiles.family(workload)
        accumulating = workload.accumulation > 1
        shared = (family, workload.micro_batch, workload.rank, accumulating, workload.levers)
        key = (*shared, workload.optimizer, options)
        if key not in self._costs:
            rates = self.rates(workload)
            self._costs[key] = unit_costs(
                workload,
                {option: self._option_costs(workload, option, shared, rates) for option in options},
                self._kept_costs(workload, shared, rates),
                self.profiles.update(workload),
                rates=rates,
            )
        return self._costs[key]

    def _option_costs(
        self,
        workload: Workload,
        option: UnitOption,
        shared: tuple[object, ...],
        rates: Rates | None,
    ) -> OptionCosts:
        """Return the costs under an option; workloads with an equal key ``shared`` share them."""
        key = (*shared, option)
        if key not in self._by_option:
            profile = self.profiles.option(workload, option)
            self._by_option[key] = OptionCosts.of(
                profile, workload, device=self.device, rates=rates
            )
        return self._by_option[key]

    def _kept_costs(
        self, workload: Workload, shared: tuple[object, ...], rates: Rates | None
    ) -> KeptCosts:
        if shared not in self._kept:
            profile = self.profiles.option(workload, KEPT)
            self._kept[shared] = KeptCosts.of(profile, workload, rates=rates)
        return self._kept[shared]

    # -- prediction ----------------------------------------------------------------------------

    def estimate(
        self, candidate: Candidate, budget_bytes: DeviceBytes | None = None
    ) -> StepEstimate:
        """Estimate one optimizer step of a candidate.

        Args:
            candidate: the candidate.
            budget_bytes: budget that the device bytes are compared with. The caching allocator is
                then read only if the bytes without that are near to it (``NEAR_THE_BUDGET``),
                because it takes some ten milliseconds. None to read it.
        """
        workload = candidate.workload
        prepared = self._prepared.get(workload)
        if prepared is None:
            prepared = self._prepared[workload] = self._prepare_estimates(workload)
        live, recompute, used = self._composed(candidate, prepared)
        estimate = estimate_step(
            prepared,
            overhead=self._overhead(workload, used),
            live_bytes=live,
            recompute=recompute,
            accumulation=workload.accumulation,
        )
        if not self.device.is_cuda or not _is_near(estimate.device_bytes, budget_bytes):
            return estimate
        options = self._options_by_unit(workload, candidate.placement)
        reading = self.profiles.allocator.reading(workload, [*options.values()])
        if reading is None:
            return estimate
        return estimate.with_reading(reading, context_bytes=self._context_bytes)

    def stored_together(self) -> AbstractContextManager[None]:
        """Return a context in which new readings of the allocator are stored once, at its end."""
        return self.profiles.allocator.written_together()

    def _composed(
        self, candidate: Candidate, prepared: PreparedWorkload
    ) -> tuple[float, Floats, frozenset[UnitOption]]:
        """Return (live bytes at the peak, load of recomputation, options that units have)."""
        workload, placement = candidate.workload, candidate.placement
        if not placement.decisions:
            return prepared.tables[(KEPT,)].kept_bytes, _NO_LOAD, frozenset((KEPT,))
        if Decision.SEGMENT in placement.decisions.values():
            return *self._chain_cost(candidate), frozenset((KEPT, RECOMPUTED))
        indices = prepared.indices.get(placement)
        if indices is None:
            indices = self._table_indices(workload, placement, prepared.indices)
        tables = prepared.tables.get(indices.options)
        if tables is None:
            costs = self.costs(workload, indices.options)
            tables = prepared.tables[indices.options] = PeakTables.of(costs, indices.options)
        return *tables.at(indices), indices.used

    def predict(self, candidate: Candidate, *, with_remarks: bool = True) -> Report:
        """Return the composed report of a candidate.

        Args:
            candidate: the candidate.
            with_remarks: whether the notes have the method's remarks, which need a built model.
        """
        workload = candidate.workload
        self.profiles.prepare(workload)
        options = self._options_by_unit(workload, candidate.placement)
        # in backward the units of a segment behave as under ``recompute``, and so do their rows
        segment, recomputed = WholeUnit(Decision.SEGMENT), RECOMPUTED
        options = {
            unit: recomputed if option == segment else option for unit, option in options.items()
        }
        used = tuple(dict.fromkeys([*COMMON_OPTIONS, *options.values()]))
        return composed_report(
            candidate,
            self.estimate(candidate),
            device=self.device,
            unit_options=options,
            options={option: self.profiles.option(workload, option) for option in used},
            update=self.profiles.update(workload),
            costs=self.costs(workload, used),
            rates=self.rates(workload),
            with_remarks=with_remarks,
        )

    def _prepare_estimates(self, workload: Workload) -> PreparedWorkload:
        costs = self.costs(workload, (KEPT,))
        return PreparedWorkload(
            costs=costs,
            tables={(KEPT,): PeakTables.of(costs, (KEPT,))},
            indices=self._indices.setdefault(family_of(workload), {}),
            rates=self.rates(workload),
            workspace_bytes=self._workspace_bytes,
            context_bytes=self._context_bytes,
        )

    def _overhead(
        self, workload: Workload, used: frozenset[UnitOption]
    ) -> AllocatorOverhead | None:
        """Return the overhead of the caching allocator under some options; None on a CPU."""
        if not self.device.is_cuda:
            return None
        key = (workload, used)
        if key not in self._overheads:
            self._overheads[key] = self.profiles.allocator.overhead(workload, used)
        return self._overheads[key]

    def _table_indices(
        self, workload: Workload, placement: Placement, known: dict[Placement, TableIndices]
    ) -> TableIndices:
        unit_options = [*self._options_by_unit(workload, placement).values()]
        options = tuple(dict.fromkeys([*COMMON_OPTIONS, *unit_options]))
        if len(known) >= _MOST_PLACEMENTS:
            known.clear()
        indices = known[placement] = TableIndices.of(unit_options, options)
        return indices

    def _options_by_unit(self, workload: Workload, placement: Placement) -> dict[str, UnitOption]:
        """Return the option of each unit, in forward order."""
        by_unit: dict[str, dict[str, Decision]] = {}
        for name, decision in placement.decisions.items():
            by_unit.setdefault(name.partition("/")[0], {})[name] = decision
        options = {}
        for unit, parts in self.profiles.unit_parts(workload).items():
            option = option_with(unit, by_unit.pop(unit, {}), parts)
            if option is None:
                raise UsageError(
                    f"the decisions on unit {unit!r} match no option that is profiled; "
                    "use the replayed rung"
                )
            options[unit] = option
        if by_unit:
            raise InputError(
                f"the placement names unit {next(iter(by_unit))!r}, which {workload.model} lacks"
            )
        return options

    def _chain_cost(self, candidate: Candidate) -> tuple[float, Floats]:
        """Return (peak bytes, load of recomputation) of a placement with segments of units."""
        workload = candidate.workload
        has_parts = any("/" in name for name in candidate.placement.decisions)
        options = self.profiles.unit_options(workload) if has_parts else COMMON_OPTIONS
        if candidate.placement.uses_host_memory:
            options = (*options, *HOST_OPTIONS)
        key = (workload, options)
        if key not in self._chains:
            self._chains[key] = self.chain(*key)
        chain = self._chains[key]
        indices = option_indices(chain, candidate.placement)
        live = float(peak_bytes(chain, indices) - self._workspace_bytes)
        return live, self._segments_load(candidate)

    def _segments_load(self, candidate: Candidate) -> Floats:
        """Return [LOAD_SUMS] the load of recomputation, segments included.

        A segment repeats the complete forward of all its units except the last
        (``planner.placement.chain_cost``).
        """
        workload = candidate.workload
        options = self._options_by_unit(workload, candidate.placement)
        joined = [option == WholeUnit(Decision.SEGMENT) for option in options.values()]
        used = [RECOMPUTED if join else o for join, o in zip(joined, options.values(), strict=True)]
        costs = self.costs(workload, tuple(dict.fromkeys([*COMMON_OPTIONS, *used])))
        load = np.zeros(LOAD_SUMS)
        for index, option in enumerate(used):
            next_joined = index + 1 < len(used) and joined[index + 1]
            load += costs.forward_load[index] if next_joined else costs.recompute[option][index]
        return load

    # -- placement -----------------------------------------------------------------------------

    def chain(self, workload: Workload, options: tuple[UnitOption, ...] | None = None) -> Chain:
        """Return the placement problem of a workload.

        Args:
            workload: workload to place.
            options: unit options to include; None for every option that the units have. Each
                option costs one or two replays of the family.
        """
        options = self.profiles.unit_options(workload) if options is None else options
        kept = self.profiles.option(workload, KEPT)
        return workload_chain(
            self.costs(workload, options),
            options,
            self.profiles.unit_parts(workload),
            boundary_bytes=kept.boundary @ terms(workload.micro_batch, workload.rank),
            workspace_bytes=self._workspace_bytes,
        )

    def placement_table(self, candidate: Candidate) -> tuple[PlacementRow, ...]:
        """Return, for each unit, stored bytes, freed bytes and recompute time of a placement."""
        chain = self.chain(candidate.workload)
        return placement_table(chain, option_indices(chain, candidate.placement))

    def budget_conversion(
        self, workload: Workload, used: Collection[UnitOption] = (KEPT, RECOMPUTED)
    ) -> Callable[[DeviceBytes], LiveBytes]:
        """Return the function that converts a budget to live bytes (``planner.cost.budget``).

        Args:
            workload: workload to place.
            used: options that the placement may have.
        """
        overhead = self._overhead(workload, frozenset(used))
        return partial(live_budget, context_bytes=self._context_bytes, overhead=overhead)

    def place(
        self,
        workload: Workload,
        policy: PolicyChoice | str,
        budget_bytes: int,
        threshold: float | None = None,
        *,
        options: tuple[UnitOption, ...] = COMMON_OPTIONS,
        chain: Chain | None = None,
        overhead_of: Collection[UnitOption] = (KEPT, RECOMPUTED),
    ) -> Candidate:
        """Return the workload with the placement that a policy makes.

        Args:
            workload: workload to place.
            policy: policy and parameters.
            budget_bytes: budget in device bytes; policies that ignore a budget take any number.
            options: unit options that the policy may use. The default is those that every unit
                has, which need the fewest replays. A policy that uses the host's memory adds its
                own.
            threshold: threshold of ``adaptive``, if the policy is a word.
            chain: placement problem of the workload, if it differs from ``self.chain``.
            overhead_of: options whose overhead of the caching allocator a budget leaves free.

        Raises:
            InfeasibleError: no placement fits; it names the smallest budget for which one does.
            UnknownNameError: no such policy or parameter.
            UsageError: the policy uses the host's memory, and the device has no link to it.
        """
        budget_bytes = DeviceBytes(budget_bytes)
        if isinstance(policy, str):
            policy = parse_policy(policy, threshold=threshold)
        registered = find_policy(policy.name)
        registered.check_device(self.device)
        choice = registered.choice(policy.parameters)
        if isinstance(registered, UniformPolicy):
            placement = uniform_placement(registered.option, self.profiles.unit_parts(workload))
            return Candidate(workload=workload, placement=placement, policy=choice)
        chain = chain or self.chain(workload, registered.options(options))
        if registered.budget is not BudgetUse.LIMIT:
            placement = place_chain(chain, choice, budget_bytes)
        else:
            to_live = self.budget_conversion(workload, overhead_of)
            try:
                placement = place_chain(chain, choice, to_live(budget_bytes))
            except InfeasibleError as error:
                raise self._in_device_bytes(error, budget_bytes, to_live) from error
        decisions = {unit: d for unit, d in placement.decisions.items() if unit != HEAD}
        return Candidate(workload=workload, placement=Placement(decisions), policy=choice)

    def _in_device_bytes(
        self,
        error: InfeasibleError,
        budget_bytes: DeviceBytes,
        to_live: Callable[[DeviceBytes], LiveBytes],
    ) -> InfeasibleError:
        """Return a solver's error, whose sizes are live bytes, with its sizes in device bytes."""
        assert error.smallest_bytes is not None, "the solver names the smallest feasible peak"
        smallest = smallest_budget(LiveBytes(error.smallest_bytes), to_live)
        return InfeasibleError(
            budget_bytes=budget_bytes,
            smallest_bytes=smallest,
            context=context_clause(self.device, smallest, budget_bytes, at_risk=False),
            advice=error.advice,
        )


def _is_near(device_bytes: DeviceBytes, budget_bytes: DeviceBytes | None) -> bool:
    """Return whether a reading can decide if a candidate fits; always without a budget."""
    if budget_bytes is None:
        return True
    return abs(device_bytes - budget_bytes) <= NEAR_THE_BUDGET * budget_bytes
