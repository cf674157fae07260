"""How much faster and lighter is our selective scan than a loop over tokens under autograd?

    python studies/selective_scan/run.py [--repeats 3] [--threads 1] [--depth 24]

One training step (forward, cross entropy, backward) of Vim-S, batch 4, 224 px, float32, on the CPU,
with the same model and weights; only `selective_scan` is exchanged (`chunked` is ours with its
compiled kernel, `uncompiled` ours in PyTorch alone). Times alternate between them. Bytes are those of PyTorch's CPU allocator (profiler.device_rules.cpu_allocator).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from harness import Rows, write_summary

from profiler.device_rules.cpu_allocator import memory_events, peak_and_growth
from profiler.models.backbones import scan_operators, vim
from profiler.models.backbones.scan_kernel import describe_kernel, scan_kernel

HERE = Path(__file__).resolve().parent
BATCH, IMAGE_SIZE, CLASSES = 4, 224, 100


def token_loop(
    u: Tensor,
    delta: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor,  # noqa: N803
    *,
    delta_softplus: bool,
) -> Tensor:
    """The recurrence as the paper's authors fall back to: per direction, per token, autograd.

    The arithmetic of their fallback (github.com/JokerOneK/cifar100_vits16_repro @165ba922,
    src/train_mamba_textures.py): decay, drive, state, output and skip of each token in turn.
    """
    assert delta_softplus
    inner, outputs = u.shape[1] // B.shape[1], []
    for group in range(B.shape[1]):
        channels = slice(group * inner, (group + 1) * inner)
        here, skip = u[:, channels], D[channels]
        step, rates = F.softplus(delta[:, channels]), A[channels].unsqueeze(0)
        h = here.new_zeros(here.shape[0], inner, A.shape[1])
        tokens = []
        for t in range(here.shape[2]):
            step_t, u_t = step[:, :, t].unsqueeze(-1), here[:, :, t]
            decay = torch.exp(step_t * rates)
            drive = step_t * B[:, group, :, t].unsqueeze(1)
            h = h * decay + u_t.unsqueeze(-1) * drive
            tokens.append((h * C[:, group, :, t].unsqueeze(1)).sum(-1) + skip * u_t)
        outputs.append(torch.stack(tokens, dim=-1))
    return torch.cat(outputs, dim=1)


def no_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor,  # noqa: N803
    **_: Any,
) -> Tensor:
    """Not a scan: a product, so that the rest of the step can be timed."""
    return u * delta * (A.sum() + B.sum() + C.sum() + D.sum())


OURS = vim.SelectiveScan.forward
SCANS: dict[str, Callable[..., Tensor]] = {
    "chunked": OURS,
    "uncompiled": OURS,
    "loop": lambda _, *arguments, **named: token_loop(*arguments, **named),
    "none": lambda _, *arguments, **named: no_scan(*arguments, **named),
}
REAL = ("chunked", "uncompiled", "loop")


@contextmanager
def scan_exchanged(name: str) -> Iterator[None]:
    vim.SelectiveScan.forward = SCANS[name]
    if name == "uncompiled":
        scan_operators.scan_kernel = lambda: None
    try:
        yield
    finally:
        scan_operators.scan_kernel = scan_kernel
        vim.SelectiveScan.forward = OURS


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels)


def step_seconds(run: Callable[[], None]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def measure(depth: int, repeats: int, threads: list[int]) -> dict[str, Any]:
    torch.manual_seed(0)
    model = vim.Vim(depth=depth, num_classes=CLASSES)
    images = torch.randn(BATCH, 3, IMAGE_SIZE, IMAGE_SIZE)
    labels = torch.arange(BATCH)
    losses, grads, memory, times = {}, {}, {}, []

    def step() -> None:
        model.zero_grad(set_to_none=True)
        loss_of(model, images, labels).backward()

    # [The same numbers?]
    for name in REAL:
        with scan_exchanged(name):
            step()
            losses[name] = loss_of(model, images, labels).item()
        grads[name] = gradients(model)
    differences = {
        name: ((grads[name] - grads["loop"]).norm() / grads["loop"].norm()).item()
        for name in REAL
        if name != "loop"
    }
    print(losses, differences, describe_kernel(), flush=True)

    # [Time, alternating; the first round warms up]
    for count in threads:
        torch.set_num_threads(count)
        trials: dict[str, list[dict[str, float]]] = {name: [] for name in SCANS}
        for round_ in range(repeats + 1):
            for name in SCANS:
                with scan_exchanged(name):
                    seconds = step_seconds(step)
                print(count, name, {k: round(v, 2) for k, v in seconds.items()}, flush=True)
                if round_:
                    trials[name].append(seconds)
        times.append({"threads": count, "trials": trials, "loop_over": time_ratios(trials)})

    # [Bytes]
    for name in REAL:
        with scan_exchanged(name):
            model.zero_grad(set_to_none=True)
            peak, growth = peak_and_growth(memory_events(step))
            kept: list[Tensor] = []
            forward = memory_events(lambda kept=kept: kept.append(loss_of(model, images, labels)))
            stored = peak_and_growth(forward)[1]
            del kept
        memory[name] = {"peak_bytes": peak, "gradient_bytes": growth, "stored_bytes": stored}
        print(name, memory[name], flush=True)

    return {
        "loss": losses,
        "kernel": describe_kernel(),
        "gradient_relative_difference": differences,
        "times": times,
        "memory": memory,
        "loop_over_chunked_bytes": byte_ratios(memory),
    }


def time_ratios(trials: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians of the loop's step over ours: the step, what the scan adds to it, and by rounds."""
    ratios: dict[str, dict[str, float]] = {"chunked": {}, "uncompiled": {}}
    for key in ("wall_seconds", "cpu_seconds"):
        middle = {name: statistics.median(trial[key] for trial in trials[name]) for name in SCANS}
        for name, ratio in ratios.items():
            rounds = zip(trials["loop"], trials[name], strict=True)
            ratio[key] = middle["loop"] / middle[name]
            ratio[f"median_of_rounds_{key}"] = statistics.median(
                loop[key] / ours[key] for loop, ours in rounds
            )
            scan = {name: middle[name] - middle["none"] for name in REAL}
            ratio[f"scan_alone_{key}"] = scan["loop"] / scan[name]
    return ratios


