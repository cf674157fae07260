"""Published models that classify without fine-tuning, listed beside the plans of an answer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from planner.recommendation.answer import FrontEntry
from planner.recommendation.request import Notify, Request
from planner.training_free.options import (
    TrainingFreeOption,
    models_at_hand,
    training_free_options,
)
from planner.training_free.plan_file import with_plan_files
from profiler.devices.table import device_spec
from profiler.models.frozen.catalogue import frozen_models
from profiler.store import Store

SETTING = "BUDGETPLAN_TRAINING_FREE"
"""Environment variable; ``0`` lists no models unless an option requests them."""

LARGER = 2.0
"""Ratio of parameters from which a note compares the sizes of the models."""


def list_training_free(request: Request, notify: Notify) -> tuple[TrainingFreeOption, ...] | None:
    """Return the options under the request's budget with plan files; None if none are wanted.

    Raises:
        InputError: all were requested, and a library of theirs is not installed.
    """
    device, store, models = device_spec(request.device.name), Store.default(), None
    if not (request.training_free or request.allow_training_free):
        if request.training_free is False or os.environ.get(SETTING) == "0":
            return None
        models = models_at_hand(device, store, budget_bytes=request.budget_bytes, risk=request.risk)
    options = training_free_options(
        device=device,
        budget_bytes=request.budget_bytes,
        data=request.run.data,
        num_classes=request.space.base.num_classes,
        train_images=request.train_images,
        store=store,
        models=models,
        risk=request.risk,
        on_progress=lambda text, done: notify("training-free", text, done),
    )
    return with_plan_files(
        options,
        folder=request.out,
        device=request.device,
        budget_bytes=request.budget_bytes,
        data=request.run.data,
        risk=request.risk,
    )


def best_without_training(
    request: Request, options: Sequence[TrainingFreeOption] | None, tuned: FrontEntry
) -> int | None:
    """Return the index of the option that wins over the recommended plan; None if none may or does.

    An option wins if it fits and its published accuracy on the same data set is above the accuracy
    that is expected of the plan. If either is unknown, nothing is compared.
    """
    expected = tuned.expected.value
    if not request.allow_training_free or options is None or expected is None:
        return None
    better = [
        (option.accuracy.value, -index)
        for index, option in enumerate(options)
        if option.fits and option.accuracy is not None and option.accuracy.value > expected
    ]
    return -max(better)[1] if better else None


def training_free_notes(
    request: Request, options: Sequence[TrainingFreeOption] | None, tuned: FrontEntry
) -> Iterator[str]:
    """Yield notes on the models that fit, and on their size beside the recommended one's."""
    if options is None:
        if request.training_free is None:
            yield (
                "published models that classify without fine-tuning were not looked at; "
                "--training-free lists them"
            )
        return
    fitting = [option for option in options if option.fits]
    known = [o for o in fitting if o.accuracy is not None]
    best = ""
    if known and known[0].accuracy is not None:
        best = (
            f"; {known[0].model.name} is published with {100 * known[0].accuracy.value:.1f} % on "
            f"{request.run.data}"
        )
    yield (
        f"{len(fitting)} of {len(options)} published models that classify without fine-tuning fit "
        f"the budget{best}; `budgetplan training-free` lists them"
    )
    others = len(frozen_models()) - len(options)
    if others:
        yield (
            f"{others} more models without fine-tuning were not looked at (language models, or "
            "libraries that are not installed); --training-free adds them"
        )
    if known:
        yield from size_note(known[0], tuned)
    if request.allow_training_free and tuned.expected.value is None:
        yield (
            "no model without fine-tuning is recommended, because no accuracy of the tuned plan is "
            "known to compare with"
        )


def size_note(option: TrainingFreeOption, tuned: FrontEntry) -> Iterator[str]:
    """Yield a note if an option has far more parameters than a tuned plan."""
    frozen, total = option.model.parameters_millions, tuned.plan.prediction.parameters.total / 1e6
    if frozen > LARGER * total:
        yield (
            f"{option.model.name} has {frozen:.0f} M frozen parameters, "
            f"{tuned.plan.candidate.workload.model} {total:.0f} M tuned ones: their accuracies "
            "compare models of different size, not methods"
        )
