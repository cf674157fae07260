"""Train the candidate of a plan by its recipe, and save the result.

    train   check, build, train, select an epoch, test once, save

The recipe is the plan's (planner/recipe.py), unless the caller changes it
(planner/training/resolve_recipe.py). The plan saved beside the model holds the one that was used.

The output folder is described in planner/training/trained_model.py, and its checkpoints in
planner/training/checkpoints.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from planner.disk.json_files import write_json
from planner.plan import PLAN_FILE, Plan, versions, write_plan
from planner.training.adaptive_rule import AdaptiveRule, live_bytes_reader
from planner.training.checkpoints import (
    WEIGHTS_FILE,
    TrainState,
    file_identity,
    latest_checkpoint,
    load_checkpoint,
    remove_other_best_epochs,
    save_checkpoint,
)
from planner.training.history import (
    HISTORY_FILE,
    LearningRate,
    TrainProgress,
    TrainResult,
    WeightsFile,
)
from planner.training.images.image_set import ImageData
from planner.training.input_transform import transform_of
from planner.training.interrupt import InterruptFlag
from planner.training.loop import LoopImages, TrainingLoop
from planner.training.plan_check import check_against_model, check_data, load_data_for
from planner.training.resolve_recipe import RecipeChanges, resolve_recipe
from planner.training.run_files import write_run_files
from planner.training.run_options import RunOptions
from planner.training.session import Session
from planner.training.trained_model import MODEL_FOLDER, save_model, weights_file_of
from planner.training.training_device import cap_to_budget, device_kind, planned_power_limit
from planner.training.zero_classifier import zero_new_classifier
from profiler.errors import InputError, UnknownNameError, UsageError
from profiler.models.build import BuiltModel, build_model
from profiler.models.forward_check import check_forward
from profiler.records import DeviceKind
from profiler.running.memory_caps import keep_freed_memory

if TYPE_CHECKING:
    from planner.cost.model import CostModel

NOT_IDENTITY = frozenset({"epochs", "patience_epochs", "source"})
"""Values of a recipe that a resumed training may change."""


def train(
    plan: Plan,
    options: RunOptions,
    *,
    output: Path,
    device: DeviceKind = "cpu",
    changes: RecipeChanges | None = None,
    images: ImageData | None = None,
    minutes: float | None = None,
    resume: bool = False,
    rule: AdaptiveRule | None = None,
    on_progress: Callable[[TrainProgress], None] | None = None,
    on_interrupt: Callable[[], None] | None = None,
) -> TrainResult:
    """Train the candidate of a plan and save the result.

    Args:
        plan: plan to train.
        options: data, seed and weights; ``steps`` is the number of optimizer steps in all, in place
            of the recipe's epochs.
        output: folder of the result.
        device: kind of the device to train on. On CUDA the allocator is capped at the plan's
            budget.
        changes: changes to the plan's recipe; None for none.
        images: data set that is loaded already, in place of ``options.data``.
        minutes: time limit of this run; the training ends after the step that exceeds it.
        resume: whether to continue from the folder's checkpoint. The placement may differ from that
            of the interrupted run.
        rule: the adaptive rule, followed in place of the plan's placement.
        on_progress: called after each step and each evaluation.
        on_interrupt: called in the signal handler when a first Ctrl-C waits for the step to end.

    Raises:
        InputError: the plan does not fit the model or the data, or there is nothing to resume.
        DeviceError: the device is not in this machine.
        MeasurementError: memory ran out under the tightest placement, or the loss is not finite.
        KeyboardInterrupt: Ctrl-C was pressed; a checkpoint of the last step is in the folder.
    """
    if minutes is not None and not minutes > 0:
        raise UsageError(f"minutes must be positive, got {minutes!r}")
    device_kind(device)
    reference = check_against_model(plan)
    if images is None:
        images = load_data_for(plan.candidate.workload, options.data, backbone=reference.backbone)
    check_data(images, plan.candidate.workload)
    checkpoint = _check_output(output, resume=resume)

    # On a CPU the reader counts from its own call on, so it comes before the model.
    live_bytes = None if rule is None else live_bytes_reader(device)
    plan, built = _plan_and_model(plan, options, device)
    recipe = resolve_recipe(plan, built, images, changes or RecipeChanges())
    zero_new_classifier(built.model, recipe, is_new=built.has_new_classifier)
    loop_images = LoopImages.of(images, recipe)
    steps = recipe.epochs * _steps_of_an_epoch(loop_images, plan, images)
    session = Session(
        candidate=plan.candidate,
        built=built,
        device=device,
        recipe=recipe,
        total_steps=options.steps or steps,
        cost=_cost_model(plan, device),
        rule=rule,
        live_bytes=live_bytes,
    )
    weights_file = weights_file_of(options.weights)
    identity = _resume_identity(
        plan, options, images, session, rule=rule, weights_file=weights_file
    )
    state = TrainState() if checkpoint is None else load_checkpoint(checkpoint, session, identity)
    remove_other_best_epochs(output, state.best)  # a killed training may not have come to it
    trained = replace(plan, recipe=recipe, provenance={**plan.provenance, "data": options.data})
    write_plan(trained, output / PLAN_FILE)
    loop = TrainingLoop(
        session,
        loop_images,
        state,
        limit_seconds=None if minutes is None else 60 * minutes,
        seed=options.seed,
        output=output,
        save=partial(save_checkpoint, output, session, state, identity),
        on_progress=on_progress,
        interrupt=InterruptFlag(on_interrupt),
    )
    with planned_power_limit(plan, device):
        loop.run()
    session.close()
    if rule is None and not session.step_downs:  # else the steps ran under several placements
        _record_time(session, plan)
    result = _result(session, images, state, options, weights_file=weights_file, output=output)
    save_model(session.built, output / MODEL_FOLDER)
    write_json(result.to_json(), output / HISTORY_FILE)
    write_run_files(result, output)
    return result


def _plan_and_model(plan: Plan, options: RunOptions, device: DeviceKind) -> tuple[Plan, BuiltModel]:
    """Return the plan that is trained, and its model.

    Random weights have no statistics to keep, so their plan trains with those of its batches.
    """
    torch.manual_seed(options.seed)
    built = _build(plan, options, device)
    if built.weights.kind == "random" and plan.candidate.workload.frozen_batch_norm:
        plan = _with_own_statistics(plan)
        check_forward(plan.candidate.workload)
        del built  # two models might not fit on the device
        torch.manual_seed(options.seed)
        built = _build(plan, options, device)
    return plan, built


def _steps_of_an_epoch(loop_images: LoopImages, plan: Plan, images: ImageData) -> int:
    """Return the optimizer steps of an epoch.

    Raises:
        InputError: there are fewer images than a step takes. ``check_data`` has refused data sets
            with fewer in all, so the recipe selects an epoch, and the others are set apart.
    """
    workload = plan.candidate.workload
    steps = loop_images.steps_per_epoch(workload)
    if steps == 0:
        raise InputError(
            f"one step of the plan takes {workload.effective_batch} images, and "
            f"{len(loop_images.train)} of {images.source.name} are left to train on beside the "
            "selection images; make a plan with a smaller batch"
        )
    return steps


def _record_time(session: Session, plan: Plan) -> None:
    """Keep the durations of the last steps, for corrections of predicted seconds.

    Under a power limit nothing is kept: the corrections are those of the board's own limit.
    """
    from planner.target_device import find_target
    from profiler.devices.table import CPU
    from profiler.timing.measured_runs import record_run, this_machine

    on_cpu = session.device == "cpu"
    if not on_cpu and plan.prediction.power_limit_watts is not None:
        return
    with suppress(UnknownNameError):  # a GPU of another machine that the device table lacks
        device = CPU if on_cpu else find_target(plan.prediction.device.name).spec
        seconds = list(session.step_seconds)
        machine = this_machine(device)
        record_run(machine, session.candidate, seconds, source="train")


def _check_output(output: Path, *, resume: bool) -> Path | None:
    """Return the checkpoint to continue from; None for a new training."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; give a folder for the result")
    checkpoint = latest_checkpoint(output)
    if resume and checkpoint is None:
        raise InputError(f"there is nothing to resume in {output}; leave --resume out")
    if not resume and checkpoint is not None:
        raise InputError(
            f"{output} holds a training already; use --resume to continue it, or another folder"
        )
    return checkpoint if resume else None


