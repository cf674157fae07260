"""Builds the request for a recommendation and checks its arguments before any computation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from planner.cost.fit_probability import DEFAULT_RISK, check_risk
from planner.recommendation.data_facts import DataFacts, data_facts
from planner.recommendation.image_size import default_image_size, image_size_notes
from planner.recommendation.lever_choice import parse_levers
from planner.recommendation.objective import Objective, check_objective
from planner.recommendation.request import (
    EnergyRates,
    LeftOut,
    Limits,
    Request,
    check_weights,
    has_real_runs,
    question_folder,
    study_name,
)
from planner.search.pareto import HypervolumeStagnation
from planner.search.space import (
    DEFAULT_CHECKPOINTS,
    DEFAULT_OPTIMIZERS,
    EFFECTIVE_BATCH,
    SearchedMethod,
    Space,
    divisors,
    limit_ranks,
    parse_methods,
    precisions_for,
    refusal_of_one_image,
    searched_method,
    working_methods,
)
from planner.target_device import TargetDevice, find_target
from planner.training.run_options import LEAST_STEPS, RunOptions
from planner.training_free.options import check_libraries
from profiler.errors import UsageError, check_whole_number
from profiler.models import backbones
from profiler.models.forward_check import check_forward
from profiler.timing.rates import check_power_limit
from profiler.units import DeviceBytes
from profiler.workload import Workload

VALIDATIONS, VALIDATION_SECONDS = 3, 60.0
"""Most candidates that are really run unless a number is given, and the time within which those
after the first must end by the duration of the ones before."""


def build_request(
    model: str,
    *,
    budget_bytes: int,
    data: str = "digits",
    device: str = "auto",
    methods: Sequence[str] | None = None,
    effective_batch: int = EFFECTIVE_BATCH,
    precisions: Sequence[str] | None = None,
    optimizers: Sequence[str] = DEFAULT_OPTIMIZERS,
    checkpoints: Sequence[str] = DEFAULT_CHECKPOINTS,
    image_size: int | None = None,
    trials: int | None = None,
    stop_when_flat: bool = False,
    validations: int | None = None,
    uses_workers: bool = False,
    steps: int | None = None,
    weights: Path | None = None,
    pretrained: bool = True,
    seed: int = 0,
    study: str | None = None,
    storage: str | None = None,
    out: Path = Path("plans"),
    objective: Objective = "balanced",
    levers: str | Sequence[str] = "auto",
    limits: Limits | None = None,
    energy_rates: EnergyRates | None = None,
    training_free: bool | None = None,
    allow_training_free: bool = False,
    risk: float = DEFAULT_RISK,
    probe_minutes: float | None = None,
    find_lr: bool | None = None,
    power_limit: float | None = None,
) -> Request:
    """Return the request that the arguments of `planner.recommend` describe.

    Raises:
        UnknownNameError: no such model, method or device.
        UsageError: an option out of its domain, or no method works on the backbone.
        InputError: the weights or the data cannot be read.
    """
    # first the options that need neither backbone nor images
    _check_whole_numbers(
        effective_batch=effective_batch,
        validations=validations,
        steps=steps,
        trials=trials,
        image_size=image_size,
    )
    check_objective(objective)
    check_risk(risk)
    chosen_levers = parse_levers(levers)
    _check_training_free(wanted=training_free, allowed=allow_training_free)
    _check_probe_minutes(probe_minutes)
    target = _checked_target(device, power_limit)
    inputs = _read_inputs(
        backbones.resolve(model),
        data=data,
        image_size=image_size,
        weights=weights,
        pretrained=pretrained,
        is_used=has_real_runs(validations=validations, probe=probe_minutes, find_lr=find_lr),
    )
    space, left_out = _searched_space(
        inputs.base,
        methods=methods,
        effective_batch=effective_batch,
        precisions=precisions or precisions_for(target.spec),
        optimizers=optimizers,
        checkpoints=checkpoints,
    )
    return Request(
        space=space,
        budget_bytes=DeviceBytes(budget_bytes),
        device=target.label,
        runs_on=target.runs_on,
        run=RunOptions(
            data=data,
            steps=steps,
            seed=seed,
            weights=weights,
            pretrained=pretrained,
        ),
        study=study or study_name(model, target.label, budget_bytes),
        trials=trials,
        storage=storage,
        validations=VALIDATIONS if validations is None else validations,
        validation_seconds=VALIDATION_SECONDS if validations is None and not uses_workers else None,
        uses_workers=uses_workers,
        has_weights=inputs.has_weights,
        stop=HypervolumeStagnation() if stop_when_flat else None,
        out=out / question_folder(model, data, budget_bytes),
        objective=objective,
        levers=chosen_levers,
        limits=limits or Limits(),
        energy_rates=energy_rates or EnergyRates(),
        training_free=training_free,
        allow_training_free=allow_training_free,
        risk=risk,
        find_lr=find_lr,
        power_limit_watts=power_limit,
        probe_seconds=None if probe_minutes is None else 60 * probe_minutes,
        left_out=left_out,
        source=inputs.facts.source,
        set_apart_images=inputs.facts.set_apart_images,
        images_per_class=inputs.facts.images_per_class,
        weight_notes=inputs.weight_notes,
        image_notes=inputs.image_notes,
    )


def _check_whole_numbers(
    *,
    effective_batch: int,
    validations: int | None,
    steps: int | None,
    trials: int | None,
    image_size: int | None,
) -> None:
    """Refuse numbers that the search or the real runs would refuse after minutes.

    Raises:
        UsageError: one is no whole number, or too low.
    """
    lowest = {
        "effective_batch": (effective_batch, 1),
        "validations": (validations, 0),
        "steps": (steps, LEAST_STEPS),
        "trials": (trials, 1),
        "image_size": (image_size, 1),
    }
    for name, (value, least) in lowest.items():
        if value is not None:
            check_whole_number(name, value, least=least)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    """Backbone, images and weights of a question, read and checked.

    Attributes:
        base: workload with the backbone, the size of the images and the number of classes.
        facts: properties of the images.
        has_weights: whether there are pretrained weights to train from.
        weight_notes: notes on the weights.
        image_notes: notes on the size of the images.
    """

    base: Workload
    facts: DataFacts
    has_weights: bool
    weight_notes: tuple[str, ...]
    image_notes: tuple[str, ...]


def _read_inputs(
    name: str,
    *,
    data: str,
    image_size: int | None,
    weights: Path | None,
    pretrained: bool,
    is_used: bool,
) -> _Inputs:
    """Read backbone, images and weights.

    Args:
        name: full name of the backbone.
        data: name of a data set, or a folder.
        image_size: height and width of the images in pixels; None for the backbone's default.
        weights: file of weights, or None.
        pretrained: whether other weights are loaded if there is no file.
        is_used: whether candidates will be run on the images here.
    """
    size = image_size or default_image_size(name)
    facts = data_facts(data, image_size=size, is_used=is_used)
    base = Workload(
        model=name,
        image_size=size,
        num_classes=facts.num_classes,
        # better by 2 to 10 points than the statistics of micro-batches of 4 (studies/recipes)
        frozen_batch_norm=(pretrained or weights is not None) and _has_batch_norm(name),
    )
    check_forward(base.replace(micro_batch=2))
    weight_notes = () if weights is None else check_weights(base, weights)
    size_notes = image_size_notes(
        name, size, is_default=image_size is None, built=_with_shapes(name)
    )
    return _Inputs(
        base=base,
        facts=facts,
        # without a real run no weights are loaded here, so they need not be reachable
        has_weights=weights is not None
        or (pretrained and (not is_used or backbones.can_load_pretrained(name))),
        weight_notes=weight_notes,
        image_notes=tuple(size_notes),
    )


def _checked_target(device: str, power_limit: float | None) -> TargetDevice:
    target = find_target(device)
    if power_limit is not None:
        check_power_limit(target.spec, power_limit)
    return target


def _with_shapes(model: str) -> nn.Module:
    """Return the backbone at its native image size, without memory for its parameters."""
    native = backbones.native_image_size(model)
    return backbones.shared_shapes(model, num_classes=1, image_size=native)


def _has_batch_norm(model: str) -> bool:
    return backbones.has_batch_norm(_with_shapes(model))


def _check_training_free(*, wanted: bool | None, allowed: bool) -> None:
    """Check the options of models without fine-tuning.

    Raises:
        UsageError: one may win, and none is to be listed.
        InputError: all are wanted, and a library of theirs is not installed.
    """
    if allowed and wanted is False:
        raise UsageError(
            "--allow-training-free needs the models that --no-training-free leaves out"
        )
    if wanted or allowed:
        check_libraries()


def _check_probe_minutes(minutes: float | None) -> None:
    if minutes is not None and not 0 < minutes < math.inf:
        raise UsageError(f"probe_minutes must be positive, got {minutes!r}")


def _searched_space(
    base: Workload,
    *,
    methods: Sequence[str] | None,
    effective_batch: int,
    precisions: Sequence[str],
    optimizers: Sequence[str],
    checkpoints: Sequence[str],
) -> tuple[Space, tuple[LeftOut, ...]]:
    """Return the points to search, and the methods and micro-batches that are none of them."""
    methods_of, refused = _searched_methods(base, methods)
    micro_batches, too_small = _searched_micro_batches(base, methods_of, effective_batch)
    space = Space(
        base=base,
        methods=methods_of,
        micro_batches=micro_batches,
        effective_batch=effective_batch,
        precisions=tuple(precisions),
        optimizers=tuple(optimizers),
        checkpoints=tuple(checkpoints),
    )
    return space, (*refused, *too_small)


def _searched_methods(
    base: Workload, methods: Sequence[str] | None
) -> tuple[tuple[SearchedMethod, ...], tuple[LeftOut, ...]]:
    """Return the methods that work on the backbone, and the others with their reason."""
    wanted = parse_methods("all" if methods is None else ",".join(methods))
    working, refused = working_methods(base, wanted)
    if not working:
        first, reason = next(iter(refused.items()))
        raise UsageError(f"no method is left for {base.model}: {first}: {reason}")
    chosen = tuple(limit_ranks(searched_method(each), base) for each in working)
    return chosen, tuple(LeftOut(name=name, reason=reason) for name, reason in refused.items())


def _searched_micro_batches(
    base: Workload, methods: Sequence[SearchedMethod], effective_batch: int
) -> tuple[tuple[int, ...], tuple[LeftOut, ...]]:
    """Return the micro-batches to search; without 1 if one image is too few for a method."""
    sizes = divisors(effective_batch)
    # BatchNorm alone needs several images; without it, no forward has to be tried
    reason = refusal_of_one_image(base, methods) if _has_batch_norm(base.model) else None
    if reason is None:
        return sizes, ()
    if effective_batch == 1:
        raise UsageError(f"{reason}; use --effective-batch 2 or more")
    return sizes[1:], (LeftOut(name="micro-batch 1", reason=reason),)
