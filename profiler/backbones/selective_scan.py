"""Selective scan (the state-space recurrence of Mamba) without storing its states.

For every sequence, channel d and state n (Gu & Dao, "Mamba", arXiv 2312.00752, section 3.2, eq. 2a
with the discretisation of `mamba_ssm`: zero-order hold for A, Euler for B):

    h[t] = exp(delta[t] A) h[t-1] + delta[t] u[t] B[t]      y[t] = sum_n C[t] h[t]   (+ D u[t])

Autograd over that loop keeps several [batch, length, inner, state] tensors, each `state` (16) times
the size of any other activation of the block. Here the sequence is cut into chunks of about sixteen
positions. Forward keeps only the state at each chunk's start; backward walks the chunks from the
last to the first, recomputes the states of one chunk, and runs the adjoint recurrence

    g[t] = C[t] dy[t] + exp(delta[t+1] A) g[t+1]

through it. All decays are exp of a negative number, so nothing overflows.

Pieces:
    selective_scan                      mamba_ssm's shapes, and its CUDA kernel when installed
    _SelectiveScan                      autograd: casts, softplus, which gradients are wanted
    scan_forward_op, scan_backward_op   the chunk loops, as two operators of the dispatcher
    scan_workspace                      the scratch that both write to

Why operators (`torch.library.custom_op`) that are handed their scratch: the loops allocate nothing
of their own, so a recorder on fake tensors sees one operator and every byte of it instead of
hundreds of operators, and a policy that recomputes the cheap parts of a unit can name the scan and
keep it. Inside, one in-place `addcmul_` per position is the whole recurrence: for 197 positions
about 280 kernel launches forward and 900 backward, however many sequences and directions are
stacked.

Cost: time O(batch * length * inner * state), stored O(batch * length / chunk * inner * state),
scratch `WORKSPACE_BYTES` or one sequence.

Tried and lost (one core, AVX-512, Vim-S at batch 4, both directions: 19.4 M elements per layer):
    torch.exp for the decays: 16 ms against 5 ms of exp2 with the rates scaled beforehand;
    doubling inside the chunk (Hillis-Steele): 8 passes of 2 to 3 ms for the 4 ms of the recurrence;
    sub-chunks side by side, their carries fixed up afterwards: three more passes, and 14 launches
        instead of 16 per chunk of 16;
    batched matmul for the sums over channels: 21 ms against 3 ms for multiply and sum (with the
        operands exchanged 1.5 ms, but only for one sequence at a time);
    a sum over batch and positions at once for the gradient of A: 60 ms against 2 ms in two steps;
    one position at a time on tensors that fit the second-level cache: the same time on a CPU, and
        five times the launches;
    exp of positive cumulative sums (a cumsum instead of the recurrence): overflows in float32.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

LOG2_E, LN_2 = math.log2(math.e), math.log(2)

CHUNK_POSITIONS = 16
"""Positions between stored states: their storage then equals one [batch, length, inner] activation
at sixteen states."""

WORKSPACE_BYTES = 32 * 2**20
"""Scratch of a scan, in whole sequences and at least one; those beyond it are taken in turns. The
batch does not change it: bytes of a step then are linear in the batch, which
`profiler.composition` reads off a single replay."""

CACHE_BYTES = 2 * 2**20
"""On a CPU only so many sequences are taken at once that one buffer of the scratch stays below
this: measured at Vim-S, 71 ms of a core per layer at 1.7 MB a buffer, 101 ms at 6.7 MB. The scratch
itself is the same on every device, so that a replay on fake CPU tensors holds for a GPU."""

FORWARD_BUFFERS, BACKWARD_BUFFERS = 2, 3


def selective_scan(  # noqa: PLR0917 - mamba_ssm's signature
    u: Tensor,
    delta: Tensor,
    A: Tensor,  # noqa: N803 - the paper's letters, and mamba_ssm's keywords
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None = None,  # noqa: N803
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Run the selective scan.

    Args:
        u: inputs [batch, inner, length].
        delta: step sizes, like `u`.
        A: negative decay rates [inner, state].
        B: input weights [batch, state, length], or [batch, groups, state, length] with one set of
            weights for each of `groups` equal slices of the channels.
        C: output weights, like `B`.
        D: skip weights [inner].
        z: gate like `u`; the output is multiplied by silu(z).
        delta_bias: added to `delta` [inner].
        delta_softplus: whether softplus is applied to the biased `delta`.

    Returns:
        [batch, inner, length] in the dtype of `u`; inside it is float32 (float64 for float64).
    """
    if u.is_cuda and _has_mamba_kernel():
        return _mamba_kernel_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    y: Tensor = _SelectiveScan.apply(
        u, delta, A, B, C, D, delta_bias, delta_softplus, torch.is_grad_enabled()
    )
    return y if z is None else y * F.silu(z)


