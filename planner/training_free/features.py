"""k-NN and a linear probe on the features of a frozen backbone.

The features are those of ``planner.training.features``: computed once for each image, kept on disk,
and shared with the probe of ``recommend``. Both classifiers are scikit-learn's. The neighbours vote
with weights exp(cosine similarity / 0.07), as DINO's evaluation does (arXiv 2104.14294, appendix
F.1 of DINO). The inverse regularisation of the linear probe is chosen on the selection images; the
test images are evaluated once.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from planner.training.features import (
    EXTRACTION_BATCH,
    FeatureForward,
    cached_features,
    frozen_classifier,
)
from planner.training.images.load import load_data
from planner.training_free.option_cost import INVERSE_REGULARISATIONS, MOST_ITERATIONS
from profiler.errors import InputError
from profiler.models import backbones
from profiler.models.build import build_model
from profiler.records import DeviceKind
from profiler.workload import Workload

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from planner.training.images.image_set import ImageData
    from profiler.models.backbones.weights import WeightSource
    from profiler.models.build import BuiltModel

Parts = dict[str, "tuple[NDArray[np.float32], NDArray[np.int64]]"]
"""Features [images, D] and labels [images] of the parts ``training``, ``selection``, ``test``."""

NEIGHBOURS, TEMPERATURE = 20, 0.07
"""Training images that vote on the class of an image, and the temperature of their weights."""

IMAGES_OF_THE_CHECK = 4
"""Images on which the backbone is checked to be frozen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureAccuracy:
    """Accuracies on the test images, as fractions.

    Attributes:
        model: the backbone.
        weights: kind of its weights (``pretrained``, ``file`` or ``random``).
        knn: accuracy of the weighted vote of the 20 nearest training images.
        linear_probe: accuracy of logistic regression.
        inverse_regularisation: C of the logistic regression, chosen on the selection images.
        train_images: number of training images.
        test_images: number of test images.
        features: number of features of an image.
        device: device that computed the features, ``cpu`` or ``cuda``.
        dtype: type of weights and pixels.
        extraction_seconds: duration of the features of all images; short if they were kept.
        fit_seconds: duration of the fits and of both evaluations.
    """

    model: str
    weights: str
    knn: float
    linear_probe: float
    inverse_regularisation: float
    train_images: int
    test_images: int
    features: int
    device: DeviceKind = "cpu"
    dtype: str = "float32"
    extraction_seconds: float | None = field(default=None, compare=False)
    fit_seconds: float | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return what ``budgetplan features --json`` prints."""
        return {"schema": "budgetplan.features/1", **asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExtractedFeatures:
    """Features of a data set, with their origin.

    Attributes:
        parts: features and labels of the requested parts.
        workload: the frozen backbone with a classifier.
        weights: origin of the weights.
        images: the data set.
        forward: how the features were computed.
        seconds: duration, with decoding; features that were kept cost only their reading.
    """

    parts: Parts
    workload: Workload
    weights: WeightSource
    images: ImageData
    forward: FeatureForward
    seconds: float


def evaluate_features(
    model: str,
    *,
    data: str,
    image_size: int | None = None,
    weights: Path | None = None,
    pretrained: bool = True,
    forward: FeatureForward | None = None,
    folder: Path | None = None,
    on_progress: Callable[[str, float], None] = lambda text, done: None,
) -> FeatureAccuracy:
    """Fit both classifiers on a data set and test them.

    Args:
        model: backbone.
        data: name of a data set, or a folder.
        image_size: height and width of the images in pixels; None for the backbone's own.
        weights: file of weights; None for timm's pretrained weights.
        pretrained: try to load timm's pretrained weights.
        forward: device, type and batch of the forward; None for fp32 on the CPU.
        folder: folder of cached features; None for the user's.
        on_progress: called with (activity, fraction done).

    Raises:
        InputError: the data or the weights cannot be read, or the backbone's features cannot be
            computed once and for all.
    """
    found = extract_features(
        model,
        data=data,
        image_size=image_size,
        weights=weights,
        pretrained=pretrained,
        forward=forward,
        folder=folder,
        on_progress=on_progress,
    )
    began = time.perf_counter()
    accuracy = fit_and_test(found.parts, model=model, weights=found.weights.kind)
    return replace(
        accuracy,
        device=found.forward.device,
        dtype=found.forward.dtype_name,
        extraction_seconds=found.seconds,
        fit_seconds=time.perf_counter() - began,
    )


def extract_features(
    model: str,
    *,
    data: str,
    parts: Sequence[str] = ("training", "selection", "test"),
    image_size: int | None = None,
    weights: Path | None = None,
    pretrained: bool = True,
    forward: FeatureForward | None = None,
    folder: Path | None = None,
    on_progress: Callable[[str, float], None] = lambda text, done: None,
) -> ExtractedFeatures:
    """Compute the features of a data set, or read those that are kept.

    Args:
        model: backbone.
        data: name of a data set, or a folder.
        parts: parts of the data set: ``training``, ``selection``, ``test``.
        image_size: height and width of the images in pixels; None for the backbone's own.
        weights: file of weights; None for timm's pretrained weights.
        pretrained: try to load timm's pretrained weights.
        forward: device, type and batch of the forward; None for fp32 on the CPU.
        folder: folder of cached features; None for the user's.
        on_progress: called with (activity, fraction done).

    Raises:
        InputError: the data or the weights cannot be read, or the backbone's features cannot be
            computed once and for all.
    """
    began = time.perf_counter()
    workload, images = _workload_and_images(model, data, image_size)
    built = build_model(workload, weights=weights, pretrained=pretrained)
    classifier = _checked_classifier(built, images)
    forward = forward or FeatureForward()
    built.model.to(forward.device, forward.dtype)
    every = {"training": images.train, "selection": images.selection, "test": images.test}
    found: Parts = {}
    for number, name in enumerate(parts):

        def report(done: int, total: int, name: str = name, number: int = number) -> None:
            fraction = (number + done / total) / len(parts)
            on_progress(f"features of the {name} images", fraction)

        plain = every[name].without_augmentation(images.test)
        cached = cached_features(
            built, classifier, plain, forward=forward, folder=folder, on_progress=report
        )
        labels, chunks = np.asarray(cached.labels, dtype=np.int64), list(cached.chunks)
        del cached  # its chunks are freed one by one below
        found[name] = joined_rows(chunks), labels
        _check_finite(found[name][0], workload.model, forward)
    return ExtractedFeatures(
        parts=found,
        workload=workload,
        weights=built.weights,
        images=images,
        forward=forward,
        seconds=time.perf_counter() - began,
    )


def _workload_and_images(
    model: str, data: str, image_size: int | None
) -> tuple[Workload, ImageData]:
    """Return the frozen backbone with a classifier for a data set, and the data set."""
    name = backbones.resolve(model)
    size = image_size or backbones.native_image_size(name)
    shapes = backbones.build(name, num_classes=1, image_size=size, device="meta")
    mean, std = backbones.image_statistics(shapes)
    images = load_data(data, image_size=size, mean=mean, std=std)
    workload = Workload(
        model=name,
        method="head",
        micro_batch=1,
        num_classes=images.num_classes,
        image_size=size,
        frozen_batch_norm=True,
    )
    return workload, images


def _checked_classifier(built: BuiltModel, images: ImageData) -> nn.Module:
    """Return the classifier of a model; refuse a backbone whose features are not fixed."""
    few = torch.stack(
        [images.test[i][0] for i in range(min(IMAGES_OF_THE_CHECK, len(images.test)))]
    )
    classifier = frozen_classifier(built, few)
    if classifier is None:
        raise InputError(
            f"{built.name} has no single classifier on fixed features; use another backbone"
        )
    return classifier


def feature_forward(
    device: DeviceKind, *, dtype: str = "float16", batch: int = EXTRACTION_BATCH
) -> FeatureForward:
    """Return how features are computed on a device: always in fp32 on a CPU.

    Args:
        device: ``cpu`` or ``cuda``.
        dtype: type of weights and pixels on a GPU, ``float16`` or ``float32``.
        batch: images of a forward.
    """
    is_half = device != "cpu" and dtype == "float16"
    return FeatureForward(
        device=device, dtype=torch.float16 if is_half else torch.float32, batch=batch
    )


def _check_finite(features: NDArray[np.float32], model: str, forward: FeatureForward) -> None:
    """Refuse features beyond the range of their type: no classifier can be fitted on them."""
    if not np.isfinite(features).all():
        is_half = forward.dtype == torch.float16
        remedy = "--device cpu, which computes in float32" if is_half else "other weights"
        raise InputError(
            f"features of {model} in {forward.dtype_name} are not finite; use {remedy}"
        )


def joined_rows(chunks: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the rows of all chunks; each chunk leaves the list when it was copied.

    ``np.concatenate`` would hold all features twice. Here the system commits the pages of the
    result as they are written, while the memory of the copied chunks is free again.
    """
    rows = np.empty((sum(map(len, chunks)), chunks[0].shape[1]), dtype=np.float32)
    first = 0
    while chunks:
        chunk = chunks.pop(0)
        rows[first : first + len(chunk)] = chunk
        first += len(chunk)
    return rows


