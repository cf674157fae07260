"""The GPU as PyTorch sees it: its name, memory and compute capability, without NVML.

NVML does not answer for every GPU: a driver without its library (Jetson, some containers), a GPU
with unified memory (GB10), a MIG slice, a process without permission. PyTorch then still knows what
CUDA reports. It is asked in a process of its own, because the query creates a CUDA context, which
would take memory of the GPU in this process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from profiler.errors import BudgetplanError
from profiler.json_records import ByteCount, Name, read_record

TIMEOUT_SECONDS = 120
"""Time for PyTorch's import and the first call of the driver."""

_DEVICE_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/nvhost-gpu", "/dev/nvmap")
"""Files that the drivers for Linux, WSL and Jetson make."""

_QUERY = """
import json, sys, torch
found = torch.cuda.get_device_properties(int(sys.argv[1]))
print(json.dumps({"name": found.name, "memory_bytes": found.total_memory,
                  "major": found.major, "minor": found.minor}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaProperties:
    """Properties of a GPU, or of a MIG slice, as PyTorch reports them.

    Attributes:
        name: product name.
        memory_bytes: bytes of memory that a process can use.
        major: major number of the compute capability.
        minor: minor number of the compute capability.
    """

    name: Name
    memory_bytes: ByteCount
    major: Annotated[int, Meta(ge=1, le=1000)]
    minor: Annotated[int, Meta(ge=0, le=1000)]


def has_device_file() -> bool:
    """Return whether a GPU's driver is loaded, so that PyTorch is worth the seconds it takes."""
    return any(Path(file).exists() for file in _DEVICE_FILES)


@lru_cache(maxsize=8)
def cuda_properties(cuda_index: int) -> CudaProperties | None:
    """Return the properties of the GPU with a CUDA index; None if PyTorch cannot use it."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _QUERY, str(cuda_index)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        return read_record(CudaProperties, found, part="PyTorch's properties of the GPU")
    except (OSError, subprocess.SubprocessError, ValueError, IndexError, BudgetplanError):
        return None


def has_kernels_for(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Return whether a build of PyTorch has kernels for a GPU (see ``kernel_capability``)."""
    return kernel_capability(capability, built_for) is not None


def kernel_capability(
    capability: tuple[int, int], built_for: Sequence[str]
) -> tuple[int, int] | None:
    """Return the compute capability that the kernels which a GPU runs were built for.

    Kernels of compute capability X.Y run on X.Z with Z >= Y; PTX of X.Y is compiled at run time for
    any later GPU (CUDA C++ Programming Guide, "Binary Compatibility" and "PTX Compatibility").

    Args:
        capability: compute capability of the GPU.
        built_for: architectures of the build, such as ``sm_86`` and ``compute_90``.

    Returns:
        The highest of the binaries that run on the GPU, or else of the PTX; None without both.
    """
    binary: list[tuple[int, int]] = []
    ptx: list[tuple[int, int]] = []
    for each in built_for:
        kind, _, digits = each.partition("_")
        digits = digits.rstrip("af")
        if not digits.isdigit():
            continue
        built = int(digits[:-1]), int(digits[-1])
        if kind == "compute" and built <= capability:
            ptx.append(built)
        if kind == "sm" and built[0] == capability[0] and built[1] <= capability[1]:
            binary.append(built)
    return max(binary or ptx, default=None)
