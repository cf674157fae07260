"""Predicted memory, time and energy of an inference of a frozen model.

Time is the sum over the kernels of each part of the inference (``profiler.models.frozen.run``), as
for a training step. On a CPU each kind of operation is timed on the machine itself, in an inference
of a few images (``TIMED_IMAGES``); the energy is not known.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from profiler.device_rules.caching_allocator import AllocatorSettings, configuration
from profiler.prediction.allocator_steps import BLOCK_BYTES
from profiler.prediction.report import cuda_memory, host_memory
from profiler.records import Origin
from profiler.timing.predicted_cost import PredictedCost, cost_fields
from profiler.timing.rates import published_rates
from profiler.timing.roofline import Rates
from profiler.timing.step_load import StepCost

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from profiler.devices.table import DeviceSpec
    from profiler.models.frozen.catalogue import FrozenModel
    from profiler.models.frozen.run import InferenceLoad
    from profiler.replay.event_log import OperationRecord
    from profiler.replay.inference_replay import InferenceReplay
    from profiler.replay.operation_counter import OperationTimer
    from profiler.store import Store

PARTS = ("prompts", "images", "names", "token")
"""Parts of an inference; a model has the parts of its kind."""

TIMED_IMAGES, TIMED_PROMPTS = 4, 8
"""Images and class prompts of the inference whose operations are timed on a CPU. At 224 pixels
their slowness is that of larger batches, and 32 images of a large model would take a minute."""

_PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCost:
    """Predicted cost of a part of an inference.

    Attributes:
        seconds: seconds of its kernels, or of the host's launches if these take longer.
        host_seconds: seconds of the host's launches.
        watts: power meanwhile; None if it is unknown.
    """

    seconds: float
    host_seconds: float
    watts: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InferencePrediction:
    """Memory and cost of an inference.

    Attributes:
        peak_bytes: highest live bytes.
        device_bytes: reserved bytes and the CUDA context; on a CPU ``peak_bytes``.
        parts: cost of each part; empty on a device of unknown rates.
        features: features of an image; 0 for a model that needs no probe.
        is_steady: whether the cost would be predicted again: not on a CPU that was busy.
    """

    peak_bytes: int
    device_bytes: int
    parts: Mapping[str, PartCost]
    features: int = 0
    is_steady: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSetCost:
    """Predicted cost of the classification of images.

    Attributes:
        setup: cost of the class prompts, once for a data set.
        image: cost of an image: its tower, and for a prompted model all class names and a free
            answer.
    """

    setup: PredictedCost
    image: PredictedCost


def predict_inference(
    model: FrozenModel, load: InferenceLoad, *, device: DeviceSpec, store: Store | None = None
) -> InferencePrediction:
    """Replay one inference on fake tensors and return its memory and cost on a device.

    Args:
        model: the model.
        load: the input.
        device: the device.
        store: store of the timings of a CPU; None to time nothing: a CPU then has no cost.

    Raises:
        InputError: the library of the model is not installed.
    """
    built = _built(model, load)
    replay = _replayed_inference(built, model, load, device=device)
    rates, is_steady = None, True
    if device.is_cuda:
        settings = AllocatorSettings.parse(configuration())
        memory = cuda_memory(replay.log.rounded(BLOCK_BYTES), device, settings, [])
        rates = published_rates(device, precision=_PRECISIONS[load.dtype])
    else:
        memory = host_memory(replay.log)
        if store is not None:
            rates, is_steady = _timed_rates(model, load, device=device, store=store)
    return InferencePrediction(
        peak_bytes=memory.peak_bytes,
        device_bytes=memory.compared_bytes,
        parts={}
        if rates is None
        else {name: _part_cost(each, rates) for name, each in replay.parts.items()},
        features=int(getattr(built, "num_features", 0)) if model.kind == "features" else 0,
        is_steady=is_steady,
    )


def _built(model: FrozenModel, load: InferenceLoad) -> nn.Module:
    from profiler.models.frozen.build import build_frozen

    built = build_frozen(model).to(load.torch_dtype)
    if load.is_four_bit:
        from profiler.models.frozen.four_bit import quantise_frozen

        quantise_frozen(built, compute_dtype=load.torch_dtype)
    return built


def _replayed_inference(
    built: nn.Module,
    model: FrozenModel,
    load: InferenceLoad,
    *,
    device: DeviceSpec,
    timer: OperationTimer | None = None,
) -> InferenceReplay:
    from profiler.models.frozen.run import run_inference
    from profiler.replay.inference_replay import replay_inference

    return replay_inference(
        built,
        lambda fake, begin_part: run_inference(fake, model, load, begin_part),
        device=device,
        batch=load.batch,
        timer=timer,
    )


def _timed_rates(
    model: FrozenModel, load: InferenceLoad, *, device: DeviceSpec, store: Store
) -> tuple[Rates, bool]:
    """Return the rates of this processor for a model, and whether they were timed undisturbed."""
    from profiler.timing.cpu_rates import KindTimer, cpu_inference_rates

    few = replace(
        load,
        batch=min(load.batch, TIMED_IMAGES),
        num_classes=min(load.num_classes, TIMED_PROMPTS),
    )

    def run(timer: KindTimer) -> None:
        _replayed_inference(_built(model, few), model, few, device=device, timer=timer)

    return cpu_inference_rates((asdict(model), asdict(few)), run, store=store)


def _part_cost(operations: Sequence[OperationRecord], rates: Rates) -> PartCost:
    cost = rates.step_cost(rates.load(operations))
    return PartCost(
        seconds=cost.seconds,
        host_seconds=cost.host_seconds,
        watts=cost.watts if operations else None,
    )


def data_set_cost(
    parts: Mapping[str, PartCost],
    *,
    batch: int,
    dtype: str,
    device: DeviceSpec,
    num_classes: int,
    predicted_classes: int,
) -> DataSetCost | None:
    """Return the cost of images from the cost of the parts; None without rates.

    Args:
        parts: cost of each part.
        batch: images that the part ``images`` has.
        dtype: type of the weights.
        device: device of the prediction.
        num_classes: number of classes of the data set.
        predicted_classes: number of class prompts in the part ``prompts``.
    """
    from profiler.models.frozen.run import NAMES_AT_ONCE, TOKEN_FACTOR

    rates = _SUMMED
    if device.is_cuda:
        published = published_rates(device, precision=_PRECISIONS[dtype])
        if published is None:
            return None
        rates = published
    if not parts:
        return None
    times = {
        "images": 1.0 / batch,
        "names": -(-num_classes // NAMES_AT_ONCE),
        "token": TOKEN_FACTOR,
    }
    image = [_repeated(parts[name], factor) for name, factor in times.items() if name in parts]
    setup = [
        _repeated(parts[name], num_classes / predicted_classes)
        for name in parts
        if name == "prompts"
    ]
    return DataSetCost(setup=_sum_cost(setup, rates), image=_sum_cost(image, rates))


_SUMMED = Rates(
    flops_per_second=1.0,
    bytes_per_second=1.0,
    watts=None,
    source="each kind of operation timed on this processor",
    origin=Origin.MEASURED,
)
"""Rates of parts whose seconds on a CPU are known: only their origin counts."""


def _repeated(part: PartCost, factor: float) -> PartCost:
    return replace(part, seconds=part.seconds * factor, host_seconds=part.host_seconds * factor)


def _sum_cost(parts: Sequence[PartCost], rates: Rates) -> PredictedCost:
    """Return the cost of parts that run one after the other."""
    seconds = sum(part.seconds for part in parts)
    watts = None
    if parts and seconds and all(part.watts is not None for part in parts):
        watts = sum((part.watts or 0.0) * part.seconds for part in parts) / seconds
    host = sum(part.host_seconds for part in parts)
    return cost_fields(StepCost(seconds=seconds, host_seconds=host, watts=watts), rates)
