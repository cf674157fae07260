"""Selective scan (the state-space recurrence of Mamba) without storing its states.

For every sequence, channel d and state n (Gu & Dao, "Mamba", arXiv 2312.00752, section 3.2, eq. 2a
with the discretisation of ``mamba_ssm``: zero-order hold for A, Euler for B):

    h[t] = exp(delta[t] A) h[t-1] + delta[t] u[t] B[t]      y[t] = sum_n C[t] h[t]   (+ D u[t])

Autograd over that loop keeps several [batch, length, inner, state] tensors, each ``state`` (16)
times the size of any other activation of the block. Here the sequence is cut into chunks of about
sixteen positions. Forward stores only the state at each chunk's start. Backward processes the
chunks from the last to the first: it recomputes the states of the chunk, then runs the adjoint
recurrence

    g[t] = C[t] dy[t] + exp(delta[t+1] A) g[t+1]

through it. All decays are exp of a negative number, so nothing overflows.

Modules:
    selective_scan    ``mamba_ssm``'s shapes, its CUDA kernel where installed, and autograd
    scan_operators    forward and backward pass as two operators of the dispatcher
    scan_loops        the chunk loops in PyTorch operations
    scan_kernel       the chunk loops in C, for float32 on a CPU
    scan_loop_work    launches and bytes of the PyTorch loops, for predicted times

Cost: time O(batch * length * inner * state), stored O(batch * length / chunk * inner * state),
scratch ``WORKSPACE_BYTES`` or one sequence.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from profiler.models.backbones.scan_loops import (
    BACKWARD_ARRAYS,
    FORWARD_ARRAYS,
    LOG2_E,
    ScanInputs,
    scan_workspace,
)
from profiler.models.backbones.scan_operators import scan_backward_op, scan_forward_op


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
        delta: step sizes [batch, inner, length].
        A: negative decay rates [inner, state].
        B: input weights [batch, state, length], or [batch, groups, state, length] with one set of
            weights for each of ``groups`` equal slices of the channels.
        C: output weights, shaped like ``B``.
        D: skip weights [inner].
        z: gate [batch, inner, length]; the output is multiplied by silu(z).
        delta_bias: bias of ``delta`` [inner].
        delta_softplus: whether softplus is applied to the biased ``delta``.

    Returns:
        [batch, inner, length] in the dtype of ``u``; computed in float32 (float64 for float64).
    """
    # Modes that watch torch functions (selective activation recomputation) see the scan as one.
    if has_torch_function((u, delta)):
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
    """The scan as a module, so that a placement can name it."""

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        """Call ``selective_scan``."""
        return selective_scan(*arguments, **named)


@cache
def _has_mamba_kernel() -> bool:
    return importlib.util.find_spec("mamba_ssm") is not None


def _mamba_kernel_scan(*arguments: object) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    y: Tensor = selective_scan_fn(*arguments)
    return y


class _SelectiveScan(torch.autograd.Function):
    """Autograd of the scan: saves the inputs and one state per chunk."""

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
        inputs = _operands(_time_major(u, biased.dtype), biased, A, B, C, D)
        y, states = scan_forward_op(
            *inputs,
            scan_workspace(inputs.u, states=A.shape[1], arrays=FORWARD_ARRAYS),
            delta_softplus,
            keep_states,
        )
        if keep_states:
            ctx.delta_softplus, ctx.delta_dtype = delta_softplus, delta.dtype
            # In the compute dtype the biased delta has as many bytes as delta: saving it instead
            # saves the addition in backward. In a narrower dtype delta itself is smaller.
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
        time_major_u = _time_major(u, biased.dtype)
        time_major_grad = _time_major(grad_y, biased.dtype)
        inputs = _operands(time_major_u, biased, A, B, C, D)
        d_inputs, d_biased, d_rates, d_b, d_c, d_skip = scan_backward_op(
            time_major_grad,
            *inputs,
            states,
            scan_workspace(inputs.u, states=A.shape[1], arrays=BACKWARD_ARRAYS),
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


def _operands(  # noqa: PLR0917 - in the order of selective_scan
    u: Tensor,
    biased: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None,  # noqa: N803
) -> ScanInputs:
    """Convert the weights to the operators' layout and the dtype of the first two arguments.

    Args:
        u: inputs [batch, length, inner].
        biased: step sizes with their bias [batch, length, inner].
        A: decay rates [inner, state].
        B: input weights [batch, (groups,) state, length].
        C: output weights [batch, (groups,) state, length].
        D: skip weights [inner]; zero if None.
    """
    dtype = biased.dtype
    return ScanInputs(
        u=u,
        delta=biased,
        rates=(A.t().to(dtype) * LOG2_E).contiguous(),
        b=_grouped(B, dtype),
        c=_grouped(C, dtype),
        skip=u.new_zeros(u.shape[2]) if D is None else D.to(dtype).contiguous(),
    )


def _time_major(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[batch, inner, length] -> contiguous [batch, length, inner]."""
    y: Tensor = x.transpose(1, 2).to(dtype).contiguous()
    return y


def _biased(delta: Tensor, bias: Tensor | None) -> Tensor:
    """Return delta plus bias, contiguous [batch, length, inner] in the compute dtype."""
    compute_dtype = torch.float64 if delta.dtype == torch.float64 else torch.float32
    raw = _time_major(delta, compute_dtype)
    return raw if bias is None else raw + bias.to(raw.dtype)


def _grouped(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """[batch, (groups,) state, length] -> contiguous [batch, length, state, groups]."""
    grouped = weights.unsqueeze(1) if weights.dim() == 3 else weights
    return grouped.permute(0, 3, 2, 1).to(dtype).contiguous()


def _ungrouped(grad: Tensor, *, like: Tensor) -> Tensor:
    """[batch, length, state, groups] -> the shape and dtype of ``like``."""
    grad = grad.permute(0, 3, 2, 1).to(like.dtype)
    return grad.squeeze(1) if like.dim() == 3 else grad
