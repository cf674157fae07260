"""The device table against the data sheets' own numbers, and against the chips' arithmetic."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from profiler.devices.table import (
    CPU,
    DEVICES,
    LT_WORKSPACE_VARIABLE,
    UNIFIED_VARIABLE,
    WORKSPACE_VARIABLE,
    DeviceSpec,
    cuda_context,
    device_names,
    lookup,
    match_nvml,
    multiprocessors,
    workspace_settings,
    workspaces_of,
)
from profiler.errors import DeviceError, UnknownNameError
from profiler.units import GIB, MIB

GPUS = [spec for spec in DEVICES.values() if spec.is_cuda]

# name: GiB, GB/s, FP32, FP16, BF16, TF32 (dense TFLOPS), W, SMs: copied from the documents by hand
DATA_SHEETS = {
    "gtx-1650": (4, 128, 2.984, None, None, None, 75, 14),
    "rtx-2060": (6, 336, 6.45, 25.8, None, None, 160, 30),
    "rtx-2060-super": (8, 448, 7.18, 28.7, None, None, 175, 34),
    "rtx-3050": (8, 224, 9.1, 18.2, 18.2, 9.1, 130, 20),
    "rtx-3060": (12, 360, 12.74, 25.5, 25.5, 12.74, 170, 28),
    "rtx-3090": (24, 936, 35.6, 71, 71, 35.6, 350, 82),
    "rtx-4060": (8, 272, 15.11, 30.23, 30.23, 15.11, 115, 24),
    "rtx-4090": (24, 1008, 82.6, 165.2, 165.2, 82.6, 450, 128),
    "jetson-orin-nano": (8, 68, 1.28, 10, 10, 5, 15, 8),
    "t4": (16, 320, 8.1, 65, None, None, 70, 40),
    "v100": (16, 900, 15.7, 125, None, None, 300, 80),
    "a100-40gb": (40, 1555, 19.5, 312, 312, 156, 400, 108),
    "a100-80gb": (80, 2039, 19.5, 312, 312, 156, 400, 108),
    "l4": (24, 300, 30.3, 121, 121, 60, 72, 58),
    "h100": (80, 3350, 67, 989.4, 989.4, 494.7, 700, 132),
    "h200": (141, 4800, 67, 989.4, 989.4, 494.7, 700, 132),
}


def lanes(spec: DeviceSpec) -> int:
    return 64 if spec.compute_capability in {(6, 0), (7, 0), (7, 2), (7, 5), (8, 0)} else 128


# printed by NVIDIA (GA102, Ada and H100 white papers; data sheets): dense FP16 with FP32
# accumulation in TFLOPS, of rows whose number is derived from SMs, clock and a ratio
PRINTED_TENSOR = {
    "rtx-2080-ti": 53.8,
    "titan-rtx": 130.5,
    "rtx-3080": 59.5,
    "rtx-3070": 40.6,
    "rtx-a6000": 154.8,
    "a10": 125,
    "a30": 165,
    "a40": 149.7,
    "l40s": 362,
    "rtx-6000-ada": 364.2,
    "rtx-4080": 97.5,
    "rtx-5090": 209.5,
}


@pytest.mark.parametrize("name", PRINTED_TENSOR)
def test_derived_tensor_throughput_is_the_printed_one(name: str) -> None:
    assert lookup(name).fp16_tensor_flops == pytest.approx(PRINTED_TENSOR[name] * 1e12, rel=0.015)


def test_what_people_have_is_in_the_table() -> None:
    cards = "gtx-1060 gtx-1650 rtx-2080-ti rtx-3070 rtx-3070-laptop rtx-4070 rtx-4070-laptop"
    cards += " rtx-5070 rtx-5090-laptop t4 l4 a10 a30 a40 rtx-6000-ada a100-80gb h100 h200 b200"
    assert {*cards.split()} <= set(DEVICES)
    two_gb = [s.name for s in GPUS if s.memory_bytes == 2 * GIB]
    assert {"gt-1030", "gtx-1050", "mx450", "t400"} <= set(two_gb)


def test_a_laptop_s_power_limit_is_within_its_range() -> None:
    ranges = [(s.tdp_watts, *s.power_range_watts) for s in GPUS if s.power_range_watts]
    assert len(ranges) >= 10
    assert all(low <= watts <= high for watts, low, high in ranges)


@pytest.mark.parametrize("name", DATA_SHEETS)
def test_absolute_values(name: str) -> None:
    spec = lookup(name)
    gib, bandwidth, fp32, fp16, bf16, tf32, watts, sms = DATA_SHEETS[name]
    assert spec.memory_bytes == gib * GIB
    assert spec.memory_bandwidth_bytes_per_second == bandwidth * 1e9
    assert spec.fp32_flops == pytest.approx(fp32 * 1e12, rel=1e-12)
    for got, printed in (
        (spec.fp16_tensor_flops, fp16),
        (spec.bf16_tensor_flops, bf16),
        (spec.tf32_tensor_flops, tf32),
    ):
        assert got == (None if printed is None else pytest.approx(printed * 1e12, rel=1e-12))
    assert (spec.tdp_watts, spec.sm_count) == (watts, sms)


@pytest.mark.parametrize("spec", GPUS, ids=lambda spec: spec.name)
def test_fp32_is_lanes_times_clock(spec: DeviceSpec) -> None:
    assert spec.sm_count is not None
    assert spec.boost_hz is not None
    expected = spec.sm_count * lanes(spec) * 2 * spec.boost_hz
    assert spec.fp32_flops == pytest.approx(expected, rel=0.01)


# dense FP16 with FP32 accumulation, as a multiple of FP32, by family
TENSOR_RATIO = {
    "GeForce 7.5": 4,
    "7.5": 8,
    "7.0": 8,
    "7.2": 8,
    "8.0": 16,
    "8.6": 4,
    "8.7": 8,
    "8.9": 4,
    "GeForce 8.6": 2,
    "GeForce 8.9": 2,
    "GeForce 12.0": 2,
    "9.0": 16,
    "10.0": 30,
}

NO_TENSOR_CORES = re.compile(r"(gtx|mx[45][05]0|t400|t600|t1000)")
"""Turing GPUs on TU116 and TU117."""


@pytest.mark.parametrize("spec", GPUS, ids=lambda spec: spec.name)
def test_tensor_throughput_is_dense_and_accumulates_in_fp32(spec: DeviceSpec) -> None:
    if spec.fp16_tensor_flops is None:
        assert spec.compute_capability is not None
        assert spec.compute_capability < (7, 0) or NO_TENSOR_CORES.match(spec.name)
        return
    assert spec.compute_capability is not None
    assert spec.fp32_flops is not None
    family = ".".join(map(str, spec.compute_capability))
    if "GeForce" in spec.full_name:
        family = f"GeForce {family}"
    # Hopper's tensor clock is lower than its FP32 clock
    tolerance = 0.09 if spec.architecture == "hopper" else 0.03
    ratio = spec.fp16_tensor_flops / spec.fp32_flops
    assert ratio == pytest.approx(TENSOR_RATIO[family], rel=tolerance)


@pytest.mark.parametrize("spec", GPUS, ids=lambda spec: spec.name)
def test_bfloat16_and_tf32_begin_with_ampere(spec: DeviceSpec) -> None:
    assert spec.compute_capability is not None
    ampere = spec.compute_capability >= (8, 0)
    assert (spec.bf16_tensor_flops is not None) == ampere
    assert (spec.tf32_tensor_flops is not None) == ampere
    if ampere:
        assert spec.bf16_tensor_flops == spec.fp16_tensor_flops
        assert spec.tf32_tensor_flops == pytest.approx(spec.fp16_tensor_flops / 2, rel=0.03)


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("v100", (7, 0)),
        ("t4", (7, 5)),
        ("rtx-2060-super", (7, 5)),
        ("gtx-1650", (7, 5)),
        ("a100-40gb", (8, 0)),
        ("rtx-3060", (8, 6)),
        ("jetson-orin-nano", (8, 7)),
        ("rtx-4060", (8, 9)),
        ("l4", (8, 9)),
        ("h200", (9, 0)),
    ],
)
def test_compute_capabilities(name: str, capability: tuple[int, int]) -> None:
    assert lookup(name).compute_capability == capability


def test_idle_power_only_where_somebody_measured_it() -> None:
    assert {s.name: s.idle_watts for s in GPUS if s.idle_watts is not None} == {"rtx-2060": 10.4}


@pytest.mark.parametrize("spec", GPUS, ids=lambda spec: spec.name)
def test_every_row_names_a_document_with_an_address(spec: DeviceSpec) -> None:
    assert re.search(r"https://\S+\.\S+", spec.source)
    assert "second-hand" in spec.source or "white paper" in spec.source
    assert not re.search("grokipedia|hmc-tech|fpsbench|benchmark|topcpu|sysrqmts", spec.source)


# --- by name --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["rtx-2060-super", "RTX 2060 SUPER", "rtx_2060_super", "NVIDIA GeForce RTX 2060 SUPER"],
)
def test_lookup_is_lenient_about_spelling(name: str) -> None:
    assert lookup(name).name == "rtx-2060-super"


def test_lookup_takes_the_driver_s_name_of_a_laptop_gpu() -> None:
    assert lookup("NVIDIA GeForce RTX 4070 Laptop GPU").name == "rtx-4070-laptop"


def test_lookup_of_an_unknown_name_offers_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="unknown device 'a100'") as caught:
        lookup("a100")
    assert {"a100-40gb", "a100-80gb"} <= set(caught.value.near)
    with pytest.raises(UnknownNameError, match="budgetplan devices"):
        lookup("zzzzzzzz")


def test_device_names_are_sorted_and_all_found() -> None:
    names = device_names()
    assert list(names) == sorted(names)
    assert "cpu" in names
    assert all(lookup(name).name == name for name in names)


@pytest.mark.parametrize(
    ("nvml_name", "name"),
    [
        ("NVIDIA GeForce RTX 2060 SUPER", "rtx-2060-super"),
        ("GeForce RTX 2060 SUPER", "rtx-2060-super"),
        ("NVIDIA GeForce RTX 2060", "rtx-2060"),
        ("Tesla T4", "t4"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4070 Laptop GPU", "rtx-4070-laptop"),
        ("NVIDIA L40", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GeForce RTX 2060 Mobile", None),
        ("Quadro M1000M", None),
    ],
)
def test_match_nvml(nvml_name: str, name: str | None) -> None:
    found = match_nvml(nvml_name)
    assert (found.name if found else None) == name


def test_match_nvml_tells_sizes_apart() -> None:
    assert match_nvml("NVIDIA GeForce RTX 3050", memory_bytes=8192 * MIB) is lookup("rtx-3050")
    assert match_nvml("NVIDIA GeForce RTX 3050", memory_bytes=6144 * MIB) is lookup("rtx-3050-6gb")
    assert match_nvml("NVIDIA GeForce RTX 3050", memory_bytes=4096 * MIB) is None
    # what NVML reports of an H200 (143771 MiB) and of a T4 with ECC on (15360 MiB)
    assert match_nvml("NVIDIA H200", memory_bytes=143771 * MIB) is lookup("h200")
    assert match_nvml("Tesla T4", memory_bytes=15360 * MIB) is lookup("t4")


# --- besides the tensors --------------------------------------------------------------------------


def test_context_is_measured_or_says_that_it_is_assumed() -> None:
    measured, assumed = cuda_context(lookup("t4")), cuda_context(lookup("rtx-2060-super"))
    assert (measured.nbytes, measured.is_assumed) == (147718144, False)
    assert (assumed.nbytes, assumed.is_assumed) == (300 * MIB, True)
    assert cuda_context(CPU).nbytes == 0


def test_unknown_multiprocessors_are_refused() -> None:
    unknown = replace(lookup("t4"), sm_count=None)
    with pytest.raises(DeviceError, match="multiprocessors of NVIDIA T4"):
        multiprocessors(unknown)
    with pytest.raises(DeviceError, match="not known"):
        multiprocessors(replace(lookup("t4"), compute_capability=(99, 0)))


def test_cublas_workspaces() -> None:
    # ":4096:2:16:8" in KiB, as torch.cuda.memory_snapshot() shows it: 8519680 bytes
    # autograd's thread has a handle of its own, and before torch 2.15 every handle kept one
    assert workspaces_of(lookup("rtx-2060-super"), torch_version="2.14.1+cu130") == (8519680,) * 2
    assert workspaces_of(lookup("rtx-4090"), torch_version="2.15.0") == (8519680,)
    # before torch 2.12, cuBLASLt had one of its own for each handle
    assert workspaces_of(lookup("h200"), torch_version="2.12.0") == (32 * MIB,) * 2
    assert workspaces_of(lookup("h200"), torch_version="2.11.0") == (32 * MIB, 32 * MIB, MIB, MIB)
    assert workspaces_of(CPU) == ()


def test_workspaces_of_cublaslt_are_those_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def own(release: str, unified: str | None, kib: str | None = None) -> tuple[int, ...]:
        for name, value in ((UNIFIED_VARIABLE, unified), (LT_WORKSPACE_VARIABLE, kib)):
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)
        return workspaces_of(lookup("rtx-3060"), torch_version=release)[2:]

    # shared since torch 2.12, unless the variable is 0; before, unless it is 1
    assert own("2.14.1", None, "4096") == own("2.14.1", "no", "4096") == own("2.11.0", "1") == ()
    assert own("2.14.1", "0", "40960") == own("2.11.0", "0", "40960") == (40 * MIB,) * 2
    assert own("2.14.1", "0", "x") == own("2.14.1", "0", str(1 << 31)) == (MIB, MIB)
    # before torch 2.12, the size of a shared one is the limit although it is not shared
    assert own("2.11.0", None, "4096") == (4 * MIB,) * 2
    assert own("2.11.0", None, "40960") == (8519680,) * 2
    assert own("2.15.0", "0", "40960") == ()
    assert workspaces_of(lookup("rtx-3060"), torch_version="2.15.0") == (40 * MIB,)


def test_only_variables_that_change_a_workspace_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKSPACE_VARIABLE, raising=False)
    monkeypatch.setenv(LT_WORKSPACE_VARIABLE, "4096")
    monkeypatch.setenv(UNIFIED_VARIABLE, "1")
    assert workspace_settings(lookup("rtx-3060")) == ()
    monkeypatch.setenv(UNIFIED_VARIABLE, "0")
    named = (f"{LT_WORKSPACE_VARIABLE}=4096", f"{UNIFIED_VARIABLE}=0")
    assert workspace_settings(lookup("rtx-3060")) == named
    assert workspace_settings(CPU) == ()
    monkeypatch.setenv(UNIFIED_VARIABLE, "1")
    monkeypatch.setenv(WORKSPACE_VARIABLE, ":16:8")
    assert workspace_settings(lookup("rtx-3060")) == (f"{WORKSPACE_VARIABLE}=:16:8",)


def test_what_is_not_known_of_a_cpu_is_none() -> None:
    assert not CPU.is_cuda
    assert (CPU.memory_bytes, CPU.fp32_flops, CPU.tdp_watts) == (None, None, None)
