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
    SelectiveScan                       the same as a module
    _SelectiveScan                      autograd: casts, softplus, which gradients are wanted
    scan_forward_op, scan_backward_op   the chunk loops, as two operators of the dispatcher
    scan_workspace                      the scratch that both write to

Why operators (`torch.library.custom_op`) that are handed their scratch: the loops allocate nothing
of their own, so a recorder on fake tensors sees one operator and every byte of it instead of
hundreds of operators, and a policy that recomputes the cheap parts of a unit can name the scan and
keep it. Inside, one in-place `addcmul_` per position is the whole recurrence: for 197 positions
about 320 kernel launches forward and 960 backward (`loop_work` counts them), for as many sequences
and directions as the scratch holds.

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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import register_flop_formula

from profiler.models.backbones.scan_kernel import ScanKernel, scan_kernel
from profiler.operations import bytes_in, only_allocates, only_views

LOG2_E, LN_2 = math.log2(math.e), math.log(2)

CHUNK_POSITIONS = 16
"""Positions between stored states: their storage then equals one [batch, length, inner] activation
at sixteen states."""

WORKSPACE_BYTES = 32 * 2**20
"""Scratch of a scan, in whole sequences and at least one; those beyond it are taken in turns. The
batch does not change it: bytes of a step then are linear in the batch, which
`profiler.prediction.parametric` reads off a single replay."""

CACHE_BYTES = 2 * 2**20
"""On a CPU only so many sequences are taken at once that one buffer of the scratch stays below
this: measured at Vim-S, 71 ms of a core per layer at 1.7 MB a buffer, 101 ms at 6.7 MB. The scratch
itself is the same on every device, so that a replay on fake CPU tensors holds for a GPU."""

FORWARD_BUFFERS, BACKWARD_BUFFERS, VECTORS = 2, 3, 3


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
    if has_torch_function((u, delta)):  # for who watches calls, as checkpointing does
        return handle_torch_function(
            selective_scan,
            (u, delta),
            *(u, delta, A, B, C, D, z, delta_bias),
            delta_softplus=delta_softplus,
        )
    if u.is_cuda and _has_mamba_kernel():
        return _mamba_kernel_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    y: Tensor = _SelectiveScan.apply(
        u, delta, A, B, C, D, delta_bias, delta_softplus, torch.is_grad_enabled()
    )
    return y if z is None else y * F.silu(z)


class SelectiveScan(nn.Module):
    """The scan as a named part of a model, of which a placement can say something."""

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        """Call ``selective_scan``."""
        return selective_scan(*arguments, **named)


@cache
def _has_mamba_kernel() -> bool:
    return importlib.util.find_spec("mamba_ssm") is not None


def _mamba_kernel_scan(*arguments: Any) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    y: Tensor = selective_scan_fn(*arguments)
    return y


# --- autograd ---------------------------------------------------------------------------------


