"""What a training goes on with when memory ran out, and that it goes on: under a real limit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from planner.cost.model import CostModel
from planner.cost.step_estimate import StepEstimate
from planner.recipe import Recipe
from planner.training.oom_fallback import tighter_placements
from planner.training.session import Session
from profiler.devices.table import CPU, device_spec
from profiler.models.build import build_model
from profiler.placement import KEEP_ALL, Decision, Placement
from profiler.running.memory_caps import cap_host_memory
from profiler.running.messages import Message
from profiler.running.sandbox import run_in_process
from profiler.running.time_limit import START_SECONDS
from profiler.store import Store
from profiler.timing.roofline import Rates
from profiler.training_step import Batch
from profiler.units import MIB, DeviceBytes
from profiler.workload import Candidate, Workload

SMALL = Workload(model="mobilenetv2_035", micro_batch=4, image_size=64, num_classes=10)
MEDIUM = SMALL.replace(micro_batch=256)
"""Large enough that recomputation saves more than the allocator leaves unused."""
RATES = Rates(flops_per_second=5e10, bytes_per_second=1e10, watts=None, source="made up")
LARGE = Workload(model="test_vit", micro_batch=256, image_size=160, num_classes=10)


def from_fixed(placement: Placement, units: str) -> list[dict[str, Decision]]:
    candidate = Candidate(workload=SMALL, placement=placement)
    return [dict(c.placement.decisions) for c in tighter_placements(candidate, tuple(units))]


def test_without_a_cost_model_half_of_the_units_then_all_are_recomputed() -> None:
    half, full = (dict.fromkeys(units, Decision.RECOMPUTE) for units in ("abc", "abcde"))
    assert from_fixed(KEEP_ALL, "abcde") == [half, full]
    assert from_fixed(Placement(decisions=half), "abcde") == [full]
    assert from_fixed(Placement(decisions=full), "abcde") == []
    mixed = Placement(
        decisions={"a/mlp": Decision.DROP_CHEAP, "d": Decision.RECOMPUTE, "e": Decision.SEGMENT}
    )
    first, last = from_fixed(mixed, "abcdef")
    assert first == dict.fromkeys("abcd", Decision.RECOMPUTE) | {"e": Decision.SEGMENT}
    assert last == first | {"f": Decision.RECOMPUTE}


def test_units_on_the_host_stay_there_and_the_others_follow_with_their_inputs() -> None:
    on_host = {"a": Decision.OFFLOAD, "d": Decision.RECOMPUTE_FROM_HOST}
    half, full = from_fixed(Placement(decisions=on_host | {"c": Decision.RECOMPUTE}), "abcd")
    assert half == full | {"c": Decision.RECOMPUTE}
    assert full == on_host | dict.fromkeys("bc", Decision.RECOMPUTE_FROM_HOST)
    assert from_fixed(Placement(dict.fromkeys("abcd", Decision.OFFLOAD)), "abcd") == []


def test_a_compiled_model_has_no_tighter_placement() -> None:
    workload = SMALL.replace(levers=("compile",))
    cost = CostModel(device_spec("rtx-2060-super"), Store.default())
    for model in (None, cost):
        assert list(tighter_placements(Candidate(workload=workload), tuple("abc"), model)) == []


def test_with_a_cost_model_each_placement_needs_less_and_costs_more() -> None:
    cost = CostModel(device_spec("rtx-2060-super"), Store.default())
    kept = Candidate(workload=MEDIUM)
    found = [kept, *tighter_placements(kept, cost.profiles.units(MEDIUM), cost)]
    assert len(found) == 5
    assert {candidate.policy.name for candidate in found[1:]} == {"optimal"}
    quick = [cost.estimate(candidate) for candidate in found]
    sizes = [q.device_bytes for q in quick]
    assert sizes == sorted(set(sizes), reverse=True)
    seconds = [q.step_seconds or 0.0 for q in quick]
    assert seconds[:-1] == sorted(seconds[:-1])
    # the last is the least there is; from there nothing is left
    assert list(tighter_placements(found[-1], cost.profiles.units(MEDIUM), cost)) == []


def test_where_the_cost_model_cannot_say_the_fixed_ones_are_taken() -> None:
    class Mute(CostModel):
        def estimate(
            self, candidate: Candidate, budget_bytes: DeviceBytes | None = None
        ) -> StepEstimate:
            raise MemoryError

    units = CostModel(CPU, Store.default()).profiles.units(SMALL)
    found = tighter_placements(Candidate(workload=SMALL), units, Mute(CPU, Store.default()))
    assert [c.policy.name for c in found] == ["first-k", "static"]


class Request(Message, frozen=True, kw_only=True):
    free_bytes: int


class Trained(Message, frozen=True, kw_only=True):
    losses: list[float]
    weights: float
    policy: str
    step_downs: list[str]
    steps: int


def train_two_steps(request: Request, progress: Callable[..., None]) -> Trained:
    """Train under a limit on what may be allocated from now on; without one if it is 0."""
    torch.manual_seed(0)
    built = build_model(LARGE)
    built.model.train()
    cost = CostModel(CPU, Store.default(), roofline=RATES)
    cost.chain(LARGE)
    session = Session(
        candidate=Candidate(workload=LARGE),
        built=built,
        device="cpu",
        recipe=Recipe(learning_rate=1e-3, schedule="constant", epochs=1, source="test"),
        total_steps=2,
        cost=cost,
    )
    images = _images()
    if request.free_bytes:
        cap_host_memory(request.free_bytes)
    losses = [session.run(images) for _ in range(2)]
    weights = torch.cat([p.detach().flatten() for p in built.model.parameters()])
    return Trained(
        losses=losses,
        weights=weights.double().sum().item(),
        policy=session.candidate.policy.name,
        step_downs=session.step_downs,
        steps=session.step.global_step,
    )


def _images() -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(1)
    while True:
        size = (LARGE.micro_batch, 3, LARGE.image_size, LARGE.image_size)
        yield torch.randn(size, generator=generator), torch.arange(LARGE.micro_batch) % 10


def test_a_real_refusal_is_stepped_down_from_and_no_step_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = Path(__file__)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here.parent), str(here.parents[3])]))

    # all activations are 0.6 GiB; cap_host_memory leaves 256 MiB above what it is told
    # (with 64 MiB the libraries' own scratch is refused at times, and they sum in another order)
    free_bytes = 128 * MIB
    tight = run_in_process(
        train_two_steps,
        Request(free_bytes=free_bytes),
        Trained,
        cap_bytes=free_bytes,
        timeout_seconds=START_SECONDS,
    )
    free = train_two_steps(Request(free_bytes=0), lambda text, done: None)
    assert free.step_downs == []
    assert tight.step_downs
    assert tight.policy == "optimal"
    assert "can't allocate memory" in tight.step_downs[0]
    assert (tight.steps, tight.losses) == (free.steps, free.losses)
    assert tight.weights == free.weights
