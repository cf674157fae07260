"""The devices one can plan for, each number with its source.

Pieces: `DeviceSpec` (one row), `lookup` and `device_names` (by name), `match_nvml` (by what the
driver calls it), and the bytes a CUDA process holds besides its tensors: `context_bytes`,
`workspaces_of`.

Conventions. Throughputs are peaks at the boost clock, dense (where a data sheet prints them "with
sparsity" they are halved here). Tensor throughputs are those that accumulate in FP32, which is what
training uses; GeForce cards do that at half the rate of FP16 accumulation, data-centre cards at the
full rate. ``memory_bytes`` is the nominal size in GiB; the driver keeps a little of it.
What no source gives is None.

Where a number is derived, the row says so: FP32 = SMs x FP32 lanes x 2 x boost clock, with 64 lanes
an SM on Turing, Volta and GA100, 128 on GA10x, Ada and Hopper (NVIDIA architecture white papers).
Tensor numbers of GA10x and Ada GeForce cards that NVIDIA did not print follow the ratios of the
printed ones (GA102 white paper, RTX 3090; Ada white paper, RTX 4090): FP16 and BF16 at twice FP32,
TF32 equal to it. Compute capabilities: https://developer.nvidia.com/cuda-gpus and
https://developer.nvidia.com/cuda-legacy-gpus.

NVIDIA's PDFs were not all at hand; then the row names the page its numbers were read at as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from types import MappingProxyType

from profiler.errors import DeviceError, UnknownNameError
from profiler.records import DeviceLabel
from profiler.units import GIB, KIB, MIB

Capability = tuple[int, int]
"""Compute capability: (major, minor)."""

_GB_PER_SECOND = 1e9

_TFLOPS = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """What is published of a device.

    Attributes:
        name: what `--device` calls it.
        full_name: what its maker calls it.
        architecture: volta, turing, ampere, ada, hopper; None for a CPU.
        compute_capability: (major, minor); None for a CPU.
        memory_bytes: nominal size of its memory.
        memory_bandwidth_bytes_per_second: peak.
        fp32_flops: peak of the ordinary units, a fused multiply-add counted as two.
        fp16_tensor_flops: peak of the tensor cores, dense, accumulating in FP32; None without them.
        bf16_tensor_flops: likewise; None where the hardware has no bfloat16 (before Ampere).
        tf32_tensor_flops: likewise for TF32.
        tdp_watts: board power.
        idle_watts: board power of an idle card, as somebody measured it.
        sm_count: streaming multiprocessors.
        nvml_names: what `nvmlDeviceGetName` calls it, without the leading ``NVIDIA``.
        source: documents and pages, and what was derived.
    """

    name: str
    full_name: str
    architecture: str | None
    compute_capability: Capability | None
    memory_bytes: int | None
    memory_bandwidth_bytes_per_second: float | None
    fp32_flops: float | None
    fp16_tensor_flops: float | None
    bf16_tensor_flops: float | None
    tf32_tensor_flops: float | None
    tdp_watts: float | None
    idle_watts: float | None
    sm_count: int | None
    nvml_names: tuple[str, ...]
    source: str

    @property
    def is_cuda(self) -> bool:
        """Whether it is an NVIDIA GPU."""
        return self.compute_capability is not None


CPU = DeviceSpec(
    name="cpu",
    full_name="the processor of this machine",
    architecture=None,
    compute_capability=None,
    memory_bytes=None,
    memory_bandwidth_bytes_per_second=None,
    fp32_flops=None,
    fp16_tensor_flops=None,
    bf16_tensor_flops=None,
    tf32_tensor_flops=None,
    tdp_watts=None,
    idle_watts=None,
    sm_count=None,
    nvml_names=(),
    source="not a device of the table: its speed is measured, its power is not known",
)


def _gpu(
    name: str,
    full_name: str,
    architecture: str,
    compute_capability: Capability,
    *,
    memory_gib: int,
    bandwidth_gb: float,
    fp32: float,
    fp16: float | None,
    bf16: float | None = None,
    tf32: float | None = None,
    tdp: float,
    idle: float | None = None,
    sms: int,
    nvml: tuple[str, ...],
    source: str,
) -> DeviceSpec:
    """One row, in the units of a data sheet: GiB, GB/s, TFLOPS, W."""

    def flops(value: float | None) -> float | None:
        return None if value is None else value * _TFLOPS

    return DeviceSpec(
        name=name,
        full_name=full_name,
        architecture=architecture,
        compute_capability=compute_capability,
        memory_bytes=memory_gib * GIB,
        memory_bandwidth_bytes_per_second=bandwidth_gb * _GB_PER_SECOND,
        fp32_flops=flops(fp32),
        fp16_tensor_flops=flops(fp16),
        bf16_tensor_flops=flops(bf16),
        tf32_tensor_flops=flops(tf32),
        tdp_watts=tdp,
        idle_watts=idle,
        sm_count=sms,
        nvml_names=nvml,
        source=source,
    )


_TURING_PAPER = "NVIDIA Turing GPU Architecture white paper (WP-09183-001)"

_GA102_PAPER = (
    "NVIDIA Ampere GA102 GPU Architecture white paper V2.0, appendix A"
    " (https://docslib.org/doc/759549/nvidia-ampere-ga102-gpu-architecture-whitepaper)"
)

_ADA_PAPER = (
    "NVIDIA Ada GPU Architecture white paper V2.01 (https://www.scribd.com/document/656196379/004)"
)

_A100_SHEET = (
    "NVIDIA A100 data sheet (https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/"
    "pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf), SXM, dense; read at"
    " https://glennklockwood.com/garden/processors/A100"
)

_ROWS = (
    _gpu(
        "gtx-1650", "NVIDIA GeForce GTX 1650 (GDDR5)", "turing", (7, 5),
        memory_gib=4, bandwidth_gb=128, fp32=2.984, fp16=None, tdp=75, sms=14,
        nvml=("GeForce GTX 1650",),
        source="TU117, 896 lanes at 1665 MHz, no tensor cores: "
        "https://www.notebookcheck.it/NVIDIA-GeForce-GTX-1650-Desktop.449959.0.html and "
        "https://cputronic.com/gpu/nvidia-geforce-gtx-1650",
    ),
    _gpu(
        "rtx-2060", "NVIDIA GeForce RTX 2060 (6 GB)", "turing", (7, 5),
        memory_gib=6, bandwidth_gb=336, fp32=6.45, fp16=25.8, tdp=160, idle=10.4, sms=30,
        nvml=("GeForce RTX 2060",),
        source=f"{_TURING_PAPER}; 51.6 TFLOPS with FP16 accumulation, half of it with FP32, at"
        " 1680 MHz: https://kitguru.net/?p=416788; memory and TDP:"
        " https://benchmark.best/ru/GeForce_RTX_2060.html; idle power of a Founders Edition:"
        " https://www.tomshardware.com/reviews/nvidia-geforce-rtx-2060-ray-tracing-turing,5960-8.html",
    ),
    _gpu(
        "rtx-2060-super", "NVIDIA GeForce RTX 2060 SUPER", "turing", (7, 5),
        memory_gib=8, bandwidth_gb=448, fp32=7.18, fp16=28.7, tdp=175, sms=34,
        nvml=("GeForce RTX 2060 SUPER",),
        source=f"{_TURING_PAPER}; 57.4 TFLOPS with FP16 accumulation, half of it with FP32, 34 SMs"
        " at 1650 MHz, 14 Gbit/s on 256 bits: https://kitguru.net/?p=416788; TDP:"
        " https://www.hardwaredb.net/geforce-rtx-2060-super-benchmark",
    ),
    _gpu(
        "rtx-3050", "NVIDIA GeForce RTX 3050 (8 GB)", "ampere", (8, 6),
        memory_gib=8, bandwidth_gb=224, fp32=9.1, fp16=18.2, bf16=18.2, tf32=9.1, tdp=130, sms=20,
        nvml=("GeForce RTX 3050",),
        source=f"ratios of {_GA102_PAPER}; numbers, dense:"
        " https://hmc-tech.com/gpu/nvidia-geforce-rtx-4090-d-vs-nvidia-geforce-rtx-3050; memory:"
        " https://sysrqmts.com/pt/gpus/compare/nvidia-geforce-rtx-3050-8-gb-vs-nvidia-tesla-t4;"
        " 130 W: https://tezim.cz/hardware/nvidia-rtx-3050-tezba",
    ),
    _gpu(
        "rtx-3060", "NVIDIA GeForce RTX 3060 (12 GB)", "ampere", (8, 6),
        memory_gib=12, bandwidth_gb=360, fp32=12.74, fp16=25.5, bf16=25.5, tf32=12.74, tdp=170,
        sms=28, nvml=("GeForce RTX 3060",),
        source=f"28 SMs at 1777 MHz, 12.74 TFLOPS, 360 GB/s, 170 W:"
        " https://fpsbench.com/compare/gpu/nvidia-geforce-rtx-3060-8-gb-vs-nvidia-geforce-rtx-4060-mobile"
        " and https://topcpu.net/th/gpu-c/geforce-rtx-2060-tu104-vs-geforce-rtx-3060;"
        f" tensor numbers derived by the ratios of {_GA102_PAPER}",
    ),
    _gpu(
        "rtx-3090", "NVIDIA GeForce RTX 3090", "ampere", (8, 6),
        memory_gib=24, bandwidth_gb=936, fp32=35.6, fp16=71.0, bf16=71.0, tf32=35.6, tdp=350,
        sms=82, nvml=("GeForce RTX 3090",),
        source=f"{_GA102_PAPER}, dense; read at https://cuttingedgegamer.com/2022/12/ and"
        " https://ctc.archdevil.net/blog/23/674d47808ec559d480fae6d8",
    ),
    _gpu(
        "rtx-4060", "NVIDIA GeForce RTX 4060", "ada", (8, 9),
        memory_gib=8, bandwidth_gb=272, fp32=15.11, fp16=30.23, bf16=30.23, tf32=15.11, tdp=115,
        sms=24, nvml=("GeForce RTX 4060",),
        source="24 SMs at 2460 MHz, numbers dense:"
        " https://hmc-tech.com/gpu/nvidia-geforce-rtx-4060-vs-nvidia-geforce-rtx-4060; memory:"
        " https://fpsbench.com/compare/gpu/nvidia-geforce-rtx-4060-vs-nvidia-t600",
    ),
    _gpu(
        "rtx-4090", "NVIDIA GeForce RTX 4090", "ada", (8, 9),
        memory_gib=24, bandwidth_gb=1008, fp32=82.6, fp16=165.2, bf16=165.2, tf32=82.6, tdp=450,
        sms=128, nvml=("GeForce RTX 4090",),
        source=f"{_ADA_PAPER}, dense; read at https://waredb.com/processor/nvidia-geforce-rtx-4090",
    ),
    _gpu(
        "jetson-orin-nano", "NVIDIA Jetson Orin Nano (8 GB, 15 W)", "ampere", (8, 7),
        memory_gib=8, bandwidth_gb=68, fp32=1.28, fp16=10.0, bf16=10.0, tf32=5.0, tdp=15, sms=8,
        nvml=("Orin (nvgpu)",),
        source="Jetson Orin Nano data sheet: 1024 lanes, 32 tensor cores, 625 MHz, 20 TOPS of dense"
        " INT8 (https://www.scribd.com/document/673174036/"
        "Orin-nano-datasheet); derived: FP16 and BF16 at half of INT8, TF32 at a quarter, as on"
        " GA100; 68 GB/s before the Super mode:"
        " https://www.brojogopalsapui.com/ai-foundations/sub_contents/AI_hardware/jetson_orin_nano_light.html;"
        " its memory is the processor's too",
    ),
    _gpu(
        "t4", "NVIDIA T4", "turing", (7, 5),
        memory_gib=16, bandwidth_gb=320, fp32=8.1, fp16=65.0, tdp=70, sms=40,
        nvml=("Tesla T4", "T4"),
        source="NVIDIA T4 data sheet: 8.1 and 65 TFLOPS, 70 W (full rate with FP32 accumulation:"
        " https://hmc-tech.com/gpu/nvidia-t4-vs-nvidia-v100-sxm); memory:"
        " https://sysrqmts.com/en/gpus/nvidia/tesla/t4",
    ),
    _gpu(
        "v100", "NVIDIA V100 SXM2 (16 GB)", "volta", (7, 0),
        memory_gib=16, bandwidth_gb=900, fp32=15.7, fp16=125.0, tdp=300, sms=80,
        nvml=("Tesla V100-SXM2-16GB", "V100-SXM2-16GB"),
        source="NVIDIA Tesla V100 white paper (WP-08608-001), 1530 MHz:"
        " https://developer.nvidia.com/programming-tensor-cores-cuda-9-0 and"
        " https://cvw.cac.cornell.edu/gpu-architecture/gpu-example-tesla-v100/tesla",
    ),
    _gpu(
        "a100-40gb", "NVIDIA A100 SXM4 (40 GB)", "ampere", (8, 0),
        memory_gib=40, bandwidth_gb=1555, fp32=19.5, fp16=312.0, bf16=312.0, tf32=156.0, tdp=400,
        sms=108, nvml=("A100-SXM4-40GB",), source=_A100_SHEET,
    ),
    _gpu(
        "a100-80gb", "NVIDIA A100 SXM4 (80 GB)", "ampere", (8, 0),
        memory_gib=80, bandwidth_gb=2039, fp32=19.5, fp16=312.0, bf16=312.0, tf32=156.0, tdp=400,
        sms=108, nvml=("A100-SXM4-80GB",), source=_A100_SHEET,
    ),
    _gpu(
        "l4", "NVIDIA L4", "ada", (8, 9),
        memory_gib=24, bandwidth_gb=300, fp32=30.3, fp16=121.0, bf16=121.0, tf32=60.0, tdp=72,
        sms=58, nvml=("L4",),
        source="NVIDIA L4 data sheet, halved from 242 (FP16, BF16) and 120 (TF32) with sparsity:"
        " https://grokipedia.com/page/NVIDIA_L4_vs_L40S and"
        " https://store.sourcecode.com/en-us/bg-bucket-compare/125/9820; 7424 lanes:"
        " https://fpsbench.com/compare/gpu/nvidia-l4-vs-nvidia-tesla-m40",
    ),
    _gpu(
        "h100", "NVIDIA H100 SXM5 (80 GB)", "hopper", (9, 0),
        memory_gib=80, bandwidth_gb=3350, fp32=67.0, fp16=989.4, bf16=989.4, tf32=494.7, tdp=700,
        sms=132, nvml=("H100 80GB HBM3",),
        source="NVIDIA H100 data sheet, halved from 1979 (FP16, BF16) and 989 (TF32) with sparsity:"
        " https://archive-lib.hpctech.co.jp/gpuproduct/nvidia-h100.html; dense:"
        " https://glennklockwood.com/garden/processors/h100",
    ),
    _gpu(
        "h200", "NVIDIA H200 SXM (141 GB)", "hopper", (9, 0),
        memory_gib=141, bandwidth_gb=4800, fp32=67.0, fp16=989.4, bf16=989.4, tf32=494.7, tdp=700,
        sms=132, nvml=("H200",),
        source="NVIDIA H200 data sheet; the H100's compute units:"
        " https://glennklockwood.com/garden/processors/h100; memory and TDP:"
        " https://lzwjava.github.io/nvidia-h200-gpu-specs-en",
    ),
)  # fmt: skip

DEVICES: Mapping[str, DeviceSpec] = MappingProxyType({row.name: row for row in (*_ROWS, CPU)})

TIMED = "matmul and copy timed on this GPU"
"""The source of a GPU that the table lacks (profiler/timing/gpu_rates.py)."""

_adopted: dict[str, DeviceSpec] = {}


# --- by name --------------------------------------------------------------------------------------


def device_names() -> tuple[str, ...]:
    """The names `lookup` knows, `cpu` among them, in alphabetical order."""
    return tuple(sorted(DEVICES))


def short_name(name: str) -> str:
    """Return what `--device` would call a GPU: ``NVIDIA GeForce RTX 3060`` is ``rtx-3060``."""
    short = re.sub(r"[^a-z0-9]+", "-", name.strip().lower()).strip("-")
    return short.removeprefix("nvidia-").removeprefix("geforce-").removeprefix("tesla-")


def adopt(spec: DeviceSpec) -> None:
    """Let `lookup` find a GPU of this machine that the table lacks."""
    _adopted[short_name(spec.name)] = spec


def lookup(name: str) -> DeviceSpec:
    """Find a device by its name; case, blanks and underscores do not matter.

    Raises:
        UnknownNameError: no such device; it carries near names.
    """
    wanted = short_name(name)
    if wanted in _adopted:
        return _adopted[wanted]
    if wanted not in DEVICES:
        raise UnknownNameError(
            kind="device", name=name, known=DEVICES, hint="`budgetplan devices` lists them"
        )
    return DEVICES[wanted]


def match_nvml(nvml_name: str, *, memory_bytes: int | None = None) -> DeviceSpec | None:
    """Recognise a GPU by the name the driver gives it; None for one that is not in the table.

    Args:
        nvml_name: what `nvmlDeviceGetName` says; older drivers leave the ``NVIDIA`` out.
        memory_bytes: its memory, where known. Cards of one name come in several sizes (the
            RTX 3050 with 6 and 8 GB); a size off by more than a tenth is another card.
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


