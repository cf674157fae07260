"""Which tensors of a checkpoint are the weights of a model: entry, prefix and conversion.

    candidates   every entry of the checkpoint that holds tensors by name ("model", "state_dict")
    prefixes     prefixes that wrappers add to the names ("module.", "model.backbone.")
    conversion   timm's filter of the architecture

All combinations are tried, and the one with the most tensors of the model's names and shapes is
chosen. Averaged weights (EMA) are taken only on request, or if the checkpoint has no others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from profiler.errors import InputError
from profiler.models.backbones.timm_filter import StateFilter, filtered

if TYPE_CHECKING:
    from torch import Tensor, nn

_MAX_DEPTH = 4
"""Levels of nested entries that are searched for tensors."""

_SMALL_SHARE = 4
"""An entry is not tried if the largest one has more than this many times its number of tensors.
Optimizers have such small entries: one per parameter, with a few tensors each."""

_WRAPPERS = (
    *("module", "_orig_mod", "model", "backbone", "encoder", "net", "network", "trunk"),
    *("visual", "vision_model", "image_encoder", "student", "teacher", "base_model", "vit"),
)
"""Attributes under which training code keeps a model, so that they become prefixes of names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChoice:
    """The tensors of a checkpoint that are a model's weights.

    Attributes:
        entry: path of the entry in the checkpoint, joined by dots; empty for the whole.
        prefix: prefix that was removed from the names, with its last dot; empty without one.
        tensors: tensors by the model's names, after timm's filter.
        original: the same entry before the filter, without the prefix.
        beside: names in the entry that do not have the prefix.
        others: paths of the entries that were not taken.
        shared: number of names that the model has too, with the same shape.
    """

    entry: str
    prefix: str
    tensors: Mapping[str, Tensor]
    original: Mapping[str, Tensor]
    beside: tuple[str, ...]
    others: tuple[str, ...]
    shared: int

    @property
    def rank(self) -> tuple[int, int]:
        """Sort key of choices: ``shared``, then (only if it is 0) the number of tensors."""
        return self.shared, 0 if self.shared else len(self.tensors)


def choose_state(
    content: dict[Any, Any],
    model: nn.Module,
    *,
    state_filter: StateFilter | None,
    entry: str | None,
) -> StateChoice:
    """Return the entry of a checkpoint that fits a model best.

    Args:
        content: the checkpoint.
        model: the model.
        state_filter: timm's filter of the model.
        entry: path of the entry to take, or prefix of its names; None to choose one.

    Raises:
        InputError: the checkpoint holds no tensors by name, or no such entry.
    """
    states = dict(_states_in(content))
    if not states:
        raise InputError("holds no tensors by name, so no weights of a model")
    wanted = _requested(states, entry) if entry is not None else _without_averages(states)
    most = max(len(state) for state in wanted.values())
    wanted = {path: state for path, state in wanted.items() if _SMALL_SHARE * len(state) >= most}
    own = {name: value.shape for name, value in model.state_dict().items()}
    best: StateChoice | None = None
    for path, state in wanted.items():
        others = tuple(name for name in states if name != path)
        for prefix in _prefixes(state, own):
            found = _choice(
                path=path,
                prefix=prefix,
                state=state,
                model=model,
                state_filter=state_filter,
                own=own,
                others=others,
            )
            if best is None or found.rank > best.rank:
                best = found
    assert best is not None
    return best


def is_average(name: str) -> bool:
    """Return whether a name stands for averaged weights (``model_ema``)."""
    words = re.split(r"[._]", name.lower())
    return any(word.startswith("ema") or word.endswith("ema") for word in words)


def _states_in(
    content: dict[Any, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (path, tensors) of every mapping with tensors by name, from the outside in."""
    tensors = {
        name: value
        for name, value in dict.items(content)  # an attribute in the file may hide the method
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if tensors:
        yield ".".join(path), tensors
    if len(path) < _MAX_DEPTH:
        for name, value in dict.items(content):
            if isinstance(name, str) and isinstance(value, dict):
                yield from _states_in(value, (*path, name))


def _requested(states: Mapping[str, dict[str, Tensor]], entry: str) -> dict[str, dict[str, Tensor]]:
    """Return the states inside an entry; if there is none, those whose names begin with it."""
    inside = {p: s for p, s in states.items() if p == entry or p.startswith(f"{entry}.")}
    if inside:
        return inside
    prefix = f"{entry}."
    parts = {p: {n: v for n, v in s.items() if n.startswith(prefix)} for p, s in states.items()}
    found = {path: state for path, state in parts.items() if state}
    if not found:
        known = ", ".join(repr(path[:40]) for path in states if path) or "none"
        raise InputError(f"has no entry {entry!r}; its entries with tensors: {known[:120]}")
    return found


def _without_averages(states: Mapping[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    plain = {path: state for path, state in states.items() if not is_average(path)}
    return plain or dict(states)


def _prefixes(state: Mapping[str, Tensor], own: Mapping[str, torch.Size]) -> list[str]:
    """Return the prefixes to try: the most frequent one before names of the model comes first."""
    before: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for index in range(len(parts)):
            if ".".join(parts[index:]) in own:
                before[".".join([*parts[:index], ""])] += 1
    # Of equally frequent prefixes (a model and its average), the plain and the short come first.
    ordered = sorted(before, key=lambda prefix: (-before[prefix], is_average(prefix), len(prefix)))
    names, prefix, wrappers = list(state), "", [""]
    while (shared := _shared_wrapper(names)) is not None:
        prefix += f"{shared}."
        wrappers.append(prefix)
        names = [name.partition(".")[2] for name in names if name.startswith(f"{shared}.")]
    return list(dict.fromkeys([*ordered[:1], *wrappers]))


def _shared_wrapper(names: list[str]) -> str | None:
    """Return the known wrapper that most names begin with; None without one."""
    first = Counter(name.partition(".")[0] for name in names if "." in name)
    word, count = first.most_common(1)[0] if first else ("", 0)
    return word if word in _WRAPPERS and 2 * count > len(names) else None


def _choice(
    *,
    path: str,
    prefix: str,
    state: Mapping[str, Tensor],
    model: nn.Module,
    state_filter: StateFilter | None,
    own: Mapping[str, torch.Size],
    others: tuple[str, ...],
) -> StateChoice:
    inside = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    converted = filtered(inside, model, state_filter)
    variants = [inside] if converted is None else [converted, inside]
    shared = [sum(own.get(n) == v.shape for n, v in each.items()) for each in variants]
    tensors = variants[shared.index(max(shared))]
    return StateChoice(
        entry=path,
        prefix=prefix,
        tensors=tensors,
        original=inside,
        beside=tuple(name for name in state if not name.startswith(prefix)),
        others=others,
        shared=max(shared),
    )
