"""The chunk loops of the selective scan in PyTorch operations, for every device and dtype.

They write all intermediate values to one scratch tensor (``scan_workspace``) and allocate nothing.
``selective_scan`` states the recurrence and its adjoint. Two changes of variables save passes:

    rates = A log2(e), transposed       exp(delta A) = exp2(delta rates); exp2 is three times faster
    drive[t] = delta[t] u[t]            the input term of the recurrence is drive[t] B[t]

One in-place ``addcmul_`` per position is the whole recurrence.

Shapes of a chunk: R sequences, T positions, N states, G groups of C channels (inner = G C).
Arrays with states are [R, T, N, G, C], vectors [R, T, G, C].

Tried and lost (one core, AVX-512, Vim-S at batch 4, both directions: 19.4 M elements per layer):
    torch.exp for the decays: 16 ms against 5 ms of exp2 with the rates scaled beforehand;
    doubling inside the chunk (Hillis-Steele): 8 passes of 2 to 3 ms against 4 ms;
    sub-chunks side by side, their carries corrected afterwards: three more passes, and 14 launches
        instead of 16 per chunk of 16;
    batched matmul for the sums over channels: 21 ms against 3 ms for multiply and sum (with the
        operands exchanged 1.5 ms, but only for one sequence at a time);
    one sum over batch and positions for the gradient of A: 60 ms against 2 ms in two steps;
    one position at a time on tensors that fit the second-level cache: the same time on a CPU, and
        five times the launches;
    exp of positive cumulative sums (a cumsum instead of the recurrence): overflows in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

LOG2_E, LN_2 = math.log2(math.e), math.log(2)

CHUNK_POSITIONS = 16
"""Positions between stored states. At sixteen states the stored states then take the bytes of a
[batch, length, inner] activation."""

WORKSPACE_BYTES = 32 * 2**20
"""Most bytes of scratch, rounded down to whole sequences but at least one sequence. Larger batches
are processed in turns. The scratch does not grow with the batch, so the bytes of a training step
stay linear in the batch, which ``profiler.prediction.parametric`` relies on."""

CACHE_BYTES = 2 * 2**20
"""On a CPU a turn has so few sequences that one array of the scratch stays below this many bytes.
Measured for Vim-S: 71 ms per layer on one core at 1.7 MB an array, 101 ms at 6.7 MB. Only the turns
differ on a CPU: the scratch has the same size on every device, so that a replay on fake CPU tensors
holds for a GPU."""

FORWARD_ARRAYS, BACKWARD_ARRAYS, VECTORS = 2, 3, 3
"""Arrays (with states) and vectors (without) that the loops keep in the scratch."""


class ScanInputs(NamedTuple):
    """Operands of the scan, contiguous and equal in dtype; also used for their gradients.

    Attributes:
        u: inputs [batch, length, inner].
        delta: step sizes [batch, length, inner], before softplus where softplus is applied.
        rates: A transposed, times log2(e) [states, inner].
        b: input weights [batch, length, states, groups].
        c: output weights [batch, length, states, groups].
        skip: D [inner].
    """

    u: Tensor
    delta: Tensor
    rates: Tensor
    b: Tensor
    c: Tensor
    skip: Tensor


class WantedGradients(NamedTuple):
    """Flags: which gradients the backward pass computes, in the order of ``ScanInputs``."""

    u: bool
    delta: bool
    rates: bool
    b: bool
    c: bool
    skip: bool


class _Scratch(NamedTuple):
    """Views of the scratch for one chunk: arrays [R, T, N, G, C], then vectors [R, T, G, C]."""

    factor: Tensor
    state: Tensor
    adjoint: Tensor
    steps: Tensor
    drive: Tensor
    d_steps: Tensor


def chunk_bounds(length: int) -> list[tuple[int, int]]:
    """Cut positions 0..length into chunks of nearly equal size, about ``CHUNK_POSITIONS`` each."""
    size = chunk_size(length)
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def chunk_size(length: int) -> int:
    """Return the positions of a chunk (the last one may have fewer)."""
    return -(-length // max(1, round(length / CHUNK_POSITIONS)))


def scan_workspace(inputs: Tensor, *, states: int, arrays: int) -> Tensor:
    """Allocate scratch [sequences, positions, inner] for as many sequences as fit.

    For every sequence it holds ``arrays`` arrays [chunk + 1, states, inner] and ``VECTORS`` vectors
    [chunk, inner]. The extra position of an array holds the values carried between chunks.

    Args:
        inputs: any tensor [batch, length, inner] of the scan's dtype and device.
        states: states per channel.
        arrays: ``FORWARD_ARRAYS`` or ``BACKWARD_ARRAYS``.
    """
    _, length, inner = inputs.shape
    chunk = chunk_size(length)
    positions = arrays * (chunk + 1) * states + VECTORS * chunk
    rows = max(1, WORKSPACE_BYTES // (positions * inner * inputs.element_size()))
    return inputs.new_empty(rows, positions, inner)


def forward_loops(
    inputs: ScanInputs, workspace: Tensor, y: Tensor, states: Tensor, *, softplus: bool
) -> None:
    """Run the recurrence, chunk after chunk.

    Args:
        inputs: operands.
        workspace: scratch of ``scan_workspace`` with ``FORWARD_ARRAYS``.
        y: receives the outputs [batch, length, inner].
        states: receives the state at each chunk's start [chunks, batch, states, inner]; an empty
            tensor receives nothing.
        softplus: whether the step sizes are softplus(delta).
    """
    length, groups = inputs.u.shape[1], inputs.b.shape[3]
    grouped = _by_group(inputs, groups)
    y, states = _split_inner(y, groups), _split_inner(states, groups)
    for rows in _turns(inputs, workspace):
        arrays, vectors = _scratch_of(workspace, rows, inputs)
        carry = arrays[1, :, -1].zero_()
        for k, (start, stop) in enumerate(chunk_bounds(length)):
            at = (rows, slice(start, stop))
            chunk = _at(grouped, at)
            factor, state = arrays[:, :, : stop - start]
            steps, drive, _ = vectors[:, :, : stop - start]
            if states.numel():
                states[k, rows].copy_(carry)
            _chunk_states(
                chunk,
                carry,
                factor=factor,
                state=state,
                steps=steps,
                drive=drive,
                softplus=softplus,
            )
            carry.copy_(state[:, -1])
            torch.sum(state.mul_(chunk.c), 2, out=y[at])
            y[at].addcmul_(chunk.u, chunk.skip)


def backward_loops(
    grad_y: Tensor,
    inputs: ScanInputs,
    states: Tensor,
    workspace: Tensor,
    *,
    results: ScanInputs,
    wanted: WantedGradients,
    softplus: bool,
) -> None:
    """From the last chunk to the first: recompute the states, run the adjoint recurrence.

    Args:
        grad_y: gradient of the outputs [batch, length, inner].
        inputs: operands of the forward pass.
        states: states at each chunk's start, as the forward pass stored them.
        workspace: scratch of ``scan_workspace`` with ``BACKWARD_ARRAYS``.
        results: receives the gradients; those not wanted are empty.
        wanted: gradients to compute.
        softplus: as in the forward pass.
    """
    length, groups = inputs.u.shape[1], inputs.b.shape[3]
    grouped = _by_group(inputs, groups)
    grad_y, states = _split_inner(grad_y, groups), _split_inner(states, groups)
    d_u, d_delta, d_rates, d_skip = (
        _split_inner(x, groups) for x in (results.u, results.delta, results.rates, results.skip)
    )
    d_rates.zero_(), d_skip.zero_()
    for rows in _turns(inputs, workspace):
        arrays, vectors = _scratch_of(workspace, rows, inputs)
        # The carry is decay[t] * adjoint[t] at the first position t of the chunk after this one.
        carry, d_rates_chunk, d_rates_turn = arrays[:, :, -1]
        carry.zero_(), d_rates_turn.zero_()
        for k, (start, stop) in reversed(list(enumerate(chunk_bounds(length)))):
            at = (rows, slice(start, stop))
            _chunk_gradients(
                _at(grouped, at),
                grad_y[at],
                states[k, rows],
                carry,
                scratch=_Scratch(*arrays[:, :, : stop - start], *vectors[:, :, : stop - start]),
                out=ScanInputs(
                    _slice(d_u, at),
                    _slice(d_delta, at),
                    d_rates_chunk,
                    _slice(results.b, at),
                    _slice(results.c, at),
                    d_skip,
                ),
                wanted=wanted,
                softplus=softplus,
            )
            if wanted.rates:
                d_rates_turn.add_(d_rates_chunk)
        if wanted.rates:
            d_rates.add_(torch.sum(d_rates_turn, 0, out=d_rates_chunk[0]), alpha=LN_2)


def _chunk_states(
    chunk: ScanInputs,
    before: Tensor,
    *,
    factor: Tensor,
    state: Tensor,
    steps: Tensor,
    drive: Tensor,
    softplus: bool,
) -> None:
    """Write the step sizes, drives, decay factors and states of a chunk.

    Args:
        chunk: operands of the chunk.
        before: states before its first position [R, N, G, C].
        factor: receives exp(delta A) [R, T, N, G, C].
        state: receives the states [R, T, N, G, C].
        steps: receives the step sizes [R, T, G, C].
        drive: receives delta u [R, T, G, C].
        softplus: whether the step sizes are softplus(delta).
    """
    if softplus:
        torch.ops.aten.softplus.out(chunk.delta, out=steps)
    else:
        steps.copy_(chunk.delta)
    torch.mul(steps, chunk.u, out=drive)
    torch.mul(steps.unsqueeze(2), chunk.rates, out=factor).exp2_()
    torch.mul(drive.unsqueeze(2), chunk.b, out=state)
    for now, decay in zip(state.unbind(1), factor.unbind(1), strict=True):
        now.addcmul_(decay, before)
        before = now


def _chunk_gradients(
    chunk: ScanInputs,
    grad_y: Tensor,
    before: Tensor,
    carry: Tensor,
    *,
    scratch: _Scratch,
    out: ScanInputs,
    wanted: WantedGradients,
    softplus: bool,
) -> None:
    """Write the wanted gradients of a chunk and move the carry to its first position.

    Args:
        chunk: operands of the chunk.
        grad_y: gradient of its outputs [R, T, G, C].
        before: states before its first position [R, N, G, C].
        carry: decay times adjoint at the position after the chunk [R, N, G, C]; overwritten.
        scratch: arrays and vectors of this chunk's length.
        out: receives the gradients; ``skip`` accumulates, ``rates`` is the sum over the chunk
            [R, N, G, C], in units of 1 / log2(e).
        wanted: gradients to compute.
        softplus: whether the step sizes are softplus(delta).
    """
    factor, state, adjoint, steps, drive, d_steps = scratch

    # [Recompute the states]
    _chunk_states(
        chunk, before, factor=factor, state=state, steps=steps, drive=drive, softplus=softplus
    )
    _output_gradients(chunk, grad_y, scratch, out, wanted)
    if not (wanted.u or wanted.delta or wanted.rates or wanted.b):
        return

    # [Adjoint states; factor becomes factor * adjoint]
    _recur_back(adjoint, factor, grad_y.unsqueeze(2), chunk.c, carry)
    carry.copy_(factor[:, 0])

    # [Gradient of the exponent, in `factor`; `state` is free from here on]
    if wanted.delta or wanted.rates:
        factor[:, 0].mul_(before)
        factor[:, 1:].mul_(state[:, :-1])
    if wanted.delta:
        torch.sum(torch.mul(factor, chunk.rates, out=state), 2, out=d_steps)
    if wanted.rates:
        torch.sum(factor.mul_(steps.unsqueeze(2)), 1, out=out.rates)
    if wanted.b:
        torch.sum(torch.mul(adjoint, drive.unsqueeze(2), out=state), -1, out=out.b)

    # [Gradient of the drive, in `drive`, and from it those of u and delta]
    if wanted.u or wanted.delta:
        torch.sum(torch.mul(adjoint, chunk.b, out=state), 2, out=drive)
    if wanted.u:
        torch.mul(drive, steps, out=out.u).addcmul_(grad_y, chunk.skip)
    if wanted.delta:
        d_steps.mul_(LN_2).addcmul_(drive, chunk.u)
        if softplus:
            torch.sigmoid(chunk.delta, out=steps)  # the derivative of softplus
            d_steps.mul_(steps)
        out.delta.copy_(d_steps)


def _output_gradients(
    chunk: ScanInputs, grad_y: Tensor, scratch: _Scratch, out: ScanInputs, wanted: WantedGradients
) -> None:
    """Write the gradients of c and skip, which need no adjoint; ``adjoint`` is free until then."""
    if wanted.c:
        products = torch.mul(scratch.state, grad_y.unsqueeze(2), out=scratch.adjoint)
        torch.sum(products, -1, out=out.c)
    if wanted.skip:
        total = scratch.adjoint[:, 0, 0]
        torch.sum(torch.mul(chunk.u, grad_y, out=scratch.d_steps), 1, out=total)
        out.skip.add_(torch.sum(total, 0, out=scratch.d_steps[0, 0]))


def _recur_back(adjoint: Tensor, decay: Tensor, grad: Tensor, c: Tensor, after: Tensor) -> None:
    """From the last position: adjoint[:, t] = grad[:, t] c[:, t] + decay[:, t+1] adjoint[:, t+1].

    ``decay[:, t]`` becomes ``decay[:, t] * adjoint[:, t]`` in place. ``after`` is that product for
    the position behind the last one.
    """
    positions = zip(*(x.unbind(1) for x in (adjoint, decay, grad, c)), strict=True)
    for now, factor, grad_now, c_now in reversed(list(positions)):
        torch.addcmul(after, grad_now, c_now, out=now)
        after = factor.mul_(now)


def _turns(inputs: ScanInputs, workspace: Tensor) -> Iterator[slice]:
    """Cut the batch into turns of as many sequences as the scratch (on a CPU the cache) holds."""
    rows, (batch, length, inner) = workspace.shape[0], inputs.u.shape
    if workspace.device.type == "cpu":
        array_positions = (chunk_size(length) + 1) * inputs.rates.shape[0]
        array_bytes = array_positions * inner * workspace.element_size()
        rows = min(rows, max(1, CACHE_BYTES // array_bytes))
    return (slice(start, min(start + rows, batch)) for start in range(0, batch, rows))


def _scratch_of(workspace: Tensor, rows: slice, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Return views of the scratch: arrays [A, R, chunk + 1, N, G, C], vectors [V, R, chunk, G, C].

    A is the number of arrays, V is ``VECTORS``.
    """
    chunk, groups = chunk_size(inputs.u.shape[1]), inputs.b.shape[3]
    lengths = [workspace.shape[1] - VECTORS * chunk, VECTORS * chunk]
    used = _split_inner(workspace[: rows.stop - rows.start], groups)
    arrays, vectors = used.split(lengths, dim=1)
    arrays = arrays.unflatten(1, (-1, chunk + 1, inputs.rates.shape[0]))
    return arrays.movedim(1, 0), vectors.unflatten(1, (VECTORS, chunk)).movedim(1, 0)


def _by_group(inputs: ScanInputs, groups: int) -> ScanInputs:
    """Return views that broadcast over groups: [..., inner] -> [..., G, C], b and c [..., G, 1]."""
    u, delta, rates, b, c, skip = inputs
    u, delta, rates, skip = (_split_inner(x, groups) for x in (u, delta, rates, skip))
    return ScanInputs(u, delta, rates, b.unsqueeze(-1), c.unsqueeze(-1), skip)


def _split_inner(x: Tensor, groups: int) -> Tensor:
    """[..., inner] -> [..., G, C], a view; an empty tensor stays as it is."""
    return x.unflatten(-1, (groups, -1)) if x.numel() else x


def _at(inputs: ScanInputs, at: tuple[slice, slice]) -> ScanInputs:
    """Return the operands of some sequences and positions."""
    u, delta, rates, b, c, skip = inputs
    return ScanInputs(u[at], delta[at], rates, b[at], c[at], skip)


def _slice(x: Tensor, at: tuple[slice, slice]) -> Tensor:
    """Return a part of a result; a result that is not wanted is empty and stays so."""
    return x[at] if x.numel() else x
