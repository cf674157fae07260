"""Rehearsals in one process on an emulated GPU: one that runs, and faults that only CUDA shows."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from planner.training import rehearsal_run
from planner.training.rehearsal_run import (
    RehearsalBatch,
    RehearsalRequest,
    run_rehearsal,
    run_rehearsals,
)
from profiler.models import build
from profiler.placement import HOST_DECISIONS, Placement
from profiler.running.messages import encode
from profiler.units import MIB
from profiler.workload import Candidate, Workload

WORKLOAD = Workload(
    model="test_vit", method="lora", num_classes=10, micro_batch=8, accumulation=2,
    precision="fp16", rank=4, image_size=32,
)  # fmt: skip

PLAIN = Candidate(workload=WORKLOAD)
LARGE = WORKLOAD.replace(image_size=160, precision="fp32")  # activations decide its memory
ON_THE_HOST = Candidate(
    workload=LARGE,
    placement=Placement({f"blocks.{i}": word for i, word in enumerate(sorted(HOST_DECISIONS) * 3)}),
)


WITH_STATE_ON_THE_HOST = Candidate(
    workload=WORKLOAD.replace(method="full", rank=None, optimizer="adamw_host")
)


GALORE = Candidate(workload=WORKLOAD.replace(method="galore"))


def request(candidate: Candidate = PLAIN, cap_bytes: int = 512 * MIB) -> RehearsalRequest:
    return RehearsalRequest(candidate=candidate, cap_bytes=cap_bytes, recipe=None, steps=3)


def mixes_devices(x: torch.Tensor) -> torch.Tensor:
    return x + torch.ones(x.shape[-1])


def reads_on_the_host(x: torch.Tensor) -> torch.Tensor:
    x.detach().numpy()
    return x


def draws_on_the_host(x: torch.Tensor) -> torch.Tensor:
    return x + torch.rand(x.shape, device=x.device, generator=torch.Generator())


def trains_the_bias_of_a_long_norm(x: torch.Tensor) -> torch.Tensor:
    rows = x.float().sum() + torch.zeros(70_000, 8, device=x.device)
    bias = nn.Parameter(torch.zeros(8, device=x.device))
    frozen = torch.ones(8, device=x.device)
    return x + nn.functional.layer_norm(rows, (8,), frozen, bias).sum()


TOO_MANY_BYTES = 1 << 50


def asks_python_for_too_much(x: torch.Tensor) -> torch.Tensor:
    return x + len(bytearray(TOO_MANY_BYTES))


def asks_torch_for_too_much(x: torch.Tensor) -> torch.Tensor:
    return x + torch.empty(TOO_MANY_BYTES, dtype=torch.uint8).cuda()


def pins_too_much(x: torch.Tensor) -> torch.Tensor:
    return x + torch.empty(TOO_MANY_BYTES, dtype=torch.uint8, pin_memory=True).cuda()


MORE_THAN_THE_HOST_HAS = (asks_python_for_too_much, asks_torch_for_too_much, pins_too_much)


FAULTS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    mixes_devices,
    reads_on_the_host,
    draws_on_the_host,
    trains_the_bias_of_a_long_norm,
)


def failure(asked: RehearsalRequest) -> str:
    try:
        run_rehearsal(asked, lambda text, fraction: None)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "it ran"


@contextmanager
def planted(fault: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Let the last normalisation of every model that is built run a function on its output."""
    own = build.build_model

    def build_planted(workload: Workload) -> object:
        built = own(workload)
        built.backbone.norm.register_forward_hook(lambda module, args, out: fault(out))
        return built

    build.build_model = build_planted  # type: ignore[assignment]
    try:
        yield
    finally:
        build.build_model = own


def main() -> None:
    """Print the stages of the run without a fault, and the failure of each fault."""
    candidates = (PLAIN, ON_THE_HOST, WITH_STATE_ON_THE_HOST, GALORE)
    asked = (request(), request(cap_bytes=4 * MIB), *map(request, candidates))
    batch = RehearsalBatch(requests=asked)
    rows = run_rehearsals(batch, lambda text, fraction: None).rows
    names = ("good", "out of memory", "good again", "on the host", "its state", "galore")
    found = {name: json.loads(encode(row)) for name, row in zip(names, rows, strict=True)}
    for fault in FAULTS:
        with planted(fault):
            found[fault.__name__] = failure(request())
    for fault in MORE_THAN_THE_HOST_HAS:
        with planted(fault):
            (row,) = run_rehearsals(RehearsalBatch(requests=(request(),)), lambda *_: None).rows
        found[fault.__name__] = json.loads(encode(row))
    torch.cuda.get_arch_list = lambda: ["sm_80", "sm_90a"]
    found["kernels"] = failure(request())
    sys.stdout.write(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


assert rehearsal_run.DEVICE == "cuda"
if __name__ == "__main__":
    main()
