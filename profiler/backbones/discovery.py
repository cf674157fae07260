"""Find the units of any backbone: the pieces that can be checkpointed, in forward order.

Structure alone decides, so that it works on ``meta`` models and costs no forward:

    chain   a Sequential or ModuleList with an element that holds two or more weights (a block),
            or that is itself a chain or a stage
    stage   a module with a chain among its direct children; above the first chain, among all
            its descendants (a tower inside a wrapper)
    unit    an element of a chain that is neither chain nor stage; what stands beside a chain
            inside a stage and is not a bare layer (down-sampling, patch merging); a stem of two
            or more layers in front of the first chain

A *weight* is a parameter of two or more dimensions. What follows the last chain (final norm,
classifier) is no unit: it is small, and the loss needs it at once. Loose layers (the ResNet's
``conv1``/``bn1``) belong to no unit. A layer that peft wrapped counts as the layer it wraps.
A model without any chain (RegNet, VGG) falls back to its direct children with several weights.

Registration order stands for forward order. That, disjointness, and one call per forward with
a tensor in and a tensor out are what ``tests/profiler/test_discovery.py`` holds against
real forwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from profiler.errors import UnknownNameError


def find_units(model: nn.Module, *, override: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of a backbone's units in forward order.

    Args:
        model: a backbone (``backbone_of`` a wrapped model), on any device.
        override: names to use instead of what would be found.

    Raises:
        UnknownNameError: an overriding name is not a module of the backbone.
    """
    if override:
        known = dict(model.named_modules())
        for name in override:
            if name not in known:
                raise UnknownNameError(kind="unit", name=name, known=known)
        return tuple(override)
    found = tuple(_tower(model, prefix=""))
    return found or tuple(name for name, child in model.named_children() if _weights(child) > 1)


def parts_of(model: nn.Module, unit: str) -> tuple[str, ...]:
    """Return the names, within a unit, of the branches worth checkpointing alone.

    These are the unit's children with two or more weights (an attention, an MLP), provided that
    something else of the unit has parameters as well. Squeeze-and-excite gates (``se``) work on
    pooled features and store next to nothing.
    """
    children = [(n, m) for n, m in model.get_submodule(unit).named_children() if _layers(m)]
    if len(children) < 2:
        return ()
    return tuple(name for name, child in children if _weights(child) > 1 and name != "se")


def _tower(module: nn.Module, *, prefix: str) -> Iterator[str]:
    """Yield the units of a module that holds chains at some depth, up to its last chain."""
    if _is_chain(module):
        yield from _stage(module, prefix=prefix)
        return
    children = list(module.named_children())
    towers = [any(map(_is_chain, child.modules())) for _, child in children]
    last = max((i for i, holds in enumerate(towers) if holds), default=-1)
    for (name, child), holds in zip(children[: last + 1], towers, strict=False):
        path = f"{prefix}.{name}" if prefix else name
        if holds:
            yield from _tower(child, prefix=path)
        elif _layers(child) > 1 and _weights(child):
            yield path


def _stage(module: nn.Module, *, prefix: str) -> Iterator[str]:
    """Yield the units of a chain or a stage."""
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if _is_chain(child) or _is_stage(child) or _is_plain_run(child):
            yield from _stage(child, prefix=path)
        elif _weights(child) and any(True for _ in child.children()):
            yield path


def _is_chain(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList) and any(
        _is_chain(child) or _weights(child) > 1 for child in module.children()
    )


def _is_stage(module: nn.Module) -> bool:
    return any(_is_chain(child) for child in module.children())


def _is_plain_run(module: nn.Module) -> bool:
    """True for a Sequential of composite modules, such as MobileNetV3's last ``blocks.5``."""
    return type(module) is nn.Sequential and all(_layers(c) > 1 for c in module.children())


def _layers(module: nn.Module) -> int:
    """Count the layers with parameters of their own."""
    return sum(
        1
        for layer in _outermost(module)
        if hasattr(layer, "base_layer") or any(True for _ in layer.parameters(recurse=False))
    )


def _weights(module: nn.Module) -> int:
    """Count the layers with a parameter of two or more dimensions."""
    return sum(
        1
        for layer in _outermost(module)
        if any(p.dim() > 1 for p in layer.parameters(recurse=hasattr(layer, "base_layer")))
    )


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and its descendants, but nothing inside a layer that peft wrapped."""
    yield module
    if not hasattr(module, "base_layer"):
        for child in module.children():
            yield from _outermost(child)
