"""Accuracy, time, peak and power of inference."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from planner.training.images.batches import batch_loader
from planner.training.images.image_set import ImageSet
from planner.training.training_device import autocast
from planner.training.validation_messages import Inference, ValidationRequest
from profiler.device_rules.cpu_allocator import memory_events, peak_and_growth
from profiler.records import DeviceKind
from profiler.running.measurement import energy_of
from profiler.running.memory_caps import timed_without_cap

if TYPE_CHECKING:
    from torch import nn

    from profiler.training_step import Batch

MOST_IMAGES = {"cpu": 256, "cuda": 2048}
"""Largest number of images evaluated, by type of device."""

INFERENCE_BATCH = 32
"""Largest batch of the evaluation; it does not exceed the micro-batch either."""

POWER_SECONDS = 2.0
"""Duration of inference for a reading of power: 20 periods of the GPU's energy counter."""


def evaluate_inference(
    model: nn.Module, held_out: ImageSet, request: ValidationRequest, *, whole_images: int
) -> Inference:
    """Evaluate held-out images: as many as the time limit allows, given the time of a batch.

    Args:
        model: model on the request's device, without an optimizer.
        held_out: images that the model was not trained on.
        request: workload, device, seed and time limit.
        whole_images: number of images that the returned time is scaled to.
    """
    workload, device = request.candidate.workload, request.device
    classify = _classifier(model, workload.precision, device)
    most = min(MOST_IMAGES[device], len(held_out))
    batch_size = min(workload.micro_batch, INFERENCE_BATCH, most)
    first = held_out.sample(batch_size, seed=request.seed)
    peak, batch_seconds = _peak_of_batch(model, classify, first, device)
    affordable = int(batch_size * request.test_seconds / batch_seconds)
    sample = held_out.sample(min(most, max(batch_size, affordable)), seed=request.seed)

    right, seconds = 0, 0.0
    batches: Iterator[Batch] = _unshuffled(sample, batch_size)
    decoded = list(batches) if device == "cuda" else []  # kept for the reading of power
    with timed_without_cap():
        for images, labels in decoded or batches:
            started = time.perf_counter()
            predicted = classify(images)
            seconds += time.perf_counter() - started
            right += int((predicted == labels).sum())
    repeated = cycle(decoded)
    return Inference(
        accuracy=right / len(sample),
        images=len(sample),
        seconds=seconds * whole_images / len(sample),
        peak_bytes=peak,
        watts=power_of(lambda: classify(next(repeated)[0])) if decoded else None,
    )


def power_of(work: Callable[[], object]) -> float | None:
    """Return the average power of this machine's GPU in watts while work is repeated.

    One pass over few images is shorter than a period of the energy counter, so the work is repeated
    for ``POWER_SECONDS``. None where the energy cannot be read.

    Args:
        work: function to repeat.
    """
    started, seconds = time.perf_counter(), 0.0

    def repeat() -> None:
        nonlocal seconds
        while seconds < POWER_SECONDS:
            work()
            seconds = time.perf_counter() - started

    joules, _ = energy_of(repeat)
    return None if joules is None else joules / seconds


def _classifier(model: nn.Module, precision: str, device: DeviceKind) -> Callable[[Tensor], Tensor]:
    """Return a function from images [batch, 3, S, S] to predicted labels [batch] on the host."""

    def classify(images: Tensor) -> Tensor:
        model.eval()
        with torch.no_grad(), autocast(precision, device):
            predicted: Tensor = model(images.to(device)).argmax(dim=1)
        return predicted.cpu()

    return classify


def _peak_of_batch(
    model: nn.Module, classify: Callable[[Tensor], Tensor], images: ImageSet, device: DeviceKind
) -> tuple[int, float]:
    """Return the peak bytes of evaluating one batch, the model included, and its seconds."""
    ((pixels, _),) = _unshuffled(images, len(images))
    started = time.perf_counter()
    if device == "cpu":
        # The recording covers the allocations during the call. The copy of the images belongs to
        # inference; the model was allocated before and is added.
        events = memory_events(lambda: classify(pixels.clone()))
        peak = peak_and_growth(events)[0] + model_bytes(model)
        return peak, time.perf_counter() - started
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    classify(pixels)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(), time.perf_counter() - started


def _unshuffled(images: ImageSet, batch_size: int) -> Iterator[Batch]:
    yield from batch_loader(images, batch_size=batch_size, shuffle=False, seed=0, drop_last=False)


def model_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers, shared storages once."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in (*model.parameters(), *model.buffers())
    }
    return sum(storages.values())
