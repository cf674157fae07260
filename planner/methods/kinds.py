"""Kinds of methods by their trainable tensors: methods of a kind learn at about the same speed."""

from __future__ import annotations

from typing import Literal

MethodKind = Literal["full", "affine", "low rank", "added", "head"]

METHOD_KINDS: dict[str, MethodKind] = {
    "full": "full",
    "galore": "full",
    "head": "head",
    "bn_head": "affine",
    "bitfit": "affine",
    "ln_tune": "affine",
    "ssf": "affine",
    "lora": "low rank",
    "dora": "low rank",
    "adalora": "low rank",
    "qlora": "low rank",
    "adaptformer": "added",
    "vpt_shallow": "added",
    "vpt_deep": "added",
    "prefix": "added",
    "side": "added",
}
"""Kind of each method by its trainable tensors; see ``known_kind`` for methods not listed."""


def method_kind(method: str) -> MethodKind:
    """Return the kind of a method; those of peft that are not listed count as low-rank ones."""
    return known_kind(method) or "low rank"


def known_kind(method: str) -> MethodKind | None:
    """Return the kind of a method; None if it is not known."""
    if method.startswith("partial_"):
        return "full"
    return METHOD_KINDS.get(method)
