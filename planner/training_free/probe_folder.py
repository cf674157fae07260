"""A linear probe that was fitted by a plan, saved in a folder and evaluated again.

    plan.json           the plan
    probe.safetensors   weight [classes, D] and bias [classes] on the plain features
    probe.json          classes, accuracies, backbone, weights, data and durations

The standardisation of the features is folded into weight and bias, so the probe is one linear layer
on the features that the backbone's own classifier gets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from planner.disk.drafts import draft_folder
from planner.disk.free_space import check_folder
from planner.disk.json_files import read_json, write_json
from planner.training.features import EXTRACTION_BATCH
from planner.training.history import InputTransform
from planner.training.input_transform import transform_of
from planner.training.trained_model import weights_file_of
from planner.training.use_trained import (
    ClassifiedImage,
    ImageForward,
    TrainedEvaluation,
    check_classes,
    classify_images,
)
from planner.training_free.features import extract_features, feature_forward, linear_probe
from planner.training_free.plan_file import FrozenPlan
from profiler.errors import InputError
from profiler.json_records import (
    Fraction,
    JsonObject,
    Name,
    NonNegativeFloat,
    PositiveInt,
    check_schema,
    json_object,
    read_record,
    warn_of_dropped,
)
from profiler.models import backbones
from profiler.models.build import build_model
from profiler.records import DeviceKind
from profiler.workload import Workload

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from planner.training.history import Part
    from profiler.models.backbones.weights import WeightSource

PROBE_SCHEMA = "budgetplan.linear_probe/1"

PROBE_FILE, TENSOR_FILE, FROZEN_PLAN_FILE = "probe.json", "probe.safetensors", "plan.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedProbe:
    """Record of a linear probe: ``probe.json``.

    Attributes:
        model: name of the frozen model.
        backbone: its timm name.
        image_size: height and width of the images in pixels.
        weights: origin of the backbone's weights.
        weights_file: file of the weights; empty if they came from elsewhere.
        weights_sha256: SHA-256 of that file; empty without one and in earlier records.
        data: data set or folder as the user wrote it.
        class_names: name of each class, by label.
        accuracy: fraction of the test images classified right.
        selection_accuracy: the same of the selection images.
        inverse_regularisation: C of the logistic regression, chosen on the selection images.
        features: features of an image.
        batch: images of a forward.
        device: device that computed the features, ``cpu`` or ``cuda``.
        dtype: type of the backbone's weights and of the pixels.
        train_images: number of training images.
        test_images: number of test images.
        extraction_seconds: duration of the features; short if they were kept.
        fit_seconds: duration of the fits.
        transform: transform of an image to the backbone's input; None in earlier records.
        output: folder of the result; not part of the record.
    """

    model: Name
    backbone: Name
    image_size: PositiveInt
    weights: JsonObject
    weights_file: str = ""
    weights_sha256: str = ""
    data: str
    class_names: tuple[str, ...]
    accuracy: Fraction
    selection_accuracy: Fraction
    inverse_regularisation: float
    features: PositiveInt
    train_images: PositiveInt
    test_images: PositiveInt
    extraction_seconds: NonNegativeFloat
    fit_seconds: NonNegativeFloat
    batch: PositiveInt = EXTRACTION_BATCH
    device: DeviceKind = "cpu"
    dtype: Literal["float32", "float16"] = "float32"
    transform: InputTransform | None = None
    output: str = field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the record and the folder, as ``train --json`` prints them."""
        return {"schema": PROBE_SCHEMA, **asdict(self), "class_names": list(self.class_names)}


