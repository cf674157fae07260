"""The scan against the recurrence written token by token, in values, gradients and bytes."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from profiler.models.backbones import scan_loops
from profiler.models.backbones.scan_loop_work import _one_sequence, _sequence_work, loop_work
from profiler.models.backbones.scan_loops import (
    BACKWARD_ARRAYS,
    FORWARD_ARRAYS,
    WantedGradients,
    chunk_bounds,
    scan_workspace,
)
from profiler.models.backbones.scan_operators import scan_backward_op, scan_forward_op
from profiler.models.backbones.selective_scan import selective_scan

WORKING = {
    *("add_", "addcmul", "addcmul_", "copy_", "exp2_", "mul", "mul_", "sigmoid", "softplus"),
    *("sum", "zero_"),
}
"""What the loops are made of, beside views and allocations."""

# without acc_events, PyTorch 2.10 warns
PROFILED = {"activities": [ProfilerActivity.CPU], "acc_events": True}

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def token_by_token(
    u,
    delta,
    A,  # noqa: N803
    B,  # noqa: N803
    C,  # noqa: N803
    D=None,  # noqa: N803
    z=None,
    delta_bias=None,
    delta_softplus=False,
) -> Tensor:
    """The definition, differentiated by autograd."""
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    if B.dim() == 3:
        B, C = B[:, None], C[:, None]
    per_group = u.shape[1] // B.shape[1]
    B, C = B.repeat_interleave(per_group, 1), C.repeat_interleave(per_group, 1)
    h = u.new_zeros(u.shape[0], u.shape[1], A.shape[1])
    outputs = []
    for t in range(u.shape[2]):
        drive = (delta[:, :, t] * u[:, :, t])[..., None] * B[..., t]
        h = torch.exp(delta[:, :, t, None] * A) * h + drive
        outputs.append((h * C[..., t]).sum(-1))
    y = torch.stack(outputs, -1)
    y = y if D is None else y + D[:, None] * u
    return y if z is None else y * F.silu(z)


def random_inputs(
    *, batch=3, inner=4, states=3, length=40, groups=None, dtype=torch.float64, seed=0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()

    weights = (batch, states, length) if groups is None else (batch, groups, states, length)
    rates = -3 * torch.rand(inner, states, dtype=dtype, generator=generator)
    tensors = (
        normal(batch, inner, length),
        normal(batch, inner, length),
        rates.requires_grad_(),
        normal(*weights),
        normal(*weights),
        normal(inner),
        normal(batch, inner, length),
        normal(inner),
    )
    return dict(zip(NAMES, tensors, strict=True))


def gradients(function, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    y = function(**inputs, delta_softplus=True)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    wanted = {name: x for name, x in inputs.items() if x.requires_grad}
    grads = torch.autograd.grad((y * weights).sum(), tuple(wanted.values()))
    return y, dict(zip(wanted, grads, strict=True))


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 24, 40, 50])
@pytest.mark.parametrize("groups", [None, 1, 2])
def test_equals_the_recurrence_in_float64(length, groups):
    inputs = random_inputs(length=length, groups=groups)
    y, grads = gradients(selective_scan, inputs)
    expected, expected_grads = gradients(token_by_token, inputs)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    for name in NAMES:
        torch.testing.assert_close(grads[name], expected_grads[name], rtol=1e-11, atol=1e-11)


def test_gradcheck():
    inputs = random_inputs(batch=2, inner=2, states=2, length=18)

    def scan(*tensors: Tensor) -> Tensor:
        return selective_scan(**dict(zip(inputs, tensors, strict=True)), delta_softplus=True)

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()))


def test_gradcheck_without_softplus_bias_skip_and_gate():
    inputs = random_inputs(batch=1, inner=2, states=2, length=5)
    tensors = (inputs["u"], inputs["delta"].abs().detach().requires_grad_())
    weights = (inputs["A"], inputs["B"], inputs["C"])
    assert torch.autograd.gradcheck(selective_scan, (*tensors, *weights))


def test_float32_is_close_to_float64_at_the_length_of_vim():
    exact = random_inputs(batch=2, inner=16, states=16, length=197)
    y, grads = gradients(token_by_token, exact)
    single = {name: x.detach().float().requires_grad_() for name, x in exact.items()}
    y_single, grads_single = gradients(selective_scan, single)
    assert y_single.dtype == torch.float32
    for got, expected in [(y_single, y), *((grads_single[n], grads[n]) for n in NAMES)]:
        error = (got.double() - expected).norm() / expected.norm()
        assert error < 2e-6


def test_strong_and_vanishing_decays_stay_finite():
    inputs = random_inputs(length=60, dtype=torch.float32)
    for rate in (-1e4, -1e-6):
        extreme = {**inputs, "A": torch.full_like(inputs["A"], rate).requires_grad_()}
        y, grads = gradients(selective_scan, extreme)
        expected, _ = gradients(token_by_token, extreme)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        assert all(torch.isfinite(grad).all() for grad in grads.values())


def test_sequences_taken_in_turns_give_the_same(monkeypatch):
    inputs = random_inputs(batch=5)
    y, grads = gradients(selective_scan, inputs)
    steps = inputs["delta"].transpose(1, 2)
    monkeypatch.setattr(scan_loops, "WORKSPACE_BYTES", 1)  # one sequence at the least
    row_bytes = scan_workspace(steps, states=3, arrays=BACKWARD_ARRAYS).nbytes
    monkeypatch.setattr(scan_loops, "WORKSPACE_BYTES", 2 * row_bytes)
    assert scan_workspace(steps, states=3, arrays=BACKWARD_ARRAYS).shape[0] == 2
    y_turns, grads_turns = gradients(selective_scan, inputs)
    torch.testing.assert_close(y_turns, y, rtol=0, atol=0)
    for name in NAMES:
        torch.testing.assert_close(grads_turns[name], grads[name], rtol=1e-12, atol=1e-12)


def test_the_scratch_is_the_same_for_any_batch():
    shapes = {
        scan_workspace(torch.empty(batch, 40, 8), states=3, arrays=FORWARD_ARRAYS).shape
        for batch in (1, 2, 100_000)
    }
    assert len(shapes) == 1


@pytest.mark.parametrize("trained", [("C",), ("A",), ("u",), ("B", "D"), ("delta_bias",), ("z",)])
def test_frozen_inputs_get_no_gradient_and_the_others_the_same(trained):
    inputs = random_inputs()
    _, full = gradients(selective_scan, inputs)
    partly = {name: x.detach().requires_grad_(name in trained) for name, x in inputs.items()}
    _, grads = gradients(selective_scan, partly)
    assert set(grads) == set(trained)
    for name in trained:
        torch.testing.assert_close(grads[name], full[name], rtol=1e-12, atol=1e-12)


def saved_bytes(function) -> int:
    storages = {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y = function()
    del y
    return sum(storages.values())


def test_saves_its_inputs_and_one_state_a_chunk():
    inputs = random_inputs(batch=2, inner=8, states=16, length=64, dtype=torch.float32)
    core = {name: inputs[name] for name in ("u", "delta", "A", "B", "C")}
    states = len(chunk_bounds(64)) * 2 * 16 * 8 * 4
    assert len(chunk_bounds(64)) == 4
    expected = sum(x.nbytes for x in core.values()) + states
    assert saved_bytes(lambda: selective_scan(**core)) == expected
    frozen = {name: x.detach() for name, x in core.items()}
    assert saved_bytes(lambda: selective_scan(**frozen)) == 0
    with torch.no_grad():
        assert saved_bytes(lambda: selective_scan(**core)) == 0


def test_chunks_cover_every_position_once():
    for length in range(1, 300):
        bounds = chunk_bounds(length)
        assert [t for start, stop in bounds for t in range(start, stop)] == list(range(length))
        assert all(stop - start <= 24 for start, stop in bounds)


def test_the_operators_allocate_nothing_but_their_results():
    steps = torch.rand(3, 40, 8)
    rates, b = -torch.rand(16, 8), torch.rand(3, 40, 16, 2)

    def allocated(function) -> int:
        function()
        with profile(profile_memory=True, **PROFILED) as profiler:
            function()
        return sum(max(0, event.self_cpu_memory_usage) for event in profiler.events())

    scratch = scan_workspace(steps, states=16, arrays=FORWARD_ARRAYS)
    arguments = (steps, steps, rates, b, b, steps[0, 0], scratch, True, True)
    y, states = scan_forward_op(*arguments)
    forward = allocated(lambda: scan_forward_op(*arguments))
    assert forward == y.nbytes + states.nbytes
    scratch = scan_workspace(steps, states=16, arrays=BACKWARD_ARRAYS)
    backward = (*(steps,) * 3, rates, b, b, steps[0, 0], states, scratch, True, [True] * 6)
    results = scan_backward_op(*backward)
    beyond = allocated(lambda: scan_backward_op(*backward)) - sum(x.nbytes for x in results)
    assert 0 <= beyond <= 16  # a Python number wrapped as a tensor


@pytest.mark.parametrize("turns", [1, 2])
def test_the_work_of_the_loops_is_that_of_the_recurrence(turns, monkeypatch):
    batch, length, inner, states = 4, 197, 8, 16
    steps = torch.empty(batch, length, inner, device="meta")
    rates, b = torch.empty(states, inner, device="meta"), torch.empty(batch, length, states, 1)
    row_bytes = scan_workspace(steps[:1], states=states, arrays=FORWARD_ARRAYS)[:1].nbytes
    monkeypatch.setattr(scan_loops, "WORKSPACE_BYTES", row_bytes * batch // turns)
    scratch = scan_workspace(steps, states=states, arrays=FORWARD_ARRAYS)
    skip = torch.empty(inner)
    work = loop_work(
        torch.ops.budgetplan.selective_scan.default,
        (steps, steps, rates, b, b, skip, scratch, True, True),
    )
    # of a turn: one for every position, ten for every chunk, one for the carry
    assert work.launches == length + 10 * len(chunk_bounds(length)) + 1
    # the large arrays are passed over eleven times; what has no states comes on top
    assert 11 < work.moved_bytes / (4 * batch * length * inner * states) < 13
    assert loop_work(torch.ops.aten.mul.Tensor, (steps, steps)) is None


@pytest.mark.parametrize("wanted", [None, WantedGradients(*[True] * 6)])
@pytest.mark.parametrize("length", [1, 16, 47, 48, 63, 64, 65, 150])
def test_the_work_of_a_long_sequence_follows_from_that_of_short_ones(length, wanted):
    shape, softplus = (length, 3, 2, 2), {"softplus": True, "wanted": wanted}
    assert _sequence_work(*shape, **softplus) == _one_sequence(*shape, **softplus)


@pytest.mark.parametrize("wanted", [[True] * 6, [True, True, False, True, True, False]])
def test_the_work_of_the_loops_is_what_runs_where_there_is_no_kernel(wanted):
    batch, length, inner, states, groups = 1, 40, 12, 3, 2
    steps = torch.rand(batch, length, inner, dtype=torch.float64)  # which no kernel takes
    rates, skip = -torch.rand(states, inner).double(), torch.rand(inner).double()
    b = torch.rand(batch, length, states, groups).double()
    scratch = scan_workspace(steps, states=states, arrays=FORWARD_ARRAYS)
    forward = (steps, steps, rates, b, b, skip, scratch, True, True)
    _, kept = scan_forward_op(*forward)
    scratch = scan_workspace(steps, states=states, arrays=BACKWARD_ARRAYS)
    backward = (steps, steps, steps, rates, b, b, skip, kept, scratch, True, wanted)
    ops = torch.ops.budgetplan
    for op, arguments in (
        (ops.selective_scan.default, forward),
        (ops.selective_scan_backward.default, backward),
    ):
        with profile(**PROFILED) as profiler:
            op(*arguments)
        ran = [event for event in profiler.events() if event.name.removeprefix("aten::") in WORKING]
        assert loop_work(op, arguments).launches == len(ran)


def test_bfloat16_autocast_computes_in_float32_and_returns_bfloat16():
    single = random_inputs(dtype=torch.float32, length=197)
    half = {
        name: x.detach().bfloat16().requires_grad_() if name not in ("A", "D") else x
        for name, x in single.items()
    }
    exact = {name: x.detach().double().requires_grad_() for name, x in half.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, grads = gradients(selective_scan, half)
    expected, expected_grads = gradients(token_by_token, exact)
    assert y.dtype == torch.bfloat16
    assert (y.double() - expected).norm() / expected.norm() < 0.01
    for name in NAMES:
        assert grads[name].dtype == half[name].dtype
        error = (grads[name].double() - expected_grads[name]).norm()
        assert error / expected_grads[name].norm() < 0.02


def test_non_reentrant_checkpoint_gives_the_same_gradients():
    inputs = random_inputs()
    _, kept = gradients(selective_scan, inputs)
    _, recomputed = gradients(
        lambda **kwargs: checkpoint(selective_scan, use_reentrant=False, **kwargs), inputs
    )
    for name in NAMES:
        assert torch.equal(kept[name], recomputed[name])


class CountOperations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.namespace != "prim"  # what fake tensors ask of themselves
        return func(*args, **(kwargs or {}))


def test_runs_on_fake_tensors_with_few_operations():
    with FakeTensorMode(), CountOperations() as operations:
        inputs = random_inputs(inner=768, states=16, length=197, dtype=torch.float32)
        operations.count = 0
        y = selective_scan(**inputs, delta_softplus=True)
        forward = operations.count
        y.sum().backward()
    assert y.shape == (3, 768, 197)
    assert inputs["A"].grad.shape == (768, 16)
    assert inputs["B"].grad.shape == (3, 16, 197)
    assert forward < 30
    assert operations.count < 100


def test_runs_on_meta():
    inputs = {name: x.detach().to("meta").requires_grad_() for name, x in random_inputs().items()}
    y = selective_scan(**inputs, delta_softplus=True)
    y.sum().backward()
    assert y.shape == inputs["u"].shape
    assert all(x.grad.shape == x.shape for x in inputs.values())


def test_flops_are_counted():
    inputs = random_inputs(batch=2, inner=4, states=3, length=10)
    elements = 2 * 10 * 4 * 3
    with FlopCounterMode(display=False) as forward:
        y = selective_scan(**inputs, delta_softplus=True)
    assert forward.get_total_flops() == 7 * elements
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert backward.get_total_flops() == 21 * elements
