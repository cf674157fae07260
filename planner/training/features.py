"""The input of a frozen model's classifier, computed once for each image and kept on disk.

    frozen_classifier   the classifier of a model in which nothing else learns
    cached_features     its inputs for a set of images, as a set to train on

A linear probe repeats the forward of its frozen backbone in every epoch. With cached features it
costs one forward pass over the images. This is exact if the images are not augmented, BatchNorm
keeps its statistics and nothing before the classifier is random; the last two are checked on real
images.

The features of ``CHUNK_IMAGES`` images are one file of a ``profiler.store.Store``: written whole or
not at all, never a pickled object, and made again if it is damaged. An extraction that was
interrupted, or whose time was over, goes on with the first missing file. The memory holds a batch
of images and the features of all.

A folder belongs to one combination of backbone, weights, images, image format, device type and
versions of the packages: its name is their hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from planner.plan import versions
from planner.training.frozen_units import FrozenUnits
from planner.training.images.batches import batch_loader
from planner.training.images.image_set import ImageSet
from profiler.models import backbones
from profiler.models.build import BuiltModel
from profiler.records import DeviceKind
from profiler.store import Store, cache_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

CHUNK_IMAGES = 256
"""Images per file: at most 2 MB of features of a large ViT."""

EXTRACTION_BATCH = 32
"""Images of a forward."""

FEATURES_SCHEMA = 2
"""Version of the files' meaning. Increase it with every change of the meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureForward:
    """How the features are computed.

    Attributes:
        device: device of the model.
        dtype: type of the pixels that the model reads.
        batch: images of a forward.
    """

    device: DeviceKind = "cpu"
    dtype: torch.dtype = torch.float32
    batch: int = EXTRACTION_BATCH

    @property
    def dtype_name(self) -> str:
        """Name of the type, such as ``float16``."""
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeatureChunk:
    """Features of consecutive images, as a file holds them.

    Attributes:
        features: [images, D] inputs of the classifier.
    """

    features: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeatureSet:
    """A map-style data set of (features [D], label) in place of images.

    Attributes:
        chunks: features of consecutive images, [images, D] each.
        labels: class index of each image.
    """

    chunks: Sequence[NDArray[np.float32]]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, int]:
        """Return an image's features and its label; there is nothing to draw."""
        index = item[0] if isinstance(item, tuple) else item
        chunk, row = divmod(index, CHUNK_IMAGES)
        return torch.from_numpy(self.chunks[chunk][row].copy()), int(self.labels[index])


class OutOfTimeError(Exception):
    """The time was over before all features were computed; those of finished files are kept."""


def default_features_folder() -> Path | None:
    """Return the folder of cached features: beside the cached profiles of the user, if any."""
    try:
        return cache_folder("features")
    except OSError:  # a user without a home folder
        return None


def frozen_classifier(built: BuiltModel, images: Tensor) -> nn.Module | None:
    """Return the classifier if the rest of a model is fixed; None if features cannot be cached.

    The rest is fixed if no parameter outside of the classifier learns, and if two forwards in
    training mode give the classifier the same input, in two different batches. Dropout,
    stochastic depth and BatchNorm that normalises by the batch fail this check.

    Args:
        built: the model, in training mode.
        images: at least 3 images [N, 3, S, S] on the model's device, for the check.
    """
    heads = backbones.classifiers(built.backbone)
    if len(heads) != 1:
        return None
    inside = {id(parameter) for parameter in heads[0].parameters()}
    if not all(id(p) in inside for p in built.model.parameters() if p.requires_grad):
        return None
    with torch.no_grad():
        whole, logits = _classifier_input(built.model, heads[0], images)
        part, _ = _classifier_input(built.model, heads[0], images[:-1])
        if whole is None or part is None or whole.ndim != 2:
            return None
        is_fixed = torch.allclose(whole[:-1], part, rtol=1e-4, atol=1e-4)
        is_last = torch.equal(heads[0](whole), logits)
    return heads[0] if is_fixed and is_last else None


