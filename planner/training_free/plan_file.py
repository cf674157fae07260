"""The plan file of a training-free option: candidate kinds ``features`` and ``zero_shot``.

It has the schema and the keys of a tuned plan (``planner.plan``). A prompted language model is of
kind ``zero_shot`` too. ``train`` fits the linear probe of a ``features`` plan, ``evaluate`` runs a
``zero_shot`` plan.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from msgspec import Meta

from planner.cost.fit_probability import DEFAULT_RISK
from planner.disk.drafts import write_under_free_name
from planner.disk.json_files import json_bytes, read_json_as
from planner.plan import (
    PLAN_SCHEMA,
    PLAN_SCHEMA_MINOR,
    Accuracy,
    BudgetBytes,
    CandidateKind,
    FitProbability,
    check_device,
    check_provenance,
    plan_content,
    plan_kind,
    planned_data,
    versions,
)
from planner.training_free.class_prompts import check_prompts
from planner.training_free.options import TrainingFreeOption
from profiler.errors import BudgetplanError, InputError
from profiler.json_records import (
    ByteCount,
    JsonObject,
    Name,
    NonNegativeFloat,
    check_schema,
    json_object,
    read_record,
    warn_of_dropped,
)
from profiler.models.frozen.catalogue import FrozenModel, frozen_model
from profiler.records import DeviceLabel, Origin, ValueInterval
from profiler.workload import Classes, Count

FrozenKindName = Literal["features", "zero_shot"]

PromptText = Annotated[str, Meta(min_length=1, max_length=1000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenCandidate:
    """A frozen model as it is run.

    Attributes:
        kind: ``features`` for a linear probe, ``zero_shot`` for class names.
        model: name of the model; `budgetplan training-free` lists them.
        batch: images at once.
        dtype: type of the weights, and of the products of 4-bit weights.
        four_bit: whether the linear layers are stored in 4 bits.
        num_classes: number of classes.
        prompts: prompts, or the question to a prompted model; empty for the default.
    """

    kind: FrozenKindName
    model: Name
    batch: Count
    dtype: Literal["float32", "float16"]
    four_bit: bool = False
    num_classes: Classes
    prompts: tuple[PromptText, ...] = ()

    def __post_init__(self) -> None:
        try:
            model = frozen_model(self.model)
        except BudgetplanError as error:
            raise InputError(str(error)) from error
        if candidate_kind(model) != self.kind:
            raise InputError(f"{model.name} is of kind {candidate_kind(model)!r}")
        if self.four_bit and model.kind != "prompted":
            raise InputError(f"only prompted models are stored in 4 bits, {model.name} is none")
        if model.kind == "prompted" and len(self.prompts) > 1:
            raise InputError(f"{model.name} is asked one question, got {len(self.prompts)}")
        if model.kind == "zero_shot":
            try:
                check_prompts(self.prompts)
            except BudgetplanError as error:
                raise InputError(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenPrediction:
    """Predicted memory and cost of an inference.

    Attributes:
        device: device of the prediction.
        rung: ``replayed``.
        peak_bytes: highest live bytes.
        device_bytes: reserved bytes and the CUDA context; held against the budget.
        image_seconds: seconds of an image; None if unknown.
        image_seconds_interval: its interval.
        image_seconds_origin: where it comes from.
        image_joules: energy of an image; None if unknown.
        image_joules_interval: its interval.
        image_joules_origin: where it comes from.
    """

    device: DeviceLabel
    rung: Literal["replayed"] = "replayed"
    peak_bytes: ByteCount
    device_bytes: ByteCount
    image_seconds: NonNegativeFloat | None = None
    image_seconds_interval: ValueInterval | None = None
    image_seconds_origin: Origin | None = None
    image_joules: NonNegativeFloat | None = None
    image_joules_interval: ValueInterval | None = None
    image_joules_origin: Origin | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenPlan:
    """A plan without fine-tuning.

    Attributes:
        candidate: model and how it is run.
        prediction: predicted memory and cost.
        accuracy: published accuracy on the data, with its source.
        budget_bytes: device bytes of the budget that the candidate was chosen under.
        fits: probability that the inference fits the budget; None in plans before minor version
            10.
        provenance: versions, time, data and risk.
    """

    candidate: FrozenCandidate
    prediction: FrozenPrediction
    accuracy: Accuracy
    budget_bytes: BudgetBytes
    fits: FitProbability | None = None
    provenance: JsonObject = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    @property
    def model(self) -> FrozenModel:
        """Entry of the model in the catalogue."""
        return frozen_model(self.candidate.model)

    @property
    def data(self) -> str:
        """Data set or folder that the plan was made for.

        Raises:
            InputError: the plan does not say.
        """
        return planned_data(self.provenance)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the plan file."""
        prediction = asdict(self.prediction)
        for name in ("image_seconds_origin", "image_joules_origin"):
            origin = prediction[name]
            prediction[name] = None if origin is None else origin.value
        return {
            "schema": PLAN_SCHEMA,
            "schema_minor": PLAN_SCHEMA_MINOR,
            "candidate": asdict(self.candidate) | {"prompts": list(self.candidate.prompts)},
            "prediction": prediction,
            "measurement": None,
            "rehearsal": None,
            "scores": None,
            "accuracy": self.accuracy.to_json(),
            "budget_bytes": self.budget_bytes,
            "fits": None if self.fits is None else self.fits.to_json(),
            "recipe": None,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read the object that ``to_json`` returns, from a file of unknown origin.

        Raises:
            InputError: the data is no such plan. The message names the field.
        """
        given = json_object(data, part="plan")
        dropped = check_schema(given, PLAN_SCHEMA, minor=PLAN_SCHEMA_MINOR, part="plan")
        for name in ("measurement", "rehearsal", "scores", "recipe"):
            if given.pop(name, None) is not None:
                raise InputError(f"plan.{name}: must be null in a plan without fine-tuning")
        for name in ("schema", "schema_minor"):
            given.pop(name, None)
        plan = read_record(cls, given, part="plan", dropped=dropped)
        check_device(plan.prediction.device, "plan.prediction.device")
        check_provenance(plan.provenance)
        warn_of_dropped(dropped, part="plan")
        return plan


def candidate_kind(model: FrozenModel) -> FrozenKindName:
    """Return the kind of a model's candidate: a prompted model is of kind ``zero_shot``."""
    return "features" if model.kind == "features" else "zero_shot"


def kind_of_file(path: Path) -> CandidateKind:
    """Return the kind of the candidate in a plan file; nothing else is checked.

    Raises:
        InputError: the file cannot be read, or its kind is unknown.
    """
    return read_json_as(path, plan_kind, kind="plan")


def read_frozen_plan(path: Path) -> FrozenPlan:
    """Read a plan file without fine-tuning, of unknown origin.

    Raises:
        InputError: the file is missing, damaged or no such plan.
    """
    return read_json_as(path, FrozenPlan.from_json, kind="plan")


def plan_of_option(
    option: TrainingFreeOption,
    *,
    device: DeviceLabel,
    budget_bytes: int,
    data: str,
    risk: float = DEFAULT_RISK,
) -> FrozenPlan:
    """Return the plan of an option.

    Args:
        option: the option.
        device: device of its prediction.
        budget_bytes: the budget in device bytes.
        data: data set or folder.
        risk: risk that the option was chosen with.
    """
    known, image = option.accuracy, None if option.cost is None else option.cost.image
    return FrozenPlan(
        candidate=FrozenCandidate(
            kind=candidate_kind(option.model),
            model=option.model.name,
            batch=option.batch,
            dtype="float16" if option.dtype == "float16" else "float32",
            four_bit=option.is_four_bit,
            num_classes=option.num_classes,
        ),
        prediction=FrozenPrediction(
            device=device,
            peak_bytes=option.peak_bytes,
            device_bytes=option.device_bytes,
            image_seconds=None if image is None else image["step_seconds"],
            image_seconds_interval=None if image is None else image["step_seconds_interval"],
            image_seconds_origin=None if image is None else image["step_seconds_origin"],
            image_joules=None if image is None else image["energy_joules"],
            image_joules_interval=None if image is None else image["energy_joules_interval"],
            image_joules_origin=None if image is None else image["energy_joules_origin"],
        ),
        accuracy=Accuracy(value=None, source=f"nothing is published on {data}", kind="none")
        if known is None
        else Accuracy(
            value=known.value, source=f"{known.protocol}; {known.source}", kind="published"
        ),
        budget_bytes=budget_bytes,
        fits=option.fit_probability,
        provenance={
            "versions": versions(),
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "data": data,
            "risk": risk,
            "checkpoint": option.model.checkpoint,
        },
    )


def write_frozen_plan(plan: FrozenPlan, folder: Path) -> Path:
    """Write a plan into a folder without losing a file of other content; return its path.

    A file that holds the same plan, made at another time, is left as it is.

    Raises:
        InputError: the file cannot be written.
    """
    candidate = plan.candidate
    bits = "4bit" if candidate.four_bit else {"float16": "fp16", "float32": "fp32"}[candidate.dtype]
    name = f"{candidate.kind}-{candidate.model}-b{candidate.batch}-{bits}"
    return write_under_free_name(
        folder / f"{name}.json",
        json_bytes(plan.to_json()),
        is_same=lambda place: _is_same(plan, place),
    )


def with_plan_files(
    options: tuple[TrainingFreeOption, ...],
    *,
    folder: Path,
    device: DeviceLabel,
    budget_bytes: int,
    data: str,
    risk: float = DEFAULT_RISK,
) -> tuple[TrainingFreeOption, ...]:
    """Write the plan of each option that fits, and return the options with their files."""

    def with_file(option: TrainingFreeOption) -> TrainingFreeOption:
        if not option.fits:
            return option
        plan = plan_of_option(
            option, device=device, budget_bytes=budget_bytes, data=data, risk=risk
        )
        return replace(option, plan_file=write_frozen_plan(plan, folder))

    return tuple(map(with_file, options))


def _is_same(plan: FrozenPlan, path: Path) -> bool:
    try:
        there = read_frozen_plan(path)
    except InputError:
        return False
    return plan_content(there.to_json()) == plan_content(plan.to_json())
