"""The environment of a process in which PyTorch finds an emulated GPU."""

from __future__ import annotations

import os
from collections.abc import Mapping

from profiler.devices.cuda_properties import kernel_capability
from profiler.devices.table import DeviceSpec, multiprocessors
from profiler.errors import UsageError
from profiler.running.emulated.libraries import emulated_libraries

_NAME = "EMULATED_NAME"


def is_emulated() -> bool:
    """Return whether the GPU of this process is emulated."""
    return _NAME in os.environ


def emulated_environment(
    device: DeviceSpec, *, memory_bytes: int | None = None
) -> Mapping[str, str]:
    """Return the variables that a process needs to run on an emulated GPU.

    Args:
        device: GPU whose compute capability and multiprocessors are emulated.
        memory_bytes: bytes of its memory; None for those of the device.

    Raises:
        DeviceError: no GPU can be emulated here.
        UsageError: the device is no GPU.
    """
    if not device.is_cuda or device.compute_capability is None:
        raise UsageError(f"only a GPU can be emulated, got {device.name}")
    import torch

    libraries = emulated_libraries()
    on = multiprocessors(device)
    major, minor = device.compute_capability
    kernels = kernel_capability((major, minor), torch.cuda.get_arch_list()) or (major, minor)
    folder = str(libraries[0].parent)
    preloaded = [*map(str, libraries), *filter(None, [os.environ.get("LD_PRELOAD")])]
    search = [folder, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    # the driver's name, so that this program finds the device in its table as on the GPU itself
    name = f"NVIDIA {device.nvml_names[0]}" if device.nvml_names else device.full_name
    return {
        "LD_PRELOAD": ":".join(preloaded),
        "LD_LIBRARY_PATH": ":".join(search),
        _NAME: name,
        "EMULATED_CAPABILITY": f"{major}.{minor}",
        # CUB chooses its tuning by the version that a kernel was built for, and knows no other
        "EMULATED_KERNELS": f"{10 * kernels[0] + kernels[1]}",
        "EMULATED_SMS": str(on.count),
        "EMULATED_THREADS": str(on.threads),
        "EMULATED_MEMORY_BYTES": str(memory_bytes or device.memory_bytes or 80 << 30),
    }
