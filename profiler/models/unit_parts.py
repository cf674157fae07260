"""The parts of a checkpointable unit that a placement can decide about: branches and layers."""

from __future__ import annotations

import math

from torch import nn

from profiler.models.layers import (
    Convolution,
    count_layers,
    count_weight_layers,
    is_depthwise_convolution,
    is_layer,
    outermost_layers,
    wrapped_layer,
)
from profiler.models.unit_runs import RUN_SEPARATOR, modules_of
from profiler.unit_options import UnitParts

GATE = "se"
"""timm's name of squeeze-and-excite gates. They compute on pooled features, so their activations
are too small to be worth a decision."""


def parts_of_unit(model: nn.Module, unit: str) -> UnitParts:
    """Return the parts of a unit.

    Args:
        model: a backbone (``backbone_of`` a wrapped model), on any device.
        unit: a name that ``find_units`` returned.
    """
    inside = [inner for module in modules_of(model, unit) for inner in module.modules()]
    return UnitParts(
        branches=branches_of(model, unit),
        layers=layers_of(model, unit),
        token_mixer=_token_mixer_of(model, unit),
        has_depthwise=any(map(is_depthwise_convolution, inside)),
    )


def branches_of(model: nn.Module, unit: str) -> tuple[str, ...]:
    """Return the names, within a unit, of the branches worth recomputing alone.

    A branch is a child with two or more weight layers (an attention, an MLP). A unit whose
    parameters all lie in one child has none: recomputing that child is recomputing the unit. A run
    has none either.
    """
    if RUN_SEPARATOR in unit:
        return ()
    children = [(n, m) for n, m in model.get_submodule(unit).named_children() if count_layers(m)]
    if len(children) < 2:
        return ()
    return tuple(n for n, child in children if count_weight_layers(child) > 1 and n != GATE)


def layers_of(model: nn.Module, unit: str) -> tuple[str, ...]:
    """Return the names, within a unit, of the layers whose outputs are worth dropping.

    These are its matmuls and convolutions except depthwise ones, in the order of multiplications
    per output value, which is the time that a freed byte costs; ties are in forward order. The last
    one of that order is left out: dropping all outputs is nearly recomputing the whole unit. A run
    has none.
    """
    if RUN_SEPARATOR in unit:
        return ()
    found = [
        (multiplications, name)
        for name, module in outermost_layers(model.get_submodule(unit))
        if is_layer(module) and GATE not in name.split(".")
        if not is_depthwise_convolution(layer := wrapped_layer(module))
        if (multiplications := _multiplications_per_output(layer))
    ]
    return tuple(name for _, name in sorted(found, key=lambda pair: pair[0])[:-1])


def _token_mixer_of(model: nn.Module, unit: str) -> str | None:
    """Return the name, within a unit, of its attention or scan; classes are matched by name."""
    if RUN_SEPARATOR in unit:
        return None
    return next(
        (
            name
            for name, module in model.get_submodule(unit).named_modules()
            if name
            and ("Attention" in type(module).__name__ or type(module).__name__ == "SelectiveScan")
        ),
        None,
    )


def _multiplications_per_output(layer: nn.Module) -> int:
    if isinstance(layer, Convolution):
        return layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    assert isinstance(layer, nn.Linear)
    return layer.in_features
