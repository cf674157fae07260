"""One training step. Replay, measurement, validation and training all run this code.

A step is: fresh inputs on the device, forward, loss, backward (``accumulation`` times), gradient
clipping, optimizer step, ``zero_grad(set_to_none=True)``.

Defaults are those of the authors' code of arXiv 2607.02158 (github.com/JokerOneK/
cifar100_vits16_repro @165ba922, src/train_*.py): AdamW with weight decay 0.05 at a constant
learning rate.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from profiler.checkpointing.host_optimizer import HostAdamW
from profiler.device_rules.cuda_dispatch import runs_on_cpu
from profiler.errors import UsageError
from profiler.workload import HOST_OPTIMIZER

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from profiler.models.methods.base import Method
    from profiler.workload import Workload

WEIGHT_DECAY = 0.05
SGD_MOMENTUM = 0.9

PhaseMarker = Callable[[str], AbstractContextManager[None]]
"""Takes ``input``, ``forward``, ``backward`` or ``optimizer``; the phase runs inside the result."""

ParameterGroup = dict[str, Any]
"""``params`` and options of an optimizer for them, such as ``lr`` and ``weight_decay``."""

Batch = tuple[Tensor, Tensor]
"""Images [batch, 3, size, size] and class indices [batch]."""


def _no_marker(phase: str) -> AbstractContextManager[None]:
    return nullcontext()


def default_learning_rate(workload: Workload) -> float:
    """Return the learning rate of arXiv 2607.02158 for AdamW, ten times as much for SGD.

    The authors' code has 1e-5 for full fine-tuning and 5e-4 for parameter-efficient methods. The
    factor for SGD is ours.
    """
    base = 1e-5 if workload.method == "full" else 5e-4
    return base * 10 if workload.optimizer == "sgd" else base


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that require a gradient, each once."""
    return [p for p in model.parameters() if p.requires_grad]


def make_optimizer(
    model: nn.Module,
    workload: Workload,
    *,
    method: Method | None = None,
    foreach: bool = False,
    learning_rate: float | None = None,
    groups: Sequence[ParameterGroup] | None = None,
) -> Optimizer:
    """Return the optimizer of a workload over the model's trainable parameters.

    Args:
        model: the model that the method returned.
        workload: gives the optimizer's name.
        method: the method, which may replace the optimizer (GaLore).
        foreach: whether AdamW and SGD update all parameters in one group of kernels. PyTorch
            chooses True on CUDA and False on a CPU. It decides which temporaries the step
            allocates, so it is always passed.
        learning_rate: rate of parameters without one of their own; None for
            ``default_learning_rate``.
        groups: all trainable parameters with the learning rate and weight decay of each, as
            PyTorch's optimizers take them; None for one group of all.
    """
    rate = learning_rate if learning_rate is not None else default_learning_rate(workload)
    parameters = list(groups) if groups is not None else [{"params": trainable_parameters(model)}]
    fused = "fused" in workload.levers
    if method is not None:
        own = method.make_optimizer(
            parameters, workload, learning_rate=rate, weight_decay=WEIGHT_DECAY
        )
        if own is not None:
            if fused:
                raise UsageError(
                    f"{workload.method} updates by an optimizer of its own, which has no fused "
                    "update; leave fused out"
                )
            return own
    # both at once are an error in PyTorch
    kernels: dict[str, Any] = {"fused": True} if fused else {"foreach": foreach}
    if workload.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=SGD_MOMENTUM, **kernels)
    is_on_gpu = any(not runs_on_cpu(p) for group in parameters for p in group["params"])
    if workload.optimizer == HOST_OPTIMIZER and is_on_gpu:
        return HostAdamW(parameters, lr=rate, weight_decay=WEIGHT_DECAY)
    if workload.optimizer == "adamw8bit":
        from profiler.models.import_quantised import import_quantised

        optimizers = import_quantised("bitsandbytes.optim")
        eight_bit: Optimizer = optimizers.AdamW8bit(parameters, lr=rate, weight_decay=WEIGHT_DECAY)
        return eight_bit
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=WEIGHT_DECAY, **kernels)


