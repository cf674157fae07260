"""Zeus' counters: its own classes over files, a stand-in for the driver, and made-up devices."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from profiler.devices.energy_meter import EnergyMeter
from profiler.devices.energy_source import SOURCE_VARIABLE, cpu_source, gpu_source, wants_zeus
from profiler.devices.table import lookup
from profiler.devices.zeus_counters import ZeusChip, ZeusGpu, ZeusPackages, open_zeus
from profiler.errors import DeviceError, UsageError
from profiler.running.emulated import libraries
from profiler.running.emulated.gpu import emulated_environment

ROOT = Path(__file__).parents[3]


@pytest.fixture
def _zeus() -> None:
    pytest.importorskip("zeus.device", reason="zeus is not installed")


def test_the_drivers_own_counters_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("", "driver"):
        monkeypatch.setenv(SOURCE_VARIABLE, given)
        assert not wants_zeus()
    gpu = DeviceError("no GPU")
    assert gpu_source(gpu) is gpu


def test_another_source_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOURCE_VARIABLE, "nvidia-smi")
    with pytest.raises(UsageError, match="driver or zeus, got 'nvidia-smi'"):
        gpu_source(DeviceError("no GPU"))
    with pytest.raises(UsageError, match="driver or zeus, got 'nvidia-smi'"):
        cpu_source()


@pytest.mark.parametrize(("source", "code"), [("zeus", 5), ("nvidia-smi", 2)])
def test_a_measurement_without_zeus_ends_with_the_code_of_a_device(
    source: str, code: int, tmp_path: Path
) -> None:
    (tmp_path / "zeus.py").write_text("raise ModuleNotFoundError('No module named zeus')\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = "measure --model resnet18 --method bitfit --batch-size 1 --steps 1 --device cpu"
    done = subprocess.run(
        [sys.executable, "-c", "from planner.cli import main; main()", *command.split()],
        env=os.environ | {SOURCE_VARIABLE: source, "PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    wanted = {"zeus": "pip install 'budgetplan[zeus]'", "nvidia-smi": "got 'nvidia-smi'"}
    assert wanted[source] in done.stderr


@pytest.mark.usefixtures("_zeus")
def test_a_machine_without_counters_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOURCE_VARIABLE, "zeus")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # also where there is a GPU
    found = gpu_source(DeviceError("no GPU"))
    assert isinstance(found, DeviceError)
    assert "Zeus finds no counter" in str(found)


EMULATED = """
import time
from profiler.devices.energy_meter import EnergyMeter
from profiler.devices.energy_source import gpu_source
from profiler.errors import DeviceError
with EnergyMeter(gpu_source(DeviceError("not read"))) as meter:
    time.sleep(1.0)