class _SelectiveScan(torch.autograd.Function):
    """The scan with its softplus and its skip; saves its inputs and one state per chunk."""

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
        biased = _biased(delta, delta_bias)
        inputs = _time_major(u, biased.dtype)
        y, states = scan_forward_op(
            inputs,
            biased,
            _rates(A, biased.dtype),
            _grouped(B, biased.dtype),
            _grouped(C, biased.dtype),
            _skip(D, inputs),
            scan_workspace(inputs, states=A.shape[1], buffers=FORWARD_BUFFERS),
            delta_softplus,
            keep_states,
        )
        if keep_states:
            ctx.delta_softplus, ctx.delta_dtype = delta_softplus, delta.dtype
            # The sum with the bias is kept where it takes the bytes of what it comes from.
            ctx.delta_is_biased = delta_bias is not None and delta.dtype == biased.dtype
            kept_delta = biased.transpose(1, 2) if ctx.delta_is_biased else delta
            ctx.save_for_backward(u, kept_delta, A, B, C, D, delta_bias, states)
        result: Tensor = y.transpose(1, 2).to(u.dtype)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, D, delta_bias, states = ctx.saved_tensors  # noqa: N806
        need_u, need_delta, need_a, need_b, need_c, need_d, need_bias = ctx.needs_input_grad[:7]
        biased = _biased(delta, None if ctx.delta_is_biased else delta_bias)
        inputs = _time_major(u, biased.dtype)
        d_inputs, d_biased, d_rates, d_b, d_c, d_skip = scan_backward_op(
            _time_major(grad_y, biased.dtype),
            inputs,
            biased,
            _rates(A, biased.dtype),
            _grouped(B, biased.dtype),
            _grouped(C, biased.dtype),
            _skip(D, inputs),
            states,
            scan_workspace(inputs, states=A.shape[1], buffers=BACKWARD_BUFFERS),
            ctx.delta_softplus,
            [need_u, need_delta or need_bias, need_a, need_b, need_c, need_d],
        )
        return (
            d_inputs.transpose(1, 2).to(u.dtype) if need_u else None,
            d_biased.transpose(1, 2).to(ctx.delta_dtype) if need_delta else None,
            (d_rates.t() * LOG2_E).to(A.dtype) if need_a else None,
            _ungrouped(d_b, like=B) if need_b else None,
            _ungrouped(d_c, like=C) if need_c else None,
            d_skip.to(D.dtype) if need_d else None,
            d_biased.sum((0, 1)).to(delta_bias.dtype) if need_bias else None,
            None,
            None,
        )


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _time_major(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[batch, inner, length] -> contiguous [batch, length, inner]."""
    y: Tensor = x.transpose(1, 2).to(dtype).contiguous()
    return y


def _biased(delta: Tensor, bias: Tensor | None) -> Tensor:
    raw = _time_major(delta, _compute_dtype(delta.dtype))
    return raw if bias is None else raw + bias.to(raw.dtype)


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


def _skip(D: Tensor | None, inputs: Tensor) -> Tensor:  # noqa: N803
    if D is None:
        return inputs.new_zeros(inputs.shape[2])
    return D.to(inputs.dtype).contiguous()


# --- chunks -----------------------------------------------------------------------------------


def chunk_bounds(length: int) -> list[tuple[int, int]]:
    """Cut positions 0..length into chunks of nearly equal size, about `CHUNK_POSITIONS` each."""
    size = _chunk_size(length)
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _chunk_size(length: int) -> int:
    return -(-length // max(1, round(length / CHUNK_POSITIONS)))


def scan_workspace(inputs: Tensor, *, states: int, buffers: int) -> Tensor:
    """Scratch [rows, positions, inner] for as many sequences as go into it.

    For every sequence it holds `buffers` arrays [chunk + 1, state, inner], whose position past the
    chunk holds what is carried from chunk to chunk, and `VECTORS` arrays [chunk, inner].

    Args:
        inputs: any tensor [batch, length, inner] of the scan's dtype and device.
        states: states per channel.
        buffers: how many large arrays the caller needs.
    """
    _, length, inner = inputs.shape
    chunk = _chunk_size(length)
    positions = buffers * (chunk + 1) * states + VECTORS * chunk
    rows = max(1, WORKSPACE_BYTES // (positions * inner * inputs.element_size()))
    return inputs.new_empty(rows, positions, inner)


def _scratch(
    workspace: Tensor, rows: int, *, chunk: int, states: int, groups: int
) -> tuple[Tensor, Tensor]:
    """Its arrays [buffers, rows, chunk + 1, state, ...] and vectors [VECTORS, rows, chunk, ...]."""
    vectors = VECTORS * chunk
    split = _by_group(workspace[:rows], groups).split(
        [workspace.shape[1] - vectors, vectors], dim=1
    )
    large = split[0].unflatten(1, (-1, chunk + 1, states))
    return large.movedim(1, 0), split[1].unflatten(1, (VECTORS, chunk)).movedim(1, 0)


def _blocks(batch: int, workspace: Tensor, *, buffer_positions: int) -> Iterator[slice]:
    rows = workspace.shape[0]
    if workspace.device.type == "cpu":
        buffer_bytes = buffer_positions * workspace.shape[2] * workspace.element_size()
        rows = min(rows, max(1, CACHE_BYTES // buffer_bytes))
    return (slice(start, min(start + rows, batch)) for start in range(0, batch, rows))


def _by_group(x: Tensor, groups: int) -> Tensor:
    """[..., inner] -> [..., groups, inner / groups], a view; an empty tensor stays as it is."""
    return x.unflatten(-1, (groups, -1)) if x.numel() else x


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


def _steps(delta: Tensor, out: Tensor, *, softplus: bool) -> Tensor:
    return torch.ops.aten.softplus.out(delta, out=out) if softplus else out.copy_(delta)


# --- the two operators -----------------------------------------------------------------------


@torch.library.custom_op("budgetplan::selective_scan", mutates_args={"workspace"})
def scan_forward_op(  # noqa: PLR0917 - operators take positions
    u: Tensor,
    delta: Tensor,
    rates: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    workspace: Tensor,
    softplus: bool,
    keep_states: bool,
) -> tuple[Tensor, Tensor]:
    """The chunk loop of the forward pass; allocates only what it returns.

    Args:
        u: inputs [batch, length, inner].
        delta: step sizes like `u`, before softplus if that is asked for.
        rates: A transposed, times log2(e) [state, inner].
        b: input weights [batch, length, state, groups].
        c: output weights, like `b`.
        skip: D [inner].
        workspace: of `scan_workspace` with `FORWARD_BUFFERS`; its contents are garbage afterwards.
        softplus: whether the step sizes are softplus(delta).
        keep_states: whether the second result is filled; else it is empty.

    Returns:
        outputs like `u`, and the state at each chunk's start [chunks, batch, state, inner].
    """
    y, states = _forward_results(u, rates, keep_states=keep_states)
    chunk = _chunk_size(u.shape[1])
    if (kernel := _kernel_for(u)) and (
        sizes := kernel.sizes(u, b, workspace, chunk=chunk, softplus=softplus, backward=False)
    ):
        kernel.forward(sizes, u, delta, rates, b, c, skip, y, states, workspace)
    else:
        _forward_loops(u, delta, rates, b, c, skip, workspace, y, states, softplus=softplus)
    return y, states


def _kernel_for(u: Tensor) -> ScanKernel | None:
    return scan_kernel() if u.device.type == "cpu" and u.dtype == torch.float32 else None


def _forward_loops(  # noqa: PLR0917
    u: Tensor,
    delta: Tensor,
    rates: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    workspace: Tensor,
    y: Tensor,
    states: Tensor,
    *,
    softplus: bool,
) -> None:
    bounds, groups = chunk_bounds(u.shape[1]), b.shape[3]
    chunk, n = _chunk_size(u.shape[1]), rates.shape[0]
    u, delta, rates, skip, y, states = (
        _by_group(x, groups) for x in (u, delta, rates, skip, y, states)
    )
    for rows in _blocks(len(u), workspace, buffer_positions=(chunk + 1) * n):
        buffers, vectors = _scratch(
            workspace, rows.stop - rows.start, chunk=chunk, states=n, groups=groups
        )
        carry = buffers[1, :, -1].zero_()
        for k, (start, stop) in enumerate(bounds):
            at = (rows, slice(start, stop))
            factor, state = buffers[:, :, : stop - start]
            steps, drive, _ = vectors[:, :, : stop - start]
            if states.numel():
                states[k, rows].copy_(carry)
            _steps(delta[at], steps, softplus=softplus)
            torch.mul(steps, u[at], out=drive)
            torch.mul(steps.unsqueeze(2), rates, out=factor).exp2_()
            torch.mul(drive.unsqueeze(2), b[at].unsqueeze(-1), out=state)
            _recur(state, factor, carry)
            carry.copy_(state[:, -1])
            torch.sum(state.mul_(c[at].unsqueeze(-1)), 2, out=y[at])
            y[at].addcmul_(u[at], skip)


def _forward_results(u: Tensor, rates: Tensor, *, keep_states: bool) -> tuple[Tensor, Tensor]:
    batch, length, _ = u.shape
    chunks = len(chunk_bounds(length)) if keep_states else 0
    return torch.empty_like(u), u.new_empty(chunks, batch, *rates.shape)


@scan_forward_op.register_fake
def _(  # noqa: PLR0917
    u: Tensor,
    delta: Tensor,
    rates: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    workspace: Tensor,
    softplus: bool,
    keep_states: bool,
) -> tuple[Tensor, Tensor]:
    return _forward_results(u, rates, keep_states=keep_states)


@torch.library.custom_op("budgetplan::selective_scan_backward", mutates_args={"workspace"})
def scan_backward_op(  # noqa: PLR0917
    grad_y: Tensor,
    u: Tensor,
    delta: Tensor,
    rates: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    states: Tensor,
    workspace: Tensor,
    softplus: bool,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The chunk loop of the backward pass; allocates only what it returns.

    Args:
        grad_y: gradient of the outputs [batch, length, inner].
        u: as in the forward pass, and so on to `skip`.
        delta: same.
        rates: same.
        b: same.
        c: same.
        skip: same.
        states: the stored states of the forward pass.
        workspace: of `scan_workspace` with `BACKWARD_BUFFERS`.
        softplus: as in the forward pass.
        wanted: which of the results are computed; the others are empty.

    Returns:
        gradients of u, delta, rates (times 1 / ln 2 of its exponent), b, c and skip.
    """
    results = _backward_results(u, rates, b, wanted)
    chunk = _chunk_size(u.shape[1])
    if (kernel := _kernel_for(u)) and (
        sizes := kernel.sizes(u, b, workspace, chunk=chunk, softplus=softplus, backward=True)
    ):
        kernel.backward(sizes, grad_y, u, delta, rates, b, c, skip, states, *results, workspace)
    else:
        _backward_loops(
            grad_y,
            u,
            delta,
            rates,
            b,
            c,
            skip,
            states,
            workspace,
            results,
            wanted,
            softplus=softplus,
        )
    return results


def _backward_loops(  # noqa: PLR0912, PLR0915, PLR0917 - one loop, in headed blocks
    grad_y: Tensor,
    u: Tensor,
    delta: Tensor,
    rates: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    states: Tensor,
    workspace: Tensor,
    results: Sequence[Tensor],
    wanted: Sequence[bool],
    *,
    softplus: bool,
) -> None:
    want_u, want_delta, want_rates, want_b, want_c, want_skip = wanted
    bounds, groups = chunk_bounds(u.shape[1]), b.shape[3]
    chunk, n = _chunk_size(u.shape[1]), rates.shape[0]
    grad_y, u, delta, rates, skip, states = (
        _by_group(x, groups) for x in (grad_y, u, delta, rates, skip, states)
    )
    d_b, d_c = results[3], results[4]
    d_u, d_delta, d_rates, d_skip = (_by_group(results[i], groups) for i in (0, 1, 2, 5))
    d_rates.zero_(), d_skip.zero_()
    for rows in _blocks(len(u), workspace, buffer_positions=(chunk + 1) * n):
        buffers, vectors = _scratch(
            workspace, rows.stop - rows.start, chunk=chunk, states=n, groups=groups
        )
        # decay[t] * adjoint[t] at the first position t of the chunk that comes after.
        carry, d_rates_here, d_rates_sum = buffers[:, :, -1]
        carry.zero_(), d_rates_sum.zero_()
        for k, (start, stop) in reversed(list(enumerate(bounds))):
            at = (rows, slice(start, stop))
            factor, state, adjoint = buffers[:, :, : stop - start]
            steps, drive, d_steps = vectors[:, :, : stop - start]
            before = states[k, rows]
            b_at, c_at, grad_at = b[at].unsqueeze(-1), c[at].unsqueeze(-1), grad_y[at].unsqueeze(2)

            # [States of this chunk again]
            _steps(delta[at], steps, softplus=softplus)
            torch.mul(steps, u[at], out=drive)
            torch.mul(steps.unsqueeze(2), rates, out=factor).exp2_()
            torch.mul(drive.unsqueeze(2), b_at, out=state)
            _recur(state, factor, before)
            if want_c:
                torch.sum(torch.mul(state, grad_at, out=adjoint), -1, out=d_c[at])
            if want_skip:
                total = adjoint[:, 0, 0]
                torch.sum(torch.mul(u[at], grad_y[at], out=d_steps), 1, out=total)
                d_skip.add_(torch.sum(total, 0, out=d_steps[0, 0]))
            if not (want_u or want_delta or want_rates or want_b):
                continue

            # [Adjoint states; `factor` times them]
            _recur_back(adjoint, factor, grad_at, c_at, carry)
            carry.copy_(factor[:, 0])

            # [Gradient of the exponent, in `factor`; from here on `state` is scratch]
            if want_delta or want_rates:
                factor[:, 0].mul_(before)
                factor[:, 1:].mul_(state[:, :-1])
            if want_delta:
                torch.sum(torch.mul(factor, rates, out=state), 2, out=d_steps)
            if want_rates:
                d_rates_sum.add_(torch.sum(factor.mul_(steps.unsqueeze(2)), 1, out=d_rates_here))
            if want_b:
                torch.sum(torch.mul(adjoint, drive.unsqueeze(2), out=state), -1, out=d_b[at])

            # [Gradient of drive = steps * u, in `drive`, and of what it is made of]
            if want_u or want_delta:
                torch.sum(torch.mul(adjoint, b_at, out=state), 2, out=drive)
            if want_u:
                torch.mul(drive, steps, out=d_u[at]).addcmul_(grad_y[at], skip)
            if want_delta:
                d_steps.mul_(LN_2).addcmul_(drive, u[at])
                if softplus:
                    torch.sigmoid(delta[at], out=steps)
                    d_steps.mul_(steps)
                d_delta[at].copy_(d_steps)
        if want_rates:
            d_rates.add_(torch.sum(d_rates_sum, 0, out=d_rates_here[0]), alpha=LN_2)


def _backward_results(
    u: Tensor, rates: Tensor, b: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    shapes = (u.shape, u.shape, rates.shape, b.shape, b.shape, u.shape[2:])
    empty = [
        u.new_empty(shape if want else (0,)) for shape, want in zip(shapes, wanted, strict=True)
    ]
    return empty[0], empty[1], empty[2], empty[3], empty[4], empty[5]


@scan_backward_op.register_fake
def _(  # noqa: PLR0917
    grad_y: Tensor,
    u: Tensor,
    delta: Tensor,
    rates: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    states: Tensor,
    workspace: Tensor,
    softplus: bool,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _backward_results(u, rates, b, wanted)


# --- arithmetic, for FlopCounterMode and profiler.replay.flops -------------------------------------------


@register_flop_formula(torch.ops.budgetplan.selective_scan)
def scan_forward_flops(
    u_shape: Sequence[int], delta_shape: Any, rates_shape: Sequence[int], *_: Any, **__: Any
) -> int:
    """Seven per state: exponent, exp, input, recurrence (2), output (2)."""
    return 7 * math.prod(u_shape) * rates_shape[0]


@register_flop_formula(torch.ops.budgetplan.selective_scan_backward)
def scan_backward_flops(
    grad_shape: Any,
    u_shape: Sequence[int],
    delta_shape: Any,
    rates_shape: Sequence[int],
    *rest: Any,
    **__: Any,
) -> int:
    """Five per state for the states again, two for each gradient, six for the adjoint."""
    want_u, want_delta, want_rates, want_b, want_c, _ = rest[-1]
    want_drive = want_u or want_delta
    adjoint = want_drive or want_rates or want_b
    per_state = 5 + 2 * sum((want_delta, want_drive, want_rates, want_b, want_c)) + 6 * adjoint
    return int(per_state * math.prod(u_shape) * rates_shape[0])


# --- what the loops do inside the operators, on a device without a kernel for them ----------------


class LoopWork(NamedTuple):
    """What an operator's loops do.

    Attributes:
        launches: operations, each a kernel on a GPU, of one turn. Where the scratch has no room for
            the batch more turns follow, but then each operation moves as much as it can hold.
        moved_bytes: what all of them read and write.
    """

    launches: int
    moved_bytes: int


def loop_work(func: Any, args: tuple[Any, ...]) -> LoopWork | None:
    """Return what PyTorch's loops do inside one of the two operators; None for any other.

    Args:
        func: an operator.
        args: its arguments, of which only shapes and flags matter.
    """
    if func.namespace != "budgetplan":
        return None
    given = {a.name: value for a, value in zip(func._schema.arguments, args, strict=True)}
    (batch, length, inner), (states, _) = given["u"].shape, given["rates"].shape
    groups = given["b"].shape[3]
    wanted = tuple(given["wanted"]) if "wanted" in given else None
    few, more = (
        _one_sequence(length, states, groups, channels, softplus=given["softplus"], wanted=wanted)
        for channels in (1, 2)
    )
    a_channel = more.moved_bytes - few.moved_bytes
    a_sequence = few.moved_bytes + a_channel * (inner // groups - 1)
    return LoopWork(few.launches, batch * a_sequence * given["u"].element_size() // 4)


@cache
def _one_sequence(
    length: int,
    states: int,
    groups: int,
    channels: int,
    *,
    softplus: bool,
    wanted: tuple[bool, ...] | None,
) -> LoopWork:
    """Run the loops on one float32 sequence of so few channels a group that it takes no time.

    Args:
        length: positions.
        states: for every channel.
        groups: of channels with weights of their own.
        channels: in a group.
        softplus: whether it is applied to the step sizes.
        wanted: gradients of the backward pass; None for the forward pass.
    """
    with unset_fake_temporarily(), torch.no_grad():
        u = torch.zeros(1, length, groups * channels)
        rates, b = torch.zeros(states, groups * channels), torch.zeros(1, length, states, groups)
        y, kept = _forward_results(u, rates, keep_states=True)
        given = (u, u, rates, b, b, rates[0])
        count = _Count()
        if wanted is None:
            scratch = scan_workspace(u, states=states, buffers=FORWARD_BUFFERS)
            with count:
                _forward_loops(*given, scratch, y, kept, softplus=softplus)
        else:
            scratch = scan_workspace(u, states=states, buffers=BACKWARD_BUFFERS)
            results = _backward_results(u, rates, b, list(wanted))
            with count:
                _backward_loops(u, *given, kept, scratch, results, wanted, softplus=softplus)
    return LoopWork(count.launches, count.moved_bytes)


class _Count(TorchDispatchMode):
    """Adds up what is not a view."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches = self.moved_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and count it."""
        out = func(*args, **(kwargs or {}))
        if not only_views(func) and not only_allocates(func):
            self.launches += 1
            self.moved_bytes += bytes_in((args, out))
        return out
