"""The cost model: bytes, seconds and joules of any candidate, composed from a family's profile.

``CostModel.quick`` is what the search calls: arithmetic on a few small arrays, once the family's
profile is there (``prepare`` replays it, or finds it in the cache). ``predict`` is the same as a
report; ``chain`` is the placement problem; ``place`` solves it by a policy.

Every number is of the *composed* rung; ``profiler.prediction.report`` replays a candidate.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from planner.cost.peak_tables import Choice, Floats, Numbers, Tables
from planner.cost.step_estimate import (
    HALF_SEGMENT_BYTES,
    AllocatorOverhead,
    PreparedWorkload,
    StepEstimate,
    estimate_step,
    forward_seconds_of,
    recompute_seconds_of,
    roofline_seconds,
    round_up_to_half_segment,
    update_seconds_of,
)
from planner.placement import (
    POLICIES,
    Chain,
    ChainOption,
    ChainUnit,
    PlacementRow,
    option_indices,
    peak_bytes,
    placement_table,
    recompute_seconds,
)
from profiler.device_rules.caching_allocator import (
    AllocatorSettings,
    CachingAllocator,
    configuration,
)
from profiler.devices.table import (
    cuda_context,
    device_label,
    device_spec,
    multiprocessors,
    workspaces_of,
)
from profiler.errors import InputError, UsageError
from profiler.models.parameter_count import count_parameters
from profiler.placement import Decision, Placement, PolicyChoice
from profiler.prediction.allocator_steps import run_steps
from profiler.prediction.parametric import (
    OptionProfile,
    UpdateProfile,
    at_micro_batch,
    family_of,
    profile_option,
    profile_update,
    terms,
    update_family_of,
)
from profiler.records import Flops, Memory, Report, Rung, UnitReport
from profiler.replay.event_log import EventLog, Phase
from profiler.store import Store
from profiler.timing.rates import rates
from profiler.timing.roofline import Rates
from profiler.unit_options import (
    LEAN_LAYERS,
    MENU,
    Anatomies,
    decisions_of,
    menu_of,
    option_of,
    uniform,
)
from profiler.workload import Candidate, Workload

Progress = Callable[[str, float], None]

_MOST_CHOICES = 100_000
"""Placements of a family that are remembered; beyond, all are forgotten."""

SLACK_BATCH = 16
"""Micro-batch at which the allocator's reserve is read."""


