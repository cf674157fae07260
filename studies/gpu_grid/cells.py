"""The cells of the grid: which candidates are measured, and in which order.

A cell is a candidate: backbone x method x placement x precision x optimizer x micro-batch, some
with accumulation, clipping, dropout or stochastic depth. All combinations are far too many, so each
next cell is the one, of `PROPOSALS` drawn at random with a fixed seed, whose pairs of values have
been seen least so far (a greedy pairwise covering array; Cohen et al., "The AETG system", IEEE
TSE 1997). Stopping early therefore still leaves every axis covered.

*Brim* cells test the 2 GiB promise: `run.py --predict` looks for the largest micro-batch of a
configuration whose predicted reserved bytes are below the cap, and the next larger one.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

from profiler.placement import Decision, Placement, PolicyChoice
from profiler.units import GIB
from profiler.workload import Candidate, Workload

SEED = 20261128
CELLS = 420
"""More than fit into eight minutes on an H200: the clock decides how many are run."""
PROPOSALS = 60
CAP_BYTES = 2 * GIB
NEAR_CAP = (1.6 * GIB, 2.2 * GIB)
"""Cells predicted to reserve this much are run under the cap as well."""

BACKBONES: Mapping[str, int] = {
    "vit_s": 64,
    "resnet18": 128,
    "mobilenetv2": 64,
    "tiny_vit": 48,
    "swin_t": 32,
    "vit_t": 128,
    "convnext_t": 32,
    "mobilenetv3": 64,
    "dinov2_s": 48,
    "vit_b": 32,
    "mambavision_t": 16,
    "vim_t": 4,
}
"""Backbone and its largest micro-batch; Vim launches some 30,000 kernels a step."""
METHODS = (
    "full",
    "lora",
    "head",
    "bitfit",
    "dora",
    "bn_head",
    "adaptformer",
    "ln_tune",
    "partial_2",
    "vpt_shallow",
    "ssf",
    "galore",
    "side",
)
_WITH_BATCH_NORM = {"resnet18", "mobilenetv2", "mobilenetv3", "tiny_vit", "mambavision_t"}
_PROMPTABLE = {"vit_t", "vit_s", "vit_b", "dinov2_s"}
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
PRECISIONS = ("fp32", "bf16", "fp16")
PLACEMENTS = ("none", "static", "cheap", "alternate")
OPTIMIZERS = ("adamw", "sgd")
EXTRAS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulation": 2},
    "clipped": {"grad_clip": 1.0},
    "drop_path": {"drop_path": 0.1},
}
BRIM_METHODS = ("full", "lora", "bitfit")
BRIM_BACKBONES = ("vit_s", "resnet18", "mobilenetv2", "tiny_vit", "swin_t", "convnext_t")

EXPANDABLE = "expandable_segments:True"
"""Configuration of the allocator for a part of the cells."""


@cache
def units_of(model: str, image_size: int) -> tuple[str, ...]:
    """Return the backbone's units, which no method changes."""
    from profiler.models import backbones
    from profiler.models.checkpointable_units import find_units

    built = backbones.build(model, num_classes=10, image_size=image_size, device="meta")
    return find_units(built)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One candidate of the grid, before its units are known.

    Attributes:
        workload: everything but the placement.
        placement: a name of ``PLACEMENTS``.
        extra: a name of ``EXTRAS``.
    """

    workload: Workload
    placement: str
    extra: str = "plain"

    @property
    def name(self) -> str:
        """What the cell is called in every file."""
        w = self.workload
        return (
            f"{w.model} {w.method} {self.placement} {w.precision} {w.optimizer} "
            f"b{w.micro_batch} {self.extra}"
        )

    @property
    def values(self) -> tuple[str, ...]:
        """Its value on every axis, batches by powers of two."""
        w = self.workload
        size = f"b{w.micro_batch.bit_length() - 1}"
        return (w.model, w.method, self.placement, w.precision, w.optimizer, size, self.extra)

    def candidate(self, units: tuple[str, ...]) -> Candidate:
        """Return the candidate, given the backbone's units."""
        chosen = {"none": (), "alternate": units[::2]}.get(self.placement, units)
        decision = Decision.DROP_CHEAP if self.placement == "cheap" else Decision.RECOMPUTE
        policy = PolicyChoice("keep" if self.placement == "none" else self.placement)
        placement = Placement(decisions=dict.fromkeys(chosen, decision))
        return Candidate(workload=self.workload, placement=placement, policy=policy)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "workload": self.workload.to_json(),
            "placement": self.placement,
            "extra": self.extra,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        """Read what ``to_json`` wrote."""
        return cls(
            workload=Workload.from_json(data["workload"]),
            placement=str(data["placement"]),
            extra=str(data["extra"]),
        )


