"""The devices that can be planned for, each number with its source.

Pieces: `DeviceSpec` (one row), `lookup` and `device_names` (by name), `match_nvml` (by the driver's
name), `cuda_context`, `multiprocessors` and `workspaces_of` (memory of a CUDA process beside its
tensors).

Conventions. Throughputs are peaks at the boost clock and dense: numbers that a data sheet prints
"with sparsity" are halved here. Tensor throughputs accumulate in FP32, as training does. GeForce
cards do that at half the rate of FP16 accumulation, data-centre cards at the full rate.
``memory_bytes`` is the nominal size in GiB; the driver reserves a small part. A number without a
source is None.

Sources. A row names NVIDIA's document. ``second-hand`` marks the numbers that were read in a
reprint or a report, because NVIDIA's own document could not be seen; the page follows. ``derived``
marks numbers that were computed:

    FP32              SMs x FP32 lanes of an SM x 2 x boost clock. An SM has 64 lanes on Volta,
                      Turing and GA100, and 128 on GA10x, Ada and Hopper (architecture white papers)
    GeForce tensor    on GA10x and Ada, FP16 and BF16 have twice the rate of FP32 and TF32 has the
                      same rate, as printed for the RTX 3090 (GA102 white paper, appendix A) and the
                      RTX 4090 (Ada white paper)

Compute capabilities: https://developer.nvidia.com/cuda-gpus and
https://developer.nvidia.com/cuda-legacy-gpus.
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
    """Published numbers of a device. A multiply-add counts as two operations.

    Attributes:
        name: name for `--device`.
        full_name: name that its maker uses.
        architecture: volta, turing, ampere, ada, hopper; None for a CPU.
        compute_capability: (major, minor); None for a CPU.
        memory_bytes: nominal size of its memory.
        memory_bandwidth_bytes_per_second: peak bandwidth of its memory.
        fp32_flops: peak throughput of the FP32 units.
        fp16_tensor_flops: peak throughput of the tensor cores for FP16, dense, accumulating in
            FP32; None without tensor cores.
        bf16_tensor_flops: the same for BF16; None before Ampere, which introduced it.
        tf32_tensor_flops: the same for TF32.
        tdp_watts: power limit of the board.
        idle_watts: measured power of an idle board.
        sm_count: number of streaming multiprocessors.
        nvml_names: names that `nvmlDeviceGetName` returns, without the leading ``NVIDIA``.
        source: documents and pages of the numbers, and how derived ones were computed.
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
        """Whether the device is an NVIDIA GPU."""
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
    """Return one row, given in the units of a data sheet: GiB, GB/s, TFLOPS, W."""

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


_GA102_PAPER = (
    "NVIDIA Ampere GA102 GPU Architecture, white paper V2.0, appendix A"
    " (https://docslib.org/doc/759549/nvidia-ampere-ga102-gpu-architecture-whitepaper)"
)

_ADA_PAPER = (
    "NVIDIA Ada GPU Architecture, white paper V2.01 (https://www.scribd.com/document/656196379/004)"
)

_A100_SHEET = (
    "NVIDIA A100 Tensor Core GPU, data sheet 1758950-r4 (https://www.nvidia.com/content/dam/en-zz/"
    "Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf), column SXM"
    "; second-hand: all numbers, dense (https://glennklockwood.com/garden/processors/A100); SMs"
    " (deviceQuery output, https://upb-pc2.atlassian.net/wiki/spaces/PC2DOK/pages/1900609)"
)

_KITGURU = "https://kitguru.net/?p=416788, NVIDIA's table of the SUPER launch"

