"""VTAB-1k: 19 tasks of 1,000 training images (arXiv 1910.04867), in the files of V-PEFT Bench.

    DIR/TASK/train800.txt, val200.txt, test.txt    lines of ``images/FILE LABEL``
    DIR/TASK/images/...

These are the files of NOAH, FacT and the benchmark of arXiv 2402.02242. Parts: train800, val200 as
the selection part, test. As in the benchmark, whole images are resized, and none is mirrored: the
label of some tasks is an orientation or a place. The files have numbers in place of class names.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from planner.training.images.crops import whole_image
from planner.training.images.image_files import error_text
from planner.training.images.image_folder import data_from_files
from planner.training.images.image_set import ImageData, ImageSet
from planner.training.images.named.load_request import (
    LoadRequest,
    SetSize,
    check_files,
    safe_image_path,
)
from profiler.errors import InputError, UnknownNameError

_TASK_CLASSES = {
    "cifar": 100, "caltech101": 102, "dtd": 47, "oxford_flowers102": 102, "oxford_iiit_pet": 37,
    "svhn": 10, "sun397": 397, "patch_camelyon": 2, "eurosat": 10, "resisc45": 45,
    "diabetic_retinopathy": 5, "clevr_count": 8, "clevr_dist": 6, "dmlab": 6, "kitti": 4,
    "dsprites_loc": 16, "dsprites_ori": 16, "smallnorb_azi": 18, "smallnorb_ele": 9,
}  # fmt: skip

VTAB_TASKS = {
    task: SetSize(num_classes=count, train_images=800) for task, count in _TASK_CLASSES.items()
}
"""Size of each task, by the name of its folder."""

VTAB_FOLDER = "vtab-1k"
"""Folder in the data folder."""

_VTAB_REMEDY = "copy VTAB-1k there (docs/data.md)"

_LISTS = {"train": "train800.txt", "selection": "val200.txt", "test": "test.txt"}


def load_vtab(request: LoadRequest) -> ImageData:
    """Load a task of VTAB-1k.

    Raises:
        UnknownNameError: there is no such task.
        InputError: a file is missing or damaged, or names a file outside of its folder.
    """
    task, root = _task_folder(request.root, request.variant)
    classes = VTAB_TASKS[task].num_classes
    parts = {part: _read_list(root / name, classes) for part, name in _LISTS.items()}
    data = data_from_files(
        f"vtab:{request.variant}",
        request.input_format,
        class_names=[f"class {label}" for label in range(classes)],
        train=parts["train"],
        selection=parts["selection"],
        test=parts["test"],
        root=root,
        seed=request.seed,
    )

    def whole(part: ImageSet) -> ImageSet:
        return replace(part, crop=whole_image, mirror=False)

    return replace(
        data, train=whole(data.train), selection=whole(data.selection), test=whole(data.test)
    )


def obtain_vtab(root: Path, variant: str) -> None:
    """Check that the lists of a task are there.

    Raises:
        InputError: a list is missing.
    """
    _, folder = _task_folder(root, variant)
    check_files((folder / name for name in _LISTS.values()), remedy=_VTAB_REMEDY)


def _task_folder(root: Path, variant: str) -> tuple[str, Path]:
    """Return the task and its folder."""
    task, given = parse_vtab(variant)
    return task, (Path(given).expanduser() if given else root / VTAB_FOLDER) / task


def parse_vtab(variant: str) -> tuple[str, str]:
    """Return the task and the folder of ``TASK`` or ``TASK:DIR``; the folder may be empty.

    Raises:
        UnknownNameError: there is no such task.
    """
    task, _, folder = variant.partition(":")
    if task not in VTAB_TASKS:
        raise UnknownNameError(
            kind="task of VTAB-1k",
            name=task,
            known=VTAB_TASKS,
            hint=f"write vtab:TASK with one of {', '.join(VTAB_TASKS)}",
        )
    return task, folder


def _read_list(path: Path, classes: int) -> list[tuple[Path, int]]:
    """Return the images of a list with their labels."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise InputError(f"cannot read {path}: {error_text(error)}; {_VTAB_REMEDY}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        name, _, label = line.strip().rpartition(" ")
        if not label.isascii() or not label.isdigit() or int(label) >= classes:
            raise InputError(
                f"{path}, line {number}: expected an image and a label from 0 to {classes - 1}, "
                f"got {line[:80]!r}"
            )
        found.append((path.parent / safe_image_path(name, path), int(label)))
    if not found:
        raise InputError(f"{path} is empty; copy it again")
    return found