def grid(count: int = CELLS, *, image_size: int = 224) -> list[Cell]:
    """Return the cells in the order they are run."""
    rng = random.Random(SEED)
    seen: Counter[tuple[str, str]] = Counter()
    chosen: dict[str, Cell] = {}
    while len(chosen) < count:
        proposals = [_draw(rng, image_size) for _ in range(PROPOSALS)]
        fresh = [cell for cell in proposals if cell.name not in chosen]
        best = min(fresh, key=lambda cell: sum(seen[pair] for pair in _pairs(cell)))
        seen.update(_pairs(best))
        chosen[best.name] = best
    return list(chosen.values())


def _pairs(cell: Cell) -> Iterator[tuple[str, str]]:
    return combinations((f"{axis}={value}" for axis, value in enumerate(cell.values)), 2)


def _draw(rng: random.Random, image_size: int) -> Cell:
    backbone = rng.choice(tuple(BACKBONES))
    method = rng.choice([m for m in METHODS if _works(m, backbone)])
    extra = rng.choice(tuple(EXTRAS))
    # GaLore brings an AdamW of its own and projects every gradient once a step
    adamw_only = method == "galore"
    if adamw_only and extra == "accumulated":
        extra = "plain"
    workload = Workload(
        model=backbone,
        method=method,
        micro_batch=rng.choice([b for b in BATCHES if b <= BACKBONES[backbone]]),
        precision=rng.choice(PRECISIONS),
        optimizer="adamw" if adamw_only else rng.choice(OPTIMIZERS),
        image_size=image_size,
        num_classes=100,
        **EXTRAS[extra],
    )
    return Cell(workload=workload, placement=rng.choice(PLACEMENTS), extra=extra)


def _works(method: str, backbone: str) -> bool:
    if method == "bn_head":
        return backbone in _WITH_BATCH_NORM
    if method == "vpt_shallow":
        return backbone in _PROMPTABLE
    if method == "adaptformer":
        return backbone in _PROMPTABLE | {"swin_t", "convnext_t", "vim_t"}
    return True


def brim_families() -> list[Cell]:
    """Return the configurations whose largest fitting micro-batch is looked for (batch 1 here)."""
    rng = random.Random(SEED)
    families = []
    for backbone in BRIM_BACKBONES:
        for method in BRIM_METHODS:
            workload = Workload(
                model=backbone,
                method=method,
                micro_batch=1,
                precision=rng.choice(PRECISIONS),
                num_classes=100,
            )
            families.append(Cell(workload=workload, placement=rng.choice(PLACEMENTS), extra="brim"))
    return families


def largest_fitting(reserved_bytes: Callable[[int], int], *, cap_bytes: int, most: int) -> int:
    """Return the largest micro-batch up to `most` that reserves at most `cap_bytes`; 0 for none.

    Reserved bytes are taken to grow with the batch; where rounding breaks that by a little, the
    answer still fits. They grow about linearly, so every other look is where the line through the
    two ends crosses the cap; the others halve what is left.
    """
    sizes = {1: reserved_bytes(1)}
    if sizes[1] > cap_bytes:
        return 0
    low, high = 1, min(8, most)
    while sizes.setdefault(high, reserved_bytes(high)) <= cap_bytes:
        if high == most:
            return most
        low, high = high, min(4 * high, most)
    halve = False
    while high - low > 1:
        slope = (sizes[high] - sizes[low]) / (high - low)
        crossing = low + int((cap_bytes - sizes[low]) / slope)
        look = (low + high) // 2 if halve else min(max(crossing, low + 1), high - 1)
        sizes[look] = reserved_bytes(look)
        if sizes[look] <= cap_bytes:
            low = look
        else:
            high = look
        halve = not halve
    return low
