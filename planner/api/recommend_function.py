"""The function recommend: from plain arguments to an answer with plan files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from planner.api.arguments import device_name, no_progress, parse_size
from planner.api.early_checks import (
    backbone_names,
    check_input,
    check_names,
    check_plan_folder,
    check_words,
    weights_by_backbone,
)
from planner.recommendation.lever_choice import parse_levers
from profiler.errors import UsageError
from profiler.workload import OPTIMIZERS, PRECISIONS

if TYPE_CHECKING:
    from planner.recommendation.answer import Recommendation
    from planner.recommendation.objective import Objective
    from planner.recommendation.request import Notify
    from profiler.devices.table import DeviceSpec


def recommend(
    model: str | Sequence[str],
    *,
    vram: int | str,
    data: str = "digits",
    device: str | DeviceSpec = "auto",
    methods: Sequence[str] | None = None,
    effective_batch: int = 32,
    precisions: Sequence[str] | None = None,
    optimizers: Sequence[str] = ("adamw", "sgd"),
    checkpoints: Sequence[str] = ("none", "static", "optimal"),
    image_size: int | None = None,
    trials: int | None = None,
    stop_when_flat: bool = False,
    validations: int | None = None,
    workers: bool = False,
    steps: int | None = None,
    weights: str | Path | Sequence[str] | Mapping[str, str | Path] | None = None,
    pretrained: bool = True,
    seed: int = 0,
    study: str | None = None,
    storage: str | None = None,
    out: str | Path = "plans",
    objective: Objective = "balanced",
    levers: str | Sequence[str] = "auto",
    min_accuracy: float | None = None,
    max_hours: float | None = None,
    max_kwh: float | None = None,
    training_free: bool | None = None,
    allow_training_free: bool = False,
    risk: float = 0.01,
    price_per_kwh: float | None = None,
    grams_per_kwh: float | None = None,
    probe_minutes: float | None = None,
    find_lr: bool | None = None,
    power_limit: float | None = None,
    on_progress: Notify | None = None,
) -> Recommendation:
    """Search for configurations that fit a budget, check them, and write a plan file for each.

    Args:
        model: timm name or alias of the backbone; several as a sequence or separated by commas, or
            ``auto`` for a shortlist of backbones that can be trained within the budget. Several
            backbones share one front.
        vram: budget in bytes or as text, the CUDA context included.
        data: name of a data set, or a folder with one subfolder for each class.
        device: ``auto`` (this machine's GPU, else the RTX 2060 SUPER), ``cpu``, or a device of the
            table.
        methods: methods to search; None for all that work on the backbone.
        effective_batch: images in an optimizer step. Micro-batches are its divisors.
        precisions: precisions to search; None for fp32 and the device's half precision.
        optimizers: optimizers to search.
        checkpoints: placement policies to search.
        image_size: height and width of the input in pixels; None for the model's own.
        trials: trials of the sampler, those of a continued study included; None to evaluate every
            point if that is quick, and else 200.
        stop_when_flat: end the search when the Pareto front no longer grows.
        validations: number of candidates that are really run; 0 for none; None for the recommended
            one, and for up to two more if they are expected to end within 60 s.
        workers: leave the runs to workers (``budgetplan worker``) on the same storage, and wait.
        steps: steps of each real run; None for a few.
        weights: file of weights; with several backbones, files by the name of their backbone, or
            texts ``MODEL=FILE``. A backbone without one gets timm's pretrained weights.
        pretrained: try to load timm's pretrained weights.
        seed: seed for weights, data order and the search.
        study: name of the study; an existing one is continued.
        storage: SQLAlchemy URL of the study; None for a file under ``studies/``.
        out: folder of the plan files.
        objective: criterion for candidates of equal expected accuracy: ``balanced``,
            ``time``, ``energy``, or ``accuracy`` for the most accurate one on any evidence.
        levers: ``auto`` for levers that are predicted to gain, ``none``, or names, which each row
            takes if it allows them: ``channels_last``, ``fused``, ``tf32``, ``cudnn_benchmark``,
            ``compile``.
        min_accuracy: least expected accuracy in percent; None for no limit.
        max_hours: longest training in hours on the planned device; None for no limit.
        max_kwh: largest energy of the training in kWh; None for no limit.
        training_free: list published models that need no fine-tuning; None to list those that are
            replayed within seconds or known already.
        allow_training_free: let such a model be the recommended plan file, if it is published to be
            more accurate than the best tuned plan is expected to be.
        risk: largest accepted probability that a plan needs more than the budget.
        price_per_kwh: price of a kWh; the totals then have the price of each training.
        grams_per_kwh: grams of CO2 for a kWh; the totals then have the emissions.
        probe_minutes: minutes of short trainings of the candidates on the images, which decide
            between them; None for none. A continued study keeps those of earlier probes.
        find_lr: try learning rates for the recommended plan on the images; None to do so if it
            costs less than a twentieth of the training.
        power_limit: power limit of the GPU in watts that the plans are made for; None for the
            board's own.
        on_progress: called with (stage, description, fraction of the stage done).

    Raises:
        UnknownNameError: no such model, method, policy or device.
        UsageError: an argument out of its domain, or no method works on the backbone.
        UnmetLimitError: nothing is within the limits of accuracy, duration and energy.
        InfeasibleError: nothing fits. The message names the smallest budget that suffices.
        InputError: the study, the weights or the data cannot be used.
        MeasurementError: every real run failed.
    """
    # checks that need no torch
    budget_bytes = parse_size(vram)
    models = backbone_names(model, budget_bytes=budget_bytes)
    named = [] if methods is None or "all" in methods else methods
    check_names(models=models, methods=named, device=device_name(device))
    _check_choices(precisions or (), optimizers, levers)
    files = weights_by_backbone(models, weights)
    check_input(data=data)
    for file in files.values():
        check_input(weights=file)
    check_plan_folder(out)
    if steps is not None and validations == 0:
        raise UsageError(
            "--steps is the length of a real run, and --no-validate makes none; leave one out"
        )
    if storage is not None:
        from planner.search.study_lock import check_storage

        check_storage(storage)

    # one request for each backbone
    from planner.recommendation.build_request import build_request
    from planner.recommendation.pipeline import recommend as answer
    from planner.recommendation.request import EnergyRates, Limits
    from planner.recommendation.several_backbones import request_for_backbones

    min_share = None if min_accuracy is None else min_accuracy / 100
    notify = on_progress or no_progress
    notify("start", "loading the model's structure", 0.0)
    build = partial(
        build_request,
        budget_bytes=budget_bytes,
        data=data,
        device=device_name(device),
        methods=methods,
        effective_batch=effective_batch,
        precisions=precisions,
        optimizers=optimizers,
        checkpoints=checkpoints,
        image_size=image_size,
        trials=trials,
        stop_when_flat=stop_when_flat,
        validations=validations,
        uses_workers=workers,
        steps=steps,
        pretrained=pretrained,
        seed=seed,
        storage=storage,
        power_limit=power_limit,
        out=Path(out),
        objective=objective,
        levers=levers,
        limits=Limits(min_accuracy=min_share, max_hours=max_hours, max_kwh=max_kwh),
        training_free=training_free,
        allow_training_free=allow_training_free,
        risk=risk,
        energy_rates=EnergyRates(price_per_kwh=price_per_kwh, grams_per_kwh=grams_per_kwh),
        probe_minutes=probe_minutes,
        find_lr=find_lr,
    )
    request = request_for_backbones(
        models,
        lambda name, own_study: build(name, study=own_study, weights=files.get(name)),
        study=study,
        storage=storage,
        out=Path(out),
    )
    with _interrupts_named(request.question_study, storage):
        return answer(request, notify=notify)


def _check_choices(
    precisions: Sequence[str], optimizers: Sequence[str], levers: str | Sequence[str]
) -> None:
    check_words("precision", precisions, PRECISIONS)
    check_words("optimizer", optimizers, OPTIMIZERS)
    parse_levers(levers)


@contextmanager
def _interrupts_named(study: str, storage: str | None) -> Iterator[None]:
    """Add to an interrupt the options that continue the question."""
    from planner.search.storage_url import mask_url

    try:
        yield
    except KeyboardInterrupt as interrupt:
        where = f" --storage {mask_url(storage)}" if storage else ""
        interrupt.add_note(f"the same command with --study {study}{where} goes on")
        raise
