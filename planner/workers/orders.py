"""Real runs as the queue holds them, before they are run.

    Order          base of all orders: device, data and weights of a run
    RunOrder       a validation: a candidate on real images, under a budget
    MeasureOrder   a candidate on random images
    ProbeOrder     short trainings of several learners, stored in the study one by one

They are JSON objects in a database that others write to, and are read as files of unknown origin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from planner.cost.budget import needed_bytes
from planner.recipe import Recipe
from planner.training.history import WeightsFile
from planner.training.probe_messages import ProbeRequest
from planner.training.probe_records import Learner
from planner.training.run_options import RunOptions
from profiler.environment import processor_name
from profiler.errors import InputError
from profiler.json_records import (
    ByteCount,
    Name,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    check_schema,
    json_object,
    read_record,
)
from profiler.records import DeviceKind, DeviceLabel, Report
from profiler.workload import Candidate

RUN_ORDER_SCHEMA = "budgetplan.run_order/1"
MEASURE_ORDER_SCHEMA = "budgetplan.measure_order/1"
PROBE_ORDER_SCHEMA = "budgetplan.probe_order/1"
QUEUE_MINOR = 1
"""Minor version of orders and outcomes."""

ANY_PROCESSOR = "any"
"""Processor of an order that may be run on any CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A run in the queue: device, data and weights that its machine needs.

    Attributes:
        planned: device that the run is planned for.
        processor: processor of the machine that asks. A run for its CPU takes place on equal ones
            only, unless it is ``ANY_PROCESSOR``.
        allows_cpu: whether a CPU may run it in place of a GPU.
        needed_bytes: device bytes that the replay predicts; 0 if not known.
        data: name of a data set, or a folder; None if the run needs no images.
        pretrained_models: backbones whose pretrained weights of timm must be at hand.
    """

    planned: DeviceLabel
    processor: str
    allows_cpu: bool
    needed_bytes: ByteCount
    data: Name | None = None
    pretrained_models: tuple[Name, ...] = ()

    @property
    def weights_files(self) -> Mapping[str, str]:
        """SHA-256 of each file of weights, by its path, which is the same on every machine."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        raise NotImplementedError

    def check_weights(self) -> None:
        """Refuse files of weights that are not those of the order.

        Raises:
            InputError: a file cannot be read, or holds other weights here.
        """
        for path, sha256 in self.weights_files.items():
            found = _file_of(Path(path))
            if found is None or found.sha256 != sha256:
                raise InputError(f"{path} holds other weights here than where the run was ordered")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOrder(Order):
    """A candidate to run for a few steps on real images, under a budget.

    Attributes:
        candidate: workload and placement.
        budget_bytes: budget in device bytes, the cap of the run.
        step_seconds: predicted seconds of a step on the planned device; None if not known.
        recipe: recipe of the plan; None for the default one.
        data: name of a data set, or a folder.
        steps: number of steps; None for a few.
        seed: seed of the run.
        pretrained: whether timm's pretrained weights are loaded without a file.
        weights: file of weights; None for none.
        weights_sha256: SHA-256 of that file.
    """

    candidate: Candidate
    budget_bytes: ByteCount
    step_seconds: NonNegativeFloat | None = None
    recipe: Recipe | None = None
    data: Name
    steps: PositiveInt | None = None
    seed: int = 0
    pretrained: bool = True
    weights: Name | None = None
    weights_sha256: Name | None = None

    @property
    def weights_files(self) -> Mapping[str, str]:
        """SHA-256 of the file of weights, by its path."""
        return {} if self.weights is None else {self.weights: self.weights_sha256 or ""}

    @classmethod
    def of(
        cls,
        candidate: Candidate,
        *,
        prediction: Report,
        budget_bytes: int,
        run: RunOptions,
        allows_cpu: bool,
        recipe: Recipe | None = None,
        pretrained_models: tuple[str, ...] = (),
    ) -> Self:
        """Return the order of a run with these options.

        Raises:
            InputError: the weights cannot be read.
        """
        weights = _file_of(run.weights)
        return cls(
            candidate=candidate,
            planned=prediction.device,
            processor=processor_name(),
            allows_cpu=allows_cpu,
            budget_bytes=budget_bytes,
            needed_bytes=needed_bytes(prediction),
            step_seconds=prediction.step_seconds,
            recipe=recipe,
            data=run.data,
            steps=run.steps,
            seed=run.seed,
            pretrained=run.pretrained,
            pretrained_models=pretrained_models,
            weights=None if weights is None else weights.path,
            weights_sha256=None if weights is None else weights.sha256,
        )

    def options_here(self) -> RunOptions:
        """Return the options of the run on this machine.

        Raises:
            InputError: the weights cannot be read, or are others than those of the order.
        """
        self.check_weights()
        return RunOptions(
            data=self.data,
            steps=self.steps,
            seed=self.seed,
            weights=None if self.weights is None else Path(self.weights),
            pretrained=self.pretrained,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        recipe = None if self.recipe is None else self.recipe.to_json()
        records = {"candidate": self.candidate.to_json(), "recipe": recipe}
        return versioned(RUN_ORDER_SCHEMA, **_fields(self) | records)

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read the object that ``to_json`` returns.

        Raises:
            InputError: the data is no order of a run.
        """
        return _read_candidate_order(cls, data, RUN_ORDER_SCHEMA)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOrder(Order):
    """A candidate to run on random images, whose memory, time and energy are measured.

    Attributes:
        candidate: workload and placement.
        cap_bytes: hard limit on memory in device bytes; None for no limit.
        step_seconds: predicted seconds of a step on the planned device; None if not known.
        steps: number of timed steps.
        warmup: number of steps before the first reading.
    """

    candidate: Candidate
    cap_bytes: ByteCount | None
    step_seconds: NonNegativeFloat | None
    steps: PositiveInt
    warmup: PositiveInt

    @classmethod
    def of(
        cls,
        candidate: Candidate,
        *,
        planned: DeviceLabel,
        prediction: Report | None,
        cap_bytes: int | None,
        steps: int,
        warmup: int,
    ) -> Self:
        """Return the order of a measurement on a device.

        Args:
            candidate: workload and placement.
            planned: the device to measure on.
            prediction: replay for that device; None if it failed.
            cap_bytes: hard limit on memory in device bytes; None for no limit.
            steps: number of timed steps.
            warmup: number of steps before the first reading.
        """
        return cls(
            candidate=candidate,
            planned=planned,
            processor=processor_name(),
            allows_cpu=False,
            needed_bytes=0 if prediction is None else needed_bytes(prediction),
            step_seconds=None if prediction is None else prediction.step_seconds,
            cap_bytes=cap_bytes,
            steps=steps,
            warmup=warmup,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        records = {"candidate": self.candidate.to_json()}
        return versioned(MEASURE_ORDER_SCHEMA, **_fields(self) | records)

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read the object that ``to_json`` returns.

        Raises:
            InputError: the data is no order of a measurement.
        """
        return _read_candidate_order(cls, data, MEASURE_ORDER_SCHEMA)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOrder(Order):
    """Short trainings of learners on real images; each finished one is stored in the study.

    Attributes:
        purpose: ``compare`` for a probe of several learners, ``rates`` for a test of learning rates
            of one.
        learners: learners at the image size of their plans.
        device: type of device of the trainings.
        data: name of a data set, or a folder.
        study: name of the study that holds the finished trainings, in the storage of the queue.
        seed: seed of the choice of images.
        pretrained: whether timm's pretrained weights are loaded without a file.
        weights: file of weights of each backbone that has one, by its canonical name.
        weights_sha256: SHA-256 of each of these files, by the same names.
        seconds: time of the trainings; loading and timing come on top.
        limit_seconds: time after which the run is stopped.
    """

    purpose: Literal["compare", "rates"]
    learners: tuple[Learner, ...]
    device: DeviceKind
    data: Name
    study: Name
    seed: int = 0
    pretrained: bool = True
    weights: dict[Name, Name] = field(default_factory=dict)
    weights_sha256: dict[Name, Name] = field(default_factory=dict)
    seconds: PositiveFloat
    limit_seconds: PositiveFloat

    @property
    def weights_files(self) -> Mapping[str, str]:
        """SHA-256 of each file of weights, by its path."""
        return {path: self.weights_sha256.get(name, "") for name, path in self.weights.items()}

    @classmethod
    def of(
        cls,
        learners: Sequence[Learner],
        *,
        purpose: Literal["compare", "rates"],
        device: DeviceKind,
        planned: DeviceLabel,
        needed_bytes: int,
        run: RunOptions,
        weights: Mapping[str, Path],
        study: str,
        seconds: float,
        limit_seconds: float,
        pretrained_models: tuple[str, ...],
    ) -> Self:
        """Return the order of a probe or of a learning-rate test.

        Args:
            learners: the learners.
            purpose: see the class.
            device: type of device of the trainings.
            planned: the GPU of the plans; a CPU trains in its place if ``device`` is ``cpu``.
            needed_bytes: largest predicted device bytes of a learner; 0 if not known.
            run: data and seed.
            weights: file of weights of each backbone that has one, by its canonical name.
            study: name of the study.
            seconds: time of the trainings.
            limit_seconds: time after which the run is stopped.
            pretrained_models: backbones whose pretrained weights must be at hand.

        Raises:
            InputError: the weights cannot be read.
        """
        from profiler.devices.table import device_label

        files = {name: _file_of(path) for name, path in weights.items()}
        return cls(
            purpose=purpose,
            learners=tuple(learners),
            device=device,
            planned=device_label("cpu") if device == "cpu" else planned,
            # an accuracy depends on the type of device alone
            processor=ANY_PROCESSOR,
            allows_cpu=False,
            needed_bytes=needed_bytes,
            data=run.data,
            study=study,
            seed=run.seed,
            pretrained=run.pretrained,
            pretrained_models=pretrained_models,
            weights={name: str(path) for name, path in weights.items()},
            weights_sha256={name: f.sha256 for name, f in files.items() if f is not None},
            seconds=seconds,
            limit_seconds=limit_seconds,
        )

    def request(self, storage: str) -> ProbeRequest:
        """Return the request of the child process.

        Args:
            storage: URL by which this machine reaches the study.

        Raises:
            InputError: the weights cannot be read, or are others than those of the order.
        """
        self.check_weights()
        return ProbeRequest(
            learners=self.learners,
            data=self.data,
            device=self.device,
            seed=self.seed,
            weights=self.weights,
            pretrained=self.pretrained,
            seconds=self.seconds,
            storage=storage,
            study=self.study,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        learners = [
            {
                "name": each.name,
                "candidate": each.candidate.to_json(),
                "recipe": each.recipe.to_json(),
            }
            for each in self.learners
        ]
        return versioned(PROBE_ORDER_SCHEMA, **_fields(self) | {"learners": learners})

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read the object that ``to_json`` returns.

        Raises:
            InputError: the data is no order of a probe.
        """
        given, dropped = unversioned(data, PROBE_ORDER_SCHEMA, part="order")
        learners = given.get("learners")
        if not isinstance(learners, list) or not learners:
            raise InputError("order.learners: expected a list of learners")
        read = []
        for number, each in enumerate(learners):
            part = f"order.learners[{number}]"
            learner = json_object(each, part=part)
            learner["candidate"] = Candidate.from_json(
                learner.get("candidate"), part=f"{part}.candidate", dropped=dropped
            )
            read.append(learner)
        given["learners"] = read
        return read_record(cls, given, part="order", dropped=dropped)


OrderT = TypeVar("OrderT", bound=Order)

AnyOrder = RunOrder | MeasureOrder | ProbeOrder


def read_order(data: object) -> AnyOrder:
    """Return the order that a JSON object holds.

    Raises:
        InputError: the data is no order, or one of a kind that this version does not know.
    """
    kinds: dict[object, type[AnyOrder]] = {
        RUN_ORDER_SCHEMA: RunOrder,
        MEASURE_ORDER_SCHEMA: MeasureOrder,
        PROBE_ORDER_SCHEMA: ProbeOrder,
    }
    schema = json_object(data, part="order").get("schema")
    kind = kinds.get(schema if isinstance(schema, str) else None, RunOrder)
    return kind.from_json(data)


def _read_candidate_order(kind: type[OrderT], data: object, schema: str) -> OrderT:
    given, dropped = unversioned(data, schema, part="order")
    given["candidate"] = Candidate.from_json(
        given.get("candidate"), part="order.candidate", dropped=dropped
    )
    return read_record(kind, given, part="order", dropped=dropped)


def _file_of(path: Path | None) -> WeightsFile | None:
    """Return a file of weights with its hash; None for no file."""
    from planner.training.trained_model import weights_file_of

    return weights_file_of(path)


def unversioned(data: object, schema: str, *, part: str) -> tuple[dict[str, Any], list[str] | None]:
    """Return the fields of an order or outcome without its schema, and the list for unknown ones.

    Raises:
        InputError: the data is no JSON object of that schema.
    """
    given = json_object(data, part=part)
    dropped = check_schema(given, schema, minor=QUEUE_MINOR, part=part)
    return {k: v for k, v in given.items() if k not in ("schema", "schema_minor")}, dropped


def versioned(schema: str, **content: Any) -> dict[str, Any]:
    """Return the fields of an order or outcome with its schema; ``unversioned`` takes it off."""
    return {"schema": schema, "schema_minor": QUEUE_MINOR, **content}


def _fields(order: Order) -> dict[str, Any]:
    """Return the fields of an order; records of other modules than its device stay as they are."""
    found = {each.name: getattr(order, each.name) for each in fields(order)}
    return found | {
        "planned": asdict(order.planned),
        "pretrained_models": list(order.pretrained_models),
    }
