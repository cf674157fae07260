"""Labelled images in memory or on disk, with the transform that a model expects."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from profiler.errors import InputError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor
    from torch.utils.data import DataLoader

    Pixels = np.ndarray[Any, np.dtype[np.uint8]]

NAMES = ("digits", "cifar100", "dtd")

HELD_OUT_SHARE = 0.2

Box = tuple[float, float, float, float]

Frame = Callable[[int, int, random.Random], Box]


# ---- what is loaded ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """Where images came from, for a plan's provenance.

    Attributes:
        name: ``digits``, ``cifar100``, ``dtd`` or the folder as given.
        train_images: images to train on.
        held_out_images: images held out.
        fingerprint: SHA-256 of the pixels and labels, or of a folder's file names and sizes.
        skipped_files: files in class folders that are no images.
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
        text = (
            f"{self.name}: {self.train_images} images to train on, {self.held_out_images} held out"
        )
        return text + (f", {self.skipped_files} other files left out" if self.skipped_files else "")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageSet:
    """A map-style data set of (float tensor [3, S, S], label).

    Attributes:
        images: files, or pixels of shape [H, W] or [H, W, 3].
        labels: class index of each image.
        frame: which part of an image is used.
        mirror: whether half of the draws are mirrored.
        image_size: S.
        mean: of each channel, subtracted; in units of white = 1.
        std: of each channel, divided by.
    """

    images: Sequence[Path | Pixels]
    labels: Sequence[int]
    frame: Frame
    mirror: bool
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, int]:
        """Return one image; ``(index, draw)`` says which of its augmentations."""
        index, draw = item if isinstance(item, tuple) else (item, item)
        rng = random.Random(draw)
        picture = self._transform(_picture(self.images[index]), rng)
        return self._tensor(picture), int(self.labels[index])

    def sample(self, count: int, *, seed: int) -> Self:
        """Return a random part of at most ``count`` images, the same for the same seed."""
        chosen = random.Random(seed).sample(range(len(self)), min(count, len(self)))
        return self.select(sorted(chosen))

    def select(self, indices: Iterable[int]) -> Self:
        """Return the part with these indices."""
        kept = list(indices)
        return replace(
            self,
            images=[self.images[i] for i in kept],
            labels=[self.labels[i] for i in kept],
        )

    def _transform(self, picture: Image, rng: random.Random) -> Image:
        from PIL.Image import Resampling, Transpose

        box = self.frame(picture.width, picture.height, rng)
        side = (self.image_size, self.image_size)
        picture = picture.resize(side, Resampling.BILINEAR, box=box)
        if self.mirror and rng.random() < 0.5:
            picture = picture.transpose(Transpose.FLIP_LEFT_RIGHT)
        return picture

    def _tensor(self, picture: Image) -> Tensor:
        import numpy as np
        import torch

        # channels first while they are bytes: arithmetic along an axis of length 3 is slow
        planes = torch.from_numpy(np.array(picture).transpose(2, 0, 1).copy()).float()
        white = torch.tensor(self.std).mul_(255)[:, None, None]
        black = torch.tensor(self.mean).mul_(255)[:, None, None]
        return planes.sub_(black).div_(white)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageData:
    """A data set in two parts."""

    train: ImageSet
    held_out: ImageSet
    class_names: tuple[str, ...]
    source: DataSource

    @property
    def num_classes(self) -> int:
        """Width of the classifier that fits."""
        return len(self.class_names)


def loader(
    dataset: ImageSet,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    drop_last: bool,
    num_workers: int = 0,
    epoch: int = 0,
    skip: int = 0,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return batches of (images [B, 3, S, S], labels [B]) that depend on the arguments alone.

    Each pass over the loader is the next epoch, with another order and other augmentations;
    ``epoch`` says which one the first pass is and ``skip`` how many of its images are left out, so
    that a resumed training sees what it would have.

    Raises:
        UsageError: a batch size of no sense, or larger than the data set with ``drop_last``.
    """
    import torch
    from torch.utils.data import DataLoader

    if batch_size < 1:
        raise UsageError(f"batch_size must be a positive integer, got {batch_size!r}")
    if drop_last and len(dataset) < batch_size:
        raise UsageError(
            f"a batch of {batch_size} is more than the {len(dataset)} images there are; "
            "use a smaller batch or more images"
        )
    # the ImageSet is map-style by protocol; DataLoader's own generator spares the global one
    batches: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=_Draws(len(dataset), shuffle=shuffle, seed=seed, epoch=epoch, skip=skip),
        drop_last=drop_last,
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(seed),
    )
    return batches


class _Draws:
    """Yields (index, number of the augmentation) for each image of an epoch."""

    def __init__(self, length: int, *, shuffle: bool, seed: int, epoch: int, skip: int) -> None:
        self._length, self._shuffle, self._seed = length, shuffle, seed
        self._epoch, self._skip = epoch, skip

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = random.Random(f"{self._seed}/{self._epoch}")
        order = list(range(self._length))
        if self._shuffle:
            rng.shuffle(order)
        draws = ((index, rng.getrandbits(32)) for index in order)
        skipped = self._skip
        self._epoch, self._skip = self._epoch + 1, 0
        return islice(draws, skipped, None)


# ---- transforms --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageShape:
    """What every image of a data set becomes."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise UsageError(f"image_size must be a positive integer, got {self.image_size!r}")
        if not all(s > 0 for s in self.std):
            raise UsageError(f"std must be positive, got {self.std!r}")

    def of(
        self, images: Sequence[Path | Pixels], labels: Sequence[int], *, frame: Frame, mirror: bool
    ) -> ImageSet:
        """Return a data set of this shape."""
        return ImageSet(
            images=images,
            labels=labels,
            frame=frame,
            mirror=mirror,
            image_size=self.image_size,
            mean=self.mean,
            std=self.std,
        )


def whole(width: int, height: int, rng: random.Random) -> Box:
    """The whole image."""
    return 0, 0, width, height


def _picture(source: Path | Pixels) -> Image:
    from PIL import Image

    if not isinstance(source, Path):
        return Image.fromarray(source).convert("RGB")
    with readable_image(source), Image.open(source) as opened:
        # a palette with transparency converts without a warning only by way of RGBA
        return (opened.convert("RGBA") if "transparency" in opened.info else opened).convert("RGB")


@contextlib.contextmanager
def readable_image(path: Path) -> Iterator[None]:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata
            yield
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(
            f"cannot read image {path}: {one_line(error)}; repair or remove it"
        ) from error


# ---- shared ------------------------------------------------------------------------------------


def stratified_split(
    labels: Sequence[int], seed: int, names: Sequence[str] | None = None
) -> tuple[list[int], list[int]]:
    """Split indices 80/20 within each class; the same labels and seed give the same split."""
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        groups.setdefault(label, []).append(index)
    train: list[int] = []
    held_out: list[int] = []
    for label, group in sorted(groups.items()):
        if len(group) < 2:
            name = names[label] if names is not None else str(label)
            raise InputError(f"class {name!r} has one image; it needs two, one of them held out")
        random.Random(f"{seed}/{label}").shuffle(group)
        count = max(1, round(HELD_OUT_SHARE * len(group)))
        held_out += group[:count]
        train += group[count:]
    return sorted(train), sorted(held_out)


def triple(name: str, values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) != 3:
        raise UsageError(f"{name} must have one number for each of 3 channels, got {values!r}")
    red, green, blue = values
    return float(red), float(green), float(blue)


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
