"""The known frozen models as options: memory, time, energy, and published accuracies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.cost.fit_probability import DEFAULT_RISK, FitRule, fit_by_rule
from planner.parallel import map_forked
from planner.training_free.option_cost import ProbeCost, cost_to_json, probe_cost
from profiler.arrays import Floats, Ints
from profiler.device_rules.caching_allocator import configuration
from profiler.environment import processor_name
from profiler.errors import InputError
from profiler.models.frozen.catalogue import FrozenKind, FrozenModel, frozen_models
from profiler.prediction.inference import (
    PARTS,
    DataSetCost,
    InferencePrediction,
    PartCost,
    data_set_cost,
    predict_inference,
)
from profiler.store import Store
from profiler.timing.kernel_rates import COEFFICIENTS_FILE

if TYPE_CHECKING:
    from planner.plan import FitProbability
    from profiler.devices.table import DeviceSpec
    from profiler.models.frozen.catalogue import PublishedAccuracy

BATCHES: dict[FrozenKind, tuple[int, ...]] = {
    "features": (32, 8, 1),
    "zero_shot": (32, 8, 1),
    "prompted": (1,),
}
"""Images at once, the first that fits. A prompted model reads one image after the other."""

_MODULES = {
    "timm": "timm", "open_clip": "open_clip", "transformers": "transformers", "own": "transformers",
}  # fmt: skip
"""Module that each package of the catalogue needs."""

JUDGED_AS_TRAINING = (
    "the runs that were compared are training steps; inferences without training are judged by "
    "their errors"
)

CLASSES = 100
"""Class prompts of a contrastive model; it reads at most 64 at once, so more need no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredInference:
    """Prediction of an inference, as the profile store keeps it.

    Attributes:
        values: [3] peak bytes, device bytes and features of an image.
        costs: [parts, 3] seconds, host seconds and watts of each of ``PARTS``; NaN for a part
            that a model lacks and for unknown values.
    """

    values: Ints
    costs: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFreeOption:
    """A frozen model under a budget.

    Attributes:
        model: the model.
        batch: images at once.
        dtype: type of the weights, and of the products of 4-bit weights.
        is_four_bit: whether the linear layers are stored in 4 bits.
        peak_bytes: replayed highest live bytes of an inference.
        device_bytes: the same with unused blocks and the CUDA context; held against the budget.
        fits: whether ``device_bytes`` are within the budget, with the margin of the risk.
        accuracy: published accuracy on the data set; None if none is known.
        num_classes: classes that the cost of an image is of.
        cost: predicted seconds and joules; None on a device of unknown rates.
        probe: cost of a linear probe; None for a model that needs none.
        fit_probability: probability that they are within the budget; None if it was not computed.
        plan_file: file of the option's plan; None if none was written.
    """

    model: FrozenModel
    batch: int
    dtype: str
    is_four_bit: bool
    peak_bytes: int
    device_bytes: int
    fits: bool
    accuracy: PublishedAccuracy | None
    num_classes: int
    cost: DataSetCost | None
    probe: ProbeCost | None
    fit_probability: FitProbability | None = None
    plan_file: Path | None = None

    @property
    def precision(self) -> str:
        """Type of the weights in words: ``fp32``, ``fp16`` or ``4 bits``."""
        return "4 bits" if self.is_four_bit else self.dtype.replace("float", "fp")

    @property
    def batch_seconds(self) -> float | None:
        """Predicted seconds of the inference of a batch; None if not known."""
        seconds = None if self.cost is None else self.cost.image["step_seconds"]
        return None if seconds is None else self.batch * seconds

    @property
    def batch_joules(self) -> float | None:
        """Predicted energy of the inference of a batch; None if not known."""
        joules = None if self.cost is None else self.cost.image["energy_joules"]
        return None if joules is None else self.batch * joules

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
            "four_bit": self.is_four_bit,
            "rung": "replayed",
            "memory": {"peak_bytes": self.peak_bytes, "device_bytes": self.device_bytes},
            "fits": self.fits,
            "fit_probability": None
            if self.fit_probability is None
            else self.fit_probability.to_json(),
            "accuracy": None if known is None else {"kind": "published", **asdict(known)},
            "num_classes": self.num_classes,
            "trains": self.model.kind == "features",
            "cost": None if self.cost is None else cost_to_json(self.cost),
            "probe": None if self.probe is None else asdict(self.probe),
            "plan_file": None if self.plan_file is None else str(self.plan_file),
        }