def byte_ratios(memory: dict[str, dict[str, int]]) -> dict[str, float]:
    """Bytes stored by the forward pass, and the peak of the step without the gradients."""
    above = {name: m["peak_bytes"] - m["gradient_bytes"] for name, m in memory.items()}
    return {
        "stored_bytes": memory["loop"]["stored_bytes"] / memory["chunked"]["stored_bytes"],
        "peak_without_gradients": above["loop"] / above["chunked"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--depth", type=int, default=vim.DEPTH)
    arguments = parser.parse_args()
    results = {
        "cores": os.cpu_count(),
        "load_average_before": os.getloadavg()[0],
        "workload": {
            "model": "vim_small_patch16_224",
            "depth": arguments.depth,
            "batch": BATCH,
            "image_size": IMAGE_SIZE,
            "precision": "fp32",
        },
        **measure(arguments.depth, arguments.repeats, arguments.threads),
        "load_average_after": os.getloadavg()[0],
    }
    if arguments.depth == vim.DEPTH:
        book = Rows(HERE)
        book.append(results)
        book.pack()
        summarise(book)


def summarise(book: Rows) -> None:
    """Write ``summary.json`` of the last run."""
    last = book.read()[-1]
    write_summary(
        HERE,
        [last],
        loop_over_wall_seconds={
            str(each["threads"]): {
                name: ratio["wall_seconds"] for name, ratio in each["loop_over"].items()
            }
            for each in last["times"]
        },
        loop_over_chunked_bytes=last["loop_over_chunked_bytes"],
        gradient_relative_difference=last["gradient_relative_difference"],
    )


if __name__ == "__main__":
    main()
