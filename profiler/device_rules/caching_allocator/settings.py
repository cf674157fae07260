"""The options of ``PYTORCH_CUDA_ALLOC_CONF`` that change how much memory is reserved.

Names, bounds and defaults: ``c10/core/AllocatorConfig.h`` and ``.cpp`` of torch 2.15.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, fields
from typing import NoReturn

from profiler.errors import UsageError
from profiler.units import MIB

MIN_LARGE_BYTES = 10 * MIB
"""Smallest request that gets a segment of its own (kMinLargeAlloc)."""

LARGE_SEGMENT_BYTES = 20 * MIB
"""Default segment of requests between 1 and 10 MiB (kLargeBuffer, later large_segment_size_)."""

ROUNDUP_INTERVALS = 16
"""Powers of two from 1 MiB on that have a rounding of their own (kRoundUpPowerOfTwoIntervals)."""

DEFAULT_CONFIGURATION = "expandable_segments:True"
"""Options to plan for and to train under if the environment sets none. Segments of fixed size keep
free memory that fits no request: ResNet-18 with 128 images, every other unit recomputed, reserves
2.9 GiB for a peak of 1.7 GiB; with expandable segments it reserves 2.2 GiB (studies/hollow_gpu)."""

_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorSettings:
    """Options of the caching allocator.

    Args:
        expandable_segments: whether each pool has one segment that grows.
        large_segment_size_bytes: segment size of requests between 1 and 10 MiB.
        max_split_size_bytes: size from which blocks are never split; None for no bound.
        max_non_split_rounding_bytes: largest excess of a block over an oversize request that it
            serves; None for `large_segment_size_bytes` (AllocatorConfig.cpp, `parseArgs`).
        roundup_power2_divisions: for sizes from 2^i MiB on, the number of parts into which the
            interval up to the next power of two is divided; 16 entries, 0 or 1 for none.
        garbage_collection_threshold: share of the cap above which old blocks are given back before
            memory is fetched; 0 for never.
        per_process_memory_fraction: share of the device's memory that the process may use. The
            caller passes it on as the allocator's `limit_bytes`.

    Raises:
        UsageError: a value is out of the range that PyTorch accepts.
    """

    expandable_segments: bool = False
    large_segment_size_bytes: int = LARGE_SEGMENT_BYTES
    max_split_size_bytes: int | None = None
    max_non_split_rounding_bytes: int | None = None
    roundup_power2_divisions: tuple[int, ...] = (0,) * ROUNDUP_INTERVALS
    garbage_collection_threshold: float = 0.0
    per_process_memory_fraction: float = 1.0

    def __post_init__(self) -> None:
        if self.large_segment_size_bytes <= MIN_LARGE_BYTES:
            _refuse("large_segment_size_mb", self.large_segment_size_bytes, "more than 10 MiB")
        for name in ("max_split_size_bytes", "max_non_split_rounding_bytes"):
            size: int | None = getattr(self, name)
            if size is not None and size < self.large_segment_size_bytes:
                _refuse(name.replace("_bytes", "_mb"), size, "at least the large segment size")
        divisions = self.roundup_power2_divisions
        if len(divisions) != ROUNDUP_INTERVALS or any(d < 0 or d & (d - 1) for d in divisions):
            _refuse("roundup_power2_divisions", divisions, "16 powers of two (or 0)")
        if not 0 <= self.garbage_collection_threshold < 1:
            _refuse("garbage_collection_threshold", self.garbage_collection_threshold, "in (0, 1)")
        if not 0 < self.per_process_memory_fraction <= 1:
            _refuse("per_process_memory_fraction", self.per_process_memory_fraction, "in (0, 1]")

    @classmethod
    def parse(cls, text: str) -> AllocatorSettings:
        """Read a ``PYTORCH_CUDA_ALLOC_CONF`` string (AllocatorConfig.cpp, `parseArgs`).

        Options that do not change device memory (pinned memory, locks) are accepted and dropped.

        Raises:
            UsageError: an unknown option, a value out of range, or the cudaMallocAsync backend.
        """
        found: dict[str, object] = {}
        for name, value in _options(text):
            if name in _MEBIBYTE_OPTIONS:
                found[_MEBIBYTE_OPTIONS[name]] = _whole_number(name, value) * MIB
            elif name in ("garbage_collection_threshold", "per_process_memory_fraction"):
                found[name] = _share(name, value)
            elif name == "expandable_segments":
                if value not in ("True", "False"):
                    _refuse(name, value, "True or False")
                found[name] = value == "True"
            elif name == "roundup_power2_divisions":
                found[name] = _parse_divisions(value)
            elif name == "backend" and value == "native":
                continue
            elif not _WITHOUT_EFFECT.match(name):
                _refuse(name, value, f"one of {', '.join(_known_options())}, or backend:native")
        return cls(**found)  # type: ignore[arg-type]


def configuration() -> str:
    """Return the allocator's options: the environment's, else ``DEFAULT_CONFIGURATION``."""
    given = (os.environ.get(name) for name in _VARIABLES)
    return next((text for text in given if text), DEFAULT_CONFIGURATION)


def configure(environment: MutableMapping[str, str]) -> None:
    """Set the default options in an environment that has none.

    PyTorch reads them when it first uses CUDA, so this must happen before.
    """
    if not any(environment.get(name) for name in _VARIABLES):
        environment[_VARIABLES[-1]] = DEFAULT_CONFIGURATION


_MEBIBYTE_OPTIONS = {
    "large_segment_size_mb": "large_segment_size_bytes",
    "max_split_size_mb": "max_split_size_bytes",
    "max_non_split_rounding_mb": "max_non_split_rounding_bytes",
}

_WITHOUT_EFFECT = re.compile(
    "pinned_|release_lock_on_|graph_capture_|throw_on_cudamalloc_oom|expandable_segments_reserve"
)


def _known_options() -> list[str]:
    return sorted([*_MEBIBYTE_OPTIONS, *(
        field.name for field in fields(AllocatorSettings) if not field.name.endswith("_bytes")
    )])  # fmt: skip


def _refuse(name: str, got: object, wanted: str) -> NoReturn:
    raise UsageError(f"allocator option {name} must be {wanted}, got {got!r}")


def _options(text: str) -> Iterator[tuple[str, str]]:
    """Split ``a:1,b:[2:3,>:4]`` into names and values; a list keeps its brackets."""
    rest = re.sub(r"\s", "", text)
    while rest:
        match = re.match(r"([^:,\[\]]+):(\[[^\]]*\]|[^,\[\]]+)(?:,|$)", rest)
        if match is None:
            raise UsageError(f"allocator options must look like name:value,..., got {text!r}")
        yield match.group(1), match.group(2)
        rest = rest[match.end() :]


def _whole_number(name: str, value: str) -> int:
    if not value.isdigit():
        _refuse(name, value, "a whole number")
    return int(value)


def _share(name: str, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        _refuse(name, value, "a number between 0 and 1")
    return share


def _parse_divisions(value: str) -> tuple[int, ...]:
    """Read ``4`` or ``[64:8,256:4,>:1]`` (AllocatorConfig.cpp, `parseRoundUpPower2Divisions`).

    Bounds are in MiB. Sizes below the first bound are divided as those at the bound; ``>`` stands
    for all sizes above the last bound.
    """
    name = "roundup_power2_divisions"
    if not value.startswith("["):
        if value == "0":
            _refuse(name, value, "a power of two")
        return (_whole_number(name, value),) * ROUNDUP_INTERVALS
    divisions = [0] * ROUNDUP_INTERVALS
    last = -1
    for entry in value[1:-1].split(","):
        boundary, _, count_text = entry.partition(":")
        count = _whole_number(name, count_text)
        if boundary == ">":
            divisions[last + 1 :] = [count] * (ROUNDUP_INTERVALS - last - 1)
            continue
        bound = _whole_number(name, boundary)
        if bound < 1 or bound & (bound - 1):
            _refuse(name, entry, "a list whose bounds are powers of two")
        index = min(bound.bit_length() - 1, ROUNDUP_INTERVALS - 1)
        if last < 0:
            divisions[:index] = [count] * index
        divisions[index] = count
        last = index
    return tuple(divisions)
