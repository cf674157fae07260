"""Zero-shot classification of a data set by a contrastive or a prompted model.

A contrastive model compares each image with the mean features of the prompts of each class. A
prompted model is evaluated in two ways, which are both reported: by the class name of the highest
likelihood, and by the class that its free answer names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from planner.training.images.load import load_data
from planner.training.use_trained import ClassAccuracy
from planner.training_free.class_prompts import (
    matching_class,
    prompts_for,
    read_class_names,
    spoken_names,
)
from profiler.errors import InputError
from profiler.models.frozen.catalogue import FrozenModel
from profiler.models.frozen.load import load_prompted, load_two_towers, normalisation
from profiler.models.frozen.prompted import PROMPT_FORMS, PromptedModel
from profiler.models.frozen.run import NAME_TOKENS, PROMPT_BATCH
from profiler.records import DeviceKind

if TYPE_CHECKING:
    from torch import Tensor

    from planner.training.history import Part
    from planner.training.images.image_set import ImageSet
    from profiler.models.frozen.load import TwoTowers

ShowProgress = Callable[[str, float], None]

WRITTEN_AT_MOST = 4 * NAME_TOKENS
"""Most tokens of a free answer; a longer answer names a class at its beginning or not at all."""

ZERO_SHOT_SCHEMA = "budgetplan.zero_shot/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroShotRun:
    """How a model is evaluated.

    Attributes:
        data: name of a data set, or a folder.
        weights: local file or folder of the weights.
        part: part of the data set.
        class_names: file of class names, one on each line; None for the data set's own.
        prompts: prompts of a contrastive model, or the question to a prompted one; empty for the
            default.
        images: most images, drawn at random; None for all.
        batch: images at once.
        device: ``cpu`` or ``cuda``.
        is_four_bit: whether a prompted model's linear layers are stored in 4 bits.
        seed: seed of the drawn images.
    """

    data: str
    weights: Path
    part: Part = "test"
    class_names: Path | None = None
    prompts: tuple[str, ...] = ()
    images: int | None = None
    batch: int = 32
    device: DeviceKind = "cpu"
    is_four_bit: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeAnswers:
    """Accuracy of the free answers of a prompted model.

    Attributes:
        accuracy: fraction of all images whose answer names the right class.
        answered: fraction of all images whose answer names any class.
    """

    accuracy: float
    answered: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroShotEvaluation:
    """Accuracy of a model without any training.

    Attributes:
        model: name of the model.
        weights: file or folder of its weights.
        data: data set or folder.
        part: part that was evaluated.
        images: number of images.
        protocol: ``contrastive``, or ``likelihood`` of the class names.
        accuracy: fraction classified right by that protocol.
        free_answers: the same by free answers; None for a contrastive model.
        prompts: prompts, or the question.
        classes: accuracy by class.
        seconds: duration, with decoding of the images and without loading of the model.
        device: ``cpu`` or ``cuda``.
        dtype: type of the weights.
        is_four_bit: whether the linear layers are stored in 4 bits.
    """

    model: str
    weights: str
    data: str
    part: Part
    images: int
    protocol: str
    accuracy: float
    free_answers: FreeAnswers | None
    prompts: tuple[str, ...]
    classes: tuple[ClassAccuracy, ...]
    seconds: float
    device: DeviceKind
    dtype: str
    is_four_bit: bool

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``zero-shot --json`` prints."""
        return {"schema": ZERO_SHOT_SCHEMA, **asdict(self)}


def evaluate_zero_shot(
    model: FrozenModel, run: ZeroShotRun, *, on_progress: ShowProgress = lambda text, done: None
) -> ZeroShotEvaluation:
    """Evaluate a contrastive or prompted model on a data set.

    Raises:
        InputError: the weights, the class names or the data cannot be read.
    """
    names, images = _named_images(model, run)
    dtype = torch.float16 if run.device == "cuda" else torch.float32
    on_progress(f"loading {model.name}", 0.0)
    began = time.perf_counter()
    free: list[int | None] | None = None
    if model.kind == "zero_shot":
        towers = load_two_towers(model, run.weights)
        towers.built.to(run.device, dtype)
        prompts = run.prompts or prompts_for(run.data)
        began = time.perf_counter()
        classes = class_features(towers, names, prompts)
        chosen = _nearest_classes(towers, classes, images, run.batch, on_progress)
    else:
        prompted = _open_prompted(model, run, dtype)
        prompts = run.prompts or (PROMPT_FORMS[model.model].question,)
        began = time.perf_counter()
        chosen, free = _ask(prompted, prompts[0], names, images, on_progress)
    labels = list(images.labels)
    right = [a == b for a, b in zip(chosen, labels, strict=True)]
    return ZeroShotEvaluation(
        model=model.name,
        weights=str(run.weights),
        data=run.data,
        part=run.part,
        images=len(labels),
        protocol="contrastive" if free is None else "likelihood",
        accuracy=sum(right) / len(labels),
        free_answers=None if free is None else _free_answers(free, labels),
        prompts=tuple(prompts),
        classes=tuple(_by_class(names, labels, right)),
        seconds=time.perf_counter() - began,
        device=run.device,
        dtype=str(dtype).removeprefix("torch."),
        is_four_bit=run.is_four_bit,
    )


