"""Single operations: what a kernel takes and keeps on CUDA, and what our rules say it does.

A probe is a few *stages* (forward, backward, update). Each is run on the GPU between two readings
of the allocator's statistics, and on fake tensors under `profiler.replay.recorder.Recorder` with CUDA's
rules. Both give the same two numbers: `inside`, the highest live bytes above the level at the
stage's start, and `growth`, what is left at its end. On the GPU every probe runs twice: *cold*,
after cuBLAS' workspaces were given back, and *warm*; what a stage keeps only when cold is a
library's workspace.

Nothing here is a test: `run.py --compare` prints both columns and what differs.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from profiler.devices.table import DeviceSpec

BLOCK_BYTES = 512


@dataclass(frozen=True, slots=True)
class Stage:
    """A piece of a probe.

    Attributes:
        name: for the tables; one that begins with ``(`` is run, and not measured.
        phase: of `profiler.training_step`.
        run: does it; results must be kept by the probe.
    """

    name: str
    phase: str
    run: Callable[[], None]


Probe = Callable[[str], list[Stage]]


def _differentiable(
    make: Callable[[str], tuple[list[Tensor], Callable[..., Tensor]]],
    *,
    autocast: torch.dtype | None = None,
) -> Probe:
    """Make a probe of an operation: its forward and its backward."""

    def stages(device: str) -> list[Stage]:
        inputs, operation = make(device)
        kept: dict[str, Tensor] = {}

        def forward() -> None:
            context = nullcontext() if autocast is None else torch.autocast(device, dtype=autocast)
            with context:
                kept["out"] = operation(*inputs)

        def gradient() -> None:
            kept["gradient"] = torch.rand_like(kept["out"])

        def backward() -> None:
            kept["out"].backward(kept["gradient"])

        return [
            Stage("forward", "forward", forward),
            Stage("(gradient)", "forward", gradient),
            Stage("backward", "backward", backward),
        ]

    return stages


def _rand(device: str, *shape: int, dtype: torch.dtype = torch.float32, learns: bool = True) -> Any:
    return torch.rand(shape, device=device, dtype=dtype).requires_grad_(learns)


def _convolution(
    image: tuple[int, ...], weight: tuple[int, ...], *, dtype: torch.dtype, **options: int
) -> Probe:
    def make(device: str) -> tuple[list[Tensor], Callable[..., Tensor]]:
        inputs = [_rand(device, *image, dtype=dtype), _rand(device, *weight, dtype=dtype)]
        return inputs, lambda x, w: F.conv2d(x, w, **options)  # type: ignore[call-overload]

    return _differentiable(make)


def _linear(rows: int, *, bias: bool, dtype: torch.dtype) -> Probe:
    def make(device: str) -> tuple[list[Tensor], Callable[..., Tensor]]:
        inputs = [_rand(device, 8, rows, 384, dtype=dtype), _rand(device, 1536, 384, dtype=dtype)]
        if bias:
            inputs.append(_rand(device, 1536, dtype=dtype))
        return inputs, F.linear

    return _differentiable(make)


def _attention(
    *, head: int, dtype: torch.dtype, tokens: int = 197, bias: bool = False, dropout: float = 0.0
) -> Probe:
    def make(device: str) -> tuple[list[Tensor], Callable[..., Tensor]]:
        inputs = [_rand(device, 8, 6, tokens, head, dtype=dtype) for _ in range(3)]
        if bias:
            inputs.append(_rand(device, 1, 6, tokens, tokens, dtype=dtype))
        return inputs, lambda q, k, v, m=None: F.scaled_dot_product_attention(
            q, k, v, attn_mask=m, dropout_p=dropout
        )

    return _differentiable(make)


def _module(build: Callable[[], nn.Module], shape: tuple[int, ...], **how: Any) -> Probe:
    def make(device: str) -> tuple[list[Tensor], Callable[..., Tensor]]:
        with torch.device(device):
            module = build()
        return [_rand(device, *shape)], module

    return _differentiable(make, **how)


def _half_norm(dtype: torch.dtype) -> Probe:
    def make(device: str) -> tuple[list[Tensor], Callable[..., Tensor]]:
        inputs = [_rand(device, 16, 197, 384, dtype=dtype)]
        inputs += [_rand(device, 384, dtype=dtype), _rand(device, 384, dtype=dtype)]
        return inputs, lambda x, w, b: F.layer_norm(x, (384,), w, b)

    return _differentiable(make)


def _cross_entropy(device: str) -> list[Stage]:
    def make(_: str) -> tuple[list[Tensor], Callable[..., Tensor]]:
        labels = torch.zeros(64, dtype=torch.long, device=device)
        return [_rand(device, 64, 1000)], lambda x: F.cross_entropy(x, labels)

    return _differentiable(make)(device)


def _update(make: Callable[[list[nn.Parameter]], Callable[[], object]]) -> Probe:
    """Make a probe of something done to 40 parameters that have gradients."""

    def stages(device: str) -> list[Stage]:
        parameters = [nn.Parameter(_rand(device, 384, 96 + i, learns=False)) for i in range(40)]
        for parameter in parameters:
            parameter.grad = torch.rand_like(parameter)
        update = make(parameters)

        def run() -> None:
            update()

        return [
            Stage("(state)", "optimizer", run),
            Stage("update", "optimizer", run),
        ]

    return stages


_FP32, _BF16, _FP16 = torch.float32, torch.bfloat16, torch.float16

PROBES: Mapping[str, Probe] = {
    "conv 7x7 stride 2, 3 to 64, 224 px, b32": _convolution(
        (32, 3, 224, 224), (64, 3, 7, 7), dtype=_FP32, stride=2, padding=3
    ),
    "conv 3x3, 64 to 64, 56 px, b32": _convolution(
        (32, 64, 56, 56), (64, 64, 3, 3), dtype=_FP32, padding=1
    ),
    "conv 3x3, 64 to 64, 56 px, b32, bf16": _convolution(
        (32, 64, 56, 56), (64, 64, 3, 3), dtype=_BF16, padding=1
    ),
    "conv 3x3, 512 to 512, 7 px, b32": _convolution(
        (32, 512, 7, 7), (512, 512, 3, 3), dtype=_FP32, padding=1
    ),
    "conv 3x3, 512 to 512, 7 px, b32, fp16": _convolution(
        (32, 512, 7, 7), (512, 512, 3, 3), dtype=_FP16, padding=1
    ),
    "conv 1x1, 96 to 24, 56 px, b32": _convolution((32, 96, 56, 56), (24, 96, 1, 1), dtype=_FP32),
    "conv depthwise 3x3, 96, 56 px, b32": _convolution(
        (32, 96, 56, 56), (96, 1, 3, 3), dtype=_FP32, padding=1, groups=96
    ),
    "conv depthwise 7x7, 96, 56 px, b32": _convolution(
        (32, 96, 56, 56), (96, 1, 7, 7), dtype=_FP32, padding=3, groups=96
    ),
    "conv depthwise 3x3, 96, 56 px, b32, bf16": _convolution(
        (32, 96, 56, 56), (96, 1, 3, 3), dtype=_BF16, padding=1, groups=96
    ),
    "conv patches 16x16, 3 to 384, b32": _convolution(
        (32, 3, 224, 224), (384, 3, 16, 16), dtype=_FP32, stride=16
    ),
    "conv patches 16x16, 3 to 384, b32, bf16": _convolution(
        (32, 3, 224, 224), (384, 3, 16, 16), dtype=_BF16, stride=16
    ),
    "linear": _linear(197, bias=False, dtype=_FP32),
    "linear with bias": _linear(197, bias=True, dtype=_FP32),
    "linear with bias, bf16": _linear(197, bias=True, dtype=_BF16),
    "linear with bias, fp16": _linear(197, bias=True, dtype=_FP16),
    "linear with bias, autocast bf16": _module(
        lambda: nn.Linear(384, 1536), (8, 197, 384), autocast=_BF16
    ),
    "layer norm": _module(lambda: nn.LayerNorm(384), (16, 197, 384)),
    "layer norm, bf16": _half_norm(_BF16),
    "layer norm, autocast bf16": _module(lambda: nn.LayerNorm(384), (16, 197, 384), autocast=_BF16),
    "batch norm": _module(lambda: nn.BatchNorm2d(96), (16, 96, 56, 56)),
    "group norm": _module(lambda: nn.GroupNorm(8, 96), (16, 96, 56, 56)),
    "gelu": _module(nn.GELU, (16, 197, 1536)),
    "hardswish": _module(nn.Hardswish, (16, 96, 56, 56)),
    "softmax": _module(lambda: nn.Softmax(-1), (8, 6, 197, 197)),
    "softmax, autocast fp16": _module(lambda: nn.Softmax(-1), (8, 6, 197, 197), autocast=_FP16),
    "dropout": _module(lambda: nn.Dropout(0.1), (16, 197, 384)),
    "average pool to 1": _module(lambda: nn.AdaptiveAvgPool2d(1), (16, 512, 7, 7)),
    "max pool": _module(lambda: nn.MaxPool2d(3, 2, 1), (16, 64, 112, 112)),
    "cross entropy": _cross_entropy,
    "attention fp32, head 64": _attention(head=64, dtype=_FP32),
    "attention bf16, head 64": _attention(head=64, dtype=_BF16),
    "attention fp16, head 64": _attention(head=64, dtype=_FP16),
    "attention bf16, head 32": _attention(head=32, dtype=_BF16),
    "attention bf16, head 80": _attention(head=80, dtype=_BF16),
    "attention bf16, head 160": _attention(head=160, dtype=_BF16),
    "attention fp32, head 20": _attention(head=20, dtype=_FP32),
    "attention fp32, head 32, learned bias, 49 tokens": _attention(
        head=32, dtype=_FP32, tokens=49, bias=True
    ),
    "attention bf16, head 32, learned bias, 49 tokens": _attention(
        head=32, dtype=_BF16, tokens=49, bias=True
    ),
    "attention fp32, dropout": _attention(head=64, dtype=_FP32, dropout=0.1),
    "attention bf16, dropout": _attention(head=64, dtype=_BF16, dropout=0.1),
    "AdamW, foreach": _update(lambda p: torch.optim.AdamW(p, foreach=True).step),
    "SGD with momentum, foreach": _update(
        lambda p: torch.optim.SGD(p, momentum=0.9, lr=0.1, foreach=True).step
    ),
    "clip by norm, foreach": _update(
        lambda p: lambda: nn.utils.clip_grad_norm_(p, 1.0, foreach=True)
    ),
}


# -- on the GPU ----------------------------------------------------------------------------------


def clear_cuda() -> None:
    """Give everything back that this process can give back, libraries' workspaces too."""
    gc.collect()
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def measure_probes() -> Iterator[dict[str, Any]]:
    """Run every probe on the GPU, cold and warm."""
    for name, probe in PROBES.items():
        row: dict[str, Any] = {"probe": name}
        for state in ("cold", "warm"):
            if state == "cold":
                clear_cuda()
            try:
                row[state] = _measure(probe)
            except RuntimeError as error:
                row[state] = {"failed": str(error).splitlines()[0]}
        yield row


def _measure(probe: Probe) -> dict[str, dict[str, int]]:
    torch.manual_seed(0)
    seen = {}
    for stage in probe("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        stage.run()
        torch.cuda.synchronize()
        if not stage.name.startswith("("):
            seen[stage.name] = {
                "inside": torch.cuda.max_memory_allocated() - before,
                "growth": torch.cuda.memory_allocated() - before,
            }
    return seen


# -- by our rules --------------------------------------------------------------------------------


def replay_probe(name: str, spec: DeviceSpec) -> dict[str, dict[str, int]]:
    """Return the same two numbers of every stage, from fake tensors."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from profiler.device_rules.cuda_dispatch import imitate_cuda
    from profiler.device_rules.cuda_scratch import CudaKernels
    from profiler.devices.table import multiprocessors
    from profiler.replay.recorder import Recorder

    recorder = Recorder((), kernel_bytes=CudaKernels(multiprocessors(spec)))
    windows: dict[str, tuple[int, int]] = {}
    with FakeTensorMode(), imitate_cuda(spec.compute_capability or (0, 0)):
        stages = PROBES[name]("cpu")
        with recorder:
            for stage in stages:
                start = recorder.clock.tick
                with recorder.clock.in_phase(stage.phase):
                    stage.run()
                if not stage.name.startswith("("):
                    windows[stage.name] = (start, recorder.clock.tick)
            live = _live(recorder.storages.rows, recorder.clock.tick)
    return {
        stage: {
            "inside": max(live[start : end + 1]) - live[start],
            "growth": live[end] - live[start],
        }
        for stage, (start, end) in windows.items()
    }


def _live(rows: list[list[int]], ticks: int) -> list[int]:
    change = [0] * (ticks + 1)
    for nbytes, birth, death, *_ in rows:
        size = -(-nbytes // BLOCK_BYTES) * BLOCK_BYTES
        change[birth] += size
        if death >= 0:
            change[death] -= size
    level, levels = 0, []
    for step in change:
        level += step
        levels.append(level)
    return levels
