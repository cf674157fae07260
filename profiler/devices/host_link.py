"""The link between a host and its GPU: bandwidth, copies, page-locked memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

from profiler.errors import InputError
from profiler.json_records import shortened

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


LANES = ("1", "2", "4", "8", "16")
"""Numbers of lanes of a link."""


def link_bytes_per_second(link: str) -> float:
    """Return the bandwidth of copies from and to page-locked memory, each way.

    Args:
        link: PCI Express generation and lanes, such as ``PCIe 4.0 x16``.

    Raises:
        InputError: the text does not have this form.
    """
    generation, _, lanes = link.removeprefix("PCIe ").partition(" x")
    known = generation in LANE_BYTES_PER_SECOND and lanes in LANES
    if not (known and link.startswith("PCIe ")):
        generations = ", ".join(LANE_BYTES_PER_SECOND)
        raise InputError(
            f"host_link must be like 'PCIe 4.0 x16', of generation {generations} and "
            f"{', '.join(LANES)} lanes, got {shortened(link)}"
        )
    return LINK_SHARE * LANE_BYTES_PER_SECOND[generation] * int(lanes)


class HostWork(StrEnum):
    """Copies between host and device, and work of the host on its own memory.

    In event logs, the kind and the kernel of its operation.
    """

    TO_HOST = "to_host"
    TO_DEVICE = "to_device"
    UPDATE = "update_on_host"


HOST_WORK_LAUNCHES = 2
"""Launches that a copy, or an operation of the update on the host, counts as: memory is taken for
it, and the host waits for all of them together."""

HOST_WORK_SECONDS = 5e-6
"""Least seconds of such a launch, however small the copy: an assumption, the host's time for a
kernel (``profiler.timing.roofline.LAUNCH_SECONDS``)."""

HOST_UPDATE_BYTES_PER_SECOND = 25e9
"""Bytes of weights, gradients and moments that the host updates in a second. This is an assumption:
half the peak bandwidth of DDR4-3200 in two channels (51.2 GB/s)."""


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