print(meter.energy.source, meter.energy.method, meter.energy.watts)
"""


@pytest.mark.usefixtures("_zeus")
def test_zeus_reads_the_counter_of_an_emulated_driver() -> None:
    """The emulated GPU draws 100 W."""
    if reason := libraries.why_not_emulated():
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, "-c", EMULATED], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | emulated_environment(lookup("rtx-3060")) | {SOURCE_VARIABLE: "zeus"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    name, version, kind, method, watts = done.stdout.split()
    assert (name, version[0].isdigit(), kind, method) == ("zeus", True, "NVIDIAGPU", "counter")
    assert float(watts) == pytest.approx(100.0, rel=0.15)


def gpu_with(**readings: int) -> Any:
    """A GPU of Zeus' own class: the given readings, and Zeus' error for all others."""
    from zeus.device.gpu.common import GPU, ZeusGPUNotSupportedError

    def refuse(self: object) -> int:
        raise ZeusGPUNotSupportedError("not supported")

    def reading(value: int) -> Callable[[object], int]:
        return lambda self: value

    found: dict[str, Any] = dict.fromkeys(GPU.__abstractmethods__, refuse)
    found |= {name: reading(value) for name, value in readings.items()}
    return type("MadeUpGPU", (GPU,), found)(0)


@pytest.mark.usefixtures("_zeus")
def test_a_gpu_that_reports_an_average_power_alone_is_polled() -> None:
    source = ZeusGpu(gpu_with(get_average_power_usage=150_000, get_gpu_temperature=61))
    assert (source.counter_joules(), source.power_watts()) == (None, 150.0)
    assert source.celsius() == 61.0
    with EnergyMeter(source) as meter:
        time.sleep(0.3)
    assert meter.energy.method == "power"
    assert meter.energy.watts == pytest.approx(150.0, rel=0.05)
    assert meter.energy.source.endswith("MadeUpGPU")


@pytest.mark.usefixtures("_zeus")
def test_units_of_a_gpus_readings() -> None:
    source = ZeusGpu(gpu_with(get_total_energy_consumption=5000, get_instant_power_usage=70_500))
    assert (source.counter_joules(), source.power_watts()) == (5.0, 70.5)
    assert source.celsius() is None


def chip_with(measurement: object) -> Any:
    """A chip of Zeus' own class with one measurement."""
    from zeus.device.soc.common import EmptySoC

    read = {"get_total_energy_consumption": lambda self: measurement}
    return type("MadeUpChip", (EmptySoC,), read)()


@pytest.mark.usefixtures("_zeus")
def test_a_chips_energy_is_that_of_the_board_or_the_sum_of_its_parts() -> None:
    from zeus.device.soc.apple import AppleSiliconMeasurement
    from zeus.device.soc.common import EmptySoC
    from zeus.device.soc.jetson import JetsonMeasurement

    board = JetsonMeasurement(cpu_energy_mj=1000.0, gpu_energy_mj=2000.0, total_energy_mj=4000.0)
    assert ZeusChip(chip_with(board)).counter_joules() == 4.0
    # a cluster contains its cores, and the total of the CPU both
    apple = AppleSiliconMeasurement(
        cpu_total_mj=1000, performance_cores_mj=[300, 300], performance_cluster_mj=[700],
        dram_mj=500, gpu_mj=2000, gpu_sram_mj=None, ane_mj=0,
    )  # fmt: skip
    assert ZeusChip(chip_with(apple)).counter_joules() == 3.5
    assert ZeusChip(chip_with(JetsonMeasurement(gpu_energy_mj=2000.0))).counter_joules() is None
    assert ZeusChip(EmptySoC()).counter_joules() is None


@pytest.mark.usefixtures("_zeus")
def test_packages_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeus reads the files of the kernel; a zone that contains the packages is not added."""
    from zeus.device import cpu as zeus_cpu
    from zeus.device.cpu import rapl

    counters = []
    for number, (name, microjoules) in enumerate([("package-0", 5), ("package-1", 7), ("psys", 9)]):
        zone = tmp_path / f"intel-rapl:{number}"
        zone.mkdir()
        (zone / "name").write_text(f"{name}\n")
        (zone / "max_energy_range_uj").write_text("1000000000\n")
        counters.append(zone / "energy_uj")
        counters[-1].write_text(f"{microjoules}000000\n")
    monkeypatch.setattr(rapl, "RAPL_DIR", str(tmp_path))
    monkeypatch.setattr(zeus_cpu, "_cpus", None)
    rapl.rapl_is_available.cache_clear()
    try:
        source = open_zeus(on_cuda=False)
        assert source.counter_joules() == 12.0
        counters[1].write_text("8500000\n")
        assert source.counter_joules() == 13.5
        assert (source.power_watts(), source.source.split()[-1]) == (None, "RAPLCPU")
    finally:
        rapl.rapl_is_available.cache_clear()


@pytest.mark.usefixtures("_zeus")
def test_no_package_is_an_error() -> None:
    with pytest.raises(DeviceError, match="no device with a counter"):
        ZeusPackages([])