def train_probe(
    plan: FrozenPlan,
    output: Path,
    *,
    data: str | None = None,
    weights: Path | None = None,
    pretrained: bool = True,
    device: DeviceKind = "cpu",
    on_progress: Callable[[str, float], None] = lambda text, done: None,
) -> FittedProbe:
    """Fit the linear probe of a plan and save it in a folder.

    Args:
        plan: plan of kind ``features``.
        output: folder of the result; one that this program wrote before is replaced.
        data: data set or folder; None for the plan's.
        weights: file of the backbone's weights; None for timm's pretrained weights.
        pretrained: try to load timm's pretrained weights.
        device: ``cpu``, where features are computed in fp32, or ``cuda``, where the plan's type is
            used.
        on_progress: called with (activity, fraction done).

    Raises:
        InputError: the data or the weights cannot be read, or the folder holds files of others.
    """
    _check_probe_folder(output)
    model, file = plan.model, weights_file_of(weights)
    found = extract_features(
        model.model,
        data=data or plan.data,
        image_size=model.image_size,
        weights=weights,
        pretrained=pretrained,
        forward=feature_forward(device, dtype=plan.candidate.dtype, batch=plan.candidate.batch),
        on_progress=on_progress,
    )
    began = time.perf_counter()
    probe, strength = linear_probe(found.parts)
    fit_seconds = time.perf_counter() - began
    weight, bias = _linear_layer(probe, classes=found.workload.num_classes)
    (selection, held), (test, labels) = found.parts["selection"], found.parts["test"]
    fitted = FittedProbe(
        model=model.name,
        backbone=found.workload.model,
        image_size=found.workload.image_size,
        weights=asdict(found.weights),
        weights_file="" if file is None else file.path,
        weights_sha256="" if file is None else file.sha256,
        data=data or plan.data,
        class_names=tuple(found.images.class_names),
        accuracy=float((_predicted(test, weight, bias) == labels).mean()),
        selection_accuracy=float((_predicted(selection, weight, bias) == held).mean()),
        inverse_regularisation=strength,
        features=int(weight.shape[1]),
        batch=plan.candidate.batch,
        device="cpu" if device == "cpu" else "cuda",
        dtype="float16" if found.forward.dtype == torch.float16 else "float32",
        train_images=len(found.parts["training"][1]),
        test_images=len(labels),
        extraction_seconds=found.seconds,
        fit_seconds=fit_seconds,
        transform=transform_of(found.images),
        output=str(output),
    )
    _save(fitted, plan, weight, bias, output)
    return fitted


def evaluate_probe(
    folder: Path,
    *,
    data: str | None = None,
    part: Part = "test",
    weights: Path | None = None,
    device: DeviceKind = "cpu",
    on_progress: Callable[[str, float], None] = lambda text, done: None,
) -> TrainedEvaluation:
    """Return the accuracy of a saved probe on a part of a data set.

    Args:
        folder: folder of the probe.
        data: data set or folder; None for that of the fit.
        part: part of the data set.
        weights: present place of the backbone's weights; None for the recorded place.
        device: ``cpu``, where features are computed in fp32, or ``cuda``, where the type of the fit
            is used.
        on_progress: called with (activity, fraction done).

    Raises:
        InputError: the folder holds no probe, the weights are others than those of the fit, or the
            data has other classes.
    """
    began = time.perf_counter()
    fitted, weight, bias = read_probe(folder)
    place = _checked_weights(weights, fitted)
    found = extract_features(
        fitted.backbone,
        data=data or fitted.data,
        parts=(part,),
        image_size=fitted.image_size,
        weights=place,
        pretrained=fitted.weights.get("kind") == "pretrained",
        forward=feature_forward(device, dtype=fitted.dtype, batch=fitted.batch),
        on_progress=on_progress,
    )
    _check_origin(found.weights, fitted)
    check_classes(found.images, fitted.class_names, trained=folder)
    features, labels = found.parts[part]
    is_right = torch.from_numpy(_predicted(features, weight, bias) == labels)
    return TrainedEvaluation.of_images(
        is_right,
        torch.from_numpy(labels),
        fitted.class_names,
        trained=str(folder),
        data=data or fitted.data,
        part=part,
        seconds=time.perf_counter() - began,
        weights=str(fitted.weights.get("kind")),
    )


def classify_with_probe(
    folder: Path,
    files: Sequence[Path],
    *,
    top: int,
    device: DeviceKind,
    weights: Path | None = None,
) -> list[ClassifiedImage]:
    """Return the most probable classes of image files by a saved probe.

    Args:
        folder: folder of the probe.
        files: image files, in any format that Pillow reads.
        top: number of classes for each image.
        device: ``cpu`` or ``cuda``.
        weights: present place of the backbone's weights; None for the recorded place.

    Raises:
        InputError: the folder holds no probe, an earlier version fitted it, or the weights are
            others than those of the fit.
    """
    fitted, weight, bias = read_probe(folder)
    place = _checked_weights(weights, fitted)
    if fitted.transform is None:
        raise InputError(
            f"{folder} records no transform (an earlier version fitted it); fit the probe again"
        )
    workload = Workload(
        model=fitted.backbone,
        method="head",
        micro_batch=1,
        num_classes=len(fitted.class_names),
        image_size=fitted.image_size,
        frozen_batch_norm=True,
    )
    built = build_model(
        workload,
        weights=place,
        pretrained=fitted.weights.get("kind") == "pretrained",
    )
    _check_origin(built.weights, fitted)
    layer, offset = torch.from_numpy(weight).to(device), torch.from_numpy(bias).to(device)
    # the probe reads the input of the backbone's own classifier, and answers in its place
    backbones.classifiers(built.backbone)[0].register_forward_hook(
        lambda _, given, __: torch.nn.functional.linear(given[0].float(), layer, offset)
    )
    forward = ImageForward(
        model=built.model.to(device).eval(),
        device=device,
        precision="fp16" if device == "cuda" and fitted.dtype == "float16" else "fp32",
        batch_size=fitted.batch,
    )
    return classify_images(
        forward, files, transform=fitted.transform, class_names=fitted.class_names, top=top
    )