def cached_features(
    built: BuiltModel,
    classifier: nn.Module | FrozenUnits,
    images: ImageSet,
    *,
    forward: FeatureForward | None = None,
    folder: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    out_of_time: Callable[[], bool] = lambda: False,
) -> FeatureSet:
    """Return the classifier's inputs for images, without augmentation; compute missing files.

    Features that cannot be kept on disk are kept in memory alone.

    Args:
        built: the model; the classifier's own weights do not matter.
        classifier: module that ``frozen_classifier`` returned, or frozen units, whose rows are then
            the features.
        images: images; the crop rule must not be random, and nothing is mirrored.
        forward: device, type and batch of the forward; None for fp32 on the CPU.
        folder: folder of all cached features; None for the user's.
        on_progress: called with (images done, images in all).
        out_of_time: asked before a missing file is computed.

    Raises:
        OutOfTimeError: ``out_of_time`` returned True.
    """
    forward = forward or FeatureForward()
    root = folder or default_features_folder()
    name = _cache_key(built, classifier, images, forward.device)
    store = Store(None if root is None else root / name)

    def make(part: ImageSet) -> FeatureChunk:
        if out_of_time():
            raise OutOfTimeError
        return FeatureChunk(features=_extract(built, classifier, part, forward))

    chunks: list[NDArray[np.float32]] = []
    for first, part in _parts_of_files(images):
        stored = store.fetch(FeatureChunk, (first, len(part)), partial(make, part))
        chunks.append(stored.features)
        on_progress(first + len(part), len(images))
    return FeatureSet(chunks=chunks, labels=images.labels)


def features_in_memory(
    built: BuiltModel,
    classifier: nn.Module | FrozenUnits,
    images: ImageSet,
    forward: FeatureForward,
) -> FeatureSet:
    """Return what ``cached_features`` does for a few images, and keep nothing on disk."""
    chunks = [_extract(built, classifier, part, forward) for _, part in _parts_of_files(images)]
    return FeatureSet(chunks=chunks, labels=images.labels)


def _parts_of_files(images: ImageSet) -> Iterator[tuple[int, ImageSet]]:
    """Yield the index of the first image of each file, and the images of the file."""
    for first in range(0, len(images), CHUNK_IMAGES):
        yield first, images.select(range(first, min(first + CHUNK_IMAGES, len(images))))


def _extract(
    built: BuiltModel,
    classifier: nn.Module | FrozenUnits,
    images: ImageSet,
    forward: FeatureForward,
) -> NDArray[np.float32]:
    """Return the features [images, D] of a few images."""
    batches = batch_loader(images, batch_size=forward.batch, shuffle=False, seed=0, drop_last=False)
    rows = []
    was_training = built.model.training
    built.model.eval()
    try:
        with torch.no_grad():
            for images_read, _ in batches:
                pixels = images_read.to(forward.device, forward.dtype)
                found: Tensor | None
                if isinstance(classifier, FrozenUnits):
                    found = classifier.rows(built, pixels)
                else:
                    found, _ = _classifier_input(built.model, classifier, pixels)
                assert found is not None
                rows.append(found.float().cpu())
    finally:
        built.model.train(was_training)
    return np.asarray(torch.cat(rows).numpy(), dtype=np.float32)


def _classifier_input(
    model: nn.Module, classifier: nn.Module, images: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Return the input of the classifier, None if it is not called once, and the model's logits."""
    seen: list[Tensor] = []
    handle = classifier.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        logits: Tensor = model(images)
    finally:
        handle.remove()
    return (seen[0] if len(seen) == 1 else None), logits


def _cache_key(
    built: BuiltModel, classifier: nn.Module | FrozenUnits, images: ImageSet, device: DeviceKind
) -> str:
    """Return the name of the folder: a hash of everything that the features depend on."""
    units = classifier.key if isinstance(classifier, FrozenUnits) else None
    learned = (
        classifier.learned(built)
        if isinstance(classifier, FrozenUnits)
        else chain(classifier.parameters(), classifier.buffers())
    )
    parts: dict[str, Any] = {} if units is None else {"units": units}
    parts |= {
        "schema": FEATURES_SCHEMA,
        # two models of equal tensors may differ in a setting, such as the activation function
        "model": built.name,
        "weights": _weights_digest(built.model, learned),
        "images": _images_digest(images),
        "image_size": images.input_format.image_size,
        "mean": images.input_format.mean,
        "std": images.input_format.std,
        "crop": f"{images.crop.__module__}.{getattr(images.crop, '__qualname__', images.crop)}",
        "device": device.partition(":")[0],
        "versions": versions(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _weights_digest(model: nn.Module, learned: Iterable[Tensor]) -> str:
    """Return the SHA-256 of all tensors but some, with their names."""
    inside = {id(tensor) for tensor in learned}
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) not in inside:
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(flat.numpy().tobytes())
    return digest.hexdigest()


def _images_digest(images: ImageSet) -> str:
    """Return a SHA-256 of images in their order: of pixels, or of paths, sizes and times."""
    digest = hashlib.sha256()
    for image in images.images:
        if isinstance(image, Path):
            state = image.stat()
            digest.update(f"{image.absolute()} {state.st_size} {state.st_mtime_ns};".encode())
        else:
            digest.update(f"{image.shape};".encode() + image.tobytes())
    return digest.hexdigest()
