"""AdamW on the host against PyTorch's own; CPU tensors stand for tensors on a GPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from planner.cost.model import CostModel
from profiler.checkpointing.host_optimizer import HostAdamW
from profiler.device_rules.cuda_dispatch import standing_for_cuda
from profiler.devices.host_link import HostWork
from profiler.devices.table import CPU, lookup
from profiler.errors import UsageError
from profiler.models.parameter_count import count_parameters
from profiler.prediction.report import predict
from profiler.replay.step_replay import replay_step
from profiler.timing.rates import published_rates
from profiler.training_step import make_optimizer
from profiler.workload import Candidate, Workload

RATES = (1e-3, 1e-2)
DECAY = 0.3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5), nn.Linear(5, 2))


def groups(model: nn.Module) -> list[dict[str, object]]:
    own = list(model.parameters())
    return [
        {"params": own[:2], "lr": RATES[0], "weight_decay": DECAY},
        {"params": own[2:], "lr": RATES[1], "weight_decay": 0.0},
    ]


def run(model: nn.Module, optimizer: Optimizer, steps: range) -> list[Tensor]:
    for step in steps:
        torch.manual_seed(step)
        optimizer.param_groups[0]["lr"] = RATES[0] / (1 + step)
        optimizer.zero_grad(set_to_none=True)
        model(torch.randn(8, 3, 8, 8)).square().sum().backward()
        if step == 2:  # a parameter without a gradient is left as it is
            next(model.parameters()).grad = None
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def assert_close(got: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-7)


def host(model: nn.Module) -> HostAdamW:
    return HostAdamW(groups(model), lr=1.0, weight_decay=1.0)


def test_it_trains_as_adamw_does_with_rates_that_change_and_missing_gradients() -> None:
    plain, ours = network(), network()
    expected = run(plain, AdamW(groups(plain), lr=1.0, foreach=False), range(6))
    assert_close(run(ours, host(ours), range(6)), expected)


def test_a_training_that_is_resumed_goes_on_as_one_that_was_not() -> None:
    whole, first = network(), network()
    expected = run(whole, host(whole), range(6))
    before = host(first)
    run(first, before, range(3))
    resumed = copy.deepcopy(first)
    after = host(resumed)
    state = copy.deepcopy(before.state_dict())
    assert all(v.device.type == "cpu" for s in state["state"].values() for v in s.values())
    after.load_state_dict(state)
    assert_close(run(resumed, after, range(3, 6)), expected)


def test_weights_that_other_code_changes_between_steps_are_not_undone() -> None:
    plain, ours = network(), network()
    theirs, own = AdamW(groups(plain), lr=1.0, foreach=False), host(ours)
    for model, optimizer in ((plain, theirs), (ours, own)):
        run(model, optimizer, range(1))
        with torch.no_grad():
            model[2].weight[0] = 0.0
    assert_close(run(ours, own, range(1, 3)), run(plain, theirs, range(1, 3)))


VIT = Workload(
    model="vit_tiny_patch16_224", method="full", num_classes=10, micro_batch=2,
    optimizer="adamw_host",
)  # fmt: skip


def test_on_a_cpu_it_is_adamw() -> None:
    assert type(make_optimizer(network(), VIT)) is AdamW
    with standing_for_cuda():
        assert type(make_optimizer(network(), VIT)) is HostAdamW
    ours, plain = (
        predict(Candidate(workload=VIT.replace(optimizer=name)), device=CPU).memory
        for name in ("adamw_host", "adamw")
    )
    assert ours.peak_bytes == plain.peak_bytes


def test_the_state_leaves_the_device() -> None:
    device = lookup("rtx-3060")
    values = count_parameters(VIT).trainable
    plain = predict(Candidate(workload=VIT.replace(optimizer="adamw")), device=device)
    ours = predict(Candidate(workload=VIT), device=device)
    assert ours.memory.max_by_group is not None
    assert plain.memory.max_by_group is not None
    assert ours.memory.max_by_group.optimizer == 0
    assert plain.memory.max_by_group.optimizer >= 8 * values
    # gradients and changes page-locked, in powers of two; two moments
    assert 16 * values <= ours.memory.host_bytes <= 24 * values


def test_copies_take_the_time_of_the_link_and_the_update_that_of_the_host() -> None:
    device = lookup("rtx-3060")
    values = count_parameters(VIT).trainable
    log = replay_step(Candidate(workload=VIT), device=device)
    rates = published_rates(device, precision="fp32")
    assert rates is not None
    seconds = {
        kind: rates.total_seconds(op for op in log.operations if op.kernel == kind)
        for kind in HostWork
    }
    link = 0.8 * 16 * 16e9 * 128 / 130 / 8  # 16 lanes of 16 GT/s, 128 of 130 bits are data
    each = {kind: 10e-6 * sum(op.kernel == kind for op in log.operations) for kind in HostWork}
    assert seconds[HostWork.TO_HOST] - each[HostWork.TO_HOST] == pytest.approx(4 * values / link)
    assert seconds[HostWork.TO_DEVICE] - each[HostWork.TO_DEVICE] == pytest.approx(
        4 * values / link
    )
    # weight, gradient and two moments; then the change is made zero
    assert seconds[HostWork.UPDATE] - each[HostWork.UPDATE] == pytest.approx(
        5 * 4 * values / 25e9, rel=1e-3
    )


@pytest.mark.parametrize("device", ["rtx-3060", "a100-40gb"])
@pytest.mark.parametrize(
    ("method", "rank"), [("head", None), ("bitfit", None), ("lora", 8), ("full", None)]
)
def test_it_is_never_predicted_to_be_faster(method: str, rank: int | None, device: str) -> None:
    cost = CostModel(lookup(device))
    for precision in ("fp32", "fp16"):
        load = VIT.replace(
            model="test_vit", method=method, rank=rank, micro_batch=16, precision=precision
        )
        ours, plain = (
            cost.estimate(Candidate(workload=load.replace(optimizer=name))).step_seconds
            for name in ("adamw_host", "adamw")
        )
        assert ours is not None
        assert plain is not None
        assert ours > plain


def test_a_device_without_a_link_is_refused_in_every_way() -> None:
    jetson = lookup("jetson-orin-nano")
    with pytest.raises(UsageError, match="optimizer adamw_host moves tensors between host and GPU"):
        predict(Candidate(workload=VIT), device=jetson)
    with pytest.raises(UsageError, match="optimizer adamw_host moves tensors between host and GPU"):
        CostModel(jetson).estimate(Candidate(workload=VIT))


def test_a_closure_is_run_with_gradients_and_a_copy_of_the_optimizer_goes_on() -> None:
    plain, ours = network(), network()
    expected = run(plain, host(plain), range(1))
    optimizer = host(ours)
    torch.manual_seed(0)
    images = torch.randn(8, 3, 8, 8)

    def closure() -> float:
        loss = ours(images).square().sum()
        loss.backward()
        return float(loss.detach())

    optimizer.param_groups[0]["lr"] = RATES[0]
    assert optimizer.step(closure) == pytest.approx(
        float(network()(images).square().sum().detach())
    )
    assert_close([p.detach() for p in ours.parameters()], expected)
    copied, copy_of = copy.deepcopy((ours, optimizer))
    assert_close(run(copied, copy_of, range(1, 3)), run(ours, optimizer, range(1, 3)))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_composed_memory_and_time_are_those_of_the_replay(precision: str) -> None:
    load = VIT.replace(precision=precision, micro_batch=16)
    cost = CostModel(lookup("rtx-2060-super"))
    candidate = Candidate(workload=load)
    ours, oracle = cost.predict(candidate), predict(candidate, device=cost.device)
    assert ours.memory.peak_bytes == pytest.approx(oracle.memory.peak_bytes, rel=1e-3)
    assert ours.memory.host_bytes == oracle.memory.host_bytes
    assert ours.step_seconds == pytest.approx(oracle.step_seconds, rel=0.01)