def _checked_weights(given: Path | None, fitted: FittedProbe) -> Path | None:
    """Return the present place of a probe's weights; None if they came from no file.

    Raises:
        InputError: the file cannot be read, or its content is not that of the fit.
    """
    place = given or (Path(fitted.weights_file) if fitted.weights_file else None)
    found = weights_file_of(place)
    if found is not None and fitted.weights_sha256 not in ("", found.sha256):
        raise InputError(
            f"{place} holds other weights than those that the probe was fitted on; give their file "
            "with --weights, or fit the probe again"
        )
    return place


def _check_origin(found: WeightSource, fitted: FittedProbe) -> None:
    """Refuse weights of another kind than those that a probe was fitted on."""
    if found.kind != fitted.weights.get("kind"):
        raise InputError(
            f"the probe was fitted on {fitted.weights.get('kind')} weights, and those found now "
            f"are {found.kind} ({found.detail}); give --weights FILE"
        )


def read_probe(folder: Path) -> tuple[FittedProbe, NDArray[np.float32], NDArray[np.float32]]:
    """Return the record, the weight [classes, D] and the bias [classes] of a saved probe.

    Raises:
        InputError: the folder holds no probe, or its files are damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    given = json_object(read_json(folder / PROBE_FILE, kind="probe"), part="probe")
    dropped = check_schema(given, PROBE_SCHEMA, minor=0, part="probe")
    del given["schema"]
    fitted = read_record(FittedProbe, given, part="probe", dropped=dropped)
    warn_of_dropped(dropped, part="probe")
    try:
        tensors = load_file(folder / TENSOR_FILE)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{folder / TENSOR_FILE} cannot be read: {error}") from error
    classes = len(fitted.class_names)
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if weight is None or bias is None or weight.shape != (classes, fitted.features):
        raise InputError(f"{folder / TENSOR_FILE} does not fit {PROBE_FILE}; fit the probe again")
    return fitted, weight, bias


def is_probe_folder(folder: Path) -> bool:
    """Return whether a folder is the result of ``train_probe``."""
    return (folder / PROBE_FILE).is_file()


def _linear_layer(probe: Any, *, classes: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return weight and bias on plain features of a standardised logistic regression."""
    scaler, regression = probe[0], probe[-1]
    coefficients, offsets = regression.coef_, regression.intercept_
    if len(coefficients) == 1:  # two classes: the first has the score 0
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        offsets = np.concatenate([np.zeros_like(offsets), offsets])
    weight = coefficients / scaler.scale_
    bias = offsets - weight @ scaler.mean_
    whole = np.zeros((classes, weight.shape[1])), np.full(classes, -1e30)
    # a class without training images keeps a score that never wins
    whole[0][regression.classes_], whole[1][regression.classes_] = weight, bias
    return whole[0].astype(np.float32), whole[1].astype(np.float32)


def _predicted(
    features: NDArray[np.float32], weight: NDArray[np.float32], bias: NDArray[np.float32]
) -> NDArray[np.int64]:
    found: NDArray[np.int64] = (features @ weight.T + bias).argmax(axis=1)
    return found


def _check_probe_folder(output: Path) -> None:
    """Refuse a folder with files that this program did not write."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; give a folder for the result")
    ours = {PROBE_FILE, TENSOR_FILE, FROZEN_PLAN_FILE}
    if output.is_dir():
        names = {path.name for path in output.iterdir()}
        if names - ours or (names and PROBE_FILE not in names):
            foreign = sorted(names - ours or names)[0]
            raise InputError(
                f"{output} holds {foreign}, which no fit of a probe wrote; give another folder "
                "with --out"
            )
    check_folder(output.parent)


def _save(
    fitted: FittedProbe,
    plan: FrozenPlan,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    output: Path,
) -> None:
    from safetensors.numpy import save_file

    output.parent.mkdir(parents=True, exist_ok=True)
    with draft_folder(output, remedy="give another folder with --out") as draft:
        write_json(plan.to_json(), draft / FROZEN_PLAN_FILE)
        record = {k: v for k, v in fitted.to_json().items() if k != "output"}
        write_json(record, draft / PROBE_FILE)
        save_file({"weight": weight, "bias": bias}, draft / TENSOR_FILE)
