"""The table of methods, readable without torch, and the look-up by name.

Beside the plain names there are two families of names: ``partial_K`` (the last K units) and
``peft:NAME`` (any peft method that works on a vision backbone).
"""

from __future__ import annotations

from importlib import import_module

from profiler.errors import UnknownNameError
from profiler.methods.base import Method, MethodInfo

_TABLE = (
    MethodInfo(
        name="full",
        family="baseline",
        summary="every parameter learns",
        source="baseline",
        implementation="partial:Full",
    ),
    MethodInfo(
        name="head",
        family="baseline",
        summary="linear probe: only the classifier learns, BatchNorm statistics stay",
        source="baseline",
        implementation="partial:Head",
    ),
    MethodInfo(
        name="bn_head",
        family="partial",
        summary="BatchNorm (affine weights and statistics) and the classifier learn",
        source="arXiv 2507.23536, BN+H",
        implementation="partial:BatchNormHead",
    ),
    MethodInfo(
        name="bitfit",
        family="partial",
        summary="all biases and the classifier learn",
        source="arXiv 2106.10199",
        implementation="partial:BitFit",
    ),
    MethodInfo(
        name="lora",
        family="reparameter",
        summary="low-rank update beside frozen weights (peft)",
        source="arXiv 2106.09685",
        implementation="lowrank:Lora",
        default_rank=8,
    ),
    MethodInfo(
        name="dora",
        family="reparameter",
        summary="LoRA on the weight's direction, with learned magnitudes (peft)",
        source="arXiv 2402.09353",
        implementation="lowrank:Dora",
        default_rank=8,
    ),
    MethodInfo(
        name="adalora",
        family="reparameter",
        summary="LoRA whose ranks are cut where they matter least (peft)",
        source="arXiv 2303.10512",
        implementation="lowrank:AdaLora",
        default_rank=8,
        rank_means="target rank",
    ),
    MethodInfo(
        name="qlora",
        family="quantised",
        summary="LoRA over linear layers stored in 4-bit nf4 (bitsandbytes, peft)",
        source="arXiv 2305.14314",
        implementation="qlora:QLora",
        default_rank=8,
    ),
    MethodInfo(
        name="galore",
        family="optimizer",
        summary="every parameter learns, optimizer state in a low-rank projection",
        source="arXiv 2403.03507",
        implementation="galore:GaLore",
        default_rank=8,
    ),
)

_FAMILIES = ("partial_K", "peft:NAME")


def method_infos() -> tuple[MethodInfo, ...]:
    """Return what is known of every plainly named method, without importing torch."""
    return _TABLE


def method_names() -> list[str]:
    """Return the plain method names, in the order they are shown."""
    return [info.name for info in _TABLE]


def all_methods() -> tuple[Method, ...]:
    """Return one object of every plainly named method (imports torch)."""
    return tuple(_load(info) for info in _TABLE)


def get_method(name: str) -> Method:
    """Return the method of that name.

    Raises:
        UnknownNameError: no such method; carries near names.
    """
    for info in _TABLE:
        if info.name == name:
            return _load(info)
    raise UnknownNameError(
        kind="method",
        name=name,
        known=[*method_names(), *_FAMILIES],
        hint="`budgetplan methods` lists them",
    )


def _load(info: MethodInfo) -> Method:
    module, _, class_name = info.implementation.partition(":")
    method: Method = getattr(import_module(f"profiler.methods.{module}"), class_name)(info)
    return method