_MEASURED_CONTEXTS = {
    "t4": CudaContext(
        nbytes=round(140.875 * MIB),
        is_assumed=False,
        source="fitcheck-llm 0.3.1, 69 of its 79 runs on a Tesla T4",
    ),
    "rtx-3090": CudaContext(
        nbytes=256 * MIB,
        is_assumed=False,
        source="torch 2.7.1+cu128, https://github.com/invoke-ai/InvokeAI/issues/9413",
    ),
}
"""Context of a PyTorch process, by device. A measurement on one GPU is not used for another."""

ASSUMED_CONTEXT = CudaContext(
    nbytes=300 * MIB,
    is_assumed=True,
    source="about 300 MB since CUDA 11.7, which loads kernels lazily"
    " (https://github.com/pytorch/pytorch/issues/107667)",
)
"""Assumption for every other GPU. Other reports: 400 MB (pytorch issue 109888), 280 MiB for the
first GPU of xMem (`permanent_gpu_memory_in_gb`)."""

_NO_CONTEXT = CudaContext(nbytes=0, is_assumed=False, source="a CPU has no CUDA context")


def cuda_context(spec: DeviceSpec) -> CudaContext:
    """Return the CUDA context of a PyTorch process on a device."""
    if not spec.is_cuda:
        return _NO_CONTEXT
    return _MEASURED_CONTEXTS.get(spec.name, ASSUMED_CONTEXT)


