"""A workload and a candidate: the complete description of a training step, as plain data.

This module imports no torch: a workload is read from files, hashed into cache keys and printed.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal, Self, get_args

from msgspec import Meta

from profiler.errors import InputError, UsageError
from profiler.json_records import PositiveInt, json_object, read_record, unknown_field
from profiler.placement import (
    KEEP_ALL,
    NO_POLICY,
    Placement,
    PolicyChoice,
    placement_from_json,
    placement_to_json,
)

PrecisionName = Literal["fp32", "bf16", "fp16"]
OptimizerName = Literal["adamw", "sgd", "adamw8bit"]
PRECISIONS: tuple[PrecisionName, ...] = get_args(PrecisionName)
OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)

Rate = Annotated[float, Meta(ge=0, lt=1)]
"""Probability of a dropped value or path, in [0, 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One training step of a backbone made trainable by a method.

    Attributes:
        model: canonical backbone name: a timm name or a name in ``profiler.models.backbones``.
        method: fine-tuning method: ``full``, ``head``, ``lora``, ... (``profiler.models.methods``).
        rank: rank of a low-rank method, width of an adapter or number of prompts; None for a
            method without one.
        alpha: LoRA's scaling numerator; None means 2 x rank, as in arXiv 2607.02158.
        dropout: dropout rate on the adapter's input.
        targets: module-name suffixes to adapt; None means the method's default for the backbone.
        micro_batch: images in a micro-batch.
        accumulation: micro-batches per optimizer step.
        precision: ``fp32``, or autocast to ``bf16`` or ``fp16`` (then with a gradient scaler).
        optimizer: ``adamw``, ``sgd`` (momentum 0.9) or ``adamw8bit`` (bitsandbytes).
        image_size: height and width of the input in pixels.
        num_classes: number of classes.
        grad_clip: largest global gradient norm; None for no clipping.
        drop_path: stochastic depth rate given to the backbone.
    """

    model: str
    method: str = "full"
    rank: PositiveInt | None = None
    alpha: float | None = None
    dropout: Rate = 0.0
    targets: tuple[str, ...] | None = None
    micro_batch: PositiveInt = 32
    accumulation: PositiveInt = 1
    precision: PrecisionName = "fp32"
    optimizer: OptimizerName = "adamw"
    image_size: PositiveInt = 224
    num_classes: PositiveInt = 1000
    grad_clip: float | None = None
    drop_path: Rate = 0.0

    def __post_init__(self) -> None:
        for name in ("micro_batch", "accumulation", "image_size", "num_classes"):
            _positive_integer(name, getattr(self, name))
        if self.rank is not None:
            _positive_integer("rank", self.rank)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        for name in ("alpha", "grad_clip"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise UsageError(f"{name} must be a finite number, got {value!r}")
        for name in ("dropout", "drop_path"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UsageError(f"{name} must lie in [0, 1), got {getattr(self, name)!r}")
        if self.targets is not None:
            object.__setattr__(self, "targets", tuple(self.targets))

    @property
    def effective_batch(self) -> int:
        """Images per optimizer step."""
        return self.micro_batch * self.accumulation

    @property
    def scaling(self) -> float:
        """LoRA's alpha, with its default of twice the rank."""
        return self.alpha if self.alpha is not None else 2.0 * (self.rank or 0)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    def to_json(self) -> dict[str, object]:
        """Return a JSON object with every field."""
        data = asdict(self)
        data["targets"] = None if self.targets is None else list(self.targets)
        return data

    @classmethod
    def from_json(
        cls, data: object, *, part: str = "workload", dropped: list[str] | None = None
    ) -> Self:
        """Read the object that ``to_json`` returns.

        Args:
            data: JSON object.
            part: name of the object in error messages.
            dropped: see `profiler.json_records.read_record`.

        Raises:
            InputError: the data is not a workload.
        """
        return read_record(cls, data, part=part, dropped=dropped)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A workload with a placement: the input of prediction, measurement and training.

    Attributes:
        workload: training step.
        placement: decision for every unit of the backbone.
        policy: policy that made the placement.
    """

    workload: Workload
    placement: Placement = KEEP_ALL
    policy: PolicyChoice = NO_POLICY

    def to_json(self) -> dict[str, object]:
        """Return plain data for a plan file."""
        placement = placement_to_json(self.placement, self.policy)
        return {"workload": self.workload.to_json(), "placement": placement}

    @classmethod
    def from_json(
        cls, data: object, *, part: str = "candidate", dropped: list[str] | None = None
    ) -> Self:
        """Read the object that ``to_json`` returns.

        Args:
            data: JSON object.
            part: name of the object in error messages.
            dropped: see `profiler.json_records.read_record`.

        Raises:
            InputError: the data is not a candidate.
        """
        given = json_object(data, part=part)
        if "workload" not in given:
            raise InputError(f"{part}.workload: missing field")
        for name in sorted(given.keys() - {"workload", "placement"}):
            unknown_field(f"{part}.{name}", dropped)
        workload = Workload.from_json(given["workload"], part=f"{part}.workload", dropped=dropped)
        placement, policy = placement_from_json(
            given.get("placement", {}), part=f"{part}.placement", dropped=dropped
        )
        return cls(workload=workload, placement=placement, policy=policy)


def _positive_integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} must be a positive integer, got {value!r}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
