"""Labelled images in memory or on disk, transformed to the input format of a model.

Every transform is one box to cut out, one bilinear resize and, for some data sets, a mirror, done
by Pillow. Digits could be enlarged in batches by torch instead; that took 8 ms rather than 13 ms
for 32 images, too little for a second implementation.

The random choices for an image (crop box, mirror) follow from one number, the draw. The batch
loader draws it (``planner.training.images.batches``), so batches depend on the loader's seed and
epoch, never on a global generator. ``image_set[i]`` uses the index as the draw.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from planner.training.images.crops import CropRule
from planner.training.images.image_files import open_image
from profiler.errors import InputError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from planner.training.images.image_files import Pixels

HELD_OUT_SHARE = 0.2
"""Share of the images held out where a data set has no held-out part of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """The origin of a data set, for the provenance of a plan.

    Attributes:
        name: ``digits``, ``cifar100``, ``dtd``, or the folder as the user wrote it.
        train_images: number of training images.
        held_out_images: number of held-out images.
        fingerprint: SHA-256 of the pixels and labels, or of a folder's file names and sizes.
        skipped_files: number of files in class folders that are not images.
    """

    name: str
    train_images: int
    held_out_images: int
    fingerprint: str
    skipped_files: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a plan file."""
        return asdict(self)

    def __str__(self) -> str:
        text = f"{self.name}: {self.train_images} training images, {self.held_out_images} held out"
        return text + (f", {self.skipped_files} other files skipped" if self.skipped_files else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFormat:
    """The input that a model expects.

    Attributes:
        image_size: height and width S in pixels.
        mean: mean of each channel, subtracted; white is 1.
        std: standard deviation of each channel, divided by; white is 1.

    Raises:
        UsageError: the size or a standard deviation is not positive, or there are not 3 channels.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise UsageError(f"image_size must be a positive integer, got {self.image_size!r}")
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != 3:
                raise UsageError(
                    f"{name} must have one number for each of 3 channels, got {values!r}"
                )
            object.__setattr__(self, name, values)
        if not all(value > 0 for value in self.std):
            raise UsageError(f"std must be positive, got {self.std!r}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageSet:
    """A map-style data set of (float tensor [3, S, S], label).

    Attributes:
        images: files, or pixels of shape [H, W] or [H, W, 3].
        labels: class index of each image.
        input_format: size and normalisation of the tensors.
        crop: rule for the box that is cut out.
        mirror: whether an image is mirrored left to right with probability 1/2.
    """

    images: Sequence[Path | Pixels]
    labels: Sequence[int]
    input_format: InputFormat
    crop: CropRule
    mirror: bool

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, int]:
        """Return one image and its label.

        Args:
            item: index, or (index, draw); the draw seeds the random crop and mirror.
        """
        index, draw = item if isinstance(item, tuple) else (item, item)
        image = self._transform(open_image(self.images[index]), random.Random(draw))
        return self._to_tensor(image), int(self.labels[index])

    def sample(self, count: int, *, seed: int) -> Self:
        """Return a random subset of at most ``count`` images, the same for the same seed."""
        chosen = random.Random(seed).sample(range(len(self)), min(count, len(self)))
        return self.select(sorted(chosen))

    def select(self, indices: Iterable[int]) -> Self:
        """Return the subset with these indices, in the order given."""
        kept = list(indices)
        return replace(
            self,
            images=[self.images[i] for i in kept],
            labels=[self.labels[i] for i in kept],
        )

    def _transform(self, image: Image, rng: random.Random) -> Image:
        from PIL.Image import Resampling, Transpose

        side = self.input_format.image_size
        box = self.crop(image.width, image.height, rng)
        image = image.resize((side, side), Resampling.BILINEAR, box=box)
        if self.mirror and rng.random() < 0.5:
            image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
        return image

    def _to_tensor(self, image: Image) -> Tensor:
        import numpy as np
        import torch

        # Move channels first while they are bytes: arithmetic along an axis of length 3 is slow.
        planes = torch.from_numpy(np.array(image).transpose(2, 0, 1).copy()).float()
        std = torch.tensor(self.input_format.std).mul_(255)[:, None, None]
        mean = torch.tensor(self.input_format.mean).mul_(255)[:, None, None]
        return planes.sub_(mean).div_(std)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageData:
    """A data set of two parts.

    Attributes:
        train: images to train on.
        held_out: images to evaluate on.
        class_names: name of each class, by label.
        source: origin of the data set.
    """

    train: ImageSet
    held_out: ImageSet
    class_names: tuple[str, ...]
    source: DataSource

    @property
    def num_classes(self) -> int:
        """Number of classes: the width of the classifier."""
        return len(self.class_names)


def stratified_split(
    labels: Sequence[int], seed: int, names: Sequence[str] | None = None
) -> tuple[list[int], list[int]]:
    """Split indices 80/20 within each class; the same labels and seed give the same split.

    Args:
        labels: class index of each image.
        seed: seed of the shuffle within each class.
        names: name of each class, for the error message.

    Returns:
        The indices of the training images and of the held-out images, each in order.

    Raises:
        InputError: a class has only one image.
    """
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        groups.setdefault(label, []).append(index)
    train: list[int] = []
    held_out: list[int] = []
    for label, group in sorted(groups.items()):
        if len(group) < 2:
            name = names[label] if names is not None else str(label)
            raise InputError(
                f"class {name!r} has one image; add a second one, since one is held out"
            )
        random.Random(f"{seed}/{label}").shuffle(group)
        count = max(1, round(HELD_OUT_SHARE * len(group)))
        held_out += group[:count]
        train += group[count:]
    return sorted(train), sorted(held_out)
