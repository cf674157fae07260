"""What `optimal` says fits must fit when replayed."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import pytest

from planner.cost.budget import needed_bytes
from planner.cost.model import CostModel
from planner.cost.place_by_policy import place_by_policy
from planner.cost.place_within_budget import ReplayCorrections, place_within_budget
from planner.placement.chain import option_indices
from planner.placement.chain_cost import peak_bytes
from profiler.devices.table import CPU, device_spec
from profiler.errors import InfeasibleError, UsageError
from profiler.placement import KEEP_ALL, Decision, Placement, PolicyChoice
from profiler.prediction.report import predict
from profiler.records import Report
from profiler.replay.event_log import MarkKind
from profiler.replay.step_replay import replay_step
from profiler.replay.unit_spans import highest_by_unit
from profiler.store import Store
from profiler.unit_options import KEPT, UnitOption
from profiler.units import DeviceBytes, LiveBytes
from profiler.workload import Candidate, Workload

pytestmark = pytest.mark.slow

CONVOLUTIONS = Workload(model="mobilenetv2_035", micro_batch=8, image_size=64, num_classes=10)
# two images: what CPU kernels take is then seen in the replay itself, which is quicker
ON_CPU = CONVOLUTIONS.replace(model="test_efficientnet", micro_batch=2, image_size=160)
TOKENS = Workload(
    model="test_vit", method="lora", rank=4, micro_batch=8, image_size=160, num_classes=10
)


def need(load: Workload, placement: Placement, device: str) -> int:
    return needed_bytes(
        predict(Candidate(workload=load, placement=placement), device=device_spec(device))
    )


def checked(load: Workload, cost: CostModel, budget: int) -> Report:
    return place_within_budget(
        load,
        PolicyChoice("optimal"),
        cost,
        budget_bytes=DeviceBytes(budget),
        options=cost.profiles.unit_options(load),
    ).report


def static_on_cpu(load: Workload, cost: CostModel) -> Report:
    return predict(cost.place(load, PolicyChoice("static"), 1), device=CPU)


@pytest.mark.parametrize(
    ("load", "device"),
    [
        (ON_CPU, "cpu"),
        (CONVOLUTIONS.replace(model="test_efficientnet"), "rtx-2060-super"),
        (CONVOLUTIONS.replace(model="resnet10t", micro_batch=64), "rtx-2060-super"),
        (TOKENS, "rtx-2060-super"),
    ],
    ids=lambda value: getattr(value, "model", value),
)
def test_no_budget_is_exceeded_by_the_replay_of_its_placement(load: Workload, device: str) -> None:
    cost = CostModel(device_spec(device), Store.default())
    least, most = needed_bytes(checked(load, cost, 1)), need(load, KEEP_ALL, device)
    assert least < most
    for budget in np.linspace(least, most, 3).astype(int).tolist():
        report = checked(load, cost, budget)
        assert needed_bytes(report) <= budget
        assert needed_bytes(report) == need(load, report.candidate.placement, device)


def test_a_budget_that_static_fits_in_is_enough_for_optimal() -> None:
    # the least live bytes are those of many kinds of decisions, and these fragment the most
    load = Workload(model="tiny_vit_21m_224", micro_batch=32)
    cost = CostModel(device_spec("rtx-2060-super"), Store.default())
    budget = need(load, cost.place(load, PolicyChoice("static"), 1).placement, "rtx-2060-super")
    report = checked(load, cost, budget)
    assert needed_bytes(report) <= budget


def test_whole_units_are_tried_before_all_of_them_are_recomputed() -> None:
    # in the peak of `static` the whole menu does not fit: CPU kernels take more in its backward
    load = Workload(model="resnet18", micro_batch=4)
    cost = CostModel(CPU, Store.default())
    static = static_on_cpu(load, cost)
    budget = needed_bytes(static)
    first = cost.place(
        load, PolicyChoice("optimal"), budget, options=cost.profiles.unit_options(load)
    )
    assert need(load, first.placement, "cpu") > budget
    report = checked(load, cost, budget)
    assert needed_bytes(report) <= budget
    assert report.flops is not None and static.flops is not None
    assert report.flops.recompute < static.flops.recompute / 2


def test_a_placement_that_needs_more_than_composed_is_tightened() -> None:
    class Optimist(CostModel):
        """Believes that a budget leaves more than it does."""

        def budget_conversion(
            self, workload: Workload, used: Collection[UnitOption] = (KEPT,)
        ) -> Callable[[DeviceBytes], LiveBytes]:
            to_live = super().budget_conversion(workload, used)
            return lambda budget: LiveBytes(int(1.2 * to_live(budget)))

    load = ON_CPU
    cost = Optimist(CPU, Store.default())
    budget = int(0.8 * need(load, KEEP_ALL, "cpu"))
    first = cost.place(load, PolicyChoice("optimal"), budget)
    assert need(load, first.placement, "cpu") > budget
    report = checked(load, cost, budget)
    assert needed_bytes(report) <= budget


def test_what_does_not_fit_by_its_replay_is_refused() -> None:
    load = ON_CPU
    cost = CostModel(CPU, Store.default())
    with pytest.raises(InfeasibleError) as caught:
        place_by_policy(load, PolicyChoice("optimal"), cost, budget_bytes=DeviceBytes(2**20))
    smallest = caught.value.smallest_bytes
    assert smallest is not None
    candidate = place_by_policy(
        load, PolicyChoice("optimal"), cost, budget_bytes=DeviceBytes(smallest)
    )
    assert need(load, candidate.placement, "cpu") <= smallest


def test_what_cpu_kernels_take_in_a_unit_is_learned() -> None:
    # all is recomputed in `static`, and its peak is in the stem: elsewhere nothing need be
    load = Workload(model="resnet18", method="lora", rank=8, micro_batch=4)
    cost = CostModel(CPU, Store.default())
    static = static_on_cpu(load, cost)
    budget = int(1.001 * needed_bytes(static))
    report = checked(load, cost, budget)
    assert needed_bytes(report) <= budget
    assert report.flops is not None and static.flops is not None
    assert report.flops.recompute < static.flops.recompute / 3


def test_with_its_corrections_the_chain_has_the_replayed_peak() -> None:
    load = ON_CPU
    cost = CostModel(CPU, Store.default())
    chain = cost.chain(load, cost.profiles.unit_options(load))
    corrections = ReplayCorrections()
    for policy in ("static", "cheap", "none"):
        candidate = cost.place(load, PolicyChoice(policy), 1)
        log = replay_step(candidate, device=CPU)
        choice = option_indices(chain, candidate.placement)
        corrections.add(chain, choice, log)
        assert peak_bytes(corrections.applied(chain), choice) == log.peak_bytes


def test_of_other_options_the_least_that_was_missing_is_assumed() -> None:
    load = ON_CPU
    cost = CostModel(CPU, Store.default())
    chain = cost.chain(load, cost.profiles.unit_options(load))
    candidate = cost.place(load, PolicyChoice("static"), 1)
    log = replay_step(candidate, device=CPU)
    corrections = ReplayCorrections()
    corrections.add(chain, option_indices(chain, candidate.placement), log)
    missing = []
    for unit, told in zip(chain.units, corrections.applied(chain).units, strict=True):
        recompute, keep = unit.plain_index(Decision.RECOMPUTE), unit.plain_index(Decision.KEEP)
        if recompute is None or keep is None:
            continue
        before, after = unit.options, told.options
        missing.append(after[recompute].backward_bytes - before[recompute].backward_bytes)
        assumed = after[keep].backward_bytes - before[keep].backward_bytes
        assert assumed == max(0, missing[-1])
    assert max(missing) > 0


def test_highest_by_unit_is_over_all_micro_batches() -> None:
    load = TOKENS.replace(method="full", rank=None, accumulation=2)
    log = replay_step(Candidate(workload=load), device=CPU)
    once = replay_step(Candidate(workload=load.replace(accumulation=1)), device=CPU)
    seen, first = highest_by_unit(log), highest_by_unit(once)
    assert seen.keys() == first.keys() == set(range(len(log.units)))
    live = log.live_bytes()
    for unit, (forward, backward) in seen.items():
        # by hand: the gradients of the first micro-batch are there in the second
        entries = [m.tick for m in log.marks if m.kind is MarkKind.ENTER and m.value == unit]
        exits = [m.tick for m in log.marks if m.kind is MarkKind.EXIT and m.value == unit]
        assert len(entries) == len(exits) == 2
        spans = zip(entries, exits, strict=True)
        assert forward == max(int(live[a : b + 1].max()) for a, b in spans)
        assert forward > first[unit][0]
        assert backward >= first[unit][1]


def test_with_the_hosts_memory_smaller_budgets_fit_and_no_budget_is_slower() -> None:
    load = TOKENS.replace(micro_batch=64)
    cost = CostModel(device_spec("rtx-2060-super"), Store.default())

    def placed(policy: str, budget: int) -> Report:
        return place_within_budget(
            load,
            PolicyChoice(policy),
            cost,
            budget_bytes=DeviceBytes(budget),
            options=cost.profiles.unit_options(load),
        ).report

    least = {policy: placed(policy, 1) for policy in ("optimal", "offload")}
    assert needed_bytes(least["offload"]) < needed_bytes(least["optimal"])
    assert least["offload"].candidate.placement.uses_host_memory
    assert not least["optimal"].candidate.placement.uses_host_memory
    most = need(load, KEEP_ALL, "rtx-2060-super")
    for budget in np.linspace(needed_bytes(least["optimal"]), most, 3).astype(int).tolist():
        ours, without = placed("offload", budget), placed("optimal", budget)
        assert needed_bytes(ours) <= budget
        assert ours.step_seconds <= without.step_seconds * 1.001


@pytest.mark.parametrize("device", ["cpu", "jetson-orin-nano"])
def test_a_device_without_a_link_to_the_host_is_refused(device: str) -> None:
    cost = CostModel(device_spec(device), Store.default())
    with pytest.raises(UsageError, match="offload moves tensors between host and GPU"):
        place_by_policy(TOKENS, PolicyChoice("offload"), cost, budget_bytes=DeviceBytes(10**9))
