"""Published models that classify without fine-tuning, listed beside the plans of an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.recommendation.request import Notify, Request
from planner.training_free.options import TrainingFreeOption, is_prepared, training_free_options
from profiler.devices.table import device_spec
from profiler.store import Store


def list_training_free(request: Request, notify: Notify) -> tuple[TrainingFreeOption, ...] | None:
    """Return the options under the request's budget; None if they are not to be listed.

    Raises:
        InputError: they were requested, and a library of theirs is not installed.
    """
    device, store = device_spec(request.device.name), Store.default()
    wanted = is_prepared(device, store) if request.training_free is None else request.training_free
    if not wanted:
        return None
    return training_free_options(
        device=device,
        budget_bytes=request.budget_bytes,
        data=request.run.data,
        store=store,
        on_progress=lambda text, done: notify("training-free", text, done),
    )


def training_free_notes(
    request: Request, options: Sequence[TrainingFreeOption] | None
) -> Iterator[str]:
    """Yield a note on the models that fit."""
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