def _build(plan: Plan, options: RunOptions, device: DeviceKind) -> BuiltModel:
    """Build the model of a plan on its device, in training mode."""
    built = build_model(
        plan.candidate.workload, weights=options.weights, pretrained=options.pretrained
    )
    if device == "cuda":
        cap_to_budget(plan)
    else:
        keep_freed_memory()
    built.model.to(device).train()
    return built


def _with_own_statistics(plan: Plan) -> Plan:
    """Return a plan whose BatchNorm layers normalise by the batch."""
    workload = plan.candidate.workload.replace(frozen_batch_norm=False)
    candidate = replace(plan.candidate, workload=workload)
    return replace(
        plan,
        candidate=candidate,
        prediction=replace(plan.prediction, candidate=candidate),
        measurement=None,
        rehearsal=None,
    )


def _resume_identity(
    plan: Plan,
    options: RunOptions,
    images: ImageData,
    session: Session,
    *,
    rule: AdaptiveRule | None,
    weights_file: WeightsFile | None,
) -> dict[str, Any]:
    """Return the data that a resumed training must have in common with the interrupted one."""
    return {
        "workload": plan.candidate.workload.to_json(),
        "data": images.source.fingerprint,
        "weights": session.built.weights.kind,
        WEIGHTS_FILE: None if weights_file is None else file_identity(weights_file),
        "seed": options.seed,
        "recipe": {k: v for k, v in session.recipe.to_json().items() if k not in NOT_IDENTITY},
        "adaptive rule": None if rule is None else asdict(rule),
    }


def _cost_model(plan: Plan, kind: DeviceKind) -> CostModel | None:
    """Return the cost model that computes tighter placements, or None.

    On CUDA it is that of the device that was planned for; None if that is a GPU of another machine
    that the table lacks.
    """
    from planner.cost.place_by_policy import default_cost_model
    from planner.target_device import find_target
    from profiler.devices.table import CPU

    planned = plan.prediction.device
    if kind == "cpu":
        return default_cost_model(CPU)
    if planned.kind != "cuda":
        return None
    try:
        return default_cost_model(
            find_target(planned.name).spec,
            power_limit_watts=plan.prediction.power_limit_watts,
        )
    except UnknownNameError:
        return None


def _result(
    session: Session,
    images: ImageData,
    state: TrainState,
    options: RunOptions,
    *,
    weights_file: WeightsFile | None,
    output: Path,
) -> TrainResult:
    """Return the record of a training that has ended."""
    source = images.source if session.recipe.selects_epoch else images.source_of_whole()
    return TrainResult(
        epochs=tuple(state.epochs),
        readings=tuple(state.readings),
        learning_rate=LearningRate.of(session.recipe),
        recipe=session.recipe,
        selected_step=None if state.best is None else state.best.step,
        seed=options.seed,
        weights=session.built.weights,
        weights_file=weights_file,
        data=source.to_json(),
        class_names=images.class_names,
        transform=transform_of(images),
        placement=session.candidate.placement,
        policy=session.candidate.policy,
        step_downs=tuple(session.step_downs),
        versions=versions(),
        output=output,
    )
