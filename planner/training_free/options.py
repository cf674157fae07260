"""The known frozen models as options: memory of an inference, and published accuracies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.parallel import map_forked
from profiler.arrays import Ints
from profiler.device_rules.caching_allocator import configuration
from profiler.models.frozen.catalogue import FrozenKind, FrozenModel, frozen_models
from profiler.store import Store

if TYPE_CHECKING:
    from profiler.devices.table import DeviceSpec
    from profiler.models.frozen.catalogue import PublishedAccuracy

BATCHES: dict[FrozenKind, tuple[int, ...]] = {
    "features": (32, 8, 1),
    "zero_shot": (32, 8, 1),
    "prompted": (1,),
}
"""Images at once, the first that fits. A prompted model reads one image after the other."""

CLASSES = 100
"""Class prompts of a contrastive model; it reads at most 64 at once, so more need no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMemory:
    """Memory of an inference, as the profile store keeps it.

    Attributes:
        values: [2] peak bytes and device bytes.
    """

    values: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFreeOption:
    """A frozen model under a budget.

    Attributes:
        model: the model.
        batch: images at once.
        dtype: type of the weights.
        peak_bytes: replayed highest live bytes of an inference.
        device_bytes: the same with unused blocks and the CUDA context; held against the budget.
        fits: whether ``device_bytes`` are within the budget.
        accuracy: published accuracy on the data set; None if none is known.
    """

    model: FrozenModel
    batch: int
    dtype: str
    peak_bytes: int
    device_bytes: int
    fits: bool
    accuracy: PublishedAccuracy | None

    def to_json(self) -> dict[str, Any]:
        """Return an entry of ``training_free`` in the answer."""
        known = self.accuracy
        return {
            "kind": self.model.kind,
            "name": self.model.name,
            "checkpoint": self.model.checkpoint,
            "image_size": self.model.image_size,
            "parameters_millions": self.model.parameters_millions,
            "batch": self.batch,
            "dtype": self.dtype,
            "rung": "replayed",
            "memory": {"peak_bytes": self.peak_bytes, "device_bytes": self.device_bytes},
            "fits": self.fits,
            "accuracy": None if known is None else {"kind": "published", **asdict(known)},
        }


def is_prepared(device: DeviceSpec, store: Store) -> bool:
    """Return whether the memory of every model on a device is in the store."""
    return not _InferenceMemories(device, store).missing(list(frozen_models().values()))


def training_free_options(
    *,
    device: DeviceSpec,
    budget_bytes: int,
    data: str,
    store: Store,
    on_progress: Callable[[str, float], None] = lambda text, done: None,
) -> tuple[TrainingFreeOption, ...]:
    """Return every known frozen model, those that fit first, the more accurate ones before others.

    Args:
        device: device that the budget is of.
        budget_bytes: the budget in device bytes.
        data: name of the data set, for published accuracies.
        store: store of profiles.
        on_progress: called with (model, fraction done).

    Raises:
        InputError: a library is not installed.
    """
    models = list(frozen_models().values())
    memory = _InferenceMemories(device, store)
    memory.prepare(models, on_progress)
    options = [_option(model, memory, budget_bytes, data) for model in models]

    def order(option: TrainingFreeOption) -> tuple[bool, float]:
        accuracy = 0.0 if option.accuracy is None else option.accuracy.value
        return (not option.fits, -accuracy)

    return tuple(sorted(options, key=order))


def _option(
    model: FrozenModel, memory: _InferenceMemories, budget_bytes: int, data: str
) -> TrainingFreeOption:
    """Return a model with the largest batch that fits, or with its smallest batch."""
    for batch in BATCHES[model.kind]:
        peak, needed = memory.of(model, batch)
        if needed <= budget_bytes:
            break
    return TrainingFreeOption(
        model=model,
        batch=batch,
        dtype=memory.dtype,
        peak_bytes=peak,
        device_bytes=needed,
        fits=needed <= budget_bytes,
        accuracy=model.accuracies.get(data),
    )


class _InferenceMemories:
    """Replayed memory of inferences on a device, kept in the profile store."""

    def __init__(self, device: DeviceSpec, store: Store) -> None:
        self.dtype = "float16" if device.is_cuda else "float32"
        self._device, self._store = device, store

    def prepare(
        self, models: Sequence[FrozenModel], on_progress: Callable[[str, float], None]
    ) -> None:
        """Replay in parallel the largest batch of each model that is not in the store."""
        if self._store.folder is None:
            return  # forked processes could not hand their results over
        missing = self.missing(models)
        missing.sort(key=lambda model: -model.parameters_millions)

        def replay(model: FrozenModel) -> None:
            self.of(model, BATCHES[model.kind][0])

        map_forked(replay, missing, lambda model, done: on_progress(model.name, done))

    def missing(self, models: Sequence[FrozenModel]) -> list[FrozenModel]:
        """Return the models whose largest batch is not in the store."""
        return [m for m in models if not self._store.holds(self._key(m, BATCHES[m.kind][0]))]

    def of(self, model: FrozenModel, batch: int) -> tuple[int, int]:
        """Return peak bytes and device bytes of an inference."""

        def make() -> StoredMemory:
            from profiler.models.frozen.run import InferenceLoad
            from profiler.prediction.inference import predict_inference

            load = InferenceLoad(batch=batch, num_classes=CLASSES, dtype=self.dtype)
            found = predict_inference(model, load, device=self._device)
            return StoredMemory(values=np.array([found.peak_bytes, found.device_bytes]))

        stored = self._store.fetch(StoredMemory, self._key(model, batch), make)
        return int(stored.values[0]), int(stored.values[1])

    def _key(self, model: FrozenModel, batch: int) -> tuple[object, ...]:
        device = (self._device.name, self._device.compute_capability, self._device.sm_count)
        libraries = [_version_of(name) for name in ("transformers", "open_clip_torch")]
        load = (asdict(model), batch, CLASSES, self.dtype)
        return ("inference", *load, *device, configuration(), *libraries)


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