_ROWS = (
    _gpu(
        "gtx-1650", "NVIDIA GeForce GTX 1650 (GDDR5)", "turing", (7, 5),
        memory_gib=4, bandwidth_gb=128, fp32=2.984, fp16=None, tdp=75, sms=14,
        nvml=("GeForce GTX 1650",),
        source="GeForce GTX 1650, product page; second-hand: 896 lanes at 1665 MHz, memory and "
        "power (https://www.notebookcheck.it/NVIDIA-GeForce-GTX-1650-Desktop.449959.0.html); "
        "derived: FP32. TU117 has no tensor cores",
    ),
    _gpu(
        "rtx-2060", "NVIDIA GeForce RTX 2060 (6 GB)", "turing", (7, 5),
        memory_gib=6, bandwidth_gb=336, fp32=6.45, fp16=25.8, tdp=160, idle=10.4, sms=30,
        nvml=("GeForce RTX 2060",),
        source="GeForce RTX 2060, product page; second-hand: 30 SMs at 1680 MHz, 51.6 TFLOPS "
        f"with FP16 accumulation ({_KITGURU}); 192 bits at 14 Gbit/s, 160 W (https://fudzilla.com/"
        "news/graphics/47888-nvidia-announces-the-geforce-rtx-2060); idle power of a Founders "
        "Edition (https://www.tomshardware.com/reviews/nvidia-geforce-rtx-2060-ray-tracing-"
        "turing,5960-8.html); derived: FP32, FP16 as half of FP16 accumulation",
    ),
    _gpu(
        "rtx-2060-super", "NVIDIA GeForce RTX 2060 SUPER", "turing", (7, 5),
        memory_gib=8, bandwidth_gb=448, fp32=7.18, fp16=28.7, tdp=175, sms=34,
        nvml=("GeForce RTX 2060 SUPER",),
        source="GeForce RTX 2060 SUPER, product page; second-hand: 34 SMs at 1650 MHz, 57.4 "
        f"TFLOPS with FP16 accumulation, memory ({_KITGURU}); 175 W (https://gist.github.com/Fuwn/"
        "7e5d286b08ff801e86d57a138e90d710); derived: FP32, FP16 as half of FP16 accumulation",
    ),
    _gpu(
        "rtx-3050", "NVIDIA GeForce RTX 3050 (8 GB)", "ampere", (8, 6),
        memory_gib=8, bandwidth_gb=224, fp32=9.1, fp16=18.2, bf16=18.2, tf32=9.1, tdp=130, sms=20,
        nvml=("GeForce RTX 3050",),
        source="GeForce RTX 3050, product page; second-hand: 2560 lanes at 1777 MHz, 9.1 TFLOPS, "
        "224 GB/s, 130 W (https://www.geektopia.es/es/technology/2022/01/04/noticias/nvidia-"
        "anuncia-la-geforce-rtx-3050-costara-249-dolares-y-llega-el-27-de-enero.html); derived: "
        f"tensor throughputs by the ratios of {_GA102_PAPER}",
    ),
    _gpu(
        "rtx-3060", "NVIDIA GeForce RTX 3060 (12 GB)", "ampere", (8, 6),
        memory_gib=12, bandwidth_gb=360, fp32=12.74, fp16=25.5, bf16=25.5, tf32=12.74, tdp=170,
        sms=28, nvml=("GeForce RTX 3060",),
        source="GeForce RTX 3060, product page; second-hand: 3584 lanes at 1.78 GHz, 170 W "
        "(PCWorld, February 2021, page 31, https://issuhub.com/view/index/32366?pageIndex=31); "
        "1777 MHz, 360 GB/s (https://www.svethardware.cz/vychazi-recenze-geforce-rtx-4060-o-18-"
        "rychlejsi-nez-rtx-3060-prekona-rx-7600/59705); derived: FP32, tensor throughputs by the "
        f"ratios of {_GA102_PAPER}",
    ),
    _gpu(
        "rtx-3090", "NVIDIA GeForce RTX 3090", "ampere", (8, 6),
        memory_gib=24, bandwidth_gb=936, fp32=35.6, fp16=71.0, bf16=71.0, tf32=35.6, tdp=350,
        sms=82, nvml=("GeForce RTX 3090",),
        source=f"{_GA102_PAPER}, table GeForce RTX 3090, dense",
    ),
    _gpu(
        "rtx-4060", "NVIDIA GeForce RTX 4060", "ada", (8, 9),
        memory_gib=8, bandwidth_gb=272, fp32=15.11, fp16=30.23, bf16=30.23, tf32=15.11, tdp=115,
        sms=24, nvml=("GeForce RTX 4060",),
        source="GeForce RTX 4060, product page; second-hand: 3072 lanes, 15 TFLOPS, 115 W "
        "(https://thelatestnews.world/nvidia-launches-the-geforce-rtx-4060-ti-for-449-euros-and-"
        "the-rtx-4060-will-arrive-in-july-for-335-euros); 2460 MHz, 128 bits at 17 Gbit/s "
        "(https://www.itcreations.com/nvidia-gpu/nvidia-geforce-rtx-4060-gpu); derived: FP32, "
        f"bandwidth, tensor throughputs by the ratios of {_ADA_PAPER}",
    ),
    _gpu(
        "rtx-4090", "NVIDIA GeForce RTX 4090", "ada", (8, 9),
        memory_gib=24, bandwidth_gb=1008, fp32=82.6, fp16=165.2, bf16=165.2, tf32=82.6, tdp=450,
        sms=128, nvml=("GeForce RTX 4090",),
        source=f"{_ADA_PAPER}, table GeForce RTX 4090; second-hand: all numbers, dense "
        "(https://waredb.com/processor/nvidia-geforce-rtx-4090)",
    ),
    _gpu(
        "jetson-orin-nano", "NVIDIA Jetson Orin Nano (8 GB, 15 W)", "ampere", (8, 7),
        memory_gib=8, bandwidth_gb=68, fp32=1.28, fp16=10.0, bf16=10.0, tf32=5.0, tdp=15, sms=8,
        nvml=("Orin (nvgpu)",),
        source="Jetson Orin Nano Series, data sheet: 1024 lanes, 32 tensor cores, 625 MHz, 20 "
        "TOPS of dense INT8, 128-bit LPDDR5 (https://www.scribd.com/document/673174036/Orin-nano-"
        "datasheet); second-hand: 68 GB/s before the Super mode (https://www.brojogopalsapui.com/"
        "ai-foundations/sub_contents/AI_hardware/jetson_orin_nano_light.html); derived: FP32, "
        "FP16 and BF16 at half of INT8, TF32 at a quarter, as on GA100. The processor uses the "
        "same memory",
    ),
    _gpu(
        "t4", "NVIDIA T4", "turing", (7, 5),
        memory_gib=16, bandwidth_gb=320, fp32=8.1, fp16=65.0, tdp=70, sms=40,
        nvml=("Tesla T4", "T4"),
        source="NVIDIA T4, data sheet; second-hand: 2560 lanes, 320 tensor cores that accumulate "
        "FP16 in FP32 (https://archive-lib.hpctech.co.jp/gpuproduct/tesla-t4.html); 70 W "
        "(https://networkoutlet.com/blogs/articles/nvidia-tesla-t4-16gb-gpu-specs-performance-"
        "use-cases); 8.1 TFLOPS, 16 GB and 320 GB/s (https://heise.de/news/Nvidia-Tesla-P4-K-I-"
        "Beschleuniger-mit-8-TFlops-bei-75-Watt-Leistungsaufnahme-4164684.html); 65 TFLOPS "
        "(https://geektopia.es/es/technology/2018/09/13/noticias/nvidia-presenta-la-nueva-tesla-"
        "t4-basada-en-turing-orientada-a-inteligencia-artificial.html)",
    ),
    _gpu(
        "v100", "NVIDIA V100 SXM2 (16 GB)", "volta", (7, 0),
        memory_gib=16, bandwidth_gb=900, fp32=15.7, fp16=125.0, tdp=300, sms=80,
        nvml=("Tesla V100-SXM2-16GB", "V100-SXM2-16GB"),
        source="NVIDIA Tesla V100 GPU Architecture, white paper WP-08608-001; 125 TFLOPS "
        "(https://developer.nvidia.com/programming-tensor-cores-cuda-9-0); second-hand: 80 SMs "
        "and 16 GB (a reprint of its table 1, http://www.xenon.com.au/nvidia-tesla-volta-worlds-"
        "advanced-data-center-gpu/); 300 W (https://www.techrival.com/nvidia-volta-tesla-v100-"
        "cards-detailed-150w-single-slot-300w-dual-slot-gv100-powered-pcie-accelerators/); 1530 "
        "MHz and 15.7 TFLOPS (https://cvw.cac.cornell.edu/gpu-architecture/gpu-example-tesla-"
        "v100/tesla)",
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
        source=f"{_ADA_PAPER}, which covers the L4, and the L4 data sheet; second-hand: 300 GB/s, "
        "242 TFLOPS (FP16, BF16) and 120 (TF32) with sparsity, halved here, 2040 MHz "
        "(https://store.sourcecode.com/en-us/bg-bucket-compare/125/9820); 72 W "
        "(https://aiwiki.ai/wiki/nvidia_l4); derived: 58 SMs from 30.3 TFLOPS at 2040 MHz",
    ),
    _gpu(
        "h100", "NVIDIA H100 SXM5 (80 GB)", "hopper", (9, 0),
        memory_gib=80, bandwidth_gb=3350, fp32=67.0, fp16=989.4, bf16=989.4, tf32=494.7, tdp=700,
        sms=132, nvml=("H100 80GB HBM3",),
        source="NVIDIA H100 Tensor Core GPU, data sheet, column SXM; second-hand: 1979 TFLOPS "
        "(FP16, BF16) and 989 (TF32) with sparsity, halved here, memory and power "
        "(https://archive-lib.hpctech.co.jp/gpuproduct/nvidia-h100.html); SMs and dense numbers "
        "to four digits (https://glennklockwood.com/garden/processors/h100)",
    ),
    _gpu(
        "h200", "NVIDIA H200 SXM (141 GB)", "hopper", (9, 0),
        memory_gib=141, bandwidth_gb=4800, fp32=67.0, fp16=989.4, bf16=989.4, tf32=494.7, tdp=700,
        sms=132, nvml=("H200",),
        source="NVIDIA H200 Tensor Core GPU, data sheet; 141 GB and 700 W (NVIDIA's system "
        "description for MLPerf Inference 4.1, https://raw.githubusercontent.com/mlcommons/"
        "inference_results_v4.1/main/closed/NVIDIA/systems/H200-SXM-141GBx8_TRT_MaxQ.json); "
        "second-hand: the compute units of the H100 "
        "(https://glennklockwood.com/garden/processors/h100); 4.8 TB/s "
        "(https://lzwjava.github.io/nvidia-h200-gpu-specs-en)",
    ),
)  # fmt: skip

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
    """Make `lookup` find a GPU of this machine that is not in the table."""
    _adopted[short_name(spec.name)] = spec


