"""Images to train on and images held out, ready for a model.

    digits      scikit-learn's 1,797 handwritten digits of 8x8 pixels; needs no network
    cifar100    torchvision, 50,000 + 10,000 images of 32x32 pixels, downloaded once
    dtd         torchvision, Describable Textures: train + val (3,760) against test (1,880)
    DIR         DIR/train and DIR/val (or valid, test), or class folders directly in DIR

Without a held-out part of its own a data set is split 80/20 within each class by a seeded shuffle.
The transforms are those of the code of arXiv:2607.02158: CIFAR is resized and mirrored; DTD and
folders get a random crop of 80-100 % of the area and are mirrored, their held-out images lose the
border that Resize(255) and CenterCrop(224) would cut; digits are resized only, since a mirrored
digit is another shape. Every transform is thus a box to cut out, a bilinear resize and perhaps a
mirror, done by Pillow (enlarging digits in batches in torch was tried: 8 ms instead of 13 ms for 32
images, not worth a second path).

Every random choice for a training image follows from a number the loader draws for it, so batches
depend on the loader's seed and epoch alone, never on a global generator. ``dataset[i]`` with a
plain index uses the index itself as that number.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import random
import socket
import sys
import tarfile
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
IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
HELD_OUT_FOLDERS = ("val", "valid", "test")
HELD_OUT_SHARE = 0.2
# the paper's code for DTD: Resize(255), then CenterCrop(224)
CENTRE_SHARE = 224 / 255
# the paper's code for DTD: RandomResizedCrop(scale=(0.8, 1)); ratio is torchvision's default
CROP_AREA = (0.8, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
DOWNLOAD_TIMEOUT_SECONDS = 20.0

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


def load_data(
    spec: str,
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    data_root: Path | None = None,
    seed: int = 0,
) -> ImageData:
    """Load a named data set or a folder of class folders.

    Args:
        spec: ``digits``, ``cifar100``, ``dtd`` or a folder.
        image_size: height and width the model wants.
        mean: per channel, from the model's pretrained configuration.
        std: per channel, likewise.
        data_root: where downloads go; ``$BUDGETPLAN_DATA`` or ``~/.cache/budgetplan/data``.
        seed: of the split, where the data set has none of its own.

    Raises:
        InputError: the data cannot be read or downloaded.
        UsageError: a size or a normalisation that makes no sense.
    """
    shape = _Shape(image_size=image_size, mean=_triple("mean", mean), std=_triple("std", std))
    root = data_root if data_root is not None else default_data_root()
    match spec:
        case "digits":
            return _digits(shape, seed)
        case "cifar100":
            return _cifar100(shape, root)
        case "dtd":
            return _dtd(shape, root)
    return _folder(spec, shape, seed)


def default_data_root() -> Path:
    """Return where downloaded data sets are kept."""
    named = os.environ.get("BUDGETPLAN_DATA")
    return Path(named) if named else Path.home() / ".cache" / "budgetplan" / "data"


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
class _Shape:
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


def centre(width: int, height: int, rng: random.Random) -> Box:
    """The centre square, as Resize(255) and CenterCrop(224) leave it."""
    side = min(width, height) * CENTRE_SHARE
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_crop(width: int, height: int, rng: random.Random) -> Box:
    """A box of 80-100 % of the area with a ratio of 3:4 to 4:3 (RandomResizedCrop).

    A ratio is drawn ten times at most; then the largest centred box of an allowed ratio is used.
    """
    low, high = CROP_RATIO
    for _ in range(10):
        area = width * height * rng.uniform(*CROP_AREA)
        ratio = low * (high / low) ** rng.random()  # uniform in its logarithm
        w, h = (area * ratio) ** 0.5, (area / ratio) ** 0.5
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, height * high), min(height, width / low)
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def _picture(source: Path | Pixels) -> Image:
    from PIL import Image

    if not isinstance(source, Path):
        return Image.fromarray(source).convert("RGB")
    with _readable(source), Image.open(source) as opened:
        # a palette with transparency converts without a warning only by way of RGBA
        return (opened.convert("RGBA") if "transparency" in opened.info else opened).convert("RGB")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata
            yield
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(
            f"cannot read image {path}: {_one_line(error)}; repair or remove it"
        ) from error


# ---- named data sets ---------------------------------------------------------------------------


def _digits(shape: _Shape, seed: int) -> ImageData:
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # sixteen levels of ink: 16 is white
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = [int(label) for label in bunch.target]
    train, held_out = _stratified(labels, seed)
    images = shape.of(list(pixels), labels, frame=whole, mirror=False)
    return ImageData(
        train=images.select(train),
        held_out=images.select(held_out),
        class_names=tuple(str(name) for name in bunch.target_names),
        source=DataSource(
            name="digits",
            train_images=len(train),
            held_out_images=len(held_out),
            fingerprint=_hash_pixels((pixels, labels)),
        ),
    )


def _cifar100(shape: _Shape, root: Path) -> ImageData:
    from torchvision.datasets import CIFAR100

    with _downloading("cifar100", root):
        train, test = (CIFAR100(str(root), train=part, download=True) for part in (True, False))
    return ImageData(
        train=shape.of(list(train.data), train.targets, frame=whole, mirror=True),
        held_out=shape.of(list(test.data), test.targets, frame=whole, mirror=False),
        class_names=tuple(train.classes),
        source=DataSource(
            name="cifar100",
            train_images=len(train),
            held_out_images=len(test),
            fingerprint=_hash_pixels((train.data, train.targets), (test.data, test.targets)),
        ),
    )


def _dtd(shape: _Shape, root: Path) -> ImageData:
    from torchvision.datasets import DTD

    with _downloading("dtd", root):
        # the loader is the identity, so that an item is a file and its label
        parts = [
            DTD(str(root), split=split, download=True, loader=Path)
            for split in ("train", "val", "test")
        ]
    train, val, test = ([part[i] for i in range(len(part))] for part in parts)
    return _from_files(
        "dtd",
        shape,
        class_names=parts[0].classes,
        train=[*train, *val],
        held_out=test,
        root=root,
    )


@contextlib.contextmanager
def _downloading(name: str, root: Path) -> Iterator[None]:
    """Keep torchvision's messages off stdout, bound its waits, and turn failure into one line."""
    waited = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's remarks on CIFAR's old pickles
            yield
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        raise InputError(
            f"{name} is not in {root} and cannot be downloaded ({_one_line(error)}); "
            "use --data digits, a folder of class folders, or copy the data set there"
        ) from error
    finally:
        socket.setdefaulttimeout(waited)