class CostModel:
    """Predicts candidates on one device.

    Args:
        device: ``cpu`` or a name of the sourced table.
        store: where profiles are kept between runs; None keeps them in memory.
        roofline: rates to use instead of the data sheet's (measured or calibrated ones).
    """

    def __init__(
        self, device: str, store: Store | None = None, *, roofline: Rates | None = None
    ) -> None:
        self.spec = device_spec(device)
        self._roofline = roofline
        self.target = "cuda" if self.spec.is_cuda else "cpu"
        self._capability = self.spec.compute_capability or (0, 0)
        self._multiprocessors = multiprocessors(self.spec)
        self.store = store if store is not None else Store.in_memory()
        self._options: dict[tuple[Workload, str], OptionProfile] = {}
        self._updates: dict[tuple[Workload, str], UpdateProfile] = {}
        self._anatomies: dict[Workload, Anatomies] = {}
        self._numbers: dict[tuple[object, ...], Numbers] = {}
        self._slack: dict[Workload, AllocatorOverhead] = {}
        self._ready: dict[Workload, PreparedWorkload] = {}
        self._choices: dict[Workload, dict[Placement, Choice]] = {}
        self._chains: dict[tuple[Workload, tuple[str, ...]], Chain] = {}

    def rates(self, workload: Workload) -> Rates | None:
        """Return the arithmetic and memory rates that times are computed from."""
        if self._roofline is not None:
            return self._roofline
        return rates(self.spec, workload)

    # -- profiles ----------------------------------------------------------------------------

    def prepare(
        self,
        workload: Workload,
        on_progress: Progress | None = None,
        *,
        options: tuple[str, ...] = MENU,
    ) -> None:
        """Make sure that a family's profile is there: replays it unless it is stored."""
        family = self.family(workload)
        for done, option in enumerate(options):
            if on_progress is not None:
                what = f"profiling {workload.model} with {workload.method}, units {option}"
                on_progress(what, done / len(options))
            self._option(family, option)
        self._update(workload)

    def is_prepared(self, workload: Workload) -> bool:
        """Return whether the store holds all that ``prepare`` makes."""
        family = self.family(workload)
        keys = [self._option_key(family, option) for option in MENU]
        return all(map(self.store.holds, [*keys, self._update_key(workload)]))

    def family(self, workload: Workload) -> Workload:
        """Return the workload that stands for all that share a profile.

        One image has its own on a CPU alone: on a GPU attention is one kernel, and the difference
        is not worth the replays.
        """
        return family_of(workload, of_one_image=workload.micro_batch == 1 and not self.spec.is_cuda)

    def units(self, workload: Workload) -> tuple[str, ...]:
        """Return the names of the backbone's units."""
        return tuple(self.anatomies(workload))

    def anatomies(self, workload: Workload) -> Anatomies:
        """Return what of every unit can be decided apart."""
        family = _same_modules(workload)
        if family not in self._anatomies:
            from profiler.models.build import build_model
            from profiler.models.unit_parts import anatomy_of

            built = build_model(family, device="meta")
            self._anatomies[family] = {u: anatomy_of(built.backbone, u) for u in built.units}
        return self._anatomies[family]

    def learns_in_units(self, workload: Workload) -> bool:
        """Say whether backward runs through the units at all; a linear probe's does not."""
        return self._option(family_of(workload), Decision.KEEP).learns_in_units

    def menu(self, workload: Workload) -> tuple[str, ...]:
        """Return every option of the backbone's units."""
        return menu_of(self.anatomies(workload))

    def _option(self, family: Workload, option: str) -> OptionProfile:
        key = (family, option)
        if key not in self._options:
            self._options[key] = self.store.fetch(
                OptionProfile,
                self._option_key(family, option),
                lambda: self._replay_option(family, option),
            )
        return self._options[key]

    def _option_key(self, family: Workload, option: str) -> tuple[object, ...]:
        return "option", family.to_json(), option, self.target, *self._kernels

    @property
    def _kernels(self) -> tuple[object, ...]:
        """What of the device decides which kernels run and what they take."""
        on = self._multiprocessors
        return self._capability, on.count, on.threads

    def _update_key(self, workload: Workload) -> tuple[object, ...]:
        return "update", update_family_of(workload).to_json(), workload.optimizer, self.target

    def _replay_option(self, family: Workload, option: str) -> OptionProfile:
        if option != Decision.KEEP and not self._option(family, Decision.KEEP).learns_in_units:
            return self._option(
                family, Decision.KEEP
            )  # without a backward nothing is stored or recomputed
        placement = uniform(option, self.anatomies(family))
        profile, logs = profile_option(family, placement, self._replay, self.spec)
        if option == Decision.KEEP and self.spec.is_cuda:
            self._slack[family] = self._fetch_slack(family, lambda: logs[0])
        return profile

    def _replay(self, candidate: Candidate) -> EventLog:
        from profiler.replay.step_replay import KernelMemory, ReplayOptions, replay_step

        # memory inside CPU kernels has to be probed, which only the replayed rung does
        memory = KernelMemory.ANY_BATCH if self.spec.is_cuda else KernelMemory.NONE
        options = ReplayOptions(optimizer=False, kernel_memory=memory, repeated_units=True)
        return replay_step(candidate, device=self.spec, options=options)

    def _update(self, workload: Workload) -> UpdateProfile:
        key = (update_family_of(workload), workload.optimizer)
        if key not in self._updates:
            self._updates[key] = self.store.fetch(
                UpdateProfile, self._update_key(workload), lambda: self._replay_update(*key)
            )
        return self._updates[key]

    def _replay_update(self, family: Workload, optimizer: str) -> UpdateProfile:
        from profiler.replay.step_replay import replay_update

        return profile_update(family, optimizer, partial(replay_update, device=self.spec))

    # -- numbers -----------------------------------------------------------------------------

    def numbers(self, workload: Workload, options: tuple[str, ...] = MENU) -> Numbers:
        """Return the family's profile at a workload's micro-batch, rank and accumulation."""
        family = self.family(workload)
        accumulating = workload.accumulation > 1
        key = (
            family,
            workload.micro_batch,
            workload.rank,
            accumulating,
            workload.optimizer,
            options,
        )
        if key not in self._numbers:
            self._numbers[key] = self._evaluate(workload, family, options, accumulating)
        return self._numbers[key]

    def _evaluate(
        self, workload: Workload, family: Workload, options: tuple[str, ...], accumulating: bool
    ) -> Numbers:
        point = terms(workload.micro_batch, workload.rank)
        profiles = {option: self._option(family, option) for option in options}
        kept = (
            profiles[Decision.KEEP]
            if Decision.KEEP in profiles
            else self._option(family, Decision.KEEP)
        )
        update = self._update(workload)
        state = float(update.state @ point)
        sums = {
            option: profile.partial_sums(workload.micro_batch, self.spec)
            for option, profile in profiles.items()
        }
        gradients = kept.gradients @ point
        base = float(kept.base @ point) + state
        inputs = workload.micro_batch * (3 * workload.image_size**2 * 4 + 8)
        floor = base - inputs + float(gradients.sum()) + float(update.temporary @ point)
        if accumulating:
            base += float(gradients.sum())
        roofline = self.rates(workload)
        return Numbers(
            base=base,
            floor=floor,
            stored={o: p.stored @ point for o, p in profiles.items()},
            cached={o: p.cached @ point for o, p in profiles.items()},
            forward={o: p.forward.at(point, sums[o]) for o, p in profiles.items()},
            backward={
                o: (p.accumulating if accumulating else p.backward).at(point, sums[o])
                for o, p in profiles.items()
            },
            head={o: float(p.head.at(point, sums[o])[0]) for o, p in profiles.items()},
            gradients=np.zeros_like(gradients) if accumulating else gradients,
            again={o: recompute_seconds_of(p, point, roofline) for o, p in profiles.items()},
            step_seconds=roofline_seconds(kept, point, roofline),
            update_seconds=update_seconds_of(update, point, roofline),
        )

    def _choice(self, workload: Workload, placement: Placement) -> list[str]:
        """Return the option of each unit, in forward order."""
        said: dict[str, dict[str, Decision]] = {}
        for name, decision in placement.decisions.items():
            said.setdefault(name.partition("/")[0], {})[name] = decision
        chosen = []
        for unit, anatomy in self.anatomies(workload).items():
            option = option_of(unit, said.pop(unit, {}), anatomy)
            if option is None:
                raise UsageError(f"the decisions on unit {unit!r} are not composed; replay decides")
            chosen.append(option)
        if said:
            raise InputError(f"the placement names unit {next(iter(said))!r}, which is not there")
        return chosen

    def quick(self, candidate: Candidate) -> StepEstimate:
        """Predict a candidate, in microseconds once its family has been prepared."""
        workload, placement = candidate.workload, candidate.placement
        ready = self._ready.get(workload)
        if ready is None:
            ready = self._ready[workload] = self._make_ready(workload)
        if not placement.decisions:
            live, again = ready.tables[(Decision.KEEP,)].kept_bytes, 0.0
        elif Decision.SEGMENT in placement.decisions.values():
            live, again = self._with_segments(candidate)
        else:
            choice = ready.choices.get(placement)
            if choice is None:
                choice = self._intern(workload, placement, ready.choices)
            tables = ready.tables.get(choice.options)
            if tables is None:
                numbers = self.numbers(workload, choice.options)
                tables = ready.tables[choice.options] = Tables.of(numbers, choice.options)
            live, again = tables.at(choice)
        return estimate_step(ready, live, again, accumulation=workload.accumulation)

    def _make_ready(self, workload: Workload) -> PreparedWorkload:
        numbers = self.numbers(workload, (Decision.KEEP,))
        roofline = self.rates(workload)
        is_cuda = self.spec.is_cuda
        return PreparedWorkload(
            numbers=numbers,
            tables={(Decision.KEEP,): Tables.of(numbers, (Decision.KEEP,))},
            choices=self._choices.setdefault(family_of(workload), {}),
            watts=roofline.watts if roofline is not None else None,
            workspace_bytes=sum(workspaces_of(self.spec)),
            slack=self.slack(workload) if is_cuda else None,
            context_bytes=cuda_context(self.spec).nbytes if is_cuda else 0,
        )

    def _intern(
        self, workload: Workload, placement: Placement, choices: dict[Placement, Choice]
    ) -> Choice:
        chosen = self._choice(workload, placement)
        options = tuple(dict.fromkeys([*MENU, *chosen]))
        if len(choices) >= _MOST_CHOICES:
            choices.clear()
        choice = choices[placement] = Choice.of(chosen, options)
        return choice

    def _with_segments(self, candidate: Candidate) -> tuple[float, float]:
        """Return (peak bytes, recompute seconds) of a placement with segments of several units."""
        workload = candidate.workload
        has_parts = any("/" in name for name in candidate.placement.decisions)
        key = (workload, self.menu(workload) if has_parts else MENU)
        if key not in self._chains:
            self._chains[key] = self.chain(*key)
        chain = self._chains[key]
        choice = option_indices(chain, candidate.placement)
        live = float(peak_bytes(chain, choice) - sum(workspaces_of(self.spec)))
        return live, recompute_seconds(chain, choice)

    def slack(self, workload: Workload) -> AllocatorOverhead:
        """Return what the caching allocator makes of a peak.

        Read once per family from the allocator's model fed with one replayed step; the replayed
        rung computes it for the candidate itself.
        """
        family = family_of(workload)
        if family not in self._slack:
            self._slack[family] = self._fetch_slack(
                family, lambda: self._replay(Candidate(workload=family))
            )
        return self._slack[family]

    def _fetch_slack(self, family: Workload, log: Callable[[], EventLog]) -> AllocatorOverhead:
        workspaces = workspaces_of(self.spec)

        def read() -> AllocatorOverhead:
            allocator = CachingAllocator(AllocatorSettings.parse(configuration()))
            there = at_micro_batch(log(), SLACK_BATCH, self.spec)
            run_steps(allocator, there, steps=2, workspaces=workspaces)
            live = there.peak_bytes + sum(workspaces)
            return AllocatorOverhead(
                allocated=allocator.peak_allocated_bytes / live,
                reserved=max(1.0, (allocator.peak_reserved_bytes - HALF_SEGMENT_BYTES) / live),
            )

        key = ("slack", family.to_json(), *self._kernels, configuration())
        found = self.store.fetch(AllocatorOverhead, key, read)
        return AllocatorOverhead(allocated=float(found.allocated), reserved=float(found.reserved))

    # -- reports -----------------------------------------------------------------------------

    def predict(self, candidate: Candidate) -> Report:
        """Predict a candidate, in full (at_peak and groups come from the replayed rung)."""
        workload = candidate.workload
        self.prepare(workload)
        quick = self.quick(candidate)
        chosen = self._choice(workload, candidate.placement)
        # a segment's units are kept while they run: their own rows are those of `recompute`
        chosen = [Decision.RECOMPUTE if option == Decision.SEGMENT else option for option in chosen]
        options = tuple(dict.fromkeys([*MENU, *chosen]))
        numbers = self.numbers(workload, options)
        profiles = {o: self._option(self.family(workload), o) for o in options}
        point = terms(workload.micro_batch, workload.rank)
        return Report(
            candidate=candidate,
            device=device_label(self.spec.name),
            rung=Rung.COMPOSED,
            memory=Memory(
                peak_bytes=quick.peak_bytes,
                reserved_bytes=quick.reserved_bytes,
                device_bytes=quick.device_bytes,
            ),
            flops=self._flops(workload, chosen, profiles, point),
            step_seconds=quick.step_seconds,
            energy_joules=quick.energy_joules,
            parameters=count_parameters(workload),
            units=_unit_reports(
                self.units(workload),
                chosen=chosen,
                numbers=numbers,
                profiles=profiles,
                point=point,
                roofline=self.rates(workload),
            ),
            notes=("composed from the family's profile; time and energy are uncalibrated",),
        )

    def _flops(
        self,
        workload: Workload,
        chosen: list[str],
        profiles: Mapping[str, OptionProfile],
        point: Floats,
    ) -> Flops:
        kept = profiles[Decision.KEEP].work
        times = workload.accumulation
        again = 0.0
        for index, option in enumerate(chosen):
            if option != Decision.KEEP:
                work = profiles[option].work.of(Phase.RECOMPUTE)
                again += float((work.flops[work.unit == index] @ point).sum())
        update = self._update(workload).work
        return Flops(
            forward=round(float((kept.of(Phase.FORWARD).flops @ point).sum()) * times),
            backward=round(float((kept.of(Phase.BACKWARD).flops @ point).sum()) * times),
            recompute=round(again * times),
            optimizer=round(float((update.flops @ point).sum())),
        )

    # -- placement ---------------------------------------------------------------------------

    def chain(self, workload: Workload, options: tuple[str, ...] | None = None) -> Chain:
        """Return the placement problem of a workload, over its whole menu unless told otherwise."""
        options = self.menu(workload) if options is None else options
        numbers = self.numbers(workload, options)
        kept = self._option(self.family(workload), Decision.KEEP)
        point = terms(workload.micro_batch, workload.rank)
        boundary = kept.boundary @ point
        # the chain has no word for what is cached: as if every unit before cached the most it can
        most = np.max([numbers.cached[option] for option in options], axis=0)
        cached = np.cumsum([0.0, *most])
        workspace = sum(workspaces_of(self.spec))
        forward_seconds = forward_seconds_of(kept, point, self.rates(workload))
        pieces = [
            ChainUnit(
                name=name,
                options=tuple(
                    _chain_option(
                        numbers,
                        option,
                        index,
                        said,
                        cached=float(cached[index]),
                    )
                    for option in options
                    if (said := decisions_of(name, option, anatomy)) or option == Decision.KEEP
                ),
                gradient_bytes=round(float(numbers.gradients[index])),
                boundary_bytes=round(float(boundary[index])),
                forward_seconds=float(forward_seconds[index]),
            )
            for index, (name, anatomy) in enumerate(self.anatomies(workload).items())
        ]
        pieces = _where_segments_run_on(pieces)
        head = ChainOption(
            decision=Decision.KEEP,
            stored_bytes=0,
            forward_bytes=round_up_to_half_segment(numbers.head[Decision.KEEP] + float(cached[-1])),
            backward_bytes=0,
            recompute_seconds=0.0,
        )
        left_by_head = round(float(numbers.gradients[-1]))
        pieces.append(ChainUnit(name=HEAD, options=(head,), gradient_bytes=left_by_head))
        return Chain(
            units=tuple(pieces),
            static_bytes=round_up_to_half_segment(numbers.base) + workspace,
            floor_bytes=round_up_to_half_segment(numbers.floor) + workspace,
        )

    def explain(self, candidate: Candidate) -> tuple[PlacementRow, ...]:
        """Return unit by unit what a placement keeps, frees and costs."""
        chain = self.chain(candidate.workload)
        return placement_table(chain, option_indices(chain, candidate.placement))

    def live_budget(self, workload: Workload, budget_bytes: int) -> int:
        """Return the live bytes that a budget on the device leaves."""
        if not self.spec.is_cuda:
            return budget_bytes
        left = budget_bytes - cuda_context(self.spec).nbytes
        return max(1, self.slack(workload).live_bytes(left))

    def place(
        self,
        workload: Workload,
        policy: str,
        budget_bytes: int,
        threshold: float = 0.5,
        *,
        options: tuple[str, ...] = MENU,
        chain: Chain | None = None,
    ) -> Candidate:
        """Let a policy decide the placement of a workload.

        Args:
            workload: whose units.
            policy: a name of ``planner.placement.POLICIES``, or ``cheap``, ``light``, ``lean`` or
                ``lean-layers`` for all units.
            budget_bytes: device bytes; ``adaptive`` takes its threshold of the whole of them.
            threshold: of ``adaptive``.
            options: what a unit may do; ``menu`` lists all of it. The search does with the three
                that every unit has, since each costs a replay of the family.
            chain: of the workload and these options, if something else is known of it.

        Raises:
            InfeasibleError: no placement fits, in terms of live bytes.
            UsageError: no such policy.
        """
        if policy in {"none", Decision.KEEP}:
            return Candidate(workload=workload)
        if policy in {
            Decision.DROP_CHEAP,
            Decision.DROP_CHEAP_AND_MIXING,
            Decision.DROP_PER_USE,
            LEAN_LAYERS,
        }:
            placement = uniform(policy, self.anatomies(workload))
            return Candidate(workload=workload, placement=placement, policy=PolicyChoice(policy))
        if policy not in POLICIES:
            raise UsageError(
                f"unknown checkpoint policy {policy!r}; "
                f"use one of cheap, light, lean, {', '.join(POLICIES)}"
            )
        chain = chain or self.chain(workload, options)
        parameters = {"threshold": threshold} if policy == "adaptive" else None
        limit = budget_bytes if policy == "adaptive" else self.live_budget(workload, budget_bytes)
        chosen = POLICIES[policy](chain, limit, parameters)
        decisions = {u: d for u, d in chosen.decisions.items() if u != HEAD}
        return Candidate(
            workload=workload,
            placement=Placement(decisions=decisions),
            policy=POLICIES[policy].choice(parameters),
        )


