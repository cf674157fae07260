"""Hard caps on the memory of this process, and the errors that an exceeded cap raises.

On CUDA the cap is the caching allocator's own (``set_per_process_memory_fraction``). On a CPU it is
the kernel's ``RLIMIT_DATA``, which limits private writable memory. Both are set by the code that
runs under them, after it has made what shall not count (imports, decoded images).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from profiler.device_rules.caching_allocator import configuration, configure
from profiler.errors import DeviceError
from profiler.units import KIB, MIB

_CGROUP = Path("/sys/fs/cgroup")

_HEADROOM_BYTES = 256 * MIB
"""Added to a cap on host memory for thread stacks, malloc arenas and the scratch space of
libraries, which belong to no tensor."""

_RETURNED_BYTES, _KEPT_BYTES = 128 * KIB, 32 * MIB
"""Size from which a freed block goes back to the kernel: under a cap, and otherwise (the largest
that all versions of glibc take)."""

_NEVER_TRIMMED = 2**31 - 1
"""Free bytes at the end of the heap that are kept: the largest number that mallopt takes."""


def available_host_bytes() -> int:
    """Return the host memory that new processes can use: the kernel's estimate, or 0.

    Inside a container it is at most what the container's limit leaves (cgroup v2).
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        available = int(fields["MemAvailable"].split()[0]) * KIB
    except (OSError, KeyError, ValueError):
        return 0
    try:
        limit, used = (
            int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current")
        )
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return available
    return min(available, max(0, limit - used))


def use_planned_configuration() -> None:
    """Run PyTorch's CUDA allocator under the options that were planned for, in this process.

    If the process has used CUDA before, PyTorch has read its options already. They are then changed
    at run time; segments that exist keep their kind.
    """
    import torch

    configure(os.environ)
    # The planned workspaces are those of cuDNN's own choice; its benchmark tries larger ones.
    torch.backends.cudnn.benchmark = False
    if not has_c_compiler():
        avoid_compiled_kernels()
    if torch.cuda.is_initialized():
        torch.cuda.memory._set_allocator_settings(configuration())


def has_c_compiler() -> bool:
    """Return whether Triton finds a C compiler, which it needs for the start of a kernel."""
    named = os.environ.get("CC")
    return any(shutil.which(name) for name in (named, "gcc", "clang") if name)


def avoid_compiled_kernels() -> None:
    """Let PyTorch run its built-in kernels only.

    PyTorch 2.14 replaces some, such as a batched product of inner size 1, by Triton kernels that it
    compiles when they are first called. Without a C compiler that call fails.
    """
    try:
        python_native: Any = import_module("torch.backends.python_native")
    except ImportError:  # older versions of PyTorch have no such kernels
        return
    if "triton" in python_native.available_dsls:
        python_native.triton.enabled = False


def cap_cuda_memory(cap_bytes: int) -> None:
    """Cap the memory that PyTorch's CUDA allocator may reserve in this process."""
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap_bytes / total))


def cap_at_budget(budget_bytes: int) -> None:
    """Cap the memory that PyTorch's CUDA allocator may reserve, at a budget less the context.

    Args:
        budget_bytes: device bytes, the context included.
    """
    from profiler.devices.nvml import Gpu, open_gpu
    from profiler.running.cuda_context import assumed_context

    try:
        gpu: Gpu | DeviceError = open_gpu()
    except DeviceError as error:
        gpu = error
    cap_cuda_memory(max(MIB, budget_bytes - assumed_context(gpu).nbytes))


def cap_host_memory(cap_bytes: int) -> None:
    """Cap the memory that this process may allocate from now on.

    The limit is the present size of the process's data plus ``cap_bytes`` plus 256 MiB of headroom.
    Outside Linux there is no cap.
    """
    if sys.platform != "linux":
        return
    import resource

    _return_freed_memory()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + cap_bytes + _HEADROOM_BYTES, hard))


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for its next step.

    glibc gives blocks and the end of the heap back to the kernel. A step of a training takes them
    again, and each page costs a fault: MobileNetV3-L at batch 16 took 1.3 times as long as with
    memory that is kept, at the same peak, and ViT-S 1.02 times.
    """
    _set_thresholds(mapped_bytes=_KEPT_BYTES, trimmed_bytes=_NEVER_TRIMMED)


def _return_freed_memory() -> None:
    """Let this process return the memory that it frees at once, so that a cap counts live blocks.

    Blocks in the heap leave holes, which count against the cap: ViT-S at batch 16 took 2.4 GiB for
    a peak of 1.0 GiB, and 1.3 GiB when blocks from 128 KiB on are returned.
    """
    _set_thresholds(mapped_bytes=_RETURNED_BYTES, trimmed_bytes=_RETURNED_BYTES)


def _set_thresholds(*, mapped_bytes: int, trimmed_bytes: int) -> None:
    """Set glibc's thresholds (mallopt(3)); other C libraries have none.

    Args:
        mapped_bytes: size from which a block is taken from the kernel and returned when freed.
        trimmed_bytes: free bytes at the end of the heap from which it is cut.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, mapped_bytes)
        libc.mallopt(m_trim_threshold, trimmed_bytes)
        libc.malloc_trim(0)  # blocks of any size are taken from free ones of the heap


@contextmanager
def timed_without_cap() -> Iterator[None]:
    """Lift the cap on host memory, if one is set, so that a step takes as long as in a training.

    Memory is read before, under the cap.
    """
    if not _has_host_cap():
        yield
        return
    set_again = lift_host_cap()
    keep_freed_memory()
    try:
        yield
    finally:
        _return_freed_memory()
        set_again()


def _has_host_cap() -> bool:
    if sys.platform != "linux":
        return False
    import resource

    return resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY


def lift_host_cap() -> Callable[[], None]:
    """Lift the cap on host memory, if one is set.

    Returns:
        A function that sets it again, raised by the memory that was allocated in between and is
        still held.
    """
    if sys.platform != "linux":
        return lambda: None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft == resource.RLIM_INFINITY:
        return lambda: None
    before = _data_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))

    def set_again() -> None:
        raised = soft + max(0, _data_bytes() - before)
        resource.setrlimit(resource.RLIMIT_DATA, (raised, hard))

    return set_again


def _data_bytes() -> int:
    """Return the bytes that count against ``RLIMIT_DATA`` (VmData, proc_pid_status(5))."""
    with open("/proc/self/status", encoding="ascii") as status:
        kibibytes = next(line.split()[1] for line in status if line.startswith("VmData:"))
    return int(kibibytes) * 1024


_REFUSALS = (
    "can't allocate memory",
    "out of memory",
    "bad_alloc",
    "could not create a primitive",  # oneDNN, when memory for a kernel or its scratch is refused
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception reports that an allocator refused a request."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return any(refusal in text for refusal in _REFUSALS)
