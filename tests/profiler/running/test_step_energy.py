"""Energy of repeated steps on recorded GPUs and on counters in files, in closed form."""

from __future__ import annotations

from pathlib import Path

import pytest

from profiler.devices.energy_meter import EnergyMeter
from profiler.devices.rapl import open_packages
from profiler.devices.recorded_gpu import RecordedGpu, Sample
from profiler.running.step_energy import measure_step_energy, steps_in_window


def gpu_of(watts: list[float]) -> RecordedGpu:
    """A GPU with a counter; each power lasts a second."""
    joules, samples = 0.0, []
    for tenth in range(10 * len(watts) + 1):
        samples.append(
            Sample(seconds=tenth / 10, used_bytes=0, power_watts=None, counter_joules=joules)
        )
        joules += watts[min(tenth // 10, len(watts) - 1)] / 10
    return RecordedGpu(
        nvml_name="NVIDIA GeForce RTX 3090", memory_bytes=24 << 30, compute_capability=(8, 6),
        samples=samples, origin="made up",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("step_seconds", "steps"), [(0.05, 20), (0.3, 4), (1.0, 1), (7.0, 1), (60.0, 1), (0.0, 1)]
)
def test_a_window_is_longer_than_the_sensor_needs(step_seconds: float, steps: int) -> None:
    assert steps_in_window(step_seconds) == steps


def test_the_energy_of_a_step_is_the_median_of_the_windows() -> None:
    gpu = gpu_of([100.0, 300.0, 110.0, 0.0])
    found = measure_step_energy(
        lambda: gpu.sleep(0.25), EnergyMeter(gpu), step_seconds=0.25, idle_watts=20.0
    )
    assert found.steps == 4
    assert found.windows == pytest.approx((25.0, 75.0, 27.5))
    assert found.joules == pytest.approx(27.5)
    assert found.spread == pytest.approx(50.0 / 27.5)
    assert found.resolution == pytest.approx(0.1)
    assert (found.method, found.idle_watts, found.reason) == ("counter", 20.0, None)


def test_a_device_without_sensors_has_a_reason() -> None:
    samples = [Sample(seconds=0.0, used_bytes=0, power_watts=None, counter_joules=None)]
    gpu = RecordedGpu(
        nvml_name="NVIDIA GeForce RTX 3090", memory_bytes=1, compute_capability=(8, 6),
        samples=samples, origin="made up",
    )  # fmt: skip
    found = measure_step_energy(lambda: gpu.sleep(1), EnergyMeter(gpu), step_seconds=1.0)
    assert found.joules is None
    assert "neither energy nor power" in str(found.reason)


def package(
    folder: Path, number: int, microjoules: int, limit: int = 1000, *, name: str = "package"
) -> Path:
    path = folder / f"intel-rapl:{number}"
    path.mkdir()
    (path / "name").write_text(f"{name}-{number}\n" if name == "package" else f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{limit}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path / "energy_uj"


def test_packages_add_up_and_their_counters_wrap(tmp_path: Path) -> None:
    first, second = package(tmp_path, 0, 900), package(tmp_path, 1, 100)
    part = tmp_path / "intel-rapl:0:0"
    part.mkdir()
    (part / "name").write_text("core\n")
    platform = package(tmp_path, 2, 100, name="psys")  # contains the packages
    packages = open_packages(tmp_path)
    assert packages is not None
    assert packages.counter_joules() == 0.0
    first.write_text("50")
    second.write_text("300")
    platform.write_text("900")
    assert packages.counter_joules() == pytest.approx((150 + 200) / 1e6)
    first.unlink()
    assert packages.counter_joules() is None


def test_counters_that_only_root_reads_are_no_counters(tmp_path: Path) -> None:
    assert open_packages(tmp_path) is None
    package(tmp_path, 0, 1).write_text("")
    assert open_packages(tmp_path) is None
