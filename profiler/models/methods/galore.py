"""GaLore: AdamW whose moments live in a low-rank projection of the gradient (arXiv 2403.03507).

For a weight W [m, n] with gradient G (a convolution [out, in, k, k] is read as [out, in k k]):

    every ``update_gap`` steps   P = leading ``rank`` singular vectors of G   (Algorithm 2)
    m >= n:  R = G P             P [n, rank], R [m, rank]                     ("std" projection)
    m < n:   R = Pᵀ G            P [m, rank], R [rank, n]
    N = Adam(R)                  both moments have the shape of R
    U = N Pᵀ  (m < n: P N)       the update, projected back to [m, n]
    W <- W - lr (scale U + weight_decay W)

State per weight: P and two moments, (2 max(m, n) + min(m, n)) rank elements instead of 2 m n. A
parameter with one dimension, or whose smaller side is at most the rank, has AdamW's full moments.

P is computed from the eigenvectors of the smaller Gram matrix (GᵀG or GGᵀ), which span the same
subspace as the singular vectors: O(m n min(m, n)), several times faster than a decomposition of G.

Parameters are updated one after another, never as a ``foreach`` group, so the temporaries are at
most a few copies of the largest weight. No value is read back, so steps run under fake tensors.

Limitation: gradients stay full-rank. GaLore saves optimizer memory only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from profiler.errors import MeasurementError
from profiler.models.methods.base import Method
from profiler.workload import Workload

SCALE = 0.25
UPDATE_GAP = 200
"""Values in the README of the authors' code (github.com/jiaweizzhao/GaLore) and in table 2 of arXiv
2507.23536."""


class GaLore(Method):
    """Every parameter learns; the optimizer is GaLore's."""

    def refusal(self, model: nn.Module, workload: Workload) -> str | None:
        """Refuse every optimizer but AdamW, which GaLore replaces."""
        if workload.optimizer != "adamw":
            return f"it is a variant of adamw and does not combine with {workload.optimizer}"
        return None

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Let every parameter learn."""
        self.raise_refusal(model, workload)
        return model.requires_grad_(requires_grad=True)

    def make_optimizer(
        self,
        groups: Sequence[dict[str, Any]],
        workload: Workload,
        *,
        learning_rate: float,
        weight_decay: float,
    ) -> Optimizer:
        """Return the low-rank AdamW."""
        return GaLoreAdamW(
            groups,
            lr=learning_rate,
            rank=self.rank(workload),
            weight_decay=weight_decay,
        )


class GaLoreAdamW(Optimizer):
    """AdamW with low-rank moments.

    Args:
        parameters: parameters to train.
        lr: learning rate.
        rank: rank of the projection.
        scale: factor of the projected-back update (the paper's alpha).
        update_gap: steps between two computations of the projection.
        betas: decay rates of Adam's two moments.
        eps: constant in Adam's denominator.
        weight_decay: decoupled weight decay, as in AdamW.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float = 1e-3,
        rank: int,
        scale: float = SCALE,
        update_gap: int = UPDATE_GAP,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "rank": rank,
            "scale": scale,
            "update_gap": update_gap,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        gradient = parameter.grad
        assert gradient is not None
        if not projected(parameter, group["rank"]):
            update = _adam(gradient, state, group)
        else:
            matrix = gradient.reshape(gradient.shape[0], -1)
            if state.get("step", 0) % group["update_gap"] == 0:
                state["projection"] = leading_subspace(matrix, group["rank"])
            small = _adam(_project(matrix, state["projection"]), state, group)
            update = _project_back(small, state["projection"], matrix.shape)
            update = update.mul_(group["scale"]).view_as(parameter)
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"])


def projected(parameter: Tensor, rank: int) -> bool:
    """Return whether the moments of a parameter are kept in low rank."""
    if parameter.ndim < 2:
        return False
    rows = parameter.shape[0]
    return min(rows, parameter.numel() // max(rows, 1)) > rank


def leading_subspace(matrix: Tensor, rank: int) -> Tensor:
    """Return the leading singular vectors of a matrix [m, n] as columns [min(m, n), rank].

    They are right singular vectors if m >= n, else left ones.

    Raises:
        MeasurementError: the matrix has values that are not finite.
    """
    tall = matrix.shape[0] >= matrix.shape[1]
    single: Tensor = matrix.float()
    gram = single.T @ single if tall else single @ single.T
    try:
        _, vectors = torch.linalg.eigh(gram)  # in the order of ascending eigenvalues
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # torch does not export it
        # asked only now: an emulated GPU computes no values, and fails at none
        if not bool(gram.isfinite().all()):
            raise MeasurementError(
                "galore cannot project gradients that are not finite; try a lower --learning-rate"
            ) from error
        # LAPACK's single precision does not always converge: seen on a ResNet-18 whose
        # gradient had rows of zeros
        _, vectors = torch.linalg.eigh(gram.double())
    basis: Tensor = vectors[:, -rank:].to(matrix.dtype)
    return basis.contiguous()


def _project(matrix: Tensor, basis: Tensor) -> Tensor:
    return matrix @ basis if matrix.shape[0] >= matrix.shape[1] else basis.T @ matrix


def _project_back(small: Tensor, basis: Tensor, shape: torch.Size) -> Tensor:
    return small @ basis.T if shape[0] >= shape[1] else basis @ small


def _adam(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """Update the moments and return Adam's bias-corrected direction (a new tensor)."""
    if "step" not in state:
        state["step"] = 0
        state["exp_avg"] = torch.zeros_like(gradient)
        state["exp_avg_sq"] = torch.zeros_like(gradient)
    state["step"] += 1
    first, second = group["betas"]
    state["exp_avg"].lerp_(gradient, 1 - first)
    state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
    correction = (1 - second ** state["step"]) ** 0.5
    denominator: Tensor = state["exp_avg_sq"].sqrt().div_(correction).add_(group["eps"])
    direction: Tensor = torch.div(state["exp_avg"], denominator, out=denominator)
    return direction.div_(1 - first ** state["step"])
