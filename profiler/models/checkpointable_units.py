"""Find the checkpointable units of any backbone, in forward order.

A unit is a *block* (a module) or a *run* (sibling modules called in a row; see unit_runs.py).
Blocks are found from the module structure alone:

    chain   a Sequential or ModuleList with an element that holds two or more weight layers (a
            block), or that is itself a chain or a stage
    stage   a module with a chain among its direct children; above the first chain, a module with a
            chain among its descendants (a backbone inside a wrapper)
    block   an element of a chain that is neither chain nor stage; a child of a stage beside its
            chains that is not a single layer (down-sampling, patch merging); a stem of two or more
            layers before the first chain

Layers and weight layers are defined in layers.py. A model without any chain (RegNet, VGG) falls
back to its direct children with several weight layers.

Where the structure does not fix the order of blocks, one traced forward on ``meta`` gives it, and
shows blocks that are not called exactly once outside all others (unit_runs.py). Units are thus
disjoint and are called once. ``tests/profiler/models`` compares them with real forwards.

Limitation: if a forward cannot run on ``meta``, registration order stands for forward order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from profiler.errors import UnknownNameError
from profiler.models.layers import count_layers, count_weight_layers
from profiler.models.unit_runs import RUN_SEPARATOR, with_runs


def find_units(model: nn.Module, *, override: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of a backbone's units, blocks and runs, in forward order.

    Args:
        model: a backbone (``backbone_of`` a wrapped model), on any device.
        override: unit names that replace the search.

    Raises:
        UnknownNameError: an overriding name is not a module of the backbone.
    """
    if override:
        known = dict(model.named_modules())
        for name in [part for unit in override for part in unit.split(RUN_SEPARATOR)]:
            if name not in known:
                raise UnknownNameError(kind="unit", name=name, known=known)
        return tuple(override)
    return with_runs(model, find_blocks(model))


def find_blocks(model: nn.Module) -> tuple[str, ...]:
    """Return the names of modules of the backbone that can be units, in order of registration."""
    found = tuple(_blocks_in_tower(model, prefix=""))
    return found or tuple(
        n for n, child in model.named_children() if count_weight_layers(child) > 1
    )


def _blocks_in_tower(module: nn.Module, *, prefix: str) -> Iterator[str]:
    """Yield the blocks of a module that has chains at some depth, up to the last chain."""
    if _is_chain(module):
        yield from _blocks_in_stage(module, prefix=prefix)
        return
    children = list(module.named_children())
    holds_chain = [any(map(_is_chain, child.modules())) for _, child in children]
    last = max((i for i, holds in enumerate(holds_chain) if holds), default=-1)
    for (name, child), holds in zip(children[: last + 1], holds_chain, strict=False):
        path = f"{prefix}.{name}" if prefix else name
        if holds:
            yield from _blocks_in_tower(child, prefix=path)
        elif count_layers(child) > 1 and count_weight_layers(child):
            yield path


def _blocks_in_stage(module: nn.Module, *, prefix: str) -> Iterator[str]:
    """Yield the blocks of a chain or a stage."""
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if _is_chain(child) or _is_stage(child) or _is_sequence_of_composites(child):
            yield from _blocks_in_stage(child, prefix=path)
        elif count_weight_layers(child) and any(True for _ in child.children()):
            yield path


def _is_chain(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList) and any(
        _is_chain(child) or count_weight_layers(child) > 1 for child in module.children()
    )


def _is_stage(module: nn.Module) -> bool:
    return any(_is_chain(child) for child in module.children())


def _is_sequence_of_composites(module: nn.Module) -> bool:
    """Return whether every element of a Sequential has several layers (MobileNetV3's blocks.5)."""
    return type(module) is nn.Sequential and all(count_layers(c) > 1 for c in module.children())
