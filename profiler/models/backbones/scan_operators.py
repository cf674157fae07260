"""The selective scan's forward and backward pass as two operators of PyTorch's dispatcher.

A recorder on fake tensors sees one operator with all its bytes instead of hundreds of small
operations, and a placement that recomputes cheap operations can name the scan and keep its result.
To make that exact the operators get their scratch as an argument and allocate only their results.

On a float32 CPU tensor an operator calls the compiled loops (scan_kernel.py) where they are
available, else the PyTorch loops (scan_loops.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from profiler.models.backbones.scan_kernel import ScanKernel, scan_kernel
from profiler.models.backbones.scan_loops import (
    ScanInputs,
    WantedGradients,
    backward_loops,
    chunk_bounds,
    chunk_size,
    forward_loops,
)


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
    """Run the forward pass; the first six arguments are ``ScanInputs``.

    Args:
        u: inputs [batch, length, inner].
        delta: step sizes [batch, length, inner], before softplus where softplus is applied.
        rates: A transposed, times log2(e) [states, inner].
        b: input weights [batch, length, states, groups].
        c: output weights [batch, length, states, groups].
        skip: D [inner].
        workspace: scratch of ``scan_workspace`` with ``FORWARD_ARRAYS``; undefined afterwards.
        softplus: whether the step sizes are softplus(delta).
        keep_states: whether the second result is filled; else it is empty.

    Returns:
        outputs [batch, length, inner], and the state at each chunk's start
        [chunks, batch, states, inner].
    """
    inputs, chunk = ScanInputs(u, delta, rates, b, c, skip), chunk_size(u.shape[1])
    y, states = forward_results(u, rates, keep_states=keep_states)
    if (kernel := _kernel_for(u)) and (
        sizes := kernel.sizes(u, b, workspace, chunk=chunk, softplus=softplus, backward=False)
    ):
        kernel.forward(sizes, *inputs, y, states, workspace)
    else:
        forward_loops(inputs, workspace, y, states, softplus=softplus)
    return y, states


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
    """Run the backward pass; ``u`` to ``skip`` are the operands of the forward pass.

    Args:
        grad_y: gradient of the outputs [batch, length, inner].
        u: inputs [batch, length, inner].
        delta: step sizes [batch, length, inner].
        rates: A transposed, times log2(e) [states, inner].
        b: input weights [batch, length, states, groups].
        c: output weights [batch, length, states, groups].
        skip: D [inner].
        states: stored states of the forward pass [chunks, batch, states, inner].
        workspace: scratch of ``scan_workspace`` with ``BACKWARD_ARRAYS``; undefined afterwards.
        softplus: as in the forward pass.
        wanted: six flags in the order of the results (``WantedGradients``).

    Returns:
        gradients of u, delta, A transposed (``rates`` without its factor log2(e)), b, c and skip;
        those not wanted are empty.
    """
    inputs, chunk = ScanInputs(u, delta, rates, b, c, skip), chunk_size(u.shape[1])
    results = backward_results(inputs, wanted)
    if (kernel := _kernel_for(u)) and (
        sizes := kernel.sizes(u, b, workspace, chunk=chunk, softplus=softplus, backward=True)
    ):
        kernel.backward(sizes, grad_y, *inputs, states, *results, workspace)
    else:
        backward_loops(
            grad_y,
            inputs,
            states,
            workspace,
            results=results,
            wanted=WantedGradients(*wanted),
            softplus=softplus,
        )
    d_u, d_delta, d_rates, d_b, d_c, d_skip = results
    return d_u, d_delta, d_rates, d_b, d_c, d_skip


def _kernel_for(u: Tensor) -> ScanKernel | None:
    return scan_kernel() if u.device.type == "cpu" and u.dtype == torch.float32 else None


def forward_results(u: Tensor, rates: Tensor, *, keep_states: bool) -> tuple[Tensor, Tensor]:
    """Allocate the results of the forward pass."""
    batch, length, _ = u.shape
    chunks = len(chunk_bounds(length)) if keep_states else 0
    return torch.empty_like(u), u.new_empty(chunks, batch, *rates.shape)


def backward_results(inputs: ScanInputs, wanted: Sequence[bool]) -> ScanInputs:
    """Allocate the results of the backward pass; those not wanted are empty."""
    return ScanInputs(
        *(x.new_empty(x.shape if want else (0,)) for x, want in zip(inputs, wanted, strict=True))
    )


@scan_forward_op.register_fake
def _fake_forward(u: Tensor, delta: Tensor, rates: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return forward_results(u, rates, keep_states=rest[-1])


@scan_backward_op.register_fake
def _fake_backward(grad_y: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(backward_results(ScanInputs(*arguments[:6]), arguments[-1]))


@register_flop_formula(torch.ops.budgetplan.selective_scan)
def scan_forward_flops(
    u_shape: Sequence[int],
    delta_shape: object,
    rates_shape: Sequence[int],
    *_: object,
    **__: object,
) -> int:
    """Seven per state and position: exponent, exp, input, recurrence (2), output (2)."""
    return 7 * math.prod(u_shape) * rates_shape[0]


@register_flop_formula(torch.ops.budgetplan.selective_scan_backward)
def scan_backward_flops(
    grad_shape: object, u_shape: Sequence[int], delta_shape: object, rates_shape: Sequence[int],
    *rest: Any, **__: object,
) -> int:  # fmt: skip
    """Five per state and position for the recomputed states, two a gradient, six for the adjoint.

    The gradients of u and delta share the gradient of their product.
    """
    wanted = WantedGradients(*rest[-1])
    drive = wanted.u or wanted.delta
    adjoint = drive or wanted.rates or wanted.b
    gradients = sum((wanted.delta, drive, wanted.rates, wanted.b, wanted.c))
    return int((5 + 2 * gradients + 6 * adjoint) * math.prod(u_shape) * rates_shape[0])
