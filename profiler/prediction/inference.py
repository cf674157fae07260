"""Predicted memory of an inference of a frozen model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from profiler.device_rules.caching_allocator import AllocatorSettings, configuration
from profiler.models.frozen.build import build_frozen
from profiler.models.frozen.run import InferenceLoad, run_inference
from profiler.prediction.allocator_steps import BLOCK_BYTES
from profiler.prediction.report import cuda_memory, host_memory
from profiler.replay.inference_replay import replay_inference

if TYPE_CHECKING:
    from profiler.devices.table import DeviceSpec
    from profiler.models.frozen.catalogue import FrozenModel


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceMemory:
    """Memory of an inference.

    Attributes:
        peak_bytes: highest live bytes.
        device_bytes: reserved bytes and the CUDA context; on a CPU ``peak_bytes``.
    """

    peak_bytes: int
    device_bytes: int


def predict_inference(
    model: FrozenModel, load: InferenceLoad, *, device: DeviceSpec
) -> InferenceMemory:
    """Replay one inference on fake tensors and return its memory on a device.

    Raises:
        InputError: the library of the model is not installed.
    """
    built = build_frozen(model).to(load.torch_dtype)
    log = replay_inference(
        built, lambda fake: run_inference(fake, model, load), device=device, batch=load.batch
    )
    if device.is_cuda:
        settings = AllocatorSettings.parse(configuration())
        memory = cuda_memory(log.rounded(BLOCK_BYTES), device, settings, [])
    else:
        memory = host_memory(log)
    assert memory.device_bytes is not None
    return InferenceMemory(peak_bytes=memory.peak_bytes, device_bytes=memory.device_bytes)
