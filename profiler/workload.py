"""A workload and a candidate: the complete description of a training step, as plain data.

This module imports no torch: a workload is read from files, hashed into cache keys and printed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal, Self, get_args

from msgspec import Meta

from profiler.errors import InputError, UsageError
from profiler.json_records import Name, json_object, read_record, shortened, unknown_field
from profiler.placement import (
    KEEP_ALL,
    NO_POLICY,
    Placement,
    PolicyChoice,
    placement_from_json,
    placement_to_json,
)

PrecisionName = Literal["fp32", "bf16", "fp16"]
OptimizerName = Literal["adamw", "sgd", "adamw8bit", "adamw_host"]
PRECISIONS: tuple[PrecisionName, ...] = get_args(PrecisionName)
OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)

Lever = Literal["channels_last", "fused", "tf32", "cudnn_benchmark", "compile"]
"""Setting that changes the speed of a step and not its results, up to rounding.

``channels_last`` stores images and convolution weights with channels innermost; ``fused`` updates
parameters in one kernel; ``tf32`` allows TF32 in matrix products of fp32 (PyTorch allows it in
convolutions by default); ``cudnn_benchmark`` lets cuDNN time its algorithms and keep the fastest;
``compile`` runs the model under ``torch.compile``.
"""

LEVERS: tuple[Lever, ...] = get_args(Lever)

HOST_OPTIMIZER: OptimizerName = "adamw_host"
"""AdamW that keeps its state in the host's memory, if the device is a GPU."""

FUSED_OPTIMIZERS = ("adamw", "sgd")
"""Optimizers of PyTorch with a fused update; bitsandbytes fuses its own always."""

Rate = Annotated[float, Meta(ge=0, lt=1)]
"""Probability of a dropped value or path, in [0, 1)."""

_COUNT = Meta(ge=1, le=65_536)
_CLASSES = Meta(ge=1, le=1_000_000)
_PIXELS = Meta(ge=8, le=8192)
_SCALE = Meta(gt=0, le=1e6)

Count = Annotated[int, _COUNT]
"""A rank, a micro-batch or an accumulation. GPUs hold thousands of images at most."""

Classes = Annotated[int, _CLASSES]
"""Classes. ImageNet-21k has 21,841."""

Pixels = Annotated[int, _PIXELS]
"""Height and width of an image. Smaller ones have fewer pixels than the digits data set."""

Scale = Annotated[float, _SCALE]
"""A factor or a norm above 0."""

MOST_PIXELS = 2**34
"""Most pixels of a micro-batch. A feature map of 256 channels then has 16 TB. The byte counts of
larger ones would not fit PyTorch's 64-bit sizes."""

_INTEGER_RANGES = {
    "micro_batch": _COUNT,
    "accumulation": _COUNT,
    "image_size": _PIXELS,
    "num_classes": _CLASSES,
}


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
        optimizer: ``adamw``, ``sgd`` (momentum 0.9), ``adamw8bit`` (bitsandbytes), or
            ``adamw_host``: on a GPU, AdamW with its state in the host's memory
            (``profiler.checkpointing.host_optimizer``); on a CPU ``adamw``.
        image_size: height and width of the input in pixels.
        num_classes: number of classes.
        grad_clip: largest global gradient norm; None for no clipping.
        drop_path: stochastic depth rate given to the backbone.
        frozen_batch_norm: whether BatchNorm keeps its running statistics and normalises by them,
            also where its scale and shift learn.
        levers: levers in use, in the order of ``LEVERS``. The JSON object leaves an empty tuple
            out, so that workloads without levers keep their hashes and file names.
    """

    model: Name
    method: Name = "full"
    rank: Count | None = None
    alpha: Scale | None = None
    dropout: Rate = 0.0
    targets: tuple[Name, ...] | None = None
    micro_batch: Count = 32
    accumulation: Count = 1
    precision: PrecisionName = "fp32"
    optimizer: OptimizerName = "adamw"
    image_size: Pixels = 224
    num_classes: Classes = 1000
    grad_clip: Scale | None = None
    drop_path: Rate = 0.0
    frozen_batch_norm: bool = False
    levers: tuple[Lever, ...] = ()

    def __post_init__(self) -> None:
        for name, limits in _INTEGER_RANGES.items():
            _integer_in(name, getattr(self, name), limits)
        if self.rank is not None:
            _integer_in("rank", self.rank, _COUNT)
        if self.micro_batch * self.image_size**2 > MOST_PIXELS:
            raise UsageError(
                f"a micro-batch must have at most {MOST_PIXELS:,} pixels, got {self.micro_batch} "
                f"images of {self.image_size} px; take fewer or smaller ones"
            )
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        for name in ("alpha", "grad_clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1e6:
                raise UsageError(f"{name} must lie in (0, 1e6], got {shortened(value)}")
        for name in ("dropout", "drop_path"):
            if not 0.0 <= getattr(self, name) < 1.0:
                got = shortened(getattr(self, name))
                raise UsageError(f"{name} must lie in [0, 1), got {got}")
        if self.targets is not None:
            object.__setattr__(self, "targets", tuple(self.targets))
        self._check_levers()

    def _check_levers(self) -> None:
        for name in self.levers:
            _one_of("levers", name, LEVERS)
        if "tf32" in self.levers and self.precision != "fp32":
            raise UsageError(
                f"tf32 is for products of fp32, got precision {self.precision}; leave tf32 out"
            )
        if "fused" in self.levers and self.optimizer not in FUSED_OPTIMIZERS:
            raise UsageError(
                f"{self.optimizer} has no second, fused update; leave fused out, or use "
                f"{' or '.join(FUSED_OPTIMIZERS)}"
            )
        in_order = tuple(name for name in LEVERS if name in self.levers)
        object.__setattr__(self, "levers", in_order)

    @property
    def effective_batch(self) -> int:
        """Images per optimizer step."""
        return self.micro_batch * self.accumulation

    @property
    def method_text(self) -> str:
        """The method with its rank, such as ``lora r8``."""
        return self.method if self.rank is None else f"{self.method} r{self.rank}"

    @property
    def batch_text(self) -> str:
        """Micro-batch times accumulation, such as ``8x4``."""
        return f"{self.micro_batch}x{self.accumulation}"

    @property
    def scaling(self) -> float:
        """LoRA's alpha, with its default of twice the rank."""
        return self.alpha if self.alpha is not None else 2.0 * (self.rank or 0)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    def to_json(self) -> dict[str, object]:
        """Return a JSON object with every field; ``levers`` only if there are any."""
        data = asdict(self)
        data["targets"] = None if self.targets is None else list(self.targets)
        del data["levers"]
        return data | {"levers": list(self.levers)} if self.levers else data

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

    def __post_init__(self) -> None:
        if "compile" in self.workload.levers and not self.placement.is_none:
            raise UsageError(
                "torch.compile does not trace the recomputation of a placement; leave compile out, "
                "or use the checkpoint policy none"
            )

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
        try:
            return cls(workload=workload, placement=placement, policy=policy)
        except UsageError as error:
            raise InputError(f"{part}: {error}") from error


def _integer_in(name: str, value: object, limits: Meta) -> None:
    lowest, highest = int(limits.ge or 0), int(limits.le or 0)
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or not lowest <= value <= highest:  # type: ignore[operator]
        raise UsageError(
            f"{name} must be an integer from {lowest} to {highest}, got {shortened(value)}"
        )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{name} must be one of {', '.join(allowed)}, got {shortened(value)}")
