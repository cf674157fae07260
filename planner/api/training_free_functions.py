"""Functions for classification without fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from planner.api.arguments import no_progress, parse_size
from planner.api.early_checks import check_input
from planner.api.plan_functions import _training_device
from profiler.errors import UsageError

if TYPE_CHECKING:
    from planner.recommendation.request import Notify
    from planner.training_free.features import FeatureAccuracy
    from planner.training_free.options import TrainingFreeOption
    from planner.training_free.zero_shot import ZeroShotEvaluation


def training_free(
    vram: int | str,
    *,
    device: str = "auto",
    data: str = "cifar100",
    on_progress: Notify | None = None,
) -> tuple[TrainingFreeOption, ...]:
    """Return the known frozen models under a budget, those that fit first.

    Args:
        vram: budget in bytes or as text.
        device: ``auto``, ``cpu``, or a name of the device table.
        data: data set whose published accuracies are shown.
        on_progress: called with (stage, description, fraction of the stage done).

    Raises:
        UsageError: no such device.
        InputError: a library of these models is not installed.
    """
    from planner.target_device import find_target
    from planner.training_free.options import training_free_options
    from profiler.store import Store

    budget = parse_size(vram)
    notify = on_progress or no_progress
    return training_free_options(
        device=find_target(device).spec,
        budget_bytes=budget,
        data=data,
        store=Store.default(),
        on_progress=lambda text, done: notify("replay", text, done),
    )


def features(
    model: str,
    *,
    data: str = "digits",
    image_size: int | None = None,
    weights: str | Path | None = None,
    pretrained: bool = True,
    on_progress: Notify | None = None,
) -> FeatureAccuracy:
    """Test k-NN and a linear probe on the features of a frozen backbone.

    The features are kept on disk: a second call computes none again, an interrupted one goes on.

    Args:
        model: backbone.
        data: name of a data set, or a folder.
        image_size: height and width in pixels; None for the backbone's own.
        weights: file of weights; None for timm's pretrained weights.
        pretrained: try to load timm's pretrained weights.
        on_progress: called with (stage, description, fraction of the stage done).

    Raises:
        UsageError: no such backbone, or an image size that it refuses.
        InputError: the data or the weights cannot be read.
    """
    from planner.training_free.features import evaluate_features

    if image_size is not None and not 8 <= image_size <= 8192:
        raise UsageError(f"image_size must be from 8 to 8192, got {image_size}")
    notify = on_progress or no_progress
    return evaluate_features(
        model,
        data=data,
        image_size=image_size,
        weights=None if weights is None else Path(weights),
        pretrained=pretrained,
        on_progress=lambda text, done: notify("features", text, done),
    )


def zero_shot(
    model: str,
    *,
    weights: str | Path,
    data: str = "digits",
    part: Literal["test", "selection"] = "test",
    class_names: str | Path | None = None,
    prompts: Sequence[str] = (),
    images: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    four_bit: bool = False,
    seed: int = 0,
    on_progress: Notify | None = None,
) -> ZeroShotEvaluation:
    """Classify a data set with a contrastive or prompted model, without any training.

    Args:
        model: name of a model that `training_free` lists.
        weights: local file or folder of its published weights.
        data: name of a data set, or a folder.
        part: part of the data set.
        class_names: text file with one name on each line; None for the data set's own names.
        prompts: prompts with ``{}`` for the class name (contrastive), or one question (prompted);
            empty for the published ensemble or the default question.
        images: most images, drawn at random; None for all.
        device: ``auto`` takes a GPU if there is one.
        four_bit: store the linear layers of a prompted model in 4 bits.
        seed: seed of the drawn images.
        on_progress: called with (stage, description, fraction of the stage done).

    Raises:
        UnknownNameError: no such model.
        UsageError: the model needs a classifier to be fitted, or a prompt has no placeholder.
        InputError: the weights, the class names or the data cannot be read.
    """
    from profiler.models.frozen.catalogue import frozen_model

    found = frozen_model(model)
    if found.kind == "features":
        raise UsageError(f"{model} has no class names to compare with; use `budgetplan features`")
    if images is not None and images < 1:
        raise UsageError(f"images must be positive, got {images}")
    if four_bit and found.kind != "prompted":
        raise UsageError(f"only prompted models are stored in 4 bits; {model} is contrastive")
    if found.kind == "prompted" and len(prompts) > 1:
        raise UsageError(f"{model} is asked one question, got {len(prompts)} prompts")
    from planner.training_free.class_prompts import check_prompts

    if found.kind == "zero_shot":
        check_prompts(prompts)
    check_input(data=data, weights=weights)
    from planner.training.training_device import device_type
    from planner.training_free.zero_shot import ZeroShotRun, evaluate_zero_shot

    chosen = _training_device(device)
    device_type(chosen)
    run = ZeroShotRun(
        data=data,
        weights=Path(weights),
        part=part,
        class_names=None if class_names is None else Path(class_names),
        prompts=tuple(prompts),
        images=images,
        device=chosen,
        is_four_bit=four_bit,
        seed=seed,
    )
    notify = on_progress or no_progress
    return evaluate_zero_shot(
        found, run, on_progress=lambda text, done: notify("zero-shot", text, done)
    )