def models_at_hand(
    device: DeviceSpec, store: Store, *, budget_bytes: int, risk: float = DEFAULT_RISK
) -> list[FrozenModel]:
    """Return the models that are listed without a wish for them.

    These are feature extractors and contrastive models, whose replay takes half a second, and the
    language models whose predictions are in the store. Models whose library is not installed are
    left out.
    """
    installed = [m for m in frozen_models().values() if _is_installed(m)]
    inferences = Inferences(device, store)
    slow = [model for model in installed if model.kind == "prompted"]
    limit_bytes = inferences.rule.largest_prediction(budget_bytes, risk=risk)
    missing = inferences.missing(slow, limit_bytes=limit_bytes)
    return [model for model in installed if model not in missing]


def check_libraries() -> None:
    """Refuse a request for all known models if they cannot be replayed here.

    Raises:
        InputError: a library is not installed.
    """
    for model in frozen_models().values():
        check_library(model)


def check_library(model: FrozenModel) -> None:
    """Refuse a model that cannot be replayed here.

    Raises:
        InputError: its library is not installed.
    """
    from profiler.models.frozen.build import EXTRA

    if not _is_installed(model):
        raise InputError(f"{model.name} needs {_MODULES[model.package]}: {EXTRA}")


def _is_installed(model: FrozenModel) -> bool:
    return find_spec(_MODULES[model.package]) is not None


def training_free_options(
    *,
    device: DeviceSpec,
    budget_bytes: int,
    data: str,
    num_classes: int,
    train_images: int | None,
    store: Store,
    models: Sequence[FrozenModel] | None = None,
    risk: float = DEFAULT_RISK,
    on_progress: Callable[[str, float], None] = lambda text, done: None,
) -> tuple[TrainingFreeOption, ...]:
    """Return frozen models as options, those that fit first, the more accurate ones before others.

    Args:
        device: device that the budget is of.
        budget_bytes: the budget in device bytes.
        data: name of the data set, for published accuracies.
        num_classes: number of classes.
        train_images: number of training images, for the cost of a probe; None if it is not known.
        store: store of profiles.
        models: the models; None for all known ones.
        risk: largest accepted probability that an option needs more than the budget.
        on_progress: called with (model, fraction done).

    Raises:
        InputError: a library is not installed.
    """
    models = list(frozen_models().values()) if models is None else models
    found = Inferences(device, store)
    limit_bytes = found.rule.largest_prediction(budget_bytes, risk=risk)
    found.prepare(models, limit_bytes=limit_bytes, on_progress=on_progress)
    options = [
        option_of(
            model,
            found,
            budget_bytes=budget_bytes,
            data=data,
            num_classes=num_classes,
            train_images=train_images,
            risk=risk,
        )
        for model in models
    ]

    def order(option: TrainingFreeOption) -> tuple[bool, float]:
        accuracy = 0.0 if option.accuracy is None else option.accuracy.value
        return (not option.fits, -accuracy)

    return tuple(sorted(options, key=order))


def option_of(
    model: FrozenModel,
    inferences: Inferences,
    *,
    budget_bytes: int,
    data: str,
    num_classes: int,
    train_images: int | None,
    risk: float = DEFAULT_RISK,
) -> TrainingFreeOption:
    """Return a model in the largest form that fits, or in its smallest form."""
    limit_bytes = inferences.rule.largest_prediction(budget_bytes, risk=risk)
    for batch, is_four_bit in forms_of(model):
        found = inferences.of(model, batch, is_four_bit)
        if found.device_bytes <= limit_bytes:
            break
    cost = data_set_cost(
        found.parts,
        batch=batch,
        dtype=inferences.dtype,
        device=inferences.device,
        num_classes=num_classes,
        predicted_classes=CLASSES,
    )
    probe = None
    if found.features and train_images is not None:
        probe = probe_cost(cost, found.features, num_classes, train_images)
    return TrainingFreeOption(
        model=model,
        batch=batch,
        dtype=inferences.dtype,
        is_four_bit=is_four_bit,
        peak_bytes=found.peak_bytes,
        device_bytes=found.device_bytes,
        fits=found.device_bytes <= limit_bytes,
        fit_probability=fit_by_rule(
            inferences.rule,
            found.device_bytes,
            budget_bytes,
            risk=risk,
            notes=(JUDGED_AS_TRAINING,),
        ),
        accuracy=model.accuracies.get(data),
        num_classes=num_classes,
        cost=cost,
        probe=probe,
    )


def forms_of(model: FrozenModel) -> tuple[tuple[int, bool], ...]:
    """Return (images at once, whether in 4 bits) of each form of a model, the largest first."""
    forms = tuple((batch, False) for batch in BATCHES[model.kind])
    return (*forms, (1, True)) if model.kind == "prompted" else forms


