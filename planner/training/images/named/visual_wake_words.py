"""Visual Wake Words: is there a person in the image? Labels are derived from COCO's boxes.

Chowdhery et al., arXiv 1906.05721: an image has a person if a person's box takes more than
0.5 % of its area. The annotations are those of COCO:

    DIR/annotations/instances_train2017.json    and    DIR/train2017/*.jpg
    DIR/annotations/instances_val2017.json      and    DIR/val2017/*.jpg

Another ending in place of 2017 works too, if it is the same in all names. The training file is
``train``, the other one is ``test``.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from planner.training.images.image_files import error_text
from planner.training.images.image_folder import data_from_files
from planner.training.images.image_set import ImageData
from planner.training.images.named.load_request import LoadRequest, safe_image_path
from profiler.errors import InputError

PERSON_AREA_SHARE = 0.005
"""Share of the image's area that a person's box must exceed."""

WAKE_WORD_CLASSES = ("no person", "person")

_ANNOTATIONS = "instances_"


class _Picture(msgspec.Struct):
    id: int
    width: int
    height: int
    file_name: str


class _Box(msgspec.Struct):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]


class _Category(msgspec.Struct):
    id: int
    name: str


class _Coco(msgspec.Struct):
    """The fields of a COCO file that the labels need; others are not read."""

    images: list[_Picture]
    annotations: list[_Box]
    categories: list[_Category]


def load_visual_wake_words(request: LoadRequest) -> ImageData:
    """Load Visual Wake Words from COCO's images and annotations.

    Raises:
        InputError: a file is missing or damaged, or names a file outside of its folder.
    """
    variant = request.variant
    root = _vww_folder(request.root, variant)
    train, test = (_labelled_files(_annotations(root, part)) for part in ("train", "val"))
    return data_from_files(
        f"vww:{variant}" if variant else "vww",
        request.input_format,
        class_names=WAKE_WORD_CLASSES,
        train=train,
        test=test,
        root=root,
        seed=request.seed,
    )


def obtain_visual_wake_words(root: Path, variant: str) -> None:
    """Check that COCO's annotations are there.

    Raises:
        InputError: they are not.
    """
    for part in ("train", "val"):
        _annotations(_vww_folder(root, variant), part)


def _vww_folder(root: Path, variant: str) -> Path:
    return Path(variant).expanduser() if variant else root / "vww"


def _annotations(root: Path, part: str) -> Path:
    """Return the one file of a part's annotations."""
    found = sorted((root / "annotations").glob(f"{_ANNOTATIONS}{part}*.json"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputError(
            f"expected one file {_ANNOTATIONS}{part}*.json in {root / 'annotations'}, got {names}; "
            "copy COCO's annotations and images there (docs/data.md)"
        )
    return found[0]


def _labelled_files(annotations: Path) -> list[tuple[Path, int]]:
    """Return the images of a file of annotations, with label 1 where there is a person."""
    coco = _read_coco(annotations)
    folder = annotations.parent.parent / annotations.stem.removeprefix(_ANNOTATIONS)
    people = {category.id for category in coco.categories if category.name == "person"}
    if not people:
        raise InputError(f"{annotations} has no category 'person'; use COCO's instances")
    largest: dict[int, float] = {}
    for box in coco.annotations:
        if box.category_id in people:
            _, _, width, height = box.bbox
            largest[box.image_id] = max(width * height, largest.get(box.image_id, 0.0))
    labelled = []
    for picture in coco.images:
        smallest = PERSON_AREA_SHARE * picture.width * picture.height
        has_person = largest.get(picture.id, 0.0) > smallest
        labelled.append((folder / safe_image_path(picture.file_name, annotations), int(has_person)))
    return labelled


def _read_coco(path: Path) -> _Coco:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Coco)
    except (OSError, msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise InputError(
            f"cannot read {path} as COCO annotations: {error_text(error)}; copy it again"
        ) from error