def lookup(name: str) -> DeviceSpec:
    """Return the device with a name; case, blanks and underscores do not matter.

    Raises:
        UnknownNameError: no such device; the error has similar names.
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
"""Default before Hopper, CUBLAS_WORKSPACE_CONFIG=:4096:2:16:8: 8.125 MiB."""

HOPPER_CUBLAS_WORKSPACE_BYTES = 8 * 4096 * KIB
"""Default on compute capability 9 and above: 32 MiB."""


@cache
def _installed_torch() -> str:
    return version("torch")  # reads a file, hence the cache


def workspaces_of(spec: DeviceSpec, *, torch_version: str | None = None) -> tuple[int, ...]:
    """Return the bytes of each cuBLAS workspace that the caching allocator serves in a step.

    Since torch 2.15 a workspace is a temporary of every matrix product: it is allocated before and
    freed after the operation (https://github.com/pytorch/pytorch/pull/194311,
    `getCurrentCUDABlasHandleWithWorkspace` in ATen/cuda/CUDAContextLight.h). Before, a cuBLAS
    handle allocated its workspace for its first product and kept it. Backward runs in a thread
    with a handle of its own, so there were two (seen with torch 2.14.1, studies/hollow_gpu).

    Sizes: ``parseChosenWorkspaceSize``, aten/src/ATen/cuda/CublasHandlePool.cpp
    (https://github.com/pytorch/pytorch/pull/91564).

    Args:
        spec: the device.
        torch_version: version of PyTorch that trains; None for the installed one.
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
