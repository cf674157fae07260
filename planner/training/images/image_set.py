"""Labelled images in memory or on disk, transformed to the input format of a model.

Every transform is one box to cut out, one resize and, for some data sets, a mirror, done
by Pillow. Digits could be enlarged in batches by torch instead; that took 8 ms rather than 13 ms
for 32 images, too little for a second implementation.

The random choices for an image (crop box, mirror) follow from one number, the draw. The batch
loader draws it (``planner.training.images.batches``), so batches depend on the loader's seed and
epoch, never on a global generator. ``image_set[i]`` uses the index as the draw.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from planner.training.images.copies import count_copies
from planner.training.images.crops import CropRule
from planner.training.images.image_files import open_image
from planner.training.images.listing import describe_skipped
from planner.training.images.split import split_off_selection
from profiler.errors import UsageError, check_whole_number
from profiler.json_records import NonNegativeInt, read_record

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from planner.training.images.image_files import Pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """The origin of a data set, for the provenance of a plan.

    Attributes:
        name: name of the data set, or the folder as the user wrote it.
        train_images: number of training images, those of the selection part not included; in the
            record of a training the number of images that were trained on.
        held_out_images: number of test images.
        selection_images: number of selection images; None in records of trainings that selected no
            epoch, and of trainings and plans from before there was such a part.
        fingerprint: SHA-256 of the pixels and labels, or of a folder's file names and sizes.
        skipped_files: number of files in a folder that are not used.
        skip_reasons: numbers of these files by reason; empty in records of earlier versions.
        copied_images: number of selection and test images that are copies of training images, or
            of test images where there is no selection part; None if they were not compared.
    """

    name: str
    train_images: NonNegativeInt
    held_out_images: NonNegativeInt
    fingerprint: str
    skipped_files: NonNegativeInt = 0
    skip_reasons: dict[str, NonNegativeInt] = field(default_factory=dict)
    selection_images: NonNegativeInt | None = None
    copied_images: NonNegativeInt | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a plan file."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: object, *, part: str) -> Self:
        """Read the object that ``to_json`` returns, of this or another version.

        Args:
            data: JSON object; unknown fields are left out.
            part: path of the object in error messages.

        Raises:
            InputError: the data is not the origin of a data set.
        """
        return read_record(cls, data, part=part, dropped=[])

    def __str__(self) -> str:
        text = f"{self.name}: {self.train_images} training images, "
        if self.selection_images is not None:
            text += f"{self.selection_images} for selection, "
        text += f"{self.held_out_images} for the test"
        if self.copied_images:
            others = "the latter" if self.selection_images is None else "the latter two"
            text += f"; {self.copied_images} of {others} are copies of training images"
        return f"{text}, {self.skipped_text()}" if self.skipped_files else text

    def skipped_text(self) -> str:
        """Return the number of skipped files, with the reasons where they are known."""
        files = "file" if self.skipped_files == 1 else "files"
        reasons = f" ({describe_skipped(self.skip_reasons)})" if self.skip_reasons else ""
        return f"{self.skipped_files:,} {files} skipped{reasons}"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFormat:
    """The input that a model expects.

    Attributes:
        image_size: height and width S in pixels.
        mean: mean of each channel, subtracted; white is 1.
        std: standard deviation of each channel, divided by; white is 1.
        resampling: how images are resized.

    Raises:
        UsageError: the size or a standard deviation is not positive, or there are not 3 channels.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resampling: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        check_whole_number("image_size", self.image_size, least=1)
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

    def without_augmentation(self, test: ImageSet) -> Self:
        """Return the same images, cut out and mirrored as those of a test part are."""
        return replace(self, crop=test.crop, mirror=False)

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
        resampling = Resampling[self.input_format.resampling.upper()]
        image = image.resize((side, side), resampling, box=box)
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
    """A data set of three parts.

    Attributes:
        train: images to train on.
        selection: images that choose the best epoch and the end of a training.
        test: images that are evaluated at the end of a run.
        class_names: name of each class, by label.
        source: origin of the data set.
        selection_positions: for selection images that were taken out of the training images, the
            index of each in the whole training set; empty if the part is the data set's own.

    Raises:
        UsageError: the positions are not one index of the whole set for each selection image.
    """

    train: ImageSet
    selection: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    source: DataSource
    selection_positions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        positions, count = self.selection_positions, len(self.selection)
        whole = range(len(self.train) + count)
        if positions and (len(set(positions)) != count or not set(positions) <= set(whole)):
            raise UsageError(
                f"selection_positions must be {count} different indices below {len(whole)}, "
                f"got {len(positions)} up to {max(positions)}"
            )

    @classmethod
    def take_selection(
        cls,
        *,
        train: ImageSet,
        test: ImageSet,
        class_names: Sequence[str],
        source: DataSource,
        seed: int,
    ) -> Self:
        """Return a data set whose selection images are taken out of its training images.

        Args:
            train: the whole training set.
            test: test images; selection images are cropped in the same way.
            class_names: name of each class, by label.
            source: origin of the data set, with the size of the whole training set.
            seed: seed of the split.

        Raises:
            InputError: no class has two training images.
        """
        kept, taken = split_off_selection(train.labels, seed)
        selection = replace(train.select(taken), crop=test.crop, mirror=test.mirror)
        return cls(
            train=train.select(kept),
            selection=selection,
            test=test,
            class_names=tuple(class_names),
            source=replace(
                source,
                train_images=len(kept),
                selection_images=len(taken),
                copied_images=count_copies(
                    train.select(kept).images, (selection.images, test.images)
                ),
            ),
            selection_positions=tuple(taken),
        )

    @property
    def num_classes(self) -> int:
        """Number of classes: the width of the classifier."""
        return len(self.class_names)

    @property
    def images_per_class(self) -> tuple[int, ...]:
        """Number of training images of each class, by label."""
        counts = Counter(self.train.labels)
        return tuple(counts[label] for label in range(self.num_classes))

    def training_whole(self) -> ImageSet:
        """Return the training set with the selection images put back, in the original order.

        Recipes that select no epoch train on this set. Selection images that were never part of
        the training set stay out.
        """
        if not self.selection_positions:
            return self.train
        put_back = dict(zip(self.selection_positions, range(len(self.selection)), strict=True))
        others = iter(range(len(self.train)))
        images: list[Path | Pixels] = []
        labels: list[int] = []
        for position in range(len(self.train) + len(self.selection)):
            index = put_back.get(position)
            part, i = (self.train, next(others)) if index is None else (self.selection, index)
            images.append(part.images[i])
            labels.append(part.labels[i])
        return replace(self.train, images=images, labels=labels)

    def source_of_whole(self) -> DataSource:
        """Return the source of a training on ``training_whole``."""
        whole = self.training_whole()
        copies = None
        with suppress(OSError):  # the record of a training outlives its files
            copies = count_copies(whole.images, (self.test.images,))
        return replace(
            self.source,
            train_images=len(whole),
            selection_images=None,
            copied_images=copies,
        )