HEAD = "(head and loss)"
"""The last piece of every chain: classifier and loss, always kept."""


def _same_modules(workload: Workload) -> Workload:
    """Return the workload that stands for all whose model has the same modules."""
    return family_of(workload).replace(precision="fp32")


def _where_segments_run_on(units: list[ChainUnit]) -> list[ChainUnit]:
    """Say where a segment frees what lies between two units: within one loop over both.

    What a Sequential is called with stays in its caller's variable until it returns. Nor is it
    freed if the unit before saves more than its output (what it was entered with, at the start).
    """
    told = units[:1]
    for before, unit in itertools.pairwise(units):
        plain, output = before.plain_index(Decision.RECOMPUTE), before.boundary_bytes or 0
        only_output = plain is not None and before.options[plain].stored_bytes <= output * 1.01
        one_loop = before.name.rpartition(".")[0] == unit.name.rpartition(".")[0]
        told.append(replace(unit, may_continue_segment=one_loop and only_output))
    return told


def _chain_option(
    numbers: Numbers, option: str, index: int, decisions: Mapping[str, Decision], *, cached: float
) -> ChainOption:
    return ChainOption(
        decision=next((d for name, d in decisions.items() if "/" not in name), Decision.KEEP),
        stored_bytes=round(float(numbers.stored[option][index])),
        forward_bytes=round_up_to_half_segment(float(numbers.forward[option][index]) + cached),
        backward_bytes=max(0, round_up_to_half_segment(float(numbers.backward[option][index]))),
        recompute_seconds=max(0.0, float(numbers.again[option][index])),
        parts={u.partition("/")[2]: d for u, d in decisions.items() if "/" in u},
    )