@cache
def _has_mamba_kernel() -> bool:
    return importlib.util.find_spec("mamba_ssm") is not None


def _mamba_kernel_scan(*arguments: Any) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    y: Tensor = selective_scan_fn(*arguments)
    return y


# --- autograd ---------------------------------------------------------------------------------


class _SelectiveScan(torch.autograd.Function):
    """The scan with its skip; saves its inputs and one state per chunk.

    Of the step sizes it saves the biased softplus, not what they come from, when both take the
    same bytes: d softplus(x) / dx = 1 - exp(-softplus(x)).
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes by position
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,  # noqa: N803
        B: Tensor,  # noqa: N803
        C: Tensor,  # noqa: N803
        D: Tensor | None,  # noqa: N803
        delta_bias: Tensor | None,
        delta_softplus: bool,
        grad_enabled: bool,
    ) -> Tensor:
        keep_states = grad_enabled and any(ctx.needs_input_grad)
        steps = _steps(delta, delta_bias, softplus=delta_softplus)
        inputs = _time_major(u, steps.dtype)
        y, states = scan_forward_op(
            steps,
            steps * inputs,
            _rates(A, steps.dtype),
            _grouped(B, steps.dtype),
            _grouped(C, steps.dtype),
            scan_workspace(steps, states=A.shape[1], buffers=FORWARD_BUFFERS),
            keep_states,
        )
        if D is not None:
            y.addcmul_(inputs, D.to(y.dtype))
        if keep_states:
            ctx.delta_softplus, ctx.delta_dtype = delta_softplus, delta.dtype
            kept_steps = steps if delta.dtype == steps.dtype else delta
            ctx.save_for_backward(u, kept_steps, A, B, C, D, delta_bias, states)
        result: Tensor = y.transpose(1, 2).to(u.dtype)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        u, steps, A, B, C, D, delta_bias, states = ctx.saved_tensors  # noqa: N806
        need_u, need_delta, need_a, need_b, need_c, need_d, need_bias = ctx.needs_input_grad[:7]
        need_steps = need_delta or need_bias

        # [Inputs of the scan again]
        if ctx.delta_dtype != _compute_dtype(ctx.delta_dtype):
            steps = _steps(steps, delta_bias, softplus=ctx.delta_softplus)
        grad_y, inputs = _time_major(grad_y, steps.dtype), _time_major(u, steps.dtype)
        d_steps, d_drive, d_rates, d_b, d_c = scan_backward_op(
            grad_y,
            steps,
            steps * inputs,
            _rates(A, steps.dtype),
            _grouped(B, steps.dtype),
            _grouped(C, steps.dtype),
            states,
            scan_workspace(steps, states=A.shape[1], buffers=BACKWARD_BUFFERS),
            [need_steps, need_u or need_steps, need_a, need_b, need_c],
        )

        # [Back through drive = steps * inputs, skip, softplus, bias and the layouts]
        if need_steps:
            d_steps.addcmul_(d_drive, inputs)
            if ctx.delta_softplus:
                d_steps.mul_(torch.expm1(-steps).neg_())
        if need_u:
            d_drive.mul_(steps)
            if D is not None:
                d_drive.addcmul_(grad_y, D.to(grad_y.dtype))
        return (
            d_drive.transpose(1, 2).to(u.dtype) if need_u else None,
            d_steps.transpose(1, 2).to(ctx.delta_dtype) if need_delta else None,
            (d_rates.t() * LOG2_E).to(A.dtype) if need_a else None,
            _ungrouped(d_b, like=B) if need_b else None,
            _ungrouped(d_c, like=C) if need_c else None,
            (grad_y * inputs).sum((0, 1)).to(D.dtype) if need_d else None,
            d_steps.sum((0, 1)).to(delta_bias.dtype) if need_bias else None,
            None,
            None,
        )


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _time_major(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[batch, inner, length] -> contiguous [batch, length, inner]."""
    y: Tensor = x.transpose(1, 2).to(dtype).contiguous()
    return y


