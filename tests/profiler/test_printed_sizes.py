"""Sizes as they are printed for people, in the unit of the budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from profiler.units import (
    GIB,
    MIB,
    enough_bytes_as,
    format_bytes_as,
    format_bytes_in,
    parse_bytes,
    parts_in,
    unit_as_asked,
)

STEPS = {"GB": 10**7, "GiB": GIB / 100, "MB": 10**6, "MiB": MIB}


def test_a_size_is_printed_in_the_unit_of_the_budget() -> None:
    assert format_bytes_as(1.2 * 10**9, 2 * 10**9) == "1.20 GB"
    assert format_bytes_as(1.2 * GIB, 2 * GIB) == "1.20 GiB"
    assert format_bytes_as(300 * 10**6, 500 * 10**6) == "300 MB"
    assert format_bytes_as(8, 8) == "8 B"


@given(st.integers(10**6, 10**12), st.integers(10**6, 10**12))
def test_a_size_that_is_printed_as_enough_is_enough(size: int, asked: int) -> None:
    text, unit = enough_bytes_as(size, asked), unit_as_asked(asked)
    printed = parse_bytes(text.replace(" ", ""))
    assert text.endswith(unit)
    # parse_bytes drops a fraction of a byte
    assert size - 1 <= printed < size + STEPS[unit] + 1


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=6), st.sampled_from([*STEPS]))
def test_printed_parts_add_up_to_the_printed_sum(sizes: list[int], unit: str) -> None:
    def number(text: str) -> float:
        return float(text.split(maxsplit=1)[0])

    parts = [number(part) for part in parts_in(sizes, unit)]
    assert abs(sum(parts) - number(format_bytes_in(sum(sizes), unit))) < 1e-6
    digit = 0.01 if unit in ("GB", "GiB") else 1
    for part, size in zip(parts, sizes, strict=True):
        assert abs(part - number(format_bytes_in(size, unit))) < 1.001 * digit