def _unit_reports(
    names: tuple[str, ...],
    *,
    chosen: list[str],
    numbers: Numbers,
    profiles: Mapping[str, OptionProfile],
    point: Floats,
    roofline: Rates | None,
) -> tuple[UnitReport, ...]:
    rows = []
    forward_seconds = forward_seconds_of(profiles[Decision.KEEP], point, roofline)
    for index, (name, option) in enumerate(zip(names, chosen, strict=True)):
        profile = profiles[option]

        def flops(profile: OptionProfile, *phases: Phase, index: int = index) -> int:
            work = profile.work.of(*phases)
            return round(float((work.flops[work.unit == index] @ point).sum()))

        rows.append(
            UnitReport(
                name=name,
                decision=option,
                stored_bytes=round(float(numbers.stored[option][index])),
                boundary_bytes=round(float(profile.boundary[index] @ point)),
                working_bytes=round(float(numbers.backward[option][index])),
                forward_flops=flops(profiles[Decision.KEEP], Phase.FORWARD),
                backward_flops=flops(profiles[Decision.KEEP], Phase.BACKWARD),
                recompute_flops=flops(profile, Phase.RECOMPUTE),
                forward_seconds=float(forward_seconds[index]) if roofline else None,
                recompute_seconds=float(numbers.again[option][index]) if roofline else None,
            )
        )
    return tuple(rows)
