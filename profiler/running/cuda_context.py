"""The CUDA context of this process: the bytes of a budget that PyTorch's allocator does not hold.

assumed_context   the context that predictions count for a GPU
read_context      the context of this process, without the memory of other processes
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from profiler.devices.nvml import Gpu, NvmlGpu
from profiler.devices.table import ASSUMED_CONTEXT, CudaContext, cuda_context
from profiler.errors import DeviceError
from profiler.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextReading:
    """The context of this process.

    Attributes:
        nbytes: its bytes.
        note: sentence on the device bytes that include it.
    """

    nbytes: int
    note: str


def assumed_context(gpu: Gpu | DeviceError) -> CudaContext:
    """Return the context that predictions count for a GPU of this machine.

    Args:
        gpu: the GPU, or the error of opening it.
    """
    if isinstance(gpu, DeviceError):
        return ASSUMED_CONTEXT
    try:
        return cuda_context(gpu.spec)
    except DeviceError:  # neither NVML nor PyTorch describes it
        return ASSUMED_CONTEXT


def read_context(gpu: Gpu | DeviceError) -> ContextReading:
    """Read the context of this process, which has used the GPU.

    The driver reports the memory of a process on some systems only: not on Windows, and not in a
    container, where processes have other numbers. Elsewhere the assumed context counts, but at most
    the bytes in use on the whole device, of which other processes can hold any part.

    Args:
        gpu: the GPU, or the error of opening it.
    """
    import torch

    reserved = torch.cuda.memory_reserved()
    own = gpu.process_bytes(os.getpid()) if isinstance(gpu, NvmlGpu) else None
    if own is not None and own >= reserved:
        return ContextReading(
            nbytes=own - reserved,
            note="device bytes: reserved plus this process's CUDA context, read by NVML",
        )
    free, total = torch.cuda.mem_get_info()
    nbytes = min(assumed_context(gpu).nbytes, max(0, total - free - reserved))
    return ContextReading(
        nbytes=nbytes,
        note=f"device bytes: reserved plus {format_bytes(nbytes)} for this process's CUDA context, "
        "assumed because the driver does not report it",
    )
