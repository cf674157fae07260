"""One training step. Replay, measurement, validation and training all run this code.

A step is: fresh inputs on the device, forward, loss, backward (``accumulation`` times), gradient
clipping, optimizer step, ``zero_grad(set_to_none=True)``.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from profiler.models.methods.base import Method
    from profiler.workload import Workload

WEIGHT_DECAY = 0.05
"""AdamW's, as in the code of arXiv 2607.02158 (facts/seeds.md 1.3)."""

MOMENTUM = 0.9

PHASES = ("input", "forward", "backward", "optimizer")

PhaseMarker = Callable[[str], AbstractContextManager[None]]

Batch = tuple[Tensor, Tensor]


def _no_marker(phase: str) -> AbstractContextManager[None]:
    return nullcontext()


def default_learning_rate(workload: Workload) -> float:
    """Return the paper's learning rate for AdamW; ten times that for SGD with momentum.

    5e-4 for parameter-efficient methods and 1e-5 for full fine-tuning (facts/seeds.md 1.3).
    """
    base = 1e-5 if workload.method == "full" else 5e-4
    return base * 10 if workload.optimizer == "sgd" else base


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that learn, each once."""
    return [p for p in model.parameters() if p.requires_grad]


def make_optimizer(
    model: nn.Module,
    workload: Workload,
    *,
    method: Method | None = None,
    foreach: bool = False,
    learning_rate: float | None = None,
) -> Optimizer:
    """Return the optimizer of a workload over the model's trainable parameters.

    Args:
        model: what the method returned.
        workload: names the optimizer.
        method: may bring an optimizer of its own (GaLore).
        foreach: PyTorch's default is True on CUDA and False on CPU; it decides which temporaries
            the step allocates, so it is always said.
        learning_rate: None for the workload's default.
    """
    rate = learning_rate if learning_rate is not None else default_learning_rate(workload)
    own = method.make_optimizer(model, workload, foreach=foreach) if method else None
    if own is not None:
        for group in own.param_groups:
            group["lr"] = rate
        return own
    parameters = trainable_parameters(model)
    if workload.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=MOMENTUM, foreach=foreach)
    if workload.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        eight_bit: Optimizer = AdamW8bit(parameters, lr=rate, weight_decay=WEIGHT_DECAY)
        return eight_bit
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=WEIGHT_DECAY, foreach=foreach)


@contextmanager
def settled_heap() -> Iterator[None]:
    """Keep the garbage collector away from what is there already, for as long as steps are taken.

    A placement makes thousands of objects that live until backward, which brings on collections of
    everything that torch ever imported.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class TrainingStep:
    """Runs training steps of one model.

    Args:
        model: what the method returned; called with images [batch, 3, size, size].
        optimizer: over its trainable parameters.
        workload: gives precision, accumulation and clipping.
        method: its hooks run around the optimizer step.
        device_type: ``cpu`` or ``cuda``, for autocast.
        foreach: clip gradients in one operation; None for PyTorch's default on the device.
        mark: called with the name of each phase, returns a context manager around it.
        label_smoothing: of the cross entropy.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        workload: Workload,
        *,
        method: Method | None = None,
        device_type: str = "cpu",
        foreach: bool | None = None,
        mark: PhaseMarker = _no_marker,
        label_smoothing: float = 0.0,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.workload = workload
        self.method = method
        self.device_type = device_type
        self.foreach = device_type == "cuda" if foreach is None else foreach
        self.mark = mark
        self.label_smoothing = label_smoothing
        self.global_step = 0
        self.scaler = torch.amp.GradScaler(device_type) if workload.precision == "fp16" else None

    def run(self, batches: Iterable[Callable[[], Batch]]) -> Tensor:
        """Run one optimizer step and return the mean loss (a detached scalar).

        Args:
            batches: ``accumulation`` functions, each making one micro-batch on the device.
        """
        total = self.accumulate(batches)
        self.finish()
        return total

    def accumulate(self, batches: Iterable[Callable[[], Batch]]) -> Tensor:
        """Run every micro-batch forward and backward and return the mean loss."""
        total: Tensor | None = None
        for fetch in batches:
            loss = self._micro_batch(fetch)
            total = loss if total is None else total + loss
        if total is None:
            raise ValueError("a step needs at least one micro-batch")
        return total

    def _micro_batch(self, fetch: Callable[[], Batch]) -> Tensor:
        with self.mark("input"):
            images, labels = fetch()
        with self.mark("forward"):
            with self.autocast():
                logits = self.model(images)
                loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
                if self.workload.accumulation > 1:
                    loss = loss / self.workload.accumulation
            del logits
        with self.mark("backward"):
            (self.scaler.scale(loss) if self.scaler else loss).backward()
        return loss.detach()

    def finish(self) -> None:
        """Clip, step the optimizer, run the method's hook and drop the gradients."""
        with self.mark("optimizer"):
            self.update()
            if self.method is not None:
                self.method.before_zero_grad(self.model, global_step=self.global_step)
            self.optimizer.zero_grad(set_to_none=True)
        self.global_step += 1

    def update(self) -> None:
        """Clip the gradients and step the optimizer."""
        clip = self.workload.grad_clip
        if self.scaler is not None and clip is not None:
            self.scaler.unscale_(self.optimizer)
        if clip is not None:
            nn.utils.clip_grad_norm_(
                trainable_parameters(self.model),
                clip,
                foreach=self.foreach,
            )
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Autocast to the workload's precision; nothing for fp32."""
        precision = self.workload.precision
        if precision == "fp32":
            yield
            return
        dtype = torch.bfloat16 if precision == "bf16" else torch.float16
        with torch.autocast(self.device_type, dtype=dtype):
            yield
