"""Functions for a plan: load, validate, train, and load the trained model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from planner.api.arguments import (
    device_name,
    device_of_run,
    found_device,
    no_progress,
    optional_size,
)
from planner.api.early_checks import check_input, check_names, check_workers
from profiler.errors import UnknownNameError, UsageError, warn_caller

if TYPE_CHECKING:
    from torch import nn

    from planner.plan import Plan
    from planner.recommendation.request import Notify
    from planner.training.adaptive_rule import AdaptiveRule
    from planner.training.history import TrainProgress, TrainResult
    from planner.training.loggers import LoggerName
    from planner.training.resolve_recipe import RecipeName
    from profiler.devices.table import DeviceSpec

FP16_TRAINING_ON_CPU = (
    "this plan trains in fp16, made for a GPU; on this CPU a step can take minutes. To train here, "
    "make the plan with `recommend --device cpu`, or --precisions fp32."
)
"""Warning before such a training."""


def load_plan(path: str | Path) -> Plan:
    """Return the plan in a file.

    Raises:
        InputError: the file is missing, damaged or not a plan. The message names the field.
    """
    from planner.plan import read_plan

    return read_plan(Path(path))


def validate(
    plan: Plan | str | Path,
    *,
    data: str | None = None,
    device: str | DeviceSpec = "auto",
    steps: int | None = None,
    out: str | Path | None = None,
    weights: str | Path | None = None,
    pretrained: bool = True,
    seed: int = 0,
    workers: bool = False,
    study: str | None = None,
    storage: str | None = None,
    on_progress: Notify | None = None,
) -> Plan:
    """Run a plan for a few steps under its budget and return it with the measurement.

    Args:
        plan: plan, or the path of a plan file.
        data: data set or folder; None for the plan's.
        device: ``auto`` (the plan's GPU if it is in this machine, else the CPU), ``cpu``, or the
            name of this machine's GPU. Workers run it on the plan's device alone.
        steps: optimizer steps; None for a few.
        out: file for the plan with its measurement; None to write none. Only a plan for the same
            candidate is replaced.
        weights: file of weights; None for timm's pretrained weights.
        pretrained: try to load timm's pretrained weights.
        seed: seed for new weights and data order.
        workers: leave the run to a worker (``budgetplan worker``) on that study, and wait.
        study: name of the study that the worker takes its runs from; needed with ``workers``.
        storage: URL of its storage; needed with ``workers``.
        on_progress: called with (stage, description, fraction of the stage done).

    Raises:
        InputError: the plan does not fit the model, or the data cannot be used.
        DeviceError: the named GPU is not in this machine.
        OutOfMemoryError: the run exceeded the budget.
        MeasurementError: the run failed in another way.
    """
    content, name = plan_of(plan), device_name(device)
    check_names(device=name)
    check_input(data=data, weights=weights)
    check_workers(workers, study=study, storage=storage)
    if workers and name != "auto":
        raise UsageError("workers run a plan on its own device; leave out --device")
    from planner.disk.drafts import remove_draft_files
    from planner.disk.free_space import check_folder
    from planner.plan import check_replaceable, write_plan
    from planner.recommendation.real_runs import validate_plan
    from planner.training.run_options import RunOptions

    runs_on = _planned_device(content) if name == "auto" else device_of_run(name)
    run = RunOptions(
        data=data or _data_of(content),
        steps=steps,
        seed=seed,
        weights=None if weights is None else Path(weights),
        pretrained=pretrained,
    )
    if out is not None:
        check_folder(Path(out).parent)
        remove_draft_files(Path(out).parent)
        check_replaceable(Path(out), content)
    queue = (storage, study) if workers and storage and study else None
    checked = validate_plan(
        content, run=run, runs_on=runs_on, queue=queue, notify=on_progress or no_progress
    )
    if out is not None:
        write_plan(checked, Path(out))
    return checked


def train(
    plan: Plan | str | Path,
    *,
    out: str | Path | None = None,
    data: str | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    resume: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    recipe: RecipeName = "plan",
    learning_rate: float | None = None,
    balance: bool | None = None,
    checkpoint: str | None = None,
    threshold: float = 0.5,
    vram: int | str | None = None,
    weights: str | Path | None = None,
    pretrained: bool = True,
    seed: int = 0,
    log: Sequence[LoggerName] = (),
    on_progress: Callable[[TrainProgress], None] | None = None,
    on_interrupt: Callable[[], None] | None = None,
) -> TrainResult:
    """Train the workload of a plan under its placement and save the result in a folder.

    Args:
        plan: plan, or the path of a plan file.
        out: folder of the result; None for ``trained/`` and the name of the plan's file.
        data: name of a data set, or a folder; None for the plan's data.
        epochs: epochs in all, those before a resume included; None for the recipe's.
        steps: optimizer steps in all, in place of ``epochs``.
        minutes: duration after which the run ends with the current step.
        resume: continue from the last checkpoint in ``out``.
        device: ``auto`` takes a GPU if there is one.
        recipe: the plan's recipe, the ``default`` one for this data, or the ``paper``'s.
        learning_rate: learning rate in place of the recipe's.
        balance: draw each class equally often; None for the recipe's choice.
        checkpoint: placement policy in place of the plan's placement; None for the plan's.
            ``adaptive`` decides while training.
        threshold: share of the budget at which ``adaptive`` starts to recompute.
        vram: budget of ``checkpoint`` in bytes or as text; None for the plan's.
        weights: file of weights; None for timm's pretrained weights.
        pretrained: try to load timm's pretrained weights.
        seed: seed for new weights, dropout and data order.
        log: loggers that get each reading: ``tensorboard``, ``mlflow``, ``wandb``, ``trackio``.
        on_progress: called after each step and at each reading.
        on_interrupt: called in the signal's handler when Ctrl-C has to wait for the step.

    Raises:
        UsageError: an argument out of its domain.
        InputError: the plan does not fit the model or the data, or there is nothing to resume.
        DeviceError: no such device.
        MeasurementError: memory ran out under the tightest placement, or the loss is not finite.
    """
    content = plan_of(plan)
    check_input(data=data, weights=weights)
    from planner.training.loggers import check_loggers, opened_loggers
    from planner.training.output_folder import training_folder
    from planner.training.resolve_recipe import RecipeChanges
    from planner.training.run_options import RunOptions
    from planner.training.training_run import train as run
    from profiler.running.denormals import flushed_denormals

    check_loggers(log)
    output = default_folder(plan) if out is None else Path(out)
    placed, rule = _placed_by(content, checkpoint, vram=vram, threshold=threshold)
    chosen = found_device(device)
    if chosen == "cpu" and content.candidate.workload.precision == "fp16":
        warn_caller(FP16_TRAINING_ON_CPU)
    options = RunOptions(
        data=data or _data_of(content),
        steps=steps,
        seed=seed,
        weights=None if weights is None else Path(weights),
        pretrained=pretrained,
    )
    with (
        flushed_denormals() if chosen == "cpu" else nullcontext(),
        _interrupts_noted(output),
        training_folder(output, plan=placed, is_resumed=resume),
        opened_loggers(log, placed, output) as record,
    ):

        def report(progress: TrainProgress) -> None:
            record(progress)
            if on_progress is not None:
                on_progress(progress)

        return run(
            placed,
            options,
            device=chosen,
            changes=RecipeChanges(
                recipe=recipe, learning_rate=learning_rate, epochs=epochs, balance=balance
            ),
            minutes=minutes,
            output=output,
            resume=resume,
            rule=rule,
            on_progress=report,
            on_interrupt=on_interrupt,
        )


@contextmanager
def _interrupts_noted(output: Path) -> Iterator[None]:
    """Add to an interrupt of a training whether it can be resumed."""
    from planner.training.checkpoints import latest_checkpoint

    try:
        yield
    except KeyboardInterrupt as interrupt:
        is_early = latest_checkpoint(output) is None
        interrupt.add_note(
            "it was too early for a checkpoint: nothing is kept"
            if is_early
            else "the same command with --resume goes on"
        )
        raise


def apply_plan(model: nn.Module, plan: Plan | str | Path) -> nn.Module:
    """Apply a plan's method and placement to a timm model, for a training loop of your own.

    The model is changed in place and keeps its weights, its device and its mode. Some methods wrap
    it, so the returned model must be used from then on. ``requires_grad`` is set on exactly the
    parameters that the method trains.

    Args:
        model: the plan's backbone as timm builds it, with the plan's number of classes and image
            size.
        plan: plan, or the path of a plan file.

    Raises:
        InputError: the model is not the plan's backbone, a plan was applied to it before, or the
            plan does not fit this installation. Nothing is changed then.
    """
    content = plan_of(plan)
    from planner.training.apply import apply_plan as apply

    return apply(model, content)


def load_trained(
    folder: str | Path,
    *,
    weights: str | Path | None = None,
    pretrained: bool | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Return the model that `train` left in a folder, in evaluation mode on the CPU.

    It maps images [batch, 3, size, size] to logits [batch, classes]. The folder records the seed
    and the weights of its training, so the optional arguments are rarely needed.

    Args:
        folder: folder of the result.
        weights: present path of the backbone's weights file; None for the recorded path.
        pretrained: whether timm's pretrained weights are loaded; None if the record decides.
        seed: seed of random weights; None if the record decides.

    Raises:
        InputError: the folder holds no training, or one of another model, or the weights that the
            training began with cannot be loaded any more.
    """
    from planner.training.trained_model import load_trained as load

    place = None if weights is None else Path(weights)
    return load(Path(folder), weights=place, pretrained=pretrained, seed=seed)


def plan_of(plan: Plan | str | Path) -> Plan:
    """Return a plan, read from its file if need be."""
    return load_plan(plan) if isinstance(plan, str | Path) else plan


def planned_spec(plan: Plan, device: str | DeviceSpec) -> DeviceSpec:
    """Return the device that a plan is predicted for; ``auto`` means that of the plan.

    Raises:
        UnknownNameError: the device table lacks it, and this machine has no such GPU.
    """
    from planner.target_device import find_target

    name = device_name(device)
    return find_target(plan.prediction.device.name if name == "auto" else name).spec


def _planned_device(plan: Plan) -> str:
    """Return the plan's GPU if it is in this machine, else ``cpu``."""
    from planner.target_device import find_target

    try:
        return find_target(plan.prediction.device.name).runs_on
    except UnknownNameError:  # a GPU that the table lacks, of another machine
        return "cpu"


def default_folder(plan: Plan | str | Path) -> Path:
    """Return ``trained/`` and the name of the plan's file, which may come from a stranger."""
    from planner.disk.names import safe_file_name
    from planner.plan import plan_file_name

    of_candidate = Path(plan_file_name(plan_of(plan).candidate)).stem
    name = Path(plan).stem if isinstance(plan, str | Path) else of_candidate
    return Path("trained") / safe_file_name(name, otherwise=of_candidate)


def _data_of(plan: Plan) -> str:
    """Return the data set or folder that a plan was made for."""
    from planner.plan import planned_data

    return planned_data(plan.provenance)


def _placed_by(
    plan: Plan, policy: str | None, *, vram: int | str | None, threshold: float
) -> tuple[Plan, AdaptiveRule | None]:
    """Return the plan under a policy's placement, and the rule that decides at run time if any."""
    from planner.cost.fit_probability import planned_risk
    from planner.cost.place_by_policy import default_cost_model, place_by_policy
    from planner.placement.policies import parse_policy
    from planner.plan import SMALLEST_BUDGET, with_placement
    from planner.training.adaptive_rule import AdaptiveRule
    from profiler.prediction.report import predict as replay
    from profiler.units import DeviceBytes

    if policy is None:
        if vram is not None:
            raise UsageError("--vram is the budget of --checkpoint; give a policy too")
        return plan, None
    budget = optional_size(vram) or plan.budget_bytes
    if budget < SMALLEST_BUDGET:
        raise UsageError(f"--vram must be at least 1 MiB to train, got {budget} bytes")
    choice = parse_policy(policy, threshold=threshold)
    if choice.name == "adaptive":
        return plan, AdaptiveRule(budget_bytes=budget, threshold=threshold)
    device, watts = planned_spec(plan, "auto"), plan.prediction.power_limit_watts
    candidate = place_by_policy(
        plan.candidate.workload,
        choice,
        default_cost_model(device, power_limit_watts=watts),
        budget_bytes=DeviceBytes(budget),
        risk=planned_risk(plan),
    )
    report = replay(candidate, device=device, power_limit_watts=watts)
    return with_placement(plan, report, budget_bytes=budget), None
