"""The named data sets: what ``--data NAME`` loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from planner.training.images.image_set import ImageData
from planner.training.images.named.animals import load_animals, obtain_animals
from planner.training.images.named.cifar10_c import (
    load_cifar10_c,
    obtain_cifar10_c,
    parse_cifar10_c,
)
from planner.training.images.named.digits import load_digits
from planner.training.images.named.fgvc import FGVC_SETS, load_fgvc, obtain_fgvc, parse_fgvc
from planner.training.images.named.load_request import LoadRequest, SetSize
from planner.training.images.named.torchvision_sets import (
    load_cifar10,
    load_cifar100,
    load_dtd,
    obtain_cifar10,
    obtain_cifar100,
    obtain_dtd,
)
from planner.training.images.named.visual_wake_words import (
    load_visual_wake_words,
    obtain_visual_wake_words,
)
from planner.training.images.named.vtab import VTAB_TASKS, load_vtab, obtain_vtab, parse_vtab
from profiler.errors import InputError

FOLDER_VARIANT = "DIR"
"""Form of a variant that names a folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedData:
    """A named data set.

    Attributes:
        name: name for ``--data``.
        description: origin, number and size of the images.
        num_classes: number of classes.
        train_images: number of training images, those of the selection part not included.
        set_apart_images: number of selection images that are part of the whole training set
            (``ImageData.training_whole``).
        load: loader of the data set.
        obtain: checks that its files are there, and downloads those that can be; called with the
            folder of data sets and the text after the colon. It raises an ``InputError``.
        variant: form of the text after a colon, such as ``DIR``; empty if there is none.
        check_variant: raises a ``UsageError`` if the text after the colon is not of that form; None
            if every text is. A command that loads the data later calls it at once.
        origin: where the files come from: ``installed``, ``downloaded`` or ``copied`` by the user.
        sizes: size of each variant, by the text up to a second colon, where they differ.
    """

    name: str
    description: str
    num_classes: int
    train_images: int
    set_apart_images: int = 0
    load: Callable[[LoadRequest], ImageData]
    obtain: Callable[[Path, str], object] = lambda root, variant: None
    variant: str = ""
    check_variant: Callable[[str], object] | None = None
    origin: str = "installed"
    sizes: Mapping[str, SetSize] = field(default_factory=dict)

    def size_of(self, variant: str) -> SetSize:
        """Return the size of a variant whose form was checked."""
        whole = SetSize(
            num_classes=self.num_classes,
            train_images=self.train_images,
            set_apart_images=self.set_apart_images,
        )
        return self.sizes.get(variant.partition(":")[0], whole)


_SETS = (
    NamedData(
        name="digits",
        description="1,797 handwritten digits of 8x8 pixels (scikit-learn)",
        num_classes=10,
        train_images=1295,
        set_apart_images=143,
        load=load_digits,
    ),
    NamedData(
        name="animals",
        description="10,000 silhouettes of 28x28 pixels (package animal-mnist)",
        num_classes=10,
        train_images=7200,
        set_apart_images=800,
        load=load_animals,
        obtain=obtain_animals,
    ),
    NamedData(
        name="cifar10",
        description="50,000 + 10,000 images of 32x32 pixels (torchvision)",
        num_classes=10,
        train_images=45000,
        set_apart_images=5000,
        load=load_cifar10,
        obtain=obtain_cifar10,
        origin="downloaded",
    ),
    NamedData(
        name="cifar100",
        description="50,000 + 10,000 images of 32x32 pixels (torchvision)",
        num_classes=100,
        train_images=45000,
        set_apart_images=5000,
        load=load_cifar100,
        obtain=obtain_cifar100,
        origin="downloaded",
    ),
    NamedData(
        name="dtd",
        description="Describable Textures, 1,880 images in each part (torchvision)",
        num_classes=47,
        train_images=1880,
        set_apart_images=1880,
        load=load_dtd,
        obtain=obtain_dtd,
        origin="downloaded",
    ),
    NamedData(
        name="cifar10-c",
        description="CIFAR-10, tested on corrupted images (arXiv 1903.12261)",
        num_classes=10,
        train_images=45000,
        set_apart_images=5000,
        load=load_cifar10_c,
        obtain=obtain_cifar10_c,
        variant="CORRUPTION:SEVERITY",
        check_variant=parse_cifar10_c,
        origin="copied",
    ),
    NamedData(
        name="vww",
        description="Visual Wake Words, from COCO's images and boxes (arXiv 1906.05721)",
        num_classes=2,
        train_images=106_458,
        set_apart_images=11_829,
        load=load_visual_wake_words,
        obtain=obtain_visual_wake_words,
        variant=FOLDER_VARIANT,
        origin="copied",
    ),
    NamedData(
        name="vtab",
        description="VTAB-1k, one of 19 tasks (arXiv 1910.04867)",
        num_classes=100,
        train_images=800,
        load=load_vtab,
        obtain=obtain_vtab,
        variant="TASK",
        check_variant=parse_vtab,
        origin="copied",
        sizes=VTAB_TASKS,
    ),
    NamedData(
        name="fgvc",
        description="FGVC, one of five sets: cub, nabirds, flowers, dogs, cars (arXiv 2203.12119)",
        num_classes=200,
        train_images=5394,
        load=load_fgvc,
        obtain=obtain_fgvc,
        variant="SET",
        check_variant=parse_fgvc,
        origin="copied",
        sizes={name: each.size for name, each in FGVC_SETS.items()},
    ),
)

NAMED_DATA = {data.name: data for data in _SETS}
"""Every named data set, by name."""

DATA_NAMES = ", ".join(NAMED_DATA)
"""The names, for help texts and errors."""


def find_named(spec: str) -> tuple[NamedData, str] | None:
    """Return the named data set of a ``--data`` text and its variant; None for a folder."""
    name, _, variant = spec.partition(":")
    found = NAMED_DATA.get(name)
    if found is None or (variant and not found.variant):
        return None
    return found, variant


def check_data_name(spec: str) -> None:
    """Refuse a ``--data`` text that names neither a data set nor a folder; nothing is loaded.

    Raises:
        InputError: there is no such folder.
        UsageError: the name's text after the colon is malformed.
    """
    named = find_named(spec)
    if named is None:
        folder_of(spec)
    elif named[0].check_variant is not None:
        named[0].check_variant(named[1])


def folder_of(spec: str) -> Path:
    """Return the folder that a ``--data`` text names; ``~`` is expanded.

    Raises:
        InputError: there is no such folder.
    """
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"data {spec!r} {state}; give a folder or {DATA_NAMES}")
    return folder