@contextmanager
def backend_settings(workload: Workload) -> Iterator[None]:
    """Apply the levers ``tf32`` and ``cudnn_benchmark`` inside the context, which are global."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    settings: list[tuple[Any, str, object]] = []
    if "cudnn_benchmark" in workload.levers:
        settings.append((cudnn, "benchmark", True))
    if "tf32" in workload.levers:
        settings.append((products, "fp32_precision", "tf32"))
    before = [getattr(place, name) for place, name, _ in settings]
    for place, name, value in settings:
        setattr(place, name, value)
    try:
        yield
    finally:
        for (place, name, _), value in zip(settings, before, strict=True):
            setattr(place, name, value)


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Exclude all existing objects from garbage collection inside the context.

    Recomputation creates thousands of objects that live until backward, and these trigger full
    collections, and each traverses all objects that importing torch created. Inside a context that
    has excluded these, nothing is left to do: the outermost one ends the exclusion.
    """
    gc.collect()
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def gc_paused() -> Iterator[None]:
    """Collect no garbage inside the context.

    A replay makes many objects and little garbage in cycles; looking for it took a seventh of the
    time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class TrainingStep:
    """Runs training steps of a model.

    Args:
        model: the model that the method returned; it maps images [batch, 3, size, size] to logits.
        optimizer: optimizer of the trainable parameters.
        workload: gives precision, accumulation and gradient clipping.
        method: the method whose hooks run after the optimizer step.
        device_type: ``cpu`` or ``cuda``, for autocast and the gradient scaler.
        foreach: whether gradients are clipped in one group of kernels; None for PyTorch's default
            on the device.
        mark: wraps each phase, for recorders.
        label_smoothing: smoothing of the cross entropy.
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
        self._forward: Callable[[Tensor], Tensor] = model
        if "compile" in workload.levers:
            self._forward = torch.compile(model)
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
        """Run one training step and return the mean loss (a detached scalar).

        Args:
            batches: ``accumulation`` functions that each make one micro-batch on the device.
        """
        total = self.accumulate(batches)
        self.finish()
        return total

    def accumulate(self, batches: Iterable[Callable[[], Batch]]) -> Tensor:
        """Run forward and backward of every micro-batch and return the mean loss."""
        total: Tensor | None = None
        with backend_settings(self.workload):
            for fetch in batches:
                loss = self._micro_batch(fetch)
                total = loss if total is None else total + loss
        if total is None:
            raise ValueError("a step takes at least one micro-batch, got none")
        return total

    def _micro_batch(self, fetch: Callable[[], Batch]) -> Tensor:
        with self.mark("input"):
            images, labels = fetch()
            # cached features [batch, D] have no channels
            if "channels_last" in self.workload.levers and images.ndim == 4:
                images = images.contiguous(memory_format=torch.channels_last)
        with self.mark("forward"):
            with self.autocast():
                logits = self._forward(images)
                loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
                if self.workload.accumulation > 1:
                    loss = loss / self.workload.accumulation
            del logits  # else they would stay live through backward
        with self.mark("backward"):
            (self.scaler.scale(loss) if self.scaler else loss).backward()
        return loss.detach()

    def finish(self) -> None:
        """Clip, step the optimizer, run the method's hook and free the gradients."""
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
            self.scaler.unscale_(self.optimizer)  # the norm is that of the true gradients
        if clip is not None:
            parameters = trainable_parameters(self.model)
            nn.utils.clip_grad_norm_(parameters, clip, foreach=self.foreach)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Autocast to the workload's precision; no autocast for fp32."""
        precision = self.workload.precision
        if precision == "fp32":
            yield
            return
        dtype = torch.bfloat16 if precision == "bf16" else torch.float16
        with torch.autocast(self.device_type, dtype=dtype):
            yield
