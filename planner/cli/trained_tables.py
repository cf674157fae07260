"""Tables of a trained model's use: accuracy by class, classes of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from planner.cli.table_layout import Column, Page, show_table, tables
from planner.scoring.counted_accuracy import counted_interval, counted_text, supported_digits
from profiler.units import format_seconds

if TYPE_CHECKING:
    from planner.training.use_trained import ClassAccuracy, ClassifiedImage, TrainedEvaluation
    from planner.training_free.zero_shot import ZeroShotEvaluation

MOST_CLASSES = 20
"""Classes that are shown; of more, those with the lowest accuracy."""


def show_evaluation(found: TrainedEvaluation, console: Console) -> None:
    """Print the accuracy of a trained model, in all and by class."""
    page = Page(console)
    low, high = counted_interval(found.accuracy, images=found.images)
    digits = supported_digits(100 * (high - low) / 2)
    page.heading(f"{found.trained} on the {found.part} images of {found.data}")
    page.sentences(
        [
            f"{counted_text(found.accuracy, images=found.images)} of {found.images} images right, "
            f"in {format_seconds(found.seconds)}",
            f"{100 * found.mean_class_accuracy:.{digits}f} % as the mean over classes",
            f"the training began with {found.weights} weights",
        ]
    )
    _show_by_class(page, found.classes)


def show_zero_shot(found: ZeroShotEvaluation, console: Console) -> None:
    """Print the accuracy of a model that was not trained, in all and by class."""
    page = Page(console)
    page.heading(f"{found.model} on the {found.part} images of {found.data}")
    how = "by class names" if found.free_answers is None else "by the likelihood of class names"
    sentences = [
        f"{counted_text(found.accuracy, images=found.images)} of {found.images} images right "
        f"{how}, in "
        f"{format_seconds(found.seconds)}"
    ]
    free = found.free_answers
    if free is not None:
        sentences.append(
            f"{counted_text(free.accuracy, images=found.images)} by free answers; "
            f"{100 * free.answered:.0f} % of the answers name a class"
        )
    kind = "4-bit weights" if found.is_four_bit else f"{found.dtype} weights"
    count = len(found.prompts)
    sentences.append(
        f"{kind} from {found.weights}; "
        + (f"{count} prompts for each class" if count > 1 else f"prompt: {found.prompts[0]}")
    )
    page.sentences(sentences)
    _show_by_class(page, found.classes)


def _show_by_class(page: Page, classes: Sequence[ClassAccuracy]) -> None:
    seen = [each for each in classes if each.images]
    shown = sorted(seen, key=lambda each: each.right / each.images)[:MOST_CLASSES]
    columns = [
        Column(header="class", cells=[each.name for each in shown], justify="left"),
        Column(header="images", cells=[str(each.images) for each in shown]),
        Column(header="right", cells=[f"{100 * each.right / each.images:.1f} %" for each in shown]),
    ]
    lowest = f", the {MOST_CLASSES} lowest" if len(seen) > MOST_CLASSES else ""
    page.heading(f"By class{lowest}")
    page.block(*tables(columns, keys=1, width=page.width))


def show_classes(found: Sequence[ClassifiedImage], console: Console) -> None:
    """Print the classes of image files, a line for each file."""
    if not found:
        return
    columns = [Column(header="image", cells=[each.file for each in found], justify="left")]
    for rank in range(max(len(each.classes) for each in found)):
        columns += [
            Column(
                header="class" if rank == 0 else f"class {rank + 1}",
                cells=[each.classes[rank][0] for each in found],
                justify="left",
            ),
            Column(
                header="probability" if rank == 0 else "",
                cells=[f"{100 * each.classes[rank][1]:.1f} %" for each in found],
            ),
        ]
    show_table(columns, console)
