"""Loads a checkpoint file into a model, with notes on the tensors that were taken and left out.

The classifier may have another number of classes or be absent. Everything else must fit: names,
shapes, types and finite values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from profiler.errors import InputError
from profiler.models.backbones.checkpoint_file import read_checkpoint
from profiler.models.backbones.file_entry import ENTRY_MARK, split_entry
from profiler.models.backbones.registry import is_own_model, resolve
from profiler.models.backbones.state_choice import StateChoice, choose_state, is_average
from profiler.models.backbones.timm_filter import timm_filter
from profiler.models.backbones.timm_interface import classifier_names

if TYPE_CHECKING:
    from torch import Tensor, nn

_HARMLESS = re.compile(
    r"(^|[._])(mask_token|num_batches_tracked|total_ops|total_params|n_averaged|attn_mask|"
    r"relative_position_index|relative_coords_table|rel_pos_index|attention_bias_idxs)$"
    r"|^(head|fc|classifier|head_dist|dist_head|aux_head|aux_classifier|projection_head|criterion|"
    r"loss|loss_fn|ema|pre_logits|rope|pos_drop)[._]"
)
"""Tensors without a part in the model's function: buffers that the model computes itself, counters
of profilers, tokens of the pretraining task, and heads and losses beside the backbone."""


def load_checkpoint_file(model: nn.Module, name: str, path: Path) -> tuple[str, ...]:
    """Load the weights in a file into a model and return notes for the user.

    Args:
        model: a backbone; on ``meta`` everything is checked and nothing is copied.
        name: canonical name of the backbone.
        path: file, or ``FILE::ENTRY`` for an entry of a checkpoint.

    Raises:
        InputError: the file cannot be read, or does not hold weights of this model.
    """
    canonical = resolve(name)
    file, entry = split_entry(path)
    content = read_checkpoint(file)
    try:
        choice = choose_state(
            content,
            model,
            state_filter=None if is_own_model(canonical) else timm_filter(canonical),
            entry=entry,
        )
        tensors = _checked(choice, model, canonical)
    except InputError as error:
        raise InputError(f"weights file {file} {error}") from error
    notes = tuple(_notes(choice, tensors, model, file))
    if not next(model.parameters()).is_meta:
        model.load_state_dict(tensors, strict=False)
    return notes


# ---- checks --------------------------------------------------------------------------------------


def _checked(choice: StateChoice, model: nn.Module, name: str) -> dict[str, Tensor]:
    """Return the tensors to load.

    Raises:
        InputError: the choice is not the weights of this model; the message is a predicate.
    """
    own, heads = model.state_dict(), _head_prefixes(model)
    _check_names(choice, own, heads, name)
    loaded = {}
    for each, value in choice.tensors.items():
        if each not in own:
            continue
        _check_kind(each, value, own[each])
        if value.shape == own[each].shape:
            loaded[each] = value
        elif not each.startswith(heads):
            raise InputError(
                f"does not fit the model {name}: {_short(each)} has the shape "
                f"{_dimensions(value)}, the model's has {_dimensions(own[each])}; give weights of "
                "this model"
            )
    return loaded


def _check_names(
    choice: StateChoice, own: Mapping[str, Tensor], heads: tuple[str, ...], name: str
) -> None:
    backbone = [each for each in own if not each.startswith(heads)]
    missing = [each for each in backbone if each not in choice.tensors and _must_load(own[each])]
    if not any(each in choice.tensors for each in backbone):
        raise InputError(
            f"does not fit the model {name}: none of its {len(choice.tensors)} tensors "
            f"({_listed(choice.tensors, 1)}) has a name of the model's ({_listed(backbone, 1)}); "
            "give weights of this model"
        )
    if missing:
        raise InputError(
            f"does not fit the model {name}: {len(missing)} of the model's {len(backbone)} tensors "
            f"are not in it ({_listed(missing)}); give weights of this model"
        )
    unknown = [each for each in choice.tensors if each not in own and not _HARMLESS.search(each)]
    if unknown:
        raise InputError(
            f"does not fit the model {name}: the model has no place for {len(unknown)} of its "
            f"tensors ({_listed(unknown)}); give weights of this model"
        )


def _must_load(own: Tensor) -> bool:
    """Return whether a tensor of the model has to be in a checkpoint.

    Integer buffers are indices that the model computes itself, or BatchNorm's batch counter, which
    old checkpoints do not have.
    """
    return own.is_floating_point()


def _check_kind(name: str, value: Tensor, own: Tensor) -> None:
    """Refuse a tensor whose values cannot be the model's."""
    what = None
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        what = "sparse, quantised or nested"
    elif value.is_meta:
        what = "on the meta device, without values"
    elif value.is_complex():
        what = f"of type {_dtype(value)}"
    elif own.is_floating_point() and not value.is_floating_point():
        what = f"of type {_dtype(value)}, the model's is {_dtype(own)}"
    if what is not None:
        raise InputError(f"cannot be used: {_short(name)} is {what}; save plain {_dtype(own)}")
    if value.is_floating_point() and not bool(torch.isfinite(value.to(torch.float32)).all()):
        raise InputError(f"cannot be used: {_short(name)} has values that are NaN or infinite")


