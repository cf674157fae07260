"""AdamW whose state is in the host's memory, and whose update the processor computes.

    HostAdamW     the optimizer of a model on a GPU, ``adamw_host`` of a workload

The idea is ZeRO-Offload's (arXiv:2101.06840). A step copies the gradients to the host, computes the
change of the weights there, and copies the change back:

    device    w <- (1 - rate * decay) w
    host      m, v, change <- AdamW(gradient)
    device    w <- w + change

PyTorch's fused AdamW of the processor computes the change: it updates a weight that is zero. So no
copy of the weights is on the host that other code could make stale (resuming, AdaLoRA's masks).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from profiler.checkpointing.host_memory import working
from profiler.devices.host_link import HostWork

HYPERPARAMETERS = ("lr", "betas", "eps")


class HostAdamW(Optimizer):
    """AdamW with its state in the host's memory.

    Args:
        parameters: groups of parameters on a GPU, as PyTorch's optimizers take them.
        lr: learning rate of groups without their own.
        weight_decay: decay of groups without their own.
    """

    def __init__(
        self, parameters: Sequence[dict[str, Any]], *, lr: float, weight_decay: float
    ) -> None:
        defaults = {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)
        with working(HostWork.TO_HOST):
            changes = [
                {"params": [_on_host(p) for p in group["params"]], "lr": group["lr"]}
                for group in self.param_groups
            ]
            self._on_host = AdamW(changes, weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the weights of all parameters that have a gradient.

        Args:
            closure: computes the loss and the gradients; None if they are there.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    def _update(self) -> None:
        pairs = [pair for pair in self._pairs() if pair[0].grad is not None]
        _copy_gradients(pairs)
        with working(HostWork.UPDATE):
            self._set_hyperparameters()
            self._on_host.step()
            self._on_host.zero_grad(set_to_none=True)
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        _add_changes(pairs)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Return each parameter with its change on the host."""
        groups = zip(self.param_groups, self._on_host.param_groups, strict=True)
        found: list[tuple[Tensor, Tensor]] = []
        for here, there in groups:
            found += zip(here["params"], there["params"], strict=True)
        return found

    def _set_hyperparameters(self) -> None:
        for here, there in zip(self.param_groups, self._on_host.param_groups, strict=True):
            there.update({name: here[name] for name in HYPERPARAMETERS})

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy; PyTorch's own has three attributes only."""
        return {**super().__getstate__(), "_on_host": self._on_host}

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with tensors on the host, and the groups of this optimizer."""
        groups = super().state_dict()["param_groups"]
        return {"state": self._on_host.state_dict()["state"], "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state that ``state_dict`` returned; it stays on the host."""
        super().load_state_dict({**state_dict, "state": {}})
        inner = self._on_host.state_dict()
        self._on_host.load_state_dict({**inner, "state": state_dict["state"]})


def _copy_gradients(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Give each change on the host the gradient of its weight, and wait for the copies."""
    with working(HostWork.TO_HOST):
        for weight, change in pairs:
            gradient = weight.grad
            assert gradient is not None, "pairs have gradients"
            change.grad = torch.empty_like(change, pin_memory=_pins(weight))
            change.grad.copy_(gradient, non_blocking=True)
    _wait(pairs)


def _add_changes(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Add each change to its weight; afterwards the changes are zero again."""
    for weight, change in pairs:
        with working(HostWork.TO_DEVICE):
            there = torch.empty_like(weight)
            there.copy_(change, non_blocking=True)
        weight.add_(there)
    _wait(pairs)
    with working(HostWork.UPDATE):
        for _, change in pairs:
            change.zero_()


def _wait(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Wait for all copies: the processor reads and writes their memory next."""
    if any(_pins(weight) for weight, _ in pairs):
        torch.cuda.current_stream().synchronize()


def _on_host(weight: Tensor) -> Tensor:
    """Return zeros in page-locked memory, with the shape of a parameter."""
    zeros = torch.zeros_like(weight, device="cpu", pin_memory=_pins(weight), requires_grad=False)
    return zeros.requires_grad_()


def _pins(weight: Tensor) -> bool:
    return weight.is_cuda
