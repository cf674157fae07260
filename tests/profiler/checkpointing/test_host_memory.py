"""Tensors that wait in the host's memory: equal results, and the bytes that leave the device.

The results' oracle is the plain model, to the bit. CPU tensors stand for tensors on a GPU here, so
that copies are made; `Copies` counts them by their operations.
"""

from __future__ import annotations

import copy

import pytest
import torch
from test_apply import MODELS, assert_same, build, train_step
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.checkpointing.apply import apply_placement
from profiler.checkpointing.host_memory import host_work
from profiler.device_rules.cuda_dispatch import standing_for_cuda
from profiler.devices.host_link import HostWork, page_locked_bytes
from profiler.devices.table import lookup
from profiler.errors import InputError, UsageError
from profiler.models.checkpointable_units import find_units
from profiler.placement import HOST_DECISIONS, Decision, Placement
from profiler.prediction.report import predict
from profiler.replay.event_log import Phase
from profiler.replay.step_replay import ReplayOptions, replay_step
from profiler.workload import Candidate, Workload

BATCH, WIDTH = 32, 64


class Copies(TorchDispatchMode):
    """Bytes of every copy between host and device, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[HostWork, list[int]] = {direction: [] for direction in HostWork}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        direction = host_work()
        if direction is not None and func is torch.ops.aten.copy_.default:
            self.sizes[direction].append(out.numel() * out.element_size())
        return out


def everywhere(decision: Decision, model: nn.Module) -> Placement:
    return Placement(dict.fromkeys(find_units(model), decision))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("decision", sorted(HOST_DECISIONS))
def test_a_model_whose_tensors_wait_on_the_host_computes_the_same(name, autocast, decision):
    model = build(name)
    state = copy.deepcopy(model.state_dict())
    expected = train_step(model, autocast=autocast)
    model.load_state_dict(state)
    with apply_placement(model, everywhere(decision, model)), standing_for_cuda(), Copies() as seen:
        got = train_step(model, autocast=autocast)
    assert_same(got, expected)
    assert seen.sizes[HostWork.TO_HOST]
    assert sum(seen.sizes[HostWork.TO_DEVICE]) >= sum(seen.sizes[HostWork.TO_HOST])


@pytest.mark.parametrize("decision", sorted(HOST_DECISIONS))
def test_on_a_cpu_nothing_is_moved(decision):
    model = build("resnet")
    with apply_placement(model, everywhere(decision, model)), Copies() as seen:
        train_step(model)
    assert not any(seen.sizes.values())


class Units(nn.Module):
    """A sequence of units, as `find_units` finds them."""

    def __init__(self, *units: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*units)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Halves(nn.Module):
    """Saves two views of one product, and a mask that is small beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.linear(x).chunk(2, dim=1)
        return left * right


def copies_of(model: nn.Module, x: Tensor) -> Copies:
    units = tuple(f"blocks.{i}" for i in range(len(model.blocks)))
    placement = Placement(dict.fromkeys(units, Decision.OFFLOAD))
    with (
        apply_placement(model, placement, units=units),
        standing_for_cuda(),
        Copies() as seen,
    ):
        model(x).sum().backward()
    return seen


def test_a_storage_that_several_saved_tensors_share_is_copied_once():
    seen = copies_of(Units(Halves()), torch.randn(BATCH, WIDTH))
    # the product as a whole, and the input; weights stay
    whole, given = 4 * BATCH * 2 * WIDTH, 4 * BATCH * WIDTH
    assert sorted(seen.sizes[HostWork.TO_HOST]) == sorted([whole, given])
    assert sorted(seen.sizes[HostWork.TO_DEVICE]) == sorted([whole, given])


def test_statistics_of_norms_stay():
    seen = copies_of(Units(nn.LayerNorm(4 * WIDTH)), torch.randn(BATCH, 4 * WIDTH))
    assert seen.sizes[HostWork.TO_HOST] == [4 * BATCH * 4 * WIDTH]


def test_a_tensor_that_was_changed_in_place_is_copied_as_it_was_saved():
    def gradient(placed: bool) -> Tensor:
        torch.manual_seed(0)
        unit = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Hardswish(inplace=True))
        units = ("0",)
        x = torch.randn(4, 3, 8, 8, requires_grad=True)
        model = nn.Sequential(unit)
        placement = Placement({"0": Decision.OFFLOAD} if placed else {})
        with apply_placement(model, placement, units=units), standing_for_cuda():
            F.mse_loss(model(x), torch.ones(4, 8, 6, 6)).backward()
        assert x.grad is not None
        return x.grad

    # sigmoid saves its result, which hardswish overwrites: autograd refuses the plain model
    with pytest.raises(RuntimeError, match="inplace operation"):
        gradient(placed=False)
    torch.manual_seed(0)
    unit = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Hardswish())
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    F.mse_loss(unit(x), torch.ones(4, 8, 6, 6)).backward()
    assert x.grad is not None
    assert torch.equal(gradient(placed=True), x.grad)