# ---- folders -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """The images of a folder by class name, and how many other files lay there."""

    files: dict[str, list[Path]]
    skipped: int

    def items(self, classes: Sequence[str]) -> list[tuple[Path, int]]:
        return [(f, i) for i, name in enumerate(classes) for f in self.files.get(name, [])]


def _folder(spec: str, shape: _Shape, seed: int) -> ImageData:
    root = Path(spec).expanduser()
    if not root.is_dir():
        kind = "is a file" if root.exists() else "does not exist"
        raise InputError(
            f"data {spec!r} {kind}; give a folder of class folders or one of {', '.join(NAMES)}"
        )
    with _listable(root):
        train_root, held_out_root = _parts(root)
        train = _scan(train_root)
        held_out = _scan(held_out_root) if held_out_root is not None else None
    classes = _class_names(train, train_root)
    items = train.items(classes)
    if held_out is None:
        first, second = _stratified([label for _, label in items], seed, classes)
        parts = [items[i] for i in first], [items[i] for i in second]
    else:
        strange = sorted(set(held_out.files) - set(classes))
        if strange:
            raise InputError(f"{held_out_root} has class {strange[0]!r}, {train_root} has not")
        parts = items, held_out.items(classes)
        if not parts[1]:
            raise InputError(f"no images in {held_out_root}; remove it to split {train_root} 80/20")
    return _from_files(
        spec,
        shape,
        class_names=classes,
        train=parts[0],
        held_out=parts[1],
        root=root,
        skipped=train.skipped + (held_out.skipped if held_out is not None else 0),
    )


def _parts(root: Path) -> tuple[Path, Path | None]:
    """Return where training and held-out images lie.

    A folder ``train`` without folders in it is a class: trains are pictures too.
    """
    train = root / "train"
    if not (train.is_dir() and any(entry.is_dir() for entry in train.iterdir())):
        return root, None
    held_out = [root / name for name in HELD_OUT_FOLDERS if (root / name).is_dir()]
    return train, held_out[0] if held_out else None


def _scan(folder: Path) -> _Listing:
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    files: dict[str, list[Path]] = {}
    skipped = sum(not entry.is_dir() for entry in entries)
    for entry in filter(Path.is_dir, entries):
        found = [path for path in sorted(entry.rglob("*")) if path.is_file()]
        files[entry.name] = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
        skipped += len(found) - len(files[entry.name])
    return _Listing(files=files, skipped=skipped)


def _class_names(listing: _Listing, folder: Path) -> list[str]:
    classes = list(listing.files)
    if not classes:
        raise InputError(f"no class folders in {folder}; put the images of each class in a folder")
    if len(classes) == 1:
        raise InputError(f"only one class ({classes[0]!r}) in {folder}; a classifier needs two")
    for name, files in listing.files.items():
        if not files:
            raise InputError(f"class folder {folder / name} has no images; fill or remove it")
    return classes


def _from_files(
    name: str,
    shape: _Shape,
    *,
    class_names: Sequence[str],
    train: Sequence[tuple[Path, int]],
    held_out: Sequence[tuple[Path, int]],
    root: Path,
    skipped: int = 0,
) -> ImageData:
    everything = [*train, *held_out]
    for path, _ in everything:
        _check_header(path)
    return ImageData(
        train=shape.of(*_columns(train), frame=random_crop, mirror=True),
        held_out=shape.of(*_columns(held_out), frame=centre, mirror=False),
        class_names=tuple(class_names),
        source=DataSource(
            name=name,
            train_images=len(train),
            held_out_images=len(held_out),
            fingerprint=_hash_listing((path for path, _ in everything), root),
            skipped_files=skipped,
        ),
    )


def _columns(items: Sequence[tuple[Path, int]]) -> tuple[list[Path], list[int]]:
    return [path for path, _ in items], [label for _, label in items]


def _check_header(path: Path) -> None:
    """Open without decoding; what is broken further in is found when the image is used."""
    from PIL import Image

    with _readable(path), Image.open(path):
        pass


@contextlib.contextmanager
def _listable(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot list {root}: {_one_line(error)}") from error


# ---- shared ------------------------------------------------------------------------------------


def _stratified(
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


def _hash_pixels(*parts: tuple[Pixels, Sequence[int]]) -> str:
    digest = hashlib.sha256()
    for pixels, labels in parts:
        digest.update(repr(pixels.shape).encode())
        digest.update(pixels.tobytes())
        digest.update(repr(list(labels)).encode())
    return digest.hexdigest()


def _hash_listing(paths: Iterable[Path], root: Path) -> str:
    lines = (f"{path.relative_to(root).as_posix()}\t{path.stat().st_size}\n" for path in paths)
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _triple(name: str, values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) != 3:
        raise UsageError(f"{name} must have one number for each of 3 channels, got {values!r}")
    red, green, blue = values
    return float(red), float(green), float(blue)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
