"""Parse and print bytes, seconds and joules. All other modules use bytes and SI units only.

GB = 10^9 bytes, GiB = 2^30 bytes, as in ISO/IEC 80000-13.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NewType

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

LiveBytes = NewType("LiveBytes", int)
"""Sum of the live tensors, as ``torch.cuda.max_memory_allocated()`` reports it at the peak."""

DeviceBytes = NewType("DeviceBytes", int)
"""Device memory in use: reserved bytes plus the CUDA context. A budget is compared with it."""

_FACTORS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": KIB, "mib": MIB, "gib": GIB, "tib": 1 << 40,
}  # fmt: skip
SMALLEST_PLAIN_NUMBER = MIB
"""A number without a unit below this was not meant as bytes: no budget is that small."""
SMALLEST_MEGABYTES = 200
"""A number without a unit from here on was meant in MB, a smaller one in GB."""

_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Z]*)\s*$")


def parse_bytes(text: str) -> int:
    """Read a size such as ``2GB``, ``2GiB``, ``2048 MiB`` or a plain number of bytes.

    Raises:
        ValueError: the text is not a positive size.
    """
    match = _SIZE.match(text)
    factor = _FACTORS.get(match.group(2).lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not a size; write it as 2GB, 2GiB or 2048MiB")
    size = int(float(match.group(1)) * factor)
    if size <= 0:
        raise ValueError(f"{text!r} is not a positive size; write it as 2GB, 2GiB or 2048MiB")
    if not match.group(2) and size < SMALLEST_PLAIN_NUMBER:
        number = match.group(1)
        unit = "GB" if size < SMALLEST_MEGABYTES else "MB"
        raise ValueError(f"{number} would be {number} bytes; did you mean {number}{unit}?")
    return size


def format_bytes(size: float | None) -> str:
    """Print bytes in binary units with four significant digits; ``-`` when unknown."""
    if size is None:
        return "-"
    magnitude = abs(size)
    for factor, unit in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        # 0.9995: a size that would print as 1000 or more of a unit is printed in the next unit
        if magnitude >= factor * 0.9995:
            value = size / factor
            digits = max(0, 3 - int(math.log10(abs(value)) if abs(value) >= 1 else 0))
            return f"{value:.{min(digits, 2)}f} {unit}"
    return f"{size:.0f} B"


def format_seconds(seconds: float | None) -> str:
    """Print a duration: microseconds to hours; ``-`` when unknown."""
    if seconds is None:
        return "-"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_joules(joules: float | None) -> str:
    """Print an energy; ``-`` when unknown."""
    if joules is None:
        return "-"
    for factor, unit in ((1e6, "MJ"), (1e3, "kJ")):
        if joules >= factor:
            return f"{joules / factor:.3g} {unit}"
    return f"{joules:.3g} J"


def format_count(count: float | None) -> str:
    """Print a count (parameters, FLOPs) with an SI suffix; ``-`` when unknown."""
    if count is None:
        return "-"
    for factor, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.3g} {suffix}"
    return f"{count:.0f}"


def unit_as_asked(size: int) -> str:
    """Return the unit in which a person gave a size: ``GiB`` for 2GiB, ``GB`` for 2GB.

    A multiple of a MiB that is no multiple of a MB was given in binary units. Sizes below one GB
    are in ``MB`` or ``MiB``.
    """
    is_binary = size % MIB == 0 and size % 10**6 != 0
    if is_binary:
        return "GiB" if size >= GIB else "MiB"
    return "GB" if size >= 10**9 else "MB"


def format_bytes_as(size: float | None, asked: int | None) -> str:
    """Print bytes in the unit in which a person gave another size, such as the budget.

    Args:
        size: bytes; ``-`` is printed when unknown.
        asked: the other size (bytes); without it, ``size`` is printed in binary units.
    """
    if size is None or asked is None or size < 10**6:
        return format_bytes(size)
    return format_bytes_in(size, unit_as_asked(asked))


def format_asked(size: int) -> str:
    """Print a size that a person gave, such as the budget, in its own unit."""
    return format_bytes_as(size, size)


def enough_bytes_as(size: float, asked: int) -> str:
    """Print bytes like ``format_bytes_as``, rounded up, so that the printed size is enough."""
    unit = unit_as_asked(asked)
    step = _FACTORS[unit.lower()] / (100 if unit in ("GB", "GiB") else 1)
    return format_bytes_in(math.ceil(size / step) * step, unit)


def format_bytes_in(size: float, unit: str) -> str:
    """Print bytes in a given unit: two decimals of a GB or GiB, none of a MB or MiB."""
    digits = 2 if unit in ("GB", "GiB") else 0
    return f"{size / _FACTORS[unit.lower()]:.{digits}f} {unit}"


def parts_in(sizes: Sequence[float], unit: str) -> list[str]:
    """Print sizes in a given unit so that the printed numbers add up to the printed sum.

    Each is the difference of two rounded running sums, so it differs by at most one in its last
    digit from its own rounded value.
    """
    step = _FACTORS[unit.lower()] / (100 if unit in ("GB", "GiB") else 1)
    sums = [0, *(round(total / step) for total in accumulate(sizes))]
    return [format_bytes_in((after - before) * step, unit) for before, after in pairwise(sums)]