class Inferences:
    """Predictions of inferences on a device, kept in the profile store.

    Attributes:
        dtype: type of the weights.
        device: the device.
        rule: converts between predictions and budgets.
    """

    def __init__(self, device: DeviceSpec, store: Store) -> None:
        self.dtype = "float16" if device.is_cuda else "float32"
        self.device, self._store = device, store
        self.rule = FitRule.for_precision("fp16" if device.is_cuda else "fp32", device)

    def prepare(
        self,
        models: Sequence[FrozenModel],
        *,
        limit_bytes: int,
        on_progress: Callable[[str, float], None],
    ) -> None:
        """Replay in parallel the forms of each model until one fits; skip those in the store."""
        if self._store.folder is None:
            return  # forked processes could not hand their results over
        missing = self.missing(models, limit_bytes=limit_bytes)
        missing.sort(key=lambda model: -model.parameters_millions)

        def replay(model: FrozenModel) -> None:
            for batch, is_four_bit in forms_of(model):
                if self.of(model, batch, is_four_bit).device_bytes <= limit_bytes:
                    return

        if self.device.is_cuda:
            map_forked(replay, missing, lambda model, done: on_progress(model.name, done))
            return
        for number, model in enumerate(missing):  # timings of a CPU one after the other
            on_progress(model.name, number / len(missing))
            replay(model)

    def missing(self, models: Sequence[FrozenModel], *, limit_bytes: int) -> list[FrozenModel]:
        """Return the models with a form that is needed and not in the store."""
        return [model for model in models if self._lacks(model, limit_bytes)]

    def _lacks(self, model: FrozenModel, limit_bytes: int) -> bool:
        for batch, is_four_bit in forms_of(model):
            if not self._store.holds(self._key(model, batch, is_four_bit)):
                return True
            if self.of(model, batch, is_four_bit).device_bytes <= limit_bytes:
                return False
        return False

    def of(self, model: FrozenModel, batch: int, is_four_bit: bool) -> InferencePrediction:
        """Return the prediction of an inference."""
        key = self._key(model, batch, is_four_bit)
        if self._store.holds(key):
            stored = self._store.fetch(
                StoredInference, key, lambda: _as_stored(self._predict(model, batch, is_four_bit))
            )
            return _from_stored(stored)
        found = self._predict(model, batch, is_four_bit)
        if found.is_steady:
            self._store.keep(key, _as_stored(found))
        return found

    def _predict(self, model: FrozenModel, batch: int, is_four_bit: bool) -> InferencePrediction:
        from profiler.models.frozen.run import InferenceLoad

        inference = InferenceLoad(
            batch=batch, num_classes=CLASSES, dtype=self.dtype, is_four_bit=is_four_bit
        )
        return predict_inference(model, inference, device=self.device, store=self._store)

    def _key(self, model: FrozenModel, batch: int, is_four_bit: bool) -> tuple[object, ...]:
        libraries = [_version_of(name) for name in ("transformers", "open_clip_torch")]
        inference = (asdict(model), batch, CLASSES, self.dtype, is_four_bit)
        coefficients = hashlib.sha256(COEFFICIENTS_FILE.read_bytes()).hexdigest()[:16]
        device = repr(self.device)  # costs depend on its rates and power, memory on the rest
        if not self.device.is_cuda:
            import torch

            device = f"{device} {processor_name()} {torch.get_num_threads()}"
        return ("inference", *inference, device, configuration(), coefficients, *libraries)


def _as_stored(found: InferencePrediction) -> StoredInference:
    return StoredInference(
        values=np.array([found.peak_bytes, found.device_bytes, found.features]),
        costs=np.array([_cost_row(found.parts.get(name)) for name in PARTS]),
    )


def _from_stored(stored: StoredInference) -> InferencePrediction:
    return InferencePrediction(
        peak_bytes=int(stored.values[0]),
        device_bytes=int(stored.values[1]),
        parts={
            name: PartCost(
                seconds=float(row[0]),
                host_seconds=float(row[1]),
                watts=None if np.isnan(row[2]) else float(row[2]),
            )
            for name, row in zip(PARTS, stored.costs, strict=True)
            if not np.isnan(row[0])
        },
        features=int(stored.values[2]),
    )


def _cost_row(part: PartCost | None) -> list[float]:
    if part is None:
        return [np.nan] * 3
    return [part.seconds, part.host_seconds, np.nan if part.watts is None else part.watts]


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
