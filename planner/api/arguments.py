"""Turns the plain arguments of the Python interface into workloads, candidates and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypedDict

from profiler.errors import DeviceError, UsageError
from profiler.units import MIB, DeviceBytes, parse_bytes

if TYPE_CHECKING:
    from profiler.devices.table import DeviceSpec
    from profiler.records import DeviceKind
    from profiler.workload import Candidate, Lever, OptimizerName, PrecisionName, Workload


class WorkloadOptions(TypedDict, total=False):
    """Optional arguments that describe one training step, with the command line's defaults.

    Attributes:
        batch_size: images in a micro-batch (32).
        accumulate: micro-batches in an optimizer step (1).
        rank: rank of a low-rank method, width of an adapter, number of prompts; None for the
            method's default.
        alpha: LoRA's scaling numerator; None for twice the rank.
        dropout: dropout rate on the adapter's input (0).
        frozen_batch_norm: whether BatchNorm keeps its running statistics (False).
        targets: module-name suffixes to adapt; None for the method's default.
        precision: ``fp32`` (the default), or autocast to ``bf16`` or ``fp16``.
        optimizer: ``adamw`` (the default), ``sgd``, ``adamw8bit`` or ``adamw_host``.
        levers: settings that change a step's speed and not its result (none):
            ``channels_last``, ``fused``, ``tf32``, ``cudnn_benchmark``, ``compile``.
        image_size: height and width of the input in pixels; None for the model's own.
        num_classes: number of classes (1000).
        checkpoint: checkpoint policy as commands write it: ``every-3`` (``none``).
        threshold: share of the budget at which the policy ``adaptive`` starts to recompute (0.5).
    """

    batch_size: int
    accumulate: int
    rank: int | None
    alpha: float | None
    dropout: float
    frozen_batch_norm: bool
    targets: Sequence[str] | None
    precision: PrecisionName
    optimizer: OptimizerName
    levers: Sequence[Lever]
    image_size: int | None
    num_classes: int
    checkpoint: str
    threshold: float


def parse_size(size: int | str) -> DeviceBytes:
    """Return bytes for a number of bytes or a text such as ``2GB``.

    Raises:
        UsageError: the text is not a size, or the size is not positive.
    """
    try:
        if isinstance(size, int) and 0 < size < MIB:
            size = str(size)  # refused as its text is: 8 was meant as 8GB
        size_bytes = parse_bytes(size) if isinstance(size, str) else size
    except ValueError as error:
        raise UsageError(str(error)) from error
    if size_bytes <= 0:
        raise UsageError(f"a size must be positive, got {size!r}")
    return DeviceBytes(size_bytes)


def optional_size(size: int | str | None) -> DeviceBytes | None:
    """Return bytes for a size, and None for None."""
    return None if size is None else parse_size(size)


def device_name(device: str | DeviceSpec) -> str:
    """Return the name of a device that is given by name or as a record.

    A record that the device table lacks is used as it is (``profiler.devices.device_file`` reads
    one from a file).
    """
    if isinstance(device, str):
        return device
    from profiler.devices.table import DEVICES, adopt

    known = DEVICES.get(device.name)
    if known is None:
        adopt(device)
    elif known != device:
        raise UsageError(
            f"{device.name} is a device of the table with other numbers; give the record another "
            "name"
        )
    return device.name


def classes_of(data: str) -> int:
    """Return the number of classes of a data set or folder.

    Raises:
        InputError: the folder cannot be read.
        UsageError: the name's text after the colon is malformed.
    """
    from planner.recommendation.data_facts import FACTS_IMAGE_SIZE, data_facts

    return data_facts(data, image_size=FACTS_IMAGE_SIZE, is_used=False).num_classes


def workload_of(model: str, method: str, options: WorkloadOptions) -> Workload:
    """Return the workload with the defaults that depend on the model and the method."""
    from profiler.models import backbones
    from profiler.models.methods import get_method
    from profiler.workload import Workload

    name = backbones.resolve(model)
    targets = options.get("targets")
    return get_method(method).resolve(
        Workload(
            model=name,
            method=method,
            rank=options.get("rank"),
            alpha=options.get("alpha"),
            dropout=options.get("dropout", 0.0),
            frozen_batch_norm=options.get("frozen_batch_norm", False),
            targets=None if targets is None else tuple(targets),
            micro_batch=options.get("batch_size", 32),
            accumulation=options.get("accumulate", 1),
            precision=options.get("precision", "fp32"),
            optimizer=options.get("optimizer", "adamw"),
            levers=tuple(options.get("levers", ())),
            image_size=options.get("image_size") or backbones.native_image_size(name),
            num_classes=options.get("num_classes", 1000),
        )
    )


def candidate_of(
    model: str, method: str, *, device: str, vram: int | str | None, options: WorkloadOptions
) -> Candidate:
    """Return the workload with the placement of its policy."""
    from planner.cost.place_by_policy import default_cost_model, place_by_policy
    from planner.placement.policies import parse_policy
    from profiler.devices.table import device_spec
    from profiler.models.forward_check import check_forward

    workload = workload_of(model, method, options)
    if workload.micro_batch == 1:
        # BatchNorm can refuse it, while the composed rung scales profiles of larger batches
        check_forward(workload)
    return place_by_policy(
        workload,
        parse_policy(options.get("checkpoint", "none"), threshold=options.get("threshold")),
        default_cost_model(device_spec(device)),
        budget_bytes=optional_size(vram),
    )


def device_of_run(device: str) -> str:
    """Return where a real run takes place: this machine's GPU or ``cpu``.

    Raises:
        DeviceError: the named GPU is not in this machine.
        UnknownNameError: no such device.
    """
    from planner.target_device import find_target

    target = find_target(device)
    if device != "auto" and target.runs_on != target.label.name:
        raise DeviceError(
            f"{target.label.name} is not in this machine; use the device cpu, or predict for it"
        )
    return target.runs_on


def found_device(name: Literal["auto", "cpu", "cuda"]) -> DeviceKind:
    """Return the device of a training or a forward; ``auto`` takes a GPU if there is one.

    On a GPU, PyTorch is set to the kernels that predictions are for, and that can start here.

    Raises:
        DeviceError: there is no CUDA device.
        UsageError: another word.
    """
    import torch

    from planner.training.training_device import device_kind
    from profiler.running.memory_caps import use_planned_configuration

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if device_kind(name) == "cpu":
        return "cpu"
    use_planned_configuration()
    return "cuda"


def no_progress(stage: str, text: str, fraction: float) -> None:
    """Ignore progress."""