def fit_and_test(parts: Parts, *, model: str, weights: str) -> FeatureAccuracy:
    """Fit both classifiers on features [images, D] and labels [images] of three parts."""
    train, labels = parts["training"]
    test, test_labels = parts["test"]
    probe, strength = linear_probe(parts)
    return FeatureAccuracy(
        model=model,
        weights=weights,
        knn=float((_neighbours(train, labels).predict(test) == test_labels).mean()),
        linear_probe=float((probe.predict(test) == test_labels).mean()),
        inverse_regularisation=strength,
        train_images=len(labels),
        test_images=len(test_labels),
        features=train.shape[1],
    )


def _neighbours(features: NDArray[np.float32], labels: NDArray[np.int64]) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    def weigh(distances: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.exp((1.0 - distances) / TEMPERATURE)

    vote = KNeighborsClassifier(min(NEIGHBOURS, len(labels)), metric="cosine", weights=weigh)
    return vote.fit(features, labels)


def linear_probe(parts: Parts) -> tuple[Any, float]:
    """Return the standardised regression with the best selection accuracy, and its C."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (train, labels), (held, held_labels) = parts["training"], parts["selection"]
    best: tuple[float, float, Any] | None = None
    for strength in INVERSE_REGULARISATIONS:
        probe = make_pipeline(
            StandardScaler(), LogisticRegression(C=strength, max_iter=MOST_ITERATIONS)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # weak regularisation may need more iterations
            probe.fit(train, labels)
        accuracy = float((probe.predict(held) == held_labels).mean())
        if best is None or accuracy > best[0]:
            best = accuracy, strength, probe
    assert best is not None
    return best[2], best[1]
