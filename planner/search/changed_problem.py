"""Names the difference between the problem of a study and the one that was asked for.

A study is continued only for an equal problem. The keys of a problem are names of this program, so
the message states the option, or the change of the images, in words of the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from profiler.json_records import shortened
from profiler.units import format_asked

OTHER_OPTIONS = "use the options that it was started with, or another --study"
OTHER_IMAGES = "restore the images, or use another --study"

NAMED_ITEMS = 4
"""Most items of a list that a clause names."""

_VALUE_CLAUSES: dict[str, str] = {
    "model": "it was started for the backbone {was}, not {now}",
    "device": "it was started for the device {was}, not {now}",
    "budget_bytes": "it was started for a predicted memory of at most {was}, not {now}",
    "data": "it was started for the data {was}, not {now}",
    "pretrained": "it was started for {was} weights, not {now} ones",
    "num_classes": "it was started for {was} classes, not {now}",
    "image_size": "it was started for images of {was} px, not {now} px",
    "effective_batch": "it was started for an effective batch of {was}, not {now}",
    "dropout": "it was started for a dropout of {was}, not {now}",
    "drop_path": "it was started for a drop path rate of {was}, not {now}",
    "grad_clip": "it was started for a gradient clip of {was}, not {now}",
    "alpha": "it was started for an alpha of {was}, not {now}",
    "targets": "it was started for the target layers {was}, not {now}",
    "frozen_batch_norm": "it was started for {was} statistics of BatchNorm, not {now} ones",
}
_LIST_NOUNS: dict[str, str] = {
    "methods": "methods or ranks",
    "micro_batches": "micro-batches",
    "precisions": "precisions",
    "optimizers": "optimizers",
    "checkpoints": "checkpoint policies",
}
_FORMATS: dict[str, Callable[[Any], str]] = {
    "budget_bytes": format_asked,
    "pretrained": lambda value: "pretrained" if value else "random",
    "frozen_batch_norm": lambda value: "frozen" if value else "trained",
}


def describe_change(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return the first difference between two problems, as a clause with the remedy.

    Args:
        stored: problem of the study, of unknown origin.
        wanted: problem that was asked for, as ``SearchProblem.to_json`` has it; not equal.
    """
    was, now = _flat(stored), _flat(wanted)
    changed = [key for key in now if was.get(key) != now[key]]
    if not changed:
        if was.keys() - now.keys():
            return "it has settings that this version does not know; use another --study"
        return "an earlier version started it, without settings of this one; use another --study"
    # more classes also mean other images; the number of classes says more
    key = min(changed, key=_rank)
    if key == "train_images":
        return (
            "its training images have changed since it was started (their number, or how they "
            f"are spread over the classes); {OTHER_IMAGES}"
        )
    if key == "num_classes":
        return f"{_value_changed(key, was, now)}; {OTHER_IMAGES}"
    if key in _LIST_NOUNS:
        return f"{_list_changed(key, was.get(key), now[key])}; {OTHER_OPTIONS}"
    return f"{_value_changed(key, was, now)}; {OTHER_OPTIONS}"


def _rank(key: str) -> int:
    """Return the rank of a difference: those that say most come first, the images last."""
    if key == "train_images":
        return len(_VALUE_CLAUSES) + 1
    names = list(_VALUE_CLAUSES)
    return names.index(key) if key in names else len(names)


def _flat(problem: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a problem, of its space and of the space's workload in one mapping."""
    space = problem.get("space")
    space = space if isinstance(space, Mapping) else {}
    base = space.get("base")
    parts = (problem, base if isinstance(base, Mapping) else {}, space)
    return {k: v for part in parts for k, v in part.items() if k not in {"space", "base"}}


def _value_changed(key: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    clause = _VALUE_CLAUSES.get(key, f"it was started with another {key.replace('_', ' ')}")
    return clause.format(was=_value_text(key, was.get(key)), now=_value_text(key, now[key]))


def _value_text(key: str, value: object) -> str:
    """Return a value as the clause has it; one of another type, from an edited study, quoted."""
    if value is None:
        return "none"
    try:
        if key in _FORMATS and isinstance(value, int):
            return _FORMATS[key](value)
    except (ValueError, OverflowError):
        pass
    return shortened(value).strip("'") if isinstance(value, str) else shortened(value)


def _list_changed(key: str, was: object, now: object) -> str:
    """Return a clause on the items that the study has not, and those that it has besides."""
    known, asked = _items(was), _items(now)
    lacking = [item for item in asked if item not in known]
    besides = [item for item in known if item not in asked]
    parts = [f"without {_first_items(lacking)}"] if lacking else []
    parts += [f"with {_first_items(besides)}"] if besides else []
    text = " and ".join(parts) or "in another order"
    return f"it was started for other {_LIST_NOUNS[key]}, {text}"


def _items(value: object) -> list[str]:
    """Return the items of a list; those of methods with their ranks."""
    if isinstance(value, Mapping):
        return [
            str(name) if not ranks else f"{name} of rank {'/'.join(map(str, ranks))}"
            for name, ranks in value.items()
            if not ranks or isinstance(ranks, list)
        ]
    return [str(item) for item in value] if isinstance(value, list) else []


def _first_items(items: list[str]) -> str:
    more = len(items) - NAMED_ITEMS
    shown = ", ".join(shortened(item).strip("'") for item in items[:NAMED_ITEMS])
    return f"{shown} and {more} more" if more > 0 else shown