_THREADS_PER_MULTIPROCESSOR = {(7, 5): 1024, (8, 6): 1536, (8, 7): 1536, (8, 9): 1536}

_THREADS_PER_MULTIPROCESSOR_BY_MAJOR = {7: 2048, 8: 2048, 9: 2048, 10: 2048, 11: 1536, 12: 1536}


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
"""CUBLAS_WORKSPACE_CONFIG=:4096:2:16:8, the default before Hopper: 8.125 MiB."""

HOPPER_CUBLAS_WORKSPACE_BYTES = 8 * 4096 * KIB
"""The default of compute capability 9 and above: 32 MiB."""


@cache
def _installed_torch() -> str:
    return version("torch")  # looks for a file every time


def workspaces_of(spec: DeviceSpec, *, torch_version: str | None = None) -> tuple[int, ...]:
    """Bytes of the workspaces that cuBLAS has of the caching allocator in a step.

    Their lifetime changed. torch 2.15 takes one for one operation and frees it right after
    (https://github.com/pytorch/pytorch/pull/194311, `getCurrentCUDABlasHandleWithWorkspace` in
    ATen/cuda/CUDAContextLight.h), so it is a temporary of every matrix product. Before, the first
    product of a handle takes it and keeps it, and autograd's thread has a handle of its own: two
    (torch 2.14.1's own code was seen to, studies/hollow_gpu). Sizes: ``parseChosenWorkspaceSize``,
    aten/src/ATen/cuda/CublasHandlePool.cpp (https://github.com/pytorch/pytorch/pull/91564).

    Args:
        spec: the device.
        torch_version: of the training; None for the installed one.
    """
    if spec.compute_capability is None:
        return ()  # no cuBLAS on a processor
    size = CUBLAS_WORKSPACE_BYTES
    if spec.compute_capability >= (9, 0):
        size = HOPPER_CUBLAS_WORKSPACE_BYTES
    major, minor = (torch_version or _installed_torch()).split(".")[:2]
    handles = 1 if (int(major), int(minor)) >= (2, 15) else 2
    return (size,) * handles


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiprocessors:
    """How much runs on a GPU at once.

    Attributes:
        count: of streaming multiprocessors.
        threads: that one of them holds.
    """

    count: int
    threads: int


def device_spec(name: str) -> DeviceSpec:
    """Return the device to plan for: ``cpu`` or a name of the sourced table.

    Raises:
        UnknownNameError: no such device.
    """
    return CPU if name == "cpu" else lookup(name)


def device_label(name: str, note: str = "") -> DeviceLabel:
    """Return what a report says of its device."""
    spec = device_spec(name)
    return DeviceLabel(
        name=spec.name,
        full_name=spec.full_name,
        kind="cuda" if spec.is_cuda else "cpu",
        memory_bytes=spec.memory_bytes,
        note=note,
    )