# ---- notes ---------------------------------------------------------------------------------------


def _notes(
    choice: StateChoice, loaded: Mapping[str, Tensor], model: nn.Module, file: Path
) -> Iterator[str]:
    """Yield one sentence for each thing that was not simply loaded."""
    if choice.entry:
        yield f"weights: the entry {choice.entry!r} of {file.name} was taken"
    if choice.prefix:
        yield f"weights: the prefix {choice.prefix!r} was removed from the names"
    if is_average(choice.entry) or is_average(choice.prefix):
        yield "weights: they are averaged ones (EMA)"
    elif averages := [path for path in choice.others if is_average(path)]:
        other = f"{file.name}{ENTRY_MARK}{averages[0]}"
        yield f"weights: the averaged ones (EMA) were not loaded; to load them, give {other}"
    resampled = [
        name
        for name, value in loaded.items()
        if name in choice.original and choice.original[name].shape != value.shape
    ]
    if resampled:
        before, after = choice.original[resampled[0]], loaded[resampled[0]]
        shapes = f"from {_dimensions(before)} to {_dimensions(after)}"
        yield f"weights: resampled {_listed(resampled)} {shapes}"
    yield from _head_notes(choice, loaded, model)
    if left := _left_out(choice, model):
        yield f"weights: left out {len(left)} tensors that the model lacks: {_listed(left)}"


def _left_out(choice: StateChoice, model: nn.Module) -> list[str]:
    """Return the names of the entry whose tensors the model does not have."""
    own = model.state_dict().keys()
    unused = [name for name in choice.tensors if name not in own]
    kept = [name for name in choice.original if name in choice.tensors]
    # A filter that renames everything leaves no trace of the tensors that it dropped.
    dropped = (
        [name for name in choice.original if name not in choice.tensors]
        if 2 * len(kept) > len(choice.original)
        else []
    )
    return [*choice.beside, *dropped, *unused]


def _head_notes(
    choice: StateChoice, loaded: Mapping[str, Tensor], model: nn.Module
) -> Iterator[str]:
    heads = _head_prefixes(model)
    own = [name for name in model.state_dict() if name.startswith(heads)]
    if all(name in loaded for name in own):
        return
    there = [choice.tensors[name] for name in own if name in choice.tensors]
    classes = f" of {there[0].shape[0]} classes was left out" if there else " is not in the file"
    yield f"weights: the classifier{classes}; a new one is trained"


# ---- words ---------------------------------------------------------------------------------------


def _head_prefixes(model: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}." for name in classifier_names(model))


def _short(name: str) -> str:
    return repr(name if len(name) <= 60 else f"{name[:40]}...{name[-15:]}")


def _listed(names: Iterable[str], count: int = 3) -> str:
    every = list(names)
    shown = [*map(_short, every[:count])]
    return ", ".join([*shown, "..."] if len(every) > count else shown)


def _dimensions(value: Tensor) -> str:
    return f"[{', '.join(map(str, value.shape))}]"


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
