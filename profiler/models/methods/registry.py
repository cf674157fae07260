"""The registry of methods, readable without torch, and the look-up by name.

Two patterns extend the plain names: ``partial_K`` (the last K units) and ``peft:NAME`` (any peft
method that works on a vision backbone).
"""

from __future__ import annotations

import re
from dataclasses import replace

from profiler.errors import UnknownNameError
from profiler.models.import_quantised import import_quantised
from profiler.models.methods.base import Method, MethodInfo

_METHODS = (
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
    MethodInfo(
        name="adaptformer",
        family="addition",
        summary="a bottleneck beside every MLP (or Mamba mixer)",
        source="arXiv 2205.13535",
        implementation="additions:AdaptFormer",
        default_rank=8,
        rank_means="bottleneck width",
    ),
    MethodInfo(
        name="vpt_shallow",
        family="addition",
        summary="prompt tokens in front of the first block",
        source="arXiv 2203.12119",
        implementation="prompts:VisualPrompts",
        default_rank=50,
        rank_means="prompt tokens",
    ),
    MethodInfo(
        name="vpt_deep",
        family="addition",
        summary="prompt tokens in front of every block",
        source="arXiv 2203.12119",
        implementation="prompts:DeepVisualPrompts",
        default_rank=10,
        rank_means="prompt tokens a block",
    ),
    MethodInfo(
        name="prefix",
        family="addition",
        summary="learned keys and values in every attention",
        source="arXiv 2101.00190",
        implementation="prompts:Prefix",
        default_rank=20,
        rank_means="keys and values a block",
    ),
    MethodInfo(
        name="side",
        family="addition",
        summary="a narrow ladder beside the backbone, no backward through it",
        source="arXiv 2206.06522",
        implementation="side:Side",
        default_rank=8,
        rank_means="reduction of the width",
    ),
    MethodInfo(
        name="ssf",
        family="reparameter",
        summary="a scale and a shift after every operation",
        source="arXiv 2210.08823",
        implementation="additions:ScaleShift",
    ),
    MethodInfo(
        name="ln_tune",
        family="partial",
        summary="normalisation layers and the classifier learn",
        source="arXiv 2402.02242, LN-tune",
        implementation="partial:LnTune",
    ),
    MethodInfo(
        name="partial_k",
        family="partial",
        summary="the last k units learn, and what follows them",
        source="arXiv 2203.12119, Partial-k",
        implementation="partial:PartialK",
        default_rank=1,
        rank_means="units",
    ),
)

_NAME_PATTERNS = ("partial_K", "peft:NAME")


def method_infos() -> tuple[MethodInfo, ...]:
    """Return the description of every method with a plain name, without importing torch."""
    return _METHODS


def method_names() -> list[str]:
    """Return the plain method names in display order."""
    return [info.name for info in _METHODS]


def all_methods() -> tuple[Method, ...]:
    """Return every method with a plain name (imports torch)."""
    return tuple(_load(info) for info in _METHODS)


def get_method(name: str) -> Method:
    """Return the method with a name (imports torch).

    Raises:
        UnknownNameError: no such method; lists similar names.
    """
    return _load(_info(name))


def check_method_name(name: str) -> None:
    """Refuse a name that is not in the registry, without importing torch.

    Raises:
        UnknownNameError: no such method; lists similar names.
    """
    _info(name)


def _info(name: str) -> MethodInfo:
    for info in (*_METHODS, *_matching_pattern(name)):
        if info.name == name:
            return info
    raise UnknownNameError(
        kind="method",
        name=name,
        known=[*method_names(), *_NAME_PATTERNS],
        hint="`budgetplan methods` lists them",
    )


def with_rank_in_name(name: str, rank: int | None) -> str | None:
    """Return ``partial_3`` for ``partial_k`` and rank 3; None for methods whose rank is a width.

    A profile that is parametric in the rank holds for a width, which changes only tensor sizes. The
    number of trained units changes the operations themselves, so each needs a profile of its own.
    """
    info = next((info for info in _METHODS if info.name == name), None)
    if info is None or info.rank_means != "units":
        return None
    return name.removesuffix("k") + str(rank or info.default_rank)


def _matching_pattern(name: str) -> tuple[MethodInfo, ...]:
    """Return the description of a name that matches a pattern; empty if none does."""
    if re.fullmatch(r"partial_[1-9]\d*", name):
        generic = next(info for info in _METHODS if info.name == "partial_k")
        summary = generic.summary.replace("k units", f"{name[8:]} units")
        return (replace(generic, name=name, default_rank=None, summary=summary),)
    if name.startswith("peft:"):
        return (
            MethodInfo(
                name=name,
                family="reparameter",
                summary=f"peft's {name[5:]}",
                source="peft",
                implementation="peft_named:PeftNamed",
            ),
        )
    return ()


def _load(info: MethodInfo) -> Method:
    module, _, class_name = info.implementation.partition(":")
    method: Method = getattr(import_quantised(f"profiler.models.methods.{module}"), class_name)(
        info
    )
    return method