def test_a_tensor_and_its_conjugate_are_two_copies():
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.phase = nn.Parameter(torch.linspace(0.0, 2.0, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            wave = torch.polar(x.abs() + 1.0, x * self.phase)
            return (wave * wave.conj() * wave).real

    def gradients(decision: Decision) -> list[Tensor]:
        torch.manual_seed(0)
        unit, x = Complex(), torch.randn(BATCH, WIDTH, requires_grad=True)
        model = nn.Sequential(unit)
        placement = Placement({"0": decision})
        with apply_placement(model, placement, units=("0",)), standing_for_cuda():
            model(x).sum().backward()
        assert x.grad is not None
        assert unit.phase.grad is not None
        return [x.grad, unit.phase.grad]

    for decision in HOST_DECISIONS:
        pairs = zip(gradients(decision), gradients(Decision.KEEP), strict=True)
        assert all(torch.equal(ours, plain) for ours, plain in pairs)


def test_a_unit_on_the_host_has_no_parts_of_its_own():
    model = build("vit")
    placement = Placement({"blocks.0": Decision.OFFLOAD, "blocks.0/mlp": Decision.RECOMPUTE})
    with pytest.raises(InputError, match=r"within offload of blocks\.0"):
        apply_placement(model, placement)


# --- replayed -------------------------------------------------------------------------------------

VIT = Workload(
    model="vit_tiny_patch16_224", method="full", micro_batch=8, num_classes=10, precision="fp32"
)
TOKENS, DIM, HEADS = 197, 192, 3


def placed(decision: Decision, load: Workload = VIT) -> Candidate:
    units = tuple(f"blocks.{i}" for i in range(12))
    return Candidate(workload=load, placement=Placement(dict.fromkeys(units, decision)))


def copied(load: Workload, decision: Decision) -> dict[str, int]:
    log = replay_step(
        placed(decision, load), device=lookup("rtx-3060"), options=ReplayOptions(optimizer=False)
    )
    moved = [op for op in log.operations if op.kernel in set(HostWork)]
    assert all(op.phase is Phase.RECOMPUTE for op in moved)
    return {d: sum(op.moved_bytes for op in moved if op.kernel == d) for d in HostWork}


def test_the_bytes_of_a_vit_that_is_offloaded_are_those_of_the_arithmetic():
    # of a block: the inputs of both norms, both norms' outputs, queries, keys and values, the
    # attention's output, and the MLP's two inner tensors; row statistics and weights stay
    values = BATCH_VALUES * (4 + 3 + 1 + 4 + 4)
    moved = copied(VIT, Decision.OFFLOAD)
    assert moved[HostWork.TO_HOST] == 12 * 4 * values
    assert moved[HostWork.TO_DEVICE] == moved[HostWork.TO_HOST]


BATCH_VALUES = 8 * TOKENS * DIM


def test_only_the_inputs_of_units_that_are_recomputed_from_the_host_are_moved():
    moved = copied(VIT, Decision.RECOMPUTE_FROM_HOST)
    assert moved[HostWork.TO_HOST] == moved[HostWork.TO_DEVICE] == 12 * 4 * BATCH_VALUES


def test_what_waits_on_the_host_is_not_in_the_device_memory():
    # with few gradients, the backward of the last block is the peak
    load = VIT.replace(method="bitfit", micro_batch=64)
    peaks = {
        d: predict(placed(d, load), device=lookup("rtx-3060")).memory.peak_bytes
        for d in (Decision.KEEP, Decision.RECOMPUTE, *HOST_DECISIONS)
    }
    inputs = 11 * 4 * 64 * TOKENS * DIM  # of all blocks but the one that runs
    freed = peaks[Decision.RECOMPUTE] - peaks[Decision.RECOMPUTE_FROM_HOST]
    assert 0.9 * inputs <= freed <= inputs
    assert peaks[Decision.OFFLOAD] < peaks[Decision.RECOMPUTE] < peaks[Decision.KEEP] / 2


def test_a_copy_takes_its_bytes_over_the_bandwidth_of_the_link():
    device = lookup("rtx-3060")  # PCIe 4.0 x16: 16 lanes of 16 GT/s, 128 of 130 bits are data
    kept, offloaded = (predict(placed(d), device=device) for d in (Decision.KEEP, Decision.OFFLOAD))
    link = 0.8 * 16 * 16e9 * 128 / 130 / 8
    moved = 2 * 12 * 4 * BATCH_VALUES * 16
    log = replay_step(placed(Decision.OFFLOAD), device=device)
    copies = sum(op.kernel in set(HostWork) for op in log.operations)
    added = moved / link + copies * 10e-6
    assert offloaded.step_seconds - kept.step_seconds == pytest.approx(added, rel=1e-6)


def test_a_placement_on_a_device_without_a_link_is_refused():
    with pytest.raises(UsageError, match="the placement moves tensors between host and GPU"):
        predict(placed(Decision.OFFLOAD), device=lookup("jetson-orin-nano"))


def test_page_locked_memory_is_rounded_up_to_a_power_of_two():
    assert page_locked_bytes([1, 3, 4096, 4097, 0]) == 1 + 4 + 4096 + 8192
