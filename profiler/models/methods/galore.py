"""GaLore: AdamW whose moments live in a low-rank projection of the gradient (arXiv 2403.03507).

For a weight W [m, n] with gradient G (convolutions [out, in, k, k] are read as [out, in * k * k]):

    every ``update_gap`` steps   P = leading ``rank`` singular vectors of G      (Algorithm 2)
    R = G Pᵀ  [m, rank]  if m >= n,  else  R = Pᵀ G  [rank, n]                   ("std" projection)
    N = Adam(R)                                                                  (moments of R only)
    W <- W - lr * (scale * N P, projected back) - lr * weight_decay * W

State is (m + n) * rank for the moments' side and P instead of 2 * m * n. Parameters with one
dimension, or whose smaller side is not above the rank, keep ordinary AdamW moments.

P comes from the eigenvectors of the smaller Gram matrix (GᵀG or GGᵀ), the same subspace as the
singular vectors': O(m n min(m, n)), several times faster than a full decomposition of G. Gradients
themselves stay full-rank, so GaLore saves optimizer memory and nothing else.

Parameters are updated one after another, never as a ``foreach`` group: that bounds the temporaries
to a few copies of the largest weight. Works under fake tensors: no value is read back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from profiler.models.methods.base import Method
from profiler.workload import Workload

SCALE = 0.25
UPDATE_GAP = 200
"""Table 2 of arXiv 2507.23536 and the defaults of the authors' package (rank apart)."""
WEIGHT_DECAY = 0.05
"""As ``profiler.training_step`` gives AdamW."""


class GaLore(Method):
    """Every parameter learns, through GaLore's optimizer."""

    def refusal(self, model: nn.Module, workload: Workload) -> str | None:
        """Refuse other optimizers: GaLore is one itself."""
        if workload.optimizer != "adamw":
            return f"it is an AdamW of its own and cannot be combined with {workload.optimizer}"
        return None

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Let everything learn."""
        self.raise_refusal(model, workload)
        return model.requires_grad_(requires_grad=True)

    def make_optimizer(self, model: nn.Module, workload: Workload, *, foreach: bool) -> Optimizer:
        """Return the low-rank AdamW; ``foreach`` does not apply."""
        learning = [p for p in model.parameters() if p.requires_grad]
        return GaLoreAdamW(learning, rank=self.rank(workload), weight_decay=WEIGHT_DECAY)


class GaLoreAdamW(Optimizer):
    """AdamW with low-rank moments.

    Args:
        parameters: what learns.
        lr: learning rate.
        rank: of the projection.
        scale: GaLore's alpha, the size of the projected-back update.
        update_gap: steps between two projections.
        betas: Adam's averaging factors.
        eps: added to Adam's denominator.
        weight_decay: decoupled, as in AdamW.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
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
    """Say whether GaLore keeps this parameter's moments in low rank."""
    if parameter.ndim < 2:
        return False
    rows = parameter.shape[0]
    return min(rows, parameter.numel() // max(rows, 1)) > rank


def leading_subspace(matrix: Tensor, rank: int) -> Tensor:
    """Return an orthonormal basis [min(m, n), rank] of the leading singular vectors.

    Right singular vectors of a tall matrix [m >= n], left ones of a wide one.
    """
    tall = matrix.shape[0] >= matrix.shape[1]
    single: Tensor = matrix.float()
    gram = single.T @ single if tall else single @ single.T
    _, vectors = torch.linalg.eigh(gram)  # eigenvalues ascend: the leading ones are last
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