def _steps(delta: Tensor, bias: Tensor | None, *, softplus: bool) -> Tensor:
    raw = _time_major(delta, _compute_dtype(delta.dtype))
    if bias is not None:
        raw = raw + bias.to(raw.dtype)
    return F.softplus(raw) if softplus else raw


def _rates(A: Tensor, dtype: torch.dtype) -> Tensor:  # noqa: N803
    """[inner, state] -> contiguous [state, inner], so that exp(delta A) is exp2(delta rates)."""
    return (A.t().to(dtype) * LOG2_E).contiguous()


def _grouped(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """[batch, (groups,) state, length] -> contiguous [batch, length, state, groups]."""
    grouped = weights.unsqueeze(1) if weights.dim() == 3 else weights
    return grouped.permute(0, 3, 2, 1).to(dtype).contiguous()


def _ungrouped(grad: Tensor, *, like: Tensor) -> Tensor:
    grad = grad.permute(0, 3, 2, 1).to(like.dtype)
    return grad.squeeze(1) if like.dim() == 3 else grad


# --- chunks -----------------------------------------------------------------------------------


def chunk_bounds(length: int) -> list[tuple[int, int]]:
    """Cut positions 0..length into chunks of nearly equal size, about `CHUNK_POSITIONS` each."""
    size = _chunk_size(length)
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _chunk_size(length: int) -> int:
    return -(-length // max(1, round(length / CHUNK_POSITIONS)))


def scan_workspace(steps: Tensor, *, states: int, buffers: int) -> Tensor:
    """Scratch [buffers, rows, chunk + 1, state, inner]: for as many sequences as go into it.

    The position past the chunk holds what is carried from chunk to chunk.

    Args:
        steps: any tensor [batch, length, inner] of the scan's dtype and device.
        states: states per channel.
        buffers: how many arrays of that shape the caller needs.
    """
    _, length, inner = steps.shape
    chunk = _chunk_size(length)
    row_bytes = buffers * (chunk + 1) * states * inner * steps.element_size()
    rows = max(1, WORKSPACE_BYTES // row_bytes)
    return steps.new_empty(buffers, rows, chunk + 1, states, inner)


def _blocks(batch: int, workspace: Tensor) -> Iterator[slice]:
    rows = workspace.shape[1]
    if workspace.device.type == "cpu":
        rows = min(rows, max(1, CACHE_BYTES // workspace[0, 0].nbytes))
    return (slice(start, min(start + rows, batch)) for start in range(0, batch, rows))


def _by_group(x: Tensor, groups: int) -> Tensor:
    """[..., inner] -> [..., groups, inner / groups], a view."""
    return x.view(*x.shape[:-1], groups, x.shape[-1] // groups)


def _recur(state: Tensor, decay: Tensor, start: Tensor) -> None:
    """In place: state[:, t] += decay[:, t] * state[:, t-1], from `start` on."""
    before = start
    for now, factor in zip(state.unbind(1), decay.unbind(1), strict=True):
        now.addcmul_(factor, before)
        before = now


def _recur_back(adjoint: Tensor, decay: Tensor, grad: Tensor, c: Tensor, after: Tensor) -> None:
    """From the last position: adjoint[:, t] = grad[:, t] c[:, t] + decay[:, t+1] adjoint[:, t+1].

    In place, decay[:, t] becomes decay[:, t] * adjoint[:, t]; `after` is that product for the
    position behind the last.
    """
    positions = zip(*(x.unbind(1) for x in (adjoint, decay, grad, c)), strict=True)
    for now, factor, grad_now, c_now in reversed(list(positions)):
        torch.addcmul(after, grad_now, c_now, out=now)
        after = factor.mul_(now)


@torch.library.custom_op("budgetplan::selective_scan", mutates_args={"workspace"})
def scan_forward_op(  # noqa: PLR0917 - operators take positions
    steps: Tensor,
    drive: Tensor,
    rates: Tensor,
    b: Tensor,
    c: Tensor,
    workspace: Tensor,
    keep_states: bool,
) -> tuple[Tensor, Tensor]:
    """The chunk loop of the forward pass; allocates only what it returns.

    Args:
        steps: step sizes [batch, length, inner].
        drive: steps times inputs, like `steps`.
        rates: A transposed, times log2(e) [state, inner].
        b: input weights [batch, length, state, groups].
        c: output weights, like `b`.
        workspace: of `scan_workspace` with `FORWARD_BUFFERS`; its contents are garbage afterwards.
        keep_states: whether the second result is filled; else it is empty.

    Returns:
        outputs like `steps`, and the state at each chunk's start [chunks, batch, state, inner].
    """
    y, states = _forward_results(steps, rates, keep_states=keep_states)
    groups = b.shape[3]
    rates, y_groups = _by_group(rates, groups), _by_group(y, groups)
    steps, drive = _by_group(steps, groups), _by_group(drive, groups)
    for rows in _blocks(len(steps), workspace):
        factor_buffer, state_buffer = _by_group(workspace[:, : rows.stop - rows.start], groups)
        carry = state_buffer[:, -1].zero_()
        for k, (start, stop) in enumerate(chunk_bounds(steps.shape[1])):
            at = (rows, slice(start, stop))
            factor, state = factor_buffer[:, : stop - start], state_buffer[:, : stop - start]
            if keep_states:
                _by_group(states[k, rows], groups).copy_(carry)
            torch.mul(steps[at].unsqueeze(2), rates, out=factor).exp2_()
            torch.mul(drive[at].unsqueeze(2), b[at].unsqueeze(-1), out=state)
            _recur(state, factor, carry)
            carry.copy_(state[:, -1])
            torch.sum(state.mul_(c[at].unsqueeze(-1)), 2, out=y_groups[at])
    return y, states


def _forward_results(steps: Tensor, rates: Tensor, *, keep_states: bool) -> tuple[Tensor, Tensor]:
    batch, length, _ = steps.shape
    chunks = len(chunk_bounds(length)) if keep_states else 0
    return torch.empty_like(steps), steps.new_empty(chunks, batch, *rates.shape)


@scan_forward_op.register_fake
def _(  # noqa: PLR0917
    steps: Tensor,
    drive: Tensor,
    rates: Tensor,
    b: Tensor,
    c: Tensor,
    workspace: Tensor,
    keep_states: bool,
) -> tuple[Tensor, Tensor]:
    return _forward_results(steps, rates, keep_states=keep_states)


@torch.library.custom_op("budgetplan::selective_scan_backward", mutates_args={"workspace"})
def scan_backward_op(  # noqa: PLR0917
    grad_y: Tensor,
    steps: Tensor,
    drive: Tensor,
    rates: Tensor,
    b: Tensor,
    c: Tensor,
    states: Tensor,
    workspace: Tensor,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The chunk loop of the backward pass; allocates only what it returns.

    Args:
        grad_y: gradient of the outputs [batch, length, inner].
        steps: as in the forward pass, and so on to `c`.
        drive: same.
        rates: same.
        b: same.
        c: same.
        states: the stored states of the forward pass.
        workspace: of `scan_workspace` with `BACKWARD_BUFFERS`.
        wanted: which of the results are computed; the others are empty.

    Returns:
        gradients of steps (through the decay only), drive, rates, b and c.
    """
    results = _backward_results(steps, rates, b, wanted)
    d_steps, d_drive, d_rates, d_b, d_c = results
    want_steps, want_drive, want_rates, want_b, want_c = wanted
    groups = b.shape[3]
    rates, steps, drive, grad_y = (_by_group(x, groups) for x in (rates, steps, drive, grad_y))
    d_steps_groups, d_drive_groups, d_rates_groups = (
        _by_group(x, groups) for x in (d_steps, d_drive, d_rates.zero_())
    )
    bounds = chunk_bounds(steps.shape[1])
    for rows in _blocks(len(steps), workspace):
        buffers = _by_group(workspace[:, : rows.stop - rows.start], groups)
        # decay[t] * adjoint[t] at the first position t of the chunk that comes after.
        carry, d_rates_here, d_rates_sum = buffers[:, :, -1]
        carry.zero_(), d_rates_sum.zero_()
        for k, (start, stop) in reversed(list(enumerate(bounds))):
            at = (rows, slice(start, stop))
            factor, state, adjoint = buffers[:, :, : stop - start]
            before = _by_group(states[k, rows], groups)
            steps_at, drive_at = steps[at].unsqueeze(2), drive[at].unsqueeze(2)
            b_at, c_at, grad_at = b[at].unsqueeze(-1), c[at].unsqueeze(-1), grad_y[at].unsqueeze(2)

            # [States of this chunk again]
            torch.mul(steps_at, rates, out=factor).exp2_()
            torch.mul(drive_at, b_at, out=state)
            _recur(state, factor, before)
            if want_c:
                torch.sum(torch.mul(state, grad_at, out=adjoint), -1, out=d_c[at])
            if not (want_steps or want_drive or want_rates or want_b):
                continue

            # [Adjoint states; `factor` times them]
            _recur_back(adjoint, factor, grad_at, c_at, carry)
            carry.copy_(factor[:, 0])

            # [Gradient of the exponent, in `factor`; from here on `state` is scratch]
            if want_steps or want_rates:
                factor[:, 0].mul_(before)
                factor[:, 1:].mul_(state[:, :-1])
            if want_steps:
                torch.sum(torch.mul(factor, rates, out=state), 2, out=d_steps_groups[at])
            if want_rates:
                d_rates_sum.add_(torch.sum(factor.mul_(steps_at), 1, out=d_rates_here))
            if want_drive:
                torch.sum(torch.mul(adjoint, b_at, out=state), 2, out=d_drive_groups[at])
            if want_b:
                torch.sum(torch.mul(adjoint, drive_at, out=state), -1, out=d_b[at])
        if want_rates:
            d_rates_groups.add_(torch.sum(d_rates_sum, 0, out=d_rates_here[0]), alpha=LN_2)
    d_steps.mul_(LN_2)
    return results


def _backward_results(
    steps: Tensor, rates: Tensor, b: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shapes = (steps.shape, steps.shape, rates.shape, b.shape, b.shape)
    empty = [
        steps.new_empty(shape if want else (0,)) for shape, want in zip(shapes, wanted, strict=True)
    ]
    return empty[0], empty[1], empty[2], empty[3], empty[4]


@scan_backward_op.register_fake
def _(  # noqa: PLR0917
    grad_y: Tensor,
    steps: Tensor,
    drive: Tensor,
    rates: Tensor,
    b: Tensor,
    c: Tensor,
    states: Tensor,
    workspace: Tensor,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _backward_results(steps, rates, b, wanted)


# --- arithmetic, for FlopCounterMode and profiler.flops -------------------------------------------


@register_flop_formula(torch.ops.budgetplan.selective_scan)
def scan_forward_flops(
    steps_shape: Sequence[int], drive_shape: Any, rates_shape: Sequence[int], *_: Any, **__: Any
) -> int:
    """Seven per state: exponent, exp, input, recurrence (2), output (2)."""
    return 7 * math.prod(steps_shape) * rates_shape[0]


@register_flop_formula(torch.ops.budgetplan.selective_scan_backward)
def scan_backward_flops(
    grad_shape: Any,
    steps_shape: Sequence[int],
    drive_shape: Any,
    rates_shape: Sequence[int],
    *rest: Any,
    **__: Any,
) -> int:
    """Five per state for the states again, two for each gradient, six for the adjoint."""
    want_steps, want_drive, want_rates, want_b, want_c = rest[-1]
    adjoint = want_steps or want_drive or want_rates or want_b
    per_state = 5 + 2 * sum((want_steps, want_drive, want_rates, want_b, want_c)) + 6 * adjoint
    return int(per_state * math.prod(steps_shape) * rates_shape[0])