def class_features(towers: TwoTowers, names: Sequence[str], prompts: Sequence[str]) -> Tensor:
    """Return [classes, D] unit features: the mean over the prompts of each class."""
    texts = [prompt.replace("{}", name) for name in names for prompt in prompts]
    device = next(towers.built.parameters()).device
    parts = []
    with torch.no_grad():
        for first in range(0, len(texts), PROMPT_BATCH):
            tokens = towers.tokenize(texts[first : first + PROMPT_BATCH]).to(device)
            parts.append(_encode(towers.built.encode_text, tokens))
        mean = torch.cat(parts).reshape(len(names), len(prompts), -1).mean(dim=1)
        found: Tensor = mean / mean.norm(dim=1, keepdim=True)
    return found


def _encode(encoder: Any, given: Tensor) -> Tensor:
    found: Tensor = encoder(given, normalize=True)
    return found


def _nearest_classes(
    towers: TwoTowers, classes: Tensor, images: ImageSet, batch: int, on_progress: ShowProgress
) -> list[int]:
    """Return the class of each image whose features are nearest."""
    chosen: list[int] = []
    for pixels in _batches(images, batch):
        with torch.no_grad():
            seen = _encode(towers.built.encode_image, pixels.to(classes.device, classes.dtype))
            chosen += (seen @ classes.T).argmax(dim=1).tolist()
        on_progress("comparing images with class names", len(chosen) / len(images))
    return chosen


def _ask(
    prompted: PromptedModel,
    question: str,
    names: Sequence[str],
    images: ImageSet,
    on_progress: ShowProgress,
) -> tuple[list[int], list[int | None]]:
    """Return the class of each image by likelihood, and the class of its free answer."""
    answers = [prompted.name_tokens(name) for name in names]
    weight = next(prompted.built.parameters())
    likely: list[int] = []
    free: list[int | None] = []
    for pixels in _batches(images, 1):
        read = prompted.read(pixels.to(weight.device, prompted.dtype), question)
        likely.append(int(prompted.likelihoods(read, answers).argmax()))
        written = prompted.text(prompted.write(read, most_tokens=WRITTEN_AT_MOST))
        free.append(matching_class(written, names))
        on_progress("asking for the class of each image", len(likely) / len(images))
    return likely, free


def _open_prompted(model: FrozenModel, run: ZeroShotRun, dtype: torch.dtype) -> PromptedModel:
    built, tokenizer = load_prompted(model, run.weights, dtype=dtype)
    if run.is_four_bit:
        from profiler.models.frozen.four_bit import quantise_frozen

        quantise_frozen(built, compute_dtype=dtype)
    return PromptedModel(model, built.to(run.device), tokenizer, dtype=dtype)


def _named_images(model: FrozenModel, run: ZeroShotRun) -> tuple[tuple[str, ...], ImageSet]:
    """Return the class names as texts, and the images in the format of the model."""
    mean, std = normalisation(model)
    data = load_data(run.data, image_size=model.image_size, mean=mean, std=std)
    names = data.class_names
    if run.class_names is not None:
        names = read_class_names(run.class_names)
        if len(names) != data.num_classes:
            raise InputError(
                f"{run.class_names} has {len(names)} names, {run.data} has {data.num_classes} "
                "classes; give one name on each line, in the order of the classes"
            )
    part = data.test if run.part == "test" else data.selection
    if run.images is not None:
        part = part.sample(run.images, seed=run.seed)
    input_format = replace(part.input_format, resampling="bicubic")  # as the models were trained
    return spoken_names(names), replace(part, input_format=input_format)


def _batches(images: ImageSet, size: int) -> Iterator[Tensor]:
    for first in range(0, len(images), size):
        last = min(len(images), first + size)
        yield torch.stack([images[i][0] for i in range(first, last)])


def _free_answers(free: Sequence[int | None], labels: Sequence[int]) -> FreeAnswers:
    return FreeAnswers(
        accuracy=sum(a == b for a, b in zip(free, labels, strict=True)) / len(labels),
        answered=sum(answer is not None for answer in free) / len(labels),
    )


def _by_class(
    names: Sequence[str], labels: Sequence[int], right: Sequence[bool]
) -> Iterator[ClassAccuracy]:
    for label, name in enumerate(names):
        own = [is_right for is_right, other in zip(right, labels, strict=True) if other == label]
        yield ClassAccuracy(name=name, images=len(own), right=sum(own))
