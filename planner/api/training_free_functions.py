"""Functions for classification without fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from planner.api.arguments import device_name, found_device, no_progress, parse_size
from planner.api.early_checks import check_input, check_names, check_plan_folder
from profiler.errors import InputError, UsageError, check_whole_number

if TYPE_CHECKING:
    from planner.plan import CandidateKind
    from planner.recommendation.request import Notify
    from planner.training.use_trained import TrainedEvaluation
    from planner.training_free.features import FeatureAccuracy
    from planner.training_free.options import TrainingFreeOption
    from planner.training_free.plan_file import FrozenPlan
    from planner.training_free.probe_folder import FittedProbe
    from planner.training_free.zero_shot import ZeroShotEvaluation
    from profiler.devices.table import DeviceSpec


def training_free(
    vram: int | str,
    *,
    device: str | DeviceSpec = "auto",
    data: str = "cifar100",
    out: str | Path | None = None,
    risk: float = 0.01,
    on_progress: Notify | None = None,
) -> tuple[TrainingFreeOption, ...]:
    """Return the known frozen models under a budget, those that fit first.

    Args:
        vram: budget in bytes or as text.
        device: ``auto`` (this machine's GPU, else the RTX 2060 SUPER), ``cpu``, or a device of the
            table.
        data: data set or folder: its published accuracies, classes and images.
        out: folder of plan files, one for each model that fits; None to write none.
        risk: largest accepted probability that a model needs more than the budget.
        on_progress: called with (stage, description, fraction of the stage done).

    Raises:
        UnknownNameError: no such device.
        UsageError: the budget or the risk is out of its domain.
        InputError: a library of these models is not installed, or there is no such data.
    """
    check_names(device=device_name(device))
    check_input(data=data)
    from planner.cost.fit_probability import check_risk
    from planner.plan import SMALLEST_BUDGET
    from planner.recommendation.data_facts import FACTS_IMAGE_SIZE, data_facts
    from planner.target_device import find_target
    from planner.training_free.options import training_free_options
    from planner.training_free.plan_file import with_plan_files
    from profiler.store import Store

    budget, target = parse_size(vram), find_target(device_name(device))
    if budget < SMALLEST_BUDGET:
        raise UsageError(f"vram must be at least 1 MiB, got {budget} bytes")
    check_risk(risk)
    if out is not None:
        check_plan_folder(out)
    notify = on_progress or no_progress
    facts = data_facts(data, image_size=FACTS_IMAGE_SIZE, is_used=False)
    options = training_free_options(
        device=target.spec,
        budget_bytes=budget,
        data=data,
        num_classes=facts.num_classes,
        train_images=facts.train_images,
        store=Store.default(),
        risk=risk,
        on_progress=lambda text, done: notify("replay", text, done),
    )
    if out is None:
        return options
    return with_plan_files(
        options, folder=Path(out), device=target.label, budget_bytes=budget, data=data, risk=risk
    )


def features(
    model: str,
    *,
    data: str = "digits",
    image_size: int | None = None,
    weights: str | Path | None = None,
    pretrained: bool = True,
    device: Literal["auto", "cpu", "cuda"] = "auto",
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
        device: device of the features; ``auto`` takes a GPU if there is one. A CPU computes in
            fp32, a GPU in fp16.
        on_progress: called with (stage, description, fraction of the stage done).

    Raises:
        UnknownNameError: no such backbone.
        UsageError: an image size that it refuses.
        InputError: the data or the weights cannot be read.
    """
    check_names(models=[model])
    check_input(data=data, weights=weights)
    from planner.training_free.features import evaluate_features, feature_forward

    if image_size is not None and not 8 <= image_size <= 8192:
        raise UsageError(f"image_size must be from 8 to 8192, got {image_size}")
    notify = on_progress or no_progress
    return evaluate_features(
        model,
        data=data,
        image_size=image_size,
        weights=None if weights is None else Path(weights),
        pretrained=pretrained,
        forward=feature_forward(found_device(device)),
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
    batch: int = 32,
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
        batch: images at once; a prompted model reads one after the other.
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
    for name, value in (("images", images), ("batch", batch)):
        if value is not None:
            check_whole_number(name, value, least=1)
    if four_bit and found.kind != "prompted":
        raise UsageError(f"only prompted models are stored in 4 bits; {model} is contrastive")
    if found.kind == "prompted" and len(prompts) > 1:
        raise UsageError(f"{model} is asked one question, got {len(prompts)} prompts")
    from planner.training_free.class_prompts import check_prompts

    if found.kind == "zero_shot":
        check_prompts(prompts)
    check_input(data=data, weights=weights)
    from planner.training_free.zero_shot import ZeroShotRun, evaluate_zero_shot

    chosen = found_device(device)
    run = ZeroShotRun(
        data=data,
        weights=Path(weights),
        part=part,
        class_names=None if class_names is None else Path(class_names),
        prompts=tuple(prompts),
        images=images,
        batch=batch,
        device=chosen,
        is_four_bit=four_bit,
        seed=seed,
    )
    notify = on_progress or no_progress
    return evaluate_zero_shot(
        found, run, on_progress=lambda text, done: notify("zero-shot", text, done)
    )


def plan_kind(path: str | Path) -> CandidateKind:
    """Return whether a plan file is ``tuned``, ``features`` or ``zero_shot``.

    Raises:
        InputError: the file cannot be read as a plan.
    """
    from planner.training_free.plan_file import kind_of_file

    return kind_of_file(Path(path))


def load_frozen_plan(path: str | Path) -> FrozenPlan:
    """Return the plan of kind ``features`` or ``zero_shot`` in a file.

    Raises:
        InputError: the file is missing, damaged or no such plan. The message names the field.
    """
    from planner.training_free.plan_file import read_frozen_plan

    return read_frozen_plan(Path(path))


def train_probe(
    plan: FrozenPlan | str | Path,
    *,
    out: str | Path | None = None,
    data: str | None = None,
    weights: str | Path | None = None,
    pretrained: bool = True,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    on_progress: Notify | None = None,
) -> FittedProbe:
    """Fit the linear probe of a plan of kind ``features`` and save it in a folder.

    Args:
        plan: plan, or the path of a plan file.
        out: folder of the result; None for ``trained/`` and the name of the plan's file.
        data: data set or folder; None for the plan's.
        weights: file of the backbone's weights; None for timm's pretrained weights.
        pretrained: try to load timm's pretrained weights.
        device: device of the features; ``auto`` takes a GPU if there is one. A CPU computes in
            fp32, a GPU in the plan's type.
        on_progress: called with (stage, description, fraction of the stage done).

    Raises:
        InputError: the plan fits no probe, the data or the weights cannot be read, or the folder
            holds files of others.
    """
    content = load_frozen_plan(plan) if isinstance(plan, str | Path) else plan
    if content.candidate.kind != "features":
        raise InputError(
            f"{content.candidate.model} is not fitted to images; `budgetplan evaluate PLAN` runs it"
        )
    check_input(data=data or content.data, weights=weights)
    from planner.training_free.probe_folder import train_probe as fit

    notify = on_progress or no_progress
    named = f"features-{content.candidate.model}"
    return fit(
        content,
        _probe_folder_of(plan if isinstance(plan, str | Path) else named)
        if out is None
        else Path(out),
        data=data,
        weights=None if weights is None else Path(weights),
        pretrained=pretrained,
        device=found_device(device),
        on_progress=lambda text, done: notify("features", text, done),
    )


def evaluate_frozen(
    plan: str | Path,
    *,
    data: str | None = None,
    part: Literal["test", "selection"] = "test",
    weights: str | Path | None = None,
    class_names: str | Path | None = None,
    images: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    on_progress: Notify | None = None,
) -> ZeroShotEvaluation | TrainedEvaluation:
    """Evaluate a plan without fine-tuning, or a folder of `train_probe`.

    Args:
        plan: path of a plan file, or the folder of a fitted probe.
        data: data set or folder; None for the plan's.
        part: part of the data set.
        weights: local file or folder of the weights; a ``zero_shot`` plan needs it.
        class_names: text file with one name on each line; None for the data set's own names.
        images: most images, drawn at random; None for all.
        device: ``auto`` takes a GPU if there is one.
        on_progress: called with (stage, description, fraction of the stage done).

    Raises:
        UsageError: an argument that this kind of plan does not take.
        InputError: the plan, the weights or the data cannot be read, or the probe is not fitted.
    """
    path = Path(plan)
    if path.is_file() and plan_kind(path) == "zero_shot":
        content = load_frozen_plan(path)
        if weights is None:
            raise UsageError(
                f"--weights FILE or FOLDER must name the weights of {content.model.checkpoint}"
            )
        return zero_shot(
            content.candidate.model,
            weights=weights,
            data=data or content.data,
            part=part,
            class_names=class_names,
            prompts=content.candidate.prompts,
            images=images,
            device=device,
            four_bit=content.candidate.four_bit,
            batch=content.candidate.batch,
            on_progress=on_progress,
        )
    if class_names is not None or images is not None:
        raise UsageError("--class-names and --images are for plans of kind 'zero_shot'")
    folder = fitted_probe_folder(path)
    check_input(data=data, weights=weights)
    from planner.training_free.probe_folder import evaluate_probe

    notify = on_progress or no_progress
    return evaluate_probe(
        folder,
        data=data,
        part=part,
        weights=None if weights is None else Path(weights),
        device=found_device(device),
        on_progress=lambda text, done: notify("features", text, done),
    )


def is_without_tuning(path: str | Path) -> bool:
    """Return whether a path is a plan without fine-tuning, or the folder of a fitted probe.

    Raises:
        InputError: a file that is no plan.
    """
    place = Path(path)
    if place.is_file():
        return plan_kind(place) != "tuned"
    return (place / "probe.json").is_file()


def fitted_probe_folder(plan: str | Path) -> Path:
    """Return the folder of a fitted probe that is named directly or by the file of its plan.

    Raises:
        InputError: the plan fits no probe, or it was not fitted.
    """
    from planner.training_free.probe_folder import is_probe_folder

    path = Path(plan)
    if path.is_file() and plan_kind(path) == "zero_shot":
        raise InputError(f"{path} is of kind 'zero_shot', and no probe is fitted to it")
    folder = _probe_folder_of(path) if path.is_file() else path
    if not is_probe_folder(folder):
        raise InputError(f"{path} has no fitted probe in {folder}; run `budgetplan train {path}`")
    return folder


def _probe_folder_of(plan: str | Path) -> Path:
    """Return ``trained/`` and the name of the plan's file, which may come from a stranger."""
    from planner.disk.names import safe_file_name

    return Path("trained") / safe_file_name(Path(plan).stem, otherwise="probe")
