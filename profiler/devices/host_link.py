"""The link between a host and its GPU: bandwidth, copies, page-locked memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated

import msgspec

HostLink = Annotated[str, msgspec.Meta(pattern=r"^PCIe [1-5]\.0 x(1|2|4|8|16)$")]
"""PCI Express generation and number of lanes."""

LANE_BYTES_PER_SECOND = {
    "1.0": 0.25e9,
    "2.0": 0.5e9,
    "3.0": 8e9 * 128 / 130 / 8,
    "4.0": 16e9 * 128 / 130 / 8,
    "5.0": 32e9 * 128 / 130 / 8,
}
"""Bytes per second of a lane, each way, by generation: transfers per second x the line code."""

LINK_SHARE = 0.8
"""Share of a link's bandwidth that copies from and to page-locked memory reach. Reported: 0.77 and
0.82 (P100, https://github.com/mpicbg-scicomp/gearshifft/pull/82), 0.83 (RTX 2080 Ti,
https://github.com/usadellab/Helixer/issues/22), 0.76 and 0.84 (RTX 4090,
https://github.com/NVlabs/cuda-oxide/pull/976)."""


def link_bytes_per_second(link: HostLink) -> float:
    """Return the bandwidth of copies from and to page-locked memory, each way."""
    generation, lanes = link.removeprefix("PCIe ").split(" x")
    return LINK_SHARE * LANE_BYTES_PER_SECOND[generation] * int(lanes)


class HostWork(StrEnum):
    """Copies between host and device, and work of the host on its own memory.

    In event logs, the kind and the kernel of its operation.
    """

    TO_HOST = "to_host"
    TO_DEVICE = "to_device"
    UPDATE = "update_on_host"


HOST_UPDATE_BYTES_PER_SECOND = 25e9
"""Bytes of weights, gradients and moments that the host updates in a second. This is an assumption:
PyTorch's fused AdamW reached 26 to 33 GB/s on one and two busy cores of an AMD EPYC."""


def page_locked_bytes(copies: Iterable[float]) -> int:
    """Return the host memory of copies that PyTorch keeps in page-locked memory.

    Its allocator rounds each up to a power of two (``CachingHostAllocatorImpl::allocate``,
    ATen/core/CachingHostAllocator.h).

    Args:
        copies: bytes of each copy.
    """
    return sum(1 << (round(size) - 1).bit_length() for size in copies if round(size) > 0)


def host_state_bytes(gradients: Sequence[float]) -> int:
    """Return the host memory of ``profiler.checkpointing.host_optimizer``.

    Each gradient and each change of a weight is in page-locked memory, the two moments are not.

    Args:
        gradients: bytes of each gradient.
    """
    return 2 * page_locked_bytes(gradients) + 2 * round(sum(gradients))
